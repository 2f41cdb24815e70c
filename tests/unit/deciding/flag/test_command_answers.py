"""What a command's answer is bound to."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from controller.core.events import CommandReceived
from controller.deciding.flag.command_answers import digest_of
from schemas.terms import CommandVerb
from tests.builders import HOUR, T0, make_plan

COMMAND = CommandReceived("c1", CommandVerb.PROMOTE, "ada", "because", T0)
#: Another value for every field that the issuer requests something with.
REQUESTED: dict[str, Any] = {
    "verb": CommandVerb.STEP_BACK,
    "issuer": "bob",
    "reason": "another",
    "expected_revision": 7,
    "plan": make_plan(),
    "to_stage": "50%",
}
#: Another value for every field that is the id itself, the time, or known to the replica alone.
OTHERS: dict[str, Any] = {
    "command_id": "c2",
    "issued_at": T0 + HOUR,
    "is_backlog": True,
    "missing": ("an advisor",),
    "warnings": ("a rule",),
    "refusals": ("a rule",),
    "gaps": ("stale",),
    "has_advisor": False,
    "for_rollout": "r1",
    "last_revision": 3,
}


def test_every_field_is_requested_or_not() -> None:
    """Whoever adds a field decides whether an id that comes again with another value is refused."""
    assert {field.name for field in fields(CommandReceived)} == {*REQUESTED, *OTHERS}


@pytest.mark.parametrize("name", REQUESTED)
def test_a_command_that_requests_something_else_is_another_one(name: str) -> None:
    """So its id was used twice, and it does not get the answer of the first."""
    other = replace(COMMAND, **{name: REQUESTED[name]})
    assert digest_of(other) != digest_of(COMMAND)


@pytest.mark.parametrize("name", OTHERS)
def test_a_repeat_is_the_same_command(name: str) -> None:
    """Whenever it is sent again, and whatever the replica that reads it knows."""
    assert digest_of(replace(COMMAND, **{name: OTHERS[name]})) == digest_of(COMMAND)


def test_a_command_that_lowers_is_bound_to_its_time() -> None:
    """Carried out twice it does no harm, and one that is not carried out does."""
    lowering = replace(COMMAND, verb=CommandVerb.ROLL_BACK)
    assert digest_of(replace(lowering, issued_at=T0 + HOUR)) != digest_of(lowering)
