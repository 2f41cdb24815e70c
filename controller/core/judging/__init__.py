"""From totals to a judgement: is the evidence healthy, is treatment worse, is it shown safe."""
