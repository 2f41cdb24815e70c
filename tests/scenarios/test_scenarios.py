"""Whole rollouts as transcripts, to be read by people and reviewed as a diff when they change.

`ROLLOUTD_REWRITE=1 pytest tests/scenarios` writes what the machine does now into the files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controller.core.machine import COMMANDS
from tests.scenarios import diagram
from tests.scenarios.transcript import play

HERE = Path(__file__).parent
REWRITE = os.environ.get("ROLLOUTD_REWRITE") == "1"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_the_machine_does_as_the_transcript_says(path: Path) -> None:
    """Played again, a transcript says what is written in it."""
    written = path.read_text()
    played = play(written)
    if REWRITE:
        path.write_text(played)
    assert REWRITE or played == written


def test_the_phase_diagram_is_the_machine_s() -> None:
    """The page `ops/state-machine.md` is what the code draws."""
    drawn = diagram.page()
    if REWRITE:
        diagram.PAGE.write_text(drawn)
    assert REWRITE or drawn == diagram.PAGE.read_text(), (
        "ROLLOUTD_REWRITE=1 pytest tests/scenarios draws it again"
    )


def test_commands_lead_where_their_table_says() -> None:
    """Tried in every phase, each command reaches exactly the phases of its row, or is rejected."""
    for (verb, phase), reached in diagram.outcomes().items():
        row = COMMANDS.get((verb, phase))
        if row is None:
            assert reached == {None}, f"{verb} in {phase} has no row"
        else:
            assert reached - {None} == set(row.leads_to or (phase,)), f"{verb} in {phase}"
