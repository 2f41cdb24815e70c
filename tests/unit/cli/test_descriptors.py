"""The daemon takes the file descriptors it may have.

So that held connections do not use up the usual 1,024.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

# : Sets limits, raises them as the daemon does, and prints what came of it. In a process of its
# own: they are the process's.
TRY = """
import resource
from controller.cli.daemon import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "limits"), [(256, 2048, "2048 2048"), (512, 512, "512 512")]
)
def test_the_soft_limit_is_raised_to_what_is_allowed(soft: int, hard: int, limits: str) -> None:
    """It ends at the hard limit, which nobody but root may raise.

    At the limit already, nothing is changed.
    """
    done = subprocess.run(
        [sys.executable, "-c", TRY.format(soft=soft, hard=hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == limits
