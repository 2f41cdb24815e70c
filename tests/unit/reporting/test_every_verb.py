"""A verb is known wherever people meet verbs, or left out for a reason."""

from __future__ import annotations

from controller.reporting.command_lines import WHAT
from controller.reporting.fitting import SHOWN
from controller.web.access.roles import NEEDED
from schemas.command import NEEDS_PLAN
from schemas.terms import CommandVerb


def test_every_verb_is_shown_with_what_it_does() -> None:
    """Save for `start` and `apply`, which nobody can give without a plan."""
    assert set(CommandVerb) - set(SHOWN) == NEEDS_PLAN
    assert len(set(SHOWN)) == len(SHOWN)
    assert set(WHAT) == set(SHOWN)


def test_every_verb_needs_a_role_that_somebody_chose() -> None:
    """The role of a verb that nobody thought of is safe, and is not in `ops/sign-in.md`."""
    assert set(NEEDED) == set(CommandVerb)
