"""What a language model's advice is worth: gate cases with known answers, scores, and a report. Decides nothing."""
