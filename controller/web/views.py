"""Read-only endpoints for people and monitors: health, metrics, rollouts, the flagd document."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
import xxhash
from prometheus_client.exposition import choose_encoder
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.core.rollout import Rollout
from controller.health import Faults, Health
from controller.telemetry import Metrics
from controller.web.access.reading import Explain
from controller.web.answers import header, send_bytes, send_error, send_json, send_tagged
from controller.web.flags import FlagBoard
from controller.web.reports import send_no_rollout

#: Documents written before other requests get a turn: a document costs tens of microseconds.
_DOCUMENTS_PER_TURN = 50

#: Read once: a probe must be answered also when no file can be opened any more.
_VERSION: Final = version("rolloutd")


class Index:
    """GET /: the paths that this port serves, each with its purpose."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """`routes` are all others; the first line of an endpoint's docstring says what it is."""
        entries = {  # a path that two pages need is a route of each, and served by the first
            (route.path, *sorted(route.methods or ())): _purpose(route) for route in routes
        }
        paths = [
            {"path": path, "methods": methods, "what": what}
            for (path, *methods), what in entries.items()
        ]
        document = {"server": "rolloutd", "version": _VERSION, "paths": paths}
        self._body = msgspec.json.format(msgspec.json.encode(document)) + b"\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the same at all times."""
        await send_json(send, 200, self._body)


_WHAT_TO_DO: Final = (
    "Whoever runs rolloutd can change http.readers, or let people and machines sign in with "
    "sign_in.access_file. rolloutctl status shows rollouts without HTTP"
)


class NotShown:
    """Refused, because `http.readers` does not let whoever connects read about rollouts."""

    def __init__(self, why: str, explain: Explain, index: Index | None = None) -> None:
        """`explain` answers a browser with a page.

        `index` answers in place of a refusal whoever does not ask for a page.
        """
        self._why = why
        self._explain = explain
        self._index = index

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 with the reason: with a page to a browser, and as JSON to all others."""
        if "text/html" in header(scope, b"accept"):
            await self._explain(scope, send, 403, f"{self._why}. {_WHAT_TO_DO}")
        elif self._index is not None:
            await self._index(scope, receive, send)
        else:
            await send_error(send, 403, self._why)


def _purpose(route: Route) -> str:
    """Return what an endpoint is for: as it says, or its docstring without method and path."""
    if isinstance(said := getattr(route.endpoint, "purpose", None), str):
        return said
    first_line = (type(route.endpoint).__doc__ or "").partition("\n")[0]
    return re.sub(r"^(GET|POST)( and POST)? /\S*( and /\S*)?[:,] ", "", first_line)


class Healthz:
    """GET /healthz and /livez: whether a restart would help. An answer shows that the loop runs."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 while alive, else 503 with the reason why only a restart helps."""
        status = 200 if self._health.is_alive else 503
        body = {"alive": self._health.is_alive, "fatal_errors": self._health.trouble}
        await send_json(send, status, msgspec.json.encode(body))


