"""The buttons of a rollout's screen: what they say, where they lead, and why one cannot be pressed.

Each leads to a page that shows what will happen and asks for confirmation (`give.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from controller.core.rollout import Rollout
from controller.reporting.command_lines import WHAT
from controller.settings.access_file import Role
from controller.web.access.roles import needed
from schemas.api import FittingCommand
from schemas.terms import FINAL, CommandVerb

#: Always in sight; all others are under "More". Of pause and resume the one that fits is shown.
MAIN: Final = (CommandVerb.APPROVE, CommandVerb.PAUSE, CommandVerb.RESUME, CommandVerb.ROLL_BACK)


@dataclass(frozen=True, slots=True)
class VisitorRights:
    """What who looks at a page may do to its flag."""

    is_signed_in: bool
    role: Role | None


def label(verb: CommandVerb) -> str:
    """Return a verb as a button says it."""
    return verb.value.replace("_", " ").capitalize()


def address(flag_key: str, verb: CommandVerb) -> str:
    """Return the address of the page that confirms a command."""
    return f"/ui/rollouts/{quote(flag_key, safe='')}/give/{verb.value.replace('_', '-')}"


def button_rows(
    commands: Sequence[FittingCommand], rollout: Rollout, steering: VisitorRights | None
) -> dict[str, list[dict[str, Any]]]:
    """Return `buttons`, which are always in sight, and `more`; both empty without `steering`."""
    if steering is None:
        return {"buttons": [], "more": []}
    rows = {one.verb: _row(one, rollout, steering) for one in commands}
    by_verb = {one.verb: one for one in commands}
    hidden = CommandVerb.PAUSE if by_verb[CommandVerb.RESUME].fits else CommandVerb.RESUME
    main = [verb for verb in MAIN if verb is not hidden]
    return {
        "buttons": [rows[verb] for verb in main],
        "more": [row for verb, row in rows.items() if verb not in main],
    }


def _row(command: FittingCommand, rollout: Rollout, steering: VisitorRights) -> dict[str, Any]:
    least = needed(command.verb)
    why_not = None if command.fits else command.why_not
    if not steering.is_signed_in:
        why_not = "sign in first"
    elif steering.role is None or steering.role < least:
        why_not = f"needs the role {least.word}"
    opens = command.verb in FINAL  # it asks first: an ellipsis says so
    return {
        "label": label(command.verb) + ("…" if opens else ""),
        "what": WHAT[command.verb],
        "href": "" if why_not else address(rollout.flag_key, command.verb),
        "why_not": why_not or "",
        "lowers": opens,
    }
