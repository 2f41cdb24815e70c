"""What a daemon answers over HTTP: the newest evidence, its flag planes, and where rollouts stand.

Every function returns None with the reason in words where there is no answer: the rest of a status
is there without it. Rollouts are asked for only while Kafka is away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from rich.text import Text

from controller.cli.daemon_http import MAX_BYTES, NoAnswer, read_address
from controller.reporting.unwatched import Unwatched
from controller.text import file_trouble, one_line

if TYPE_CHECKING:
    from controller.core.rollout import Rollout
    from controller.ports import FlagUse, FlagUses
    from controller.reporting.inventory import InventoryFinding
    from schemas.api import SignalEntry
    from schemas.decision import JudgementRecord
    from schemas.notifications import NotificationsView

Event = dict[str, Any]

#: `schemas.api.BASE`, which is slow to import.
API = "/api/v1"
#: Short, because a person waits.
PAUSE_SECONDS = 2.0
#: Of all rollouts: 10,000 of them take about 30 MB.
MAX_LIST_BYTES = 100_000_000
#: Names a file with the token of `sign_in.access_file` that reads where `http.readers` is closed.
READ_TOKEN_VARIABLE: Final = "ROLLOUTCTL_READ_TOKEN_FILE"  # noqa: S105  # a variable's name
#: What a port of rolloutd answers for a path that it does not have.
_NO_SUCH_PATH: Final = {"error": "Not Found"}
_WHICH_PORT: Final = "see whether this is the http.port of a replica, and not its http.ops_port"
#: Flags whose use is asked for.
MOST_LISTED: Final = 100_000
#: As many decisions or alerts as the API gives at once.
MOST_NEWS = 100


def ask_planes(daemon: str, flag: str) -> tuple[list[dict[str, Any]] | None, str]:
    """Return one entry per plane from the daemon at this address, or None and the reason."""
    document, why = ask_daemon(daemon, f"{API}/rollouts/{quote(flag, safe='')}/planes")
    if document is None:
        return None, why
    planes = document.get("planes")
    if not isinstance(planes, list):
        return None, _strange(daemon)
    return [entry for entry in planes if isinstance(entry, dict)], ""


def ask_evidence(daemon: str, flag: str) -> tuple[JudgementRecord | None, str]:
    """Return the newest judgement of the flag's evidence, or None and the reason."""
    from pydantic import ValidationError

    from schemas.decision import JudgementRecord

    document, why = ask_daemon(daemon, f"{API}/rollouts/{quote(flag, safe='')}/evidence")
    if document is None:
        return None, why
    try:
        return JudgementRecord.model_validate(document), ""
    except ValidationError:
        return None, _strange(daemon)


@dataclass(frozen=True, slots=True)
class KnownRollouts:
    """Rollouts as a daemon knows them."""

    rollouts: Mapping[str, Rollout]
    documents: Mapping[str, Event]  # the state document of each
    decisions: Sequence[Event]  # the newest ones, oldest first; of one rollout only
    stale_since: str | None  # since when the daemon may lack decisions; None: it is current
    trouble: str = ""  # why there are no decisions; empty: they were read, or not asked for


def ask_rollout(daemon: str, flag: str) -> tuple[KnownRollouts | None, str]:
    """Return a flag's rollout with its newest decisions, or None and the reason.

    Without decisions where Redis, which has them, is away: `trouble` says so.
    """
    path = f"/rollouts/{quote(flag, safe='')}"
    answer = _exchange(daemon, path)
    rollouts = {} if answer.document is None else _rollouts_in([answer.document])
    if answer.document is None or flag not in rollouts:
        return None, answer.why or f"{daemon} does not answer as rolloutd does"
    decisions, why = ask_news(daemon, flag, "decisions", MOST_NEWS)
    trouble = "" if decisions is not None else f"last decisions: {why}"
    documents = {flag: answer.document}
    return KnownRollouts(rollouts, documents, decisions or [], answer.stale_since, trouble), ""


