"""The page that confirms a command: what will happen, the revision that was seen, and the reason.

It works without script. The form carries the command's id, so pressing twice is one command, and
the revision, so of two people who press at once the second is told that the first was quicker.
"""

from __future__ import annotations

import uuid
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.core.machine.commands import RAISING
from controller.core.rollout import Rollout
from controller.reporting.command_lines import WHAT
from controller.reporting.fitting import SHOWN, fitting_commands
from controller.web.access.identity import Identity, IdentityRefused
from controller.web.access.reading import identity_of
from controller.web.answers import BodyRefused, read_body
from controller.web.clients import client_of
from controller.web.commands import Commands, NotTaken, PerhapsTaken
from controller.web.page.buttons import label
from controller.web.page.pages import Pages
from schemas.api import FittingCommand
from schemas.command import Command, needs_reason
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus, CommandVerb, verb_named

_LONGEST_FORM: Final = 16_384
_NOT_SENT: Final = "Nothing was sent"
_PERHAPS_SENT: Final = "It is not known whether this is carried out"


class Give:
    """GET and POST /ui/rollouts/{flag}/give/{verb}: confirms a command, and gives it."""

    def __init__(self, pages: Pages, commands: Commands) -> None:
        self._pages = pages
        self._commands = commands

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the question, or what became of the command."""
        pages = self._pages
        verb = verb_named(scope["path_params"]["verb"])
        if verb is None or verb not in SHOWN:
            why = "The page has no such command; rolloutctl has all of them."
            await pages.problem(send, 404, "There is no such command", why)
            return
        rollout = await pages.found(scope, send)
        if rollout is None:
            return
        who = identity_of(scope)
        why_not = self._commands.why_not_allowed(who, verb, rollout.flag_key)
        if who is None or why_not is not None:
            status = 401 if who is None else 403
            await pages.refuse(scope, send, status, f"{why_not}", _NOT_SENT)
        elif scope["method"] == "POST":
            await self._give(scope, receive, send, who, rollout, verb)
        else:
            await self._ask(scope, send, rollout, verb, who)

    async def _ask(
        self, scope: Scope, send: Send, rollout: Rollout, verb: CommandVerb, who: Identity
    ) -> None:
        """Answer with what will happen, and the form that gives the command."""
        pages = self._pages
        now = max(self._commands.guardian.now(), rollout.updated_at)
        commands = fitting_commands(rollout, now, issuer=who.name)
        command = next(one for one in commands if one.verb is verb)
        values: dict[str, Any] = {
            **_shown(rollout, command),
            "id": uuid.uuid4().hex,
            "asked": _asked(rollout, verb),
            "needs_reason": needs_reason(verb, None),
            "visitor": pages.visitor(scope),
        }
        sections = pages.renderer.blocks("give.html", values)
        await pages.show(scope, send, f"{label(verb)} {rollout.flag_key}", sections)

    async def _give(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        who: Identity,
        rollout: Rollout,
        verb: CommandVerb,
    ) -> None:
        """Give the command, and answer with what became of it."""
        pages = self._pages
        try:
            body = await read_body(receive, _LONGEST_FORM)
            pairs = parse_qs(body.decode("ascii", errors="replace"))
            form = {name: values[-1] for name, values in pairs.items()}
            self._commands.guardian.check_form(scope, who, form.get("form", ""))
            _check_asked(form, rollout, verb)
            command = self._commands.command(who, rollout.flag_key, _fields(verb, form))
            answer = await self._commands.give(command, client_of(scope["client"]))
        except (BodyRefused, IdentityRefused, NotTaken) as refused:
            title = _PERHAPS_SENT if isinstance(refused, PerhapsTaken) else _NOT_SENT
            await pages.problem(send, refused.status, title, f"{refused}.")
            return
        status, values = _outcome(command, answer)
        sections = pages.renderer.blocks("given.html", {**values, "flag": rollout.flag_key})
        await pages.show(scope, send, values["title"], sections, status=status)


def _shown(rollout: Rollout, command: FittingCommand) -> dict[str, Any]:
    """Return what the question shows of a rollout and a command."""
    verb = command.verb
    return {
        "flag": rollout.flag_key,
        "revision": rollout.revision,
        "label": label(verb),
        "what": WHAT[verb],
        "before": f"{rollout.percent:g} %, {_words(rollout.phase.name.value)}",
        "after": f"{command.percent:g} %, {_words(command.phase.value)}",
        "fits": command.fits,
        "why_not": command.why_not or "",
        "raises": verb in RAISING,
        "lowers": verb in ALWAYS_ACCEPTED,
    }


def _asked(rollout: Rollout, verb: CommandVerb) -> str:
    """Return what a form is about: the command that was shown, of the rollout that was seen."""
    return f"{verb.value}/{rollout.flag_key}/{rollout.rollout_id}"


def _check_asked(form: dict[str, str], rollout: Rollout, verb: CommandVerb) -> None:
    """Raise NotTaken for a form of another question, such as one that a browser sends again.

    Lowering is bound to no revision. Without this, a reload after a restart would lower the flag's
    next rollout, which nobody has looked at.
    """
    if form.get("asked") != _asked(rollout, verb):
        raise NotTaken(
            409,
            "this form was about another command, or about an earlier rollout of the flag: open "
            "the rollout and press the button again",
        )


def _fields(verb: CommandVerb, form: dict[str, str]) -> dict[str, Any]:
    """Return a command's fields as the form has them. Raises NotTaken."""
    revision = form.get("revision", "")
    if not (revision.isascii() and revision.isdigit() and len(revision) < 18):
        raise NotTaken(400, "the form names no revision: open the page again")
    return {
        "verb": verb.value,
        "id": form.get("id"),
        "expected_revision": int(revision),
        "reason": " ".join(form.get("reason", "").split()),
    }


def _outcome(command: Command, answer: Result | str) -> tuple[int, dict[str, Any]]:
    """Return the status, and what is told of a command."""
    name = label(command.verb)
    if isinstance(answer, str):
        return 202, {"title": f"{name}: not done yet", "why": answer, "mark": "◆", "tone": "waits"}
    if answer.status is CommandStatus.ACCEPTED:
        words = f"Revision {answer.revision}: {answer.reason or 'done'}."
        return 200, {"title": f"{name}: done", "why": words, "mark": "✓", "tone": "done"}
    words = f"{answer.reason}."
    if answer.reason.startswith("stale:"):
        words = f"Somebody or something else was quicker. Nothing was done twice. {words}"
    return 409, {"title": f"{name}: not done", "why": words, "mark": "▲", "tone": "harm"}


def _words(name: str) -> str:
    return name.replace("_", " ")


def give_routes(pages: Pages, commands: Commands) -> list[Route]:
    """Return the routes of commands that are given on the page."""
    path = "/ui/rollouts/{flag_key}/give/{verb}"
    return [Route(path, Give(pages, commands), methods=["GET", "POST"])]
