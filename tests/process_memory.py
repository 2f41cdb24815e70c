"""What memory a process has, as Linux says it."""

from __future__ import annotations

import resource
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process. Raises OSError when it has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def private_bytes(pid: int) -> int:
    """Return how much of the resident memory no other process shares. Raises OSError."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Private_"))
