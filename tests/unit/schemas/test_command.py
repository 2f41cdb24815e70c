"""What an operator may ask for, and what each verb needs."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.command import Command

PLAN = {
    "name": "p",
    "flag": "f",
    "stages": [{"percent": 1, "bake": "24h"}],
    "guardrails": ["error_rate < 1%"],
}


def command(verb: str, **overrides: Any) -> Command:
    """Return a command with what every one needs."""
    fields: dict[str, Any] = {
        "id": "c-1",
        "flag": "f",
        "verb": verb,
        "issuer": "ada",
        "issued_at": "2026-01-05T09:00:00Z",
    }
    return Command.model_validate({**fields, **overrides})


@pytest.mark.parametrize(
    "verb", ["pause", "resume", "reject", "step_back", "roll_back", "abort", "restart", "unfreeze"]
)
def test_most_verbs_need_nothing_more(verb: str) -> None:
    """Most verbs need no reason and no revision: an emergency is not the time for forms."""
    assert command(verb).verb == verb


@pytest.mark.parametrize(
    ("verb", "needed"),
    [
        ("approve", {"expected_revision": 3}),
        ("start", {"plan": PLAN}),
        ("promote", {"reason": "seen by hand"}),
        ("promote_full", {"reason": "seen by hand"}),
        ("freeze", {"reason": "incident 7"}),
    ],
)
def test_verb_needs(verb: str, needed: dict[str, Any]) -> None:
    """An approval needs a revision, a start its plan.

    And what goes past a gate or stops everybody a reason.
    """
    assert command(verb, **needed).verb == verb
    with pytest.raises(ValidationError, match="needs"):
        command(verb)


@pytest.mark.parametrize(
    ("verb", "overrides"),
    [
        ("pause", {"plan": PLAN}),
        ("start", {"plan": {**PLAN, "flag": "other"}}),
        ("pause", {"expected_revison": 3}),
        ("pause", {"expected_revision": -1}),
        ("pause", {"expected_revision": True}),
        ("pause", {"id": "has space"}),
        ("pause", {"issuer": ""}),
        ("pause", {"issued_at": "2026-01-05T09:00:00"}),
        ("explode", {}),
        ("freeze", {"reason": "  "}),
    ],
)
def test_ambiguous_command_is_refused(verb: str, overrides: dict[str, Any]) -> None:
    """A command that could mean something else is refused."""
    with pytest.raises(ValidationError):
        command(verb, **overrides)
