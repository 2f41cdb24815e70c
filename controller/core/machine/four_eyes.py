"""Four eyes: who wrote a rollout's plan does not let it pass. A plan asks for it (`four_eyes`).

Issuers are compared by their names. Over HTTP a name is who is signed in; in Kafka it is a claim,
and the rights of the command topic decide who can make it.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from controller.core.events import CommandReceived
from controller.core.plan_changes import change_of
from controller.core.rollout import Rollout
from schemas.terms import CommandVerb

#: Commands that let a rollout pass where it would wait for a person, or for its gate.
_LET_PASS: Final = frozenset({CommandVerb.APPROVE, CommandVerb.PROMOTE, CommandVerb.PROMOTE_FULL})
#: Issuers that are kept. More people never change one plan.
MOST_AUTHORS: Final = 100
TOO_MANY: Final = f"{MOST_AUTHORS} people have changed this plan: start another rollout"


def why_not(rollout: Rollout, command: CommandReceived) -> str | None:
    """Return why this issuer may not give a command, None where they may.

    Taking `four_eyes` away, or anything else that makes the plan less careful, needs somebody else,
    too: otherwise whoever started it would take it away, and pass alone.
    """
    if command.verb is CommandVerb.APPLY and is_one_too_many(rollout, command.issuer):
        return TOO_MANY
    if not rollout.plan.four_eyes or not is_author(rollout, command.issuer):
        return None
    if command.verb in _LET_PASS or (
        command.verb is CommandVerb.APPLY and _is_looser(rollout, command)
    ):
        verb = command.verb.value.replace("_", " ")
        return (
            f"four eyes: {command.issuer} started this rollout or changed its plan, so somebody "
            f"else has to {verb} it"
        )
    return None


def is_author(rollout: Rollout, issuer: str) -> bool:
    """Return whether somebody started or restarted a rollout, or changed its plan."""
    return _plain(issuer) in map(_plain, rollout.authors)


def with_author(rollout: Rollout, issuer: str) -> tuple[str, ...]:
    """Return the authors of a rollout once somebody has changed its plan or restarted it."""
    return rollout.authors if is_author(rollout, issuer) else (*rollout.authors, issuer)


def is_one_too_many(rollout: Rollout, issuer: str) -> bool:
    """Return whether the authors of a plan that goes on cannot have another one."""
    return len(rollout.authors) >= MOST_AUTHORS and not is_author(rollout, issuer)


def _is_looser(rollout: Rollout, command: CommandReceived) -> bool:
    """Return whether a new plan is less careful anywhere, or begins the stage again."""
    if command.plan is None:
        return False
    change = change_of(
        rollout.plan, command.plan, rollout.stage_index, has_completed=rollout.has_ended
    )
    return change.needs_reason or change.restarts


def _plain(issuer: str) -> str:
    """Return a name as it is compared: without case, wide letters, and spaces around it.

    Letters of other alphabets that look alike stay different. Names with characters of format,
    such as a zero-width space, do not come over HTTP (`controller/web/access/identity.py`).
    """
    return unicodedata.normalize("NFKC", issuer).casefold().strip()
