"""The screen of incidents: who was told of what, who is next, and who looks after it.

Belongs here: what the screen shows, and what other screens say of incidents. Does not belong here:
taking one (`web/incidents.py`), HTML (`templates/`), and HTTP (`incidents.py`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from controller.web.access.identity import Identity
from controller.web.incidents import Incidents
from controller.web.page.rendering import Renderer, ScreenSection
from schemas.notifications import IncidentEntry, NotificationsView
from schemas.terms import Severity

#: Incidents of one page: with them it stays below 100 kB.
ROWS: Final = 40
#: Mutes, channels and dead letters of one page.
_MOST_OTHER: Final = 20
MARKS: Final = {Severity.CRITICAL: "▲", Severity.WARNING: "◆", Severity.INFO: "○"}
_TONES: Final = {Severity.CRITICAL: "harm", Severity.WARNING: "waits", Severity.INFO: "rests"}


class IncidentScreen:
    """Makes the sections of the screen."""

    def __init__(self, incidents: Incidents, renderer: Renderer) -> None:
        self.incidents = incidents
        self._renderer = renderer

    async def sections(self, who: Identity | None, *, can_sign_in: bool) -> list[ScreenSection]:
        """Return the screen as somebody sees it; `can_sign_in`: people can, with a browser."""
        view, trouble = await self.incidents.known()
        if view is None:
            return self._renderer.blocks("incidents_unknown.html", {"why": trouble})
        in_order = sorted(view.incidents, key=_order)
        waiting = [one for one in view.incidents if is_waiting(one)]
        troubles = {one.name: one.trouble for one in view.channels if one.waiting}
        values: dict[str, Any] = {
            "waiting": len(waiting),
            "tone": max((_TONES[one.severity] for one in waiting), default="moves", key=_rank),
            "open": len(view.incidents),
            "muted": sum(one.muted_until is not None for one in view.incidents),
            "over": len(view.ended),
            "rows": [self._row(one, who, troubles, can_sign_in) for one in in_order[:ROWS]],
            "hidden": max(0, len(in_order) - ROWS),
            "ended": [_ended(one.incident, one) for one in view.ended[:ROWS]],
            "ended_hidden": max(0, len(view.ended) - ROWS),
            "mutes": view.mutes[:_MOST_OTHER],
            "mutes_hidden": max(0, len(view.mutes) - _MOST_OTHER),
            "channels": view.channels[:_MOST_OTHER],
            "dead": view.dead_letters[:_MOST_OTHER],
            "dead_hidden": max(0, len(view.dead_letters) - _MOST_OTHER),
        }
        return self._renderer.blocks("incidents.html", values)

    def _row(
        self,
        one: IncidentEntry,
        who: Identity | None,
        troubles: Mapping[str, str],
        can_sign_in: bool,
    ) -> dict[str, Any]:
        """Return what is shown of an open incident."""
        why_not = None if one.taken_by else self.incidents.why_not_allowed(who, one.flag)
        is_anonymous = who is None and not can_sign_in
        return {
            **_shown(one),
            "can_take": not one.taken_by and why_not is None,
            "why_not": "" if is_anonymous else why_not or "",
            "line": shlex.join(["rolloutctl", "notify", "ack", one.key])
            if is_anonymous and not one.taken_by
            else "",
            "value": seen_value(one),
            "notices": [
                (each.channel, each.at, troubles.get(each.channel, "")) for each in one.notices
            ],
        }


def is_waiting(one: IncidentEntry) -> bool:
    """Return whether somebody should take it: it is not muted, and nobody has."""
    return not one.taken_by and one.muted_until is None


def seen_value(one: IncidentEntry) -> str:
    """Return what a form says of an incident that was seen: when it began, and its key."""
    return f"{one.opened_at.isoformat()} {one.key}"


def of_flag(view: NotificationsView | None, flag_key: str) -> tuple[IncidentEntry, ...]:
    """Return a flag's open incidents, those first that nobody has taken."""
    found = () if view is None else view.incidents
    return tuple(sorted((one for one in found if one.flag == flag_key), key=_order))


def flag_rows(incidents: Sequence[IncidentEntry]) -> list[dict[str, Any]]:
    """Return what a rollout's screen shows of its incidents."""
    return [_shown(one) for one in incidents[:_MOST_OTHER]]


def waiting_in(view: NotificationsView | None) -> int:
    """Return how many incidents wait for somebody."""
    return 0 if view is None else sum(map(is_waiting, view.incidents))


def _shown(one: IncidentEntry) -> dict[str, Any]:
    is_calm = bool(one.taken_by) or one.muted_until is not None
    return {
        "one": one,
        "mark": "✓" if one.taken_by else MARKS[one.severity],
        "tone": "rests" if is_calm else _TONES[one.severity],
        "kind": one.kind.replace("_", " "),
        "is_waiting": is_waiting(one),
    }


def _ended(incident: IncidentEntry, ended: Any) -> dict[str, Any]:
    return {**_shown(incident), "mark": "✓", "tone": "done", "at": ended.at, "why": ended.why}


def _order(one: IncidentEntry) -> tuple[bool, bool, int, float]:
    """Order by what somebody should look at first; of the same the newest."""
    severities = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)
    newest = -one.opened_at.timestamp()
    return bool(one.taken_by), not is_waiting(one), severities.index(one.severity), newest


def _rank(tone: str) -> int:
    return ("moves", "rests", "waits", "harm").index(tone)
