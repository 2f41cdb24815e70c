"""Mistakes that tests must find: each is one replacement in the source, with its tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One mistake: what it would mean, where it is made, and which test has to fail."""

    name: str
    file: str
    good: str  # in the file exactly once
    bad: str
    found_by: str  # a test file or folder, or one test in a file
