"""When a check fires, fires again and is over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.checking.checks_file import Check
from controller.checking.objectives import CheckLook, CheckState, after_look
from schemas.terms import MeasurementGap
from tests.builders import T0

SECOND = timedelta(seconds=1)


def check(**overrides: Any) -> Check:
    """Return a check of availability: two misses of three, again after a minute."""
    fields: dict[str, Any] = {"name": "up", "prometheus": "up", "at_least": 1, "again": "1m"}
    return Check.model_validate({**fields, **overrides})


def said(looks: str, **overrides: Any) -> str:
    """Return what is said look by look, every 10 s: `+` met, `-` missed, `?` no number.

    `F` fires, `.` nothing, `o` over.
    """
    made, state, found = check(**overrides), CheckState(), ""
    for number, mark in enumerate(looks):
        is_met = {"+": True, "-": False, "?": None}[mark]
        gap = MeasurementGap.NO_DATA if is_met is None else None
        outcome = after_look(made, state, CheckLook(T0 + 10 * number * SECOND, is_met, gap=gap))
        state = outcome.state
        found += {"firing": "F", "resolved": "o", None: "."}[
            None if outcome.says is None else outcome.says.value
        ]
    return found


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ("+++++", "....."),
        ("-+-", "..F"),
        ("-++-", "...."),  # one of the last three
        ("--", ".F"),
        ("--+++", ".F..o"),
        ("--++-+++", ".F.....o"),  # over only when all three have met it
        ("--------------", ".F.....F.....F"),  # again after a minute
        ("--++------", ".F.....F.."),  # a look that met it fires nothing
        ("-?-", "..F"),  # no number is neither
        ("--?????", ".F....."),
        ("--???+++", ".F.....o"),
        ("???", "..."),
    ],
)
def test_what_is_said(looks: str, expected: str) -> None:
    """Misses of the last looks, and nothing by silence."""
    assert said(looks) == expected


def test_one_miss_can_be_enough() -> None:
    """With `misses: 1` and `of: 1`."""
    assert said("+-+", misses=1, of=1) == ".Fo"


@given(st.text("+-?", max_size=60))
def test_a_firing_is_over_before_another_begins(looks: str) -> None:
    """Whatever is seen: over follows a firing, and no firing follows a look without a miss."""
    found = said(looks)
    is_firing = False
    for mark, say in zip(looks, found, strict=True):
        if say == "F":
            assert mark == "-"
            is_firing = True
        if say == "o":
            assert is_firing
            assert mark == "+"
            is_firing = False
        if mark == "?":
            assert say == "."