def ask_unwatched(
    daemon: str, flag: str | None = None
) -> tuple[Mapping[str, Unwatched | None], str]:
    """Return by flag whether nobody watches its rollout, as a daemon knows; of one flag or of all.

    A flag of which it says nothing is not there. And why it says nothing of rollouts at all, empty
    where it does. It names those that need somebody first, so one answer has them.
    """
    path = "?limit=500" if flag is None else f"/{quote(flag, safe='')}"
    answer = _exchange(daemon, f"{API}/rollouts{path}", MAX_LIST_BYTES)
    if answer.document is None:
        return {}, answer.why
    listed = answer.document.get("rollouts", [answer.document.get("summary")])
    found: dict[str, Unwatched | None] = {}
    for one in listed if isinstance(listed, list) else []:
        with suppress(KeyError, TypeError, ValueError):
            key, told = str(one["flag"]), one["unwatched"]
            if told is None:
                found[key] = None
                continue
            since = datetime.fromisoformat(told["since"])
            found[key] = Unwatched(str(told["why"]), str(told["action"]), since)
    return found, ""


def ask_whether_known(daemon: str, flag: str) -> tuple[bool | None, str]:
    """Return whether a flag has a rollout; None with the reason where the daemon does not say."""
    answer = _exchange(daemon, f"{API}/rollouts/{quote(flag, safe='')}")
    if answer.document is not None:
        return True, ""
    return (False if answer.status == 404 else None), answer.why


def ask_news(daemon: str, flag: str, topic: str, count: int) -> tuple[list[Event] | None, str]:
    """Return the newest events of a topic about a flag, oldest first, or None and the reason.

    `topic`: decisions or alerts. A daemon has at most `MOST_NEWS` of them.
    """
    path = f"{API}/rollouts/{quote(flag, safe='')}/{topic}?limit={min(count, MOST_NEWS)}"
    answer = _exchange(daemon, path)
    if answer.document is None:
        return None, answer.why
    events = answer.document.get(topic)
    if not isinstance(events, list) or not all(
        isinstance(each, dict) and {"type", "data"} <= each.keys() for each in events
    ):
        return None, _strange(daemon)
    return events[::-1], ""


def ask_rollouts(daemon: str) -> tuple[KnownRollouts | None, str]:
    """Return every rollout, or None and the reason."""
    answer = _exchange(daemon, "/rollouts", MAX_LIST_BYTES)
    if answer.document is None:
        return None, answer.why
    found = answer.document.get("rollouts")
    if not isinstance(found, list):
        return None, _strange(daemon)
    rollouts = _rollouts_in(found)
    documents = {each["flag"]: each for each in found if isinstance(each, dict) and "flag" in each}
    return KnownRollouts(rollouts, documents, [], answer.stale_since), ""


@dataclass(frozen=True, slots=True)
class FlagInventory:
    """The inventory as a daemon has it: what it found by its own rules, and how flags are used."""

    findings: Mapping[str, tuple[InventoryFinding, ...]]  # by flag
    uses: FlagUses


def ask_flags(daemon: str) -> tuple[FlagInventory | None, str]:
    """Return the inventory, or None and the reason."""
    from pydantic import ValidationError

    from controller.ports import FlagUses
    from controller.reporting.inventory import findings_of, use_of
    from schemas.api import MOST_OF_A_PAGE
    from schemas.inventory import FlagList

    found: dict[str, FlagUse] = {}
    findings: dict[str, tuple[InventoryFinding, ...]] = {}
    unknown: dict[str, int] = {}
    for offset in range(0, MOST_LISTED, MOST_OF_A_PAGE):
        path = f"{API}/flags?limit={MOST_OF_A_PAGE}&offset={offset}"
        document, why = ask_daemon(daemon, path)
        if document is None:
            return None, why
        try:
            listed = FlagList.model_validate(document)
        except ValidationError:
            return None, _strange(daemon)
        findings |= {line.flag: findings_of(line) for line in listed.flags}
        uses = {line.flag: use_of(line) for line in listed.flags}
        found |= {flag_key: use for flag_key, use in uses.items() if use is not None}
        unknown = {one.flag: one.events for one in listed.without_rollout}
        if offset + MOST_OF_A_PAGE >= listed.total:
            break
    return FlagInventory(findings, FlagUses(found, unknown)), ""


