"""Drawings of evidence: every label has room, and a goal does not look like a limit."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from controller.web.page.drawing import Level, Line, chart
from tests.builders import T0

#: Of the style sheet in narrow windows, in units of the drawing; a digit is some 0.56 of it wide.
FONT_SIZE = 17


@pytest.mark.parametrize("top", [0.5, 9.99, 1_188.0, 65_535.0])
def test_every_label_of_the_scale_has_room(top: float) -> None:
    """Without its first digit 1,188 ms is 188 ms."""
    points = [(T0 + timedelta(seconds=at), value, None, None) for at, value in ((0, 0.0), (9, top))]
    drawn = chart("a chart", [Line("new", "new", points)], [], lambda value: f"{value:,.1f} ms")
    labels = re.findall(r'<text x="(\d+)" y="\d+" text-anchor="end">([^<]* ms)</text>', drawn)
    assert len(labels) == 3
    for x, words in labels:
        assert int(x) >= 0.56 * FONT_SIZE * len(words), words


def test_what_is_to_be_reached_is_no_limit() -> None:
    """Enough evidence is good, and a margin that is passed is not."""
    points = [(T0 + timedelta(seconds=at), value, None, None) for at, value in ((0, 0.0), (9, 1.0))]
    levels = [Level("enough", 1.0, "goal"), Level("limit", 0.5)]
    drawn = chart("a chart", [Line("safe", "safe", points)], levels, str)
    assert (drawn.count('class="goal"'), drawn.count('class="margin"')) == (1, 1)
