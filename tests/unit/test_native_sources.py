"""No test runs with a native fold of other sources than those that are here."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import newer_sources


def test_a_source_in_any_folder_may_be_newer(tmp_path: Path) -> None:
    """Most of the fold is in folders of its own."""
    made, sources = tmp_path / "made.so", tmp_path / "src"
    (sources / "fold").mkdir(parents=True)
    for name in ("fold.rs", "fold/visits.rs"):
        (sources / name).touch()
        os.utime(sources / name, (1_000, 1_000))
    assert newer_sources(made, sources) == []  # nothing was made
    made.touch()
    os.utime(made, (2_000, 2_000))
    assert newer_sources(made, sources) == []
    os.utime(sources / "fold" / "visits.rs", (3_000, 3_000))
    assert newer_sources(made, sources) == ["visits.rs"]