def ask_signals(daemon: str) -> tuple[Sequence[SignalEntry] | None, str]:
    """Return the newest signals of monitoring systems, or None and the reason."""
    from pydantic import ValidationError

    from schemas.api import SignalList

    answer = _exchange(daemon, f"{API}/signals")
    if answer.document is None:
        if answer.status == 404:
            return None, f"{daemon} takes no signals: its settings have no `hooks`"
        return None, answer.why
    try:
        return SignalList.model_validate(answer.document).signals, ""
    except ValidationError:
        return None, _strange(daemon)


def ask_notifications(daemon: str) -> tuple[NotificationsView | None, str]:
    """Return how notifying stands, or None and the reason."""
    from pydantic import ValidationError

    from schemas.notifications import NotificationsView

    answer = _exchange(daemon, f"{API}/notifications")
    if answer.document is None:
        if answer.status == 404:
            return None, f"{daemon} notifies nobody: its settings have no `notifications`"
        return None, answer.why
    try:
        return NotificationsView.model_validate(answer.document), ""
    except ValidationError:
        return None, _strange(daemon)


def _rollouts_in(documents: Sequence[object]) -> dict[str, Rollout]:
    """Return the rollouts of state documents, without those that cannot be read."""
    from controller.codec.rollouts import rollout_from_json
    from controller.errors import DocumentUnreadable

    found = {}
    for document in documents:
        with suppress(DocumentUnreadable):
            rollout = rollout_from_json(json.dumps(document).encode())
            found[rollout.flag_key] = rollout
    return found


def ask_daemon(daemon: str, path: str) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON object that a daemon answers at a path, or None and the reason."""
    answer = _exchange(daemon, path)
    return answer.document, answer.why


@dataclass(frozen=True, slots=True)
class _Answer:
    document: Event | None
    why: str  # there is none
    stale_since: str | None = None
    status: int | None = None  # of an answer that says why there is none


def _exchange(daemon: str, path: str, most_bytes: int = MAX_BYTES) -> _Answer:
    headers, why = _headers()
    if why:
        return _Answer(None, why)
    try:
        answer = read_address(
            daemon,
            path,
            port="http.port",
            pause_seconds=PAUSE_SECONDS,
            most_bytes=most_bytes,
            headers=headers,
        )
        document = json.loads(answer.body)
        if answer.status == 200 and isinstance(document, dict):
            return _Answer(document, "", answer.headers.get("rolloutd-stale-since"))
        why = f"{daemon} answered {answer.status}: {document['error']}"
    except NoAnswer as trouble:
        return _Answer(None, str(trouble))
    except (ValueError, KeyError, TypeError, RecursionError):
        return _Answer(None, _strange(daemon))
    if answer.status in (401, 403) and not headers:
        why += f"; next: let {READ_TOKEN_VARIABLE} name a file with a token of its access file"
    if document == _NO_SUCH_PATH:
        why += f"; next: {_WHICH_PORT}"
    return _Answer(None, why, status=answer.status)


def _strange(daemon: str) -> str:
    return f"{daemon} does not answer as rolloutd does; next: {_WHICH_PORT}"


def _headers() -> tuple[dict[str, str], str]:
    """Return the headers that say who asks, none where nobody is named, or why they cannot."""
    path = os.environ.get(READ_TOKEN_VARIABLE)
    if not path:
        return {}, ""
    try:
        words = Path(path).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        why = f"{path}: {file_trouble(error)}"
        return {}, f"next: let {READ_TOKEN_VARIABLE} name a file with a token ({why})"
    if len(words) != 1:
        return {}, f"next: write one token into {path} ({READ_TOKEN_VARIABLE})"
    return {"authorization": f"Bearer {words[0]}"}, ""


def plane_line(plane: dict[str, Any]) -> Text:
    """Return one line about a plane: its name, and why it does not serve what was decided."""
    name = one_line(str(plane.get("plane")))
    if plane.get("is_converged"):
        percent = plane.get("percent")
        share = f"{percent:g}" if isinstance(percent, float) else percent
        return Text(f"{name}: serves {share} %")
    since = str(plane.get("since") or "")[11:19]
    return Text(
        f"{name}: NOT CONVERGED{f' since {since} UTC' if since else ''}: "
        f"{one_line(str(plane.get('reason')))}",
        "bold red",
    )
