"""rolloutd's tests; `tests.brokers` and the builders are imported by name from here.

Commands (`python -m tests...`) too.
"""

import sys
from pathlib import Path

_LOCAL_KAFKA = str(Path(__file__).parents[1] / "ops" / "kafka")
if _LOCAL_KAFKA not in sys.path:
    sys.path.append(_LOCAL_KAFKA)