class Readyz:
    """GET /readyz: whether this replica may be sent evaluations, and the state of every part.

    The status is only about serving, because a load balancer acts on it: an outage of Kafka or
    Redis affects all replicas at once, and each still serves the last decision, also while it is
    starting. Whether it counts and decides is in the body (`working`), and in the status with
    `?strict=1`, for monitors. See `ops/decisions/0012-health.md`.
    """

    def __init__(
        self,
        health: Health,
        board: FlagBoard,
        faults: Faults | None = None,
        *,
        takes_commands: bool = False,
    ) -> None:
        """`takes_commands` says whether commands that lower are taken over HTTP."""
        self._health = health
        self._board = board
        self._faults = faults
        self._takes_commands = takes_commands

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 while evaluations are answered, else 503; `strict=1` requires more."""
        is_strict = parse_qs(scope["query_string"].decode("latin-1")).get("strict") == ["1"]
        body = self.report()
        is_ok = body["ready"] and not (is_strict and body["degraded"])
        await send_json(send, 200 if is_ok else 503, msgspec.json.encode(body))

    def report(self) -> dict[str, Any]:
        """Return the body."""
        health, board = self._health, self._board
        why_not_served = board.why_not
        why_serving = why_not_served or board.why_stale
        components: dict[str, dict[str, Any]] = {
            part.name: {
                "ready": part.why_not is None,
                "required": part.is_required,
                "reason": part.why_not,
                "since": part.since,
            }
            for part in health.components.values()
        }
        reported = health.components.get("serving")
        since = reported.since if reported is not None else None
        components["serving"] = {
            "ready": why_serving is None,
            "required": True,
            "reason": why_serving,
            "since": board.stale_since or since,
        }
        for component in components.values():
            began: datetime | None = component["since"]
            seconds = None if began is None else round(health.seconds_since(began), 1)
            component["for_seconds"] = seconds
        faults = () if self._faults is None else self._faults.current
        is_faulty = self._faults is not None and self._faults.degrading
        return {
            "ready": health.is_alive and why_not_served is None,
            "working": health.is_working and why_serving is None,
            "degraded": health.is_degraded or why_serving is not None or is_faulty,
            "starting": not health.has_started,
            "fatal_errors": health.trouble,
            "version": _VERSION,
            "counting": health.counting,
            "takes_commands": self._takes_commands,
            "components": components,
            "faults": [
                {
                    "scope": fault.scope.value,
                    "name": fault.name,
                    "reporter": fault.reporter,
                    "reason": fault.why,
                    "fix": fault.fix,
                    "since": fault.since,
                    "count": fault.times,
                }
                for fault in faults
            ],
            "omitted_faults": 0 if self._faults is None else sum(self._faults.more.values()),
        }


class MetricsPage:
    """GET /metrics: what Prometheus scrapes, in the format that it requests.

    Since Prometheus 3 a wrong content type fails the scrape.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._registry = metrics.registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer all metrics."""
        write, content_type = choose_encoder(header(scope, b"accept"))
        # In a thread: with many flags the text takes longer than the loop may be blocked.
        body = await asyncio.to_thread(write, self._registry)
        await send_bytes(
            send,
            200,
            body,
            [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")],
        )


class FlagdDocument:
    """GET /flagd/flags.json: the definitions for flagd's HTTP sync, which requires the `.json`.

    It answers 503 while the flags are not trusted: flagd then keeps what it has. An empty document
    would delete its flags.
    """

    def __init__(self, board: FlagBoard) -> None:
        self._board = board

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the document, or 304 when the client has it."""
        if (why_not := self._board.why_no_document) is not None:
            await send_error(send, 503, why_not, (b"retry-after", b"1"))
            return
        body, tag = self._board.flagd_document()
        await send_tagged(scope, send, body, tag)


class RolloutDocuments:
    """GET /rollouts and /rollouts/{flag}: the state documents, as on the state topic.

    They are answered also while the flags are not trusted: this is for people. The header
    `rolloutd-stale-since` says since when they may be out of date; in the list, `stale_since` too.
    """

    def __init__(self, board: FlagBoard, describe: Callable[[Rollout], bytes]) -> None:
        self._board = board
        self._describe = describe
        self._written: dict[str, tuple[Rollout, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer all documents in the order of flag keys, or the one requested.

        While it is not known which flags there are, the answer is 503: an empty list would be
        taken for "no rollouts".
        """
        if (why_not := self._board.why_nothing_known) is not None:
            await send_error(send, 503, why_not, (b"retry-after", b"1"))
            return
        flag_key: str | None = scope["path_params"].get("flag_key")
        since = self._board.stale_since
        stale = b"" if since is None else since.isoformat(timespec="seconds").encode()
        if flag_key is None:
            parts = []
            for count, flag in enumerate(self._board.flags, start=1):
                parts.append(self._document(flag.rollout))
                if count % _DOCUMENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
            mark = b',"stale_since":"%b"' % stale if stale else b""
            body = b'{"rollouts":[%b]%b}' % (b",".join(parts), mark)
        else:
            served = self._board.get(flag_key)
            if served is None:
                await send_no_rollout(send, self._board)
                return
            body = self._document(served.rollout)
        headers = [(b"rolloutd-stale-since", stale)] if stale else []
        await send_tagged(
            scope, send, body, f'"{xxhash.xxh3_64_hexdigest(body + stale)}"', *headers
        )

    def _document(self, rollout: Rollout) -> bytes:
        """Return the document's JSON, written once per revision."""
        written = self._written.get(rollout.flag_key)
        if written is None or written[0] is not rollout:
            written = self._written[rollout.flag_key] = (rollout, self._describe(rollout))
        return written[1]


class EventsRead:
    """GET /rollouts/{flag}/events and /events: what the newest events were for their flags.

    That is what this replica counted, with samples. Above some hundred events per second the
    numbers are estimates.
    """

    def __init__(self, events_of: Callable[[str | None], bytes | None]) -> None:
        self._events_of = events_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the counts by class; 404 for a flag that no event has named."""
        body = self._events_of(scope["path_params"].get("flag_key"))
        if body is not None:
            await send_json(send, 200, body)
        else:
            await send_error(send, 404, "no rollout has this flag key, and no event names it")
