"""Read-only endpoints for people and monitors: health, metrics, rollouts, the flagd document."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec
import xxhash
from prometheus_client.exposition import choose_encoder
from starlette.types import Receive, Scope, Send

from controller.core.rollout import Rollout
from controller.health import Faults, Health
from controller.ports import PlaneStanding
from controller.telemetry import Metrics
from controller.web.answers import header, send_bytes, send_error, send_json, send_tagged
from controller.web.flags import FlagBoard

#: Documents written before other requests get a turn: a document costs tens of microseconds.
_DOCUMENTS_PER_TURN = 50


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
    Redis affects all replicas at once, and each still serves the last decision. Whether it counts
    and decides is in the body (`working`), and in the status with `?strict=1`, for monitors. See
    `ops/decisions/0012-health.md`.
    """

    def __init__(self, health: Health, board: FlagBoard, faults: Faults | None = None) -> None:
        self._health = health
        self._board = board
        self._faults = faults

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
        components = {
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
        faults = () if self._faults is None else self._faults.current
        is_faulty = self._faults is not None and self._faults.degrading
        return {
            "ready": health.is_alive and health.has_started and why_not_served is None,
            "working": health.is_working and why_serving is None,
            "degraded": health.is_degraded or why_serving is not None or is_faulty,
            "starting": not health.has_started,
            "fatal_errors": health.trouble,
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
    """GET /metrics in the format that the scraper requests.

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

    They are answered also while the flags are not trusted: this is for people, and `/readyz` says
    how old they may be.
    """

    def __init__(self, board: FlagBoard, describe: Callable[[Rollout], bytes]) -> None:
        self._board = board
        self._describe = describe
        self._written: dict[str, tuple[Rollout, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer all documents in the order of flag keys, or the one requested."""
        flag_key: str | None = scope["path_params"].get("flag_key")
        if flag_key is None:
            parts = []
            for count, flag in enumerate(self._board.flags, start=1):
                parts.append(self._document(flag.rollout))
                if count % _DOCUMENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
            body = b'{"rollouts":[%b]}' % b",".join(parts)
        else:
            served = self._board.get(flag_key)
            if served is None:
                await send_error(send, 404, "no rollout has this flag key")
                return
            body = self._document(served.rollout)
        await send_tagged(scope, send, body, f'"{xxhash.xxh3_64_hexdigest(body)}"')

    def _document(self, rollout: Rollout) -> bytes:
        """Return the document's JSON, written once per revision."""
        written = self._written.get(rollout.flag_key)
        if written is None or written[0] is not rollout:
            written = self._written[rollout.flag_key] = (rollout, self._describe(rollout))
        return written[1]


class NewestEvidence:
    """GET /rollouts/{flag}/evidence: the newest judgement of a rollout, as decisions carry it.

    There is one also while nothing is decided.
    """

    def __init__(self, board: FlagBoard, newest_evidence: Callable[[str], bytes | None]) -> None:
        self._board = board
        self._newest_evidence = newest_evidence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the judgement; 404 if there is none here: the flag's own replica has it."""
        flag_key: str = scope["path_params"]["flag_key"]
        body = self._newest_evidence(flag_key)
        if body is not None:
            await send_tagged(scope, send, body, f'"{xxhash.xxh3_64_hexdigest(body)}"')
        elif self._board.get(flag_key) is None:
            await send_error(send, 404, "no rollout has this flag key")
        else:
            await send_error(
                send,
                404,
                "not looked at here yet: ask the replica that runs this flag, or again in a second",
            )


def _standing_document(standing: PlaneStanding) -> dict[str, Any]:
    """Return one plane's standing as it is shown."""
    return {
        "plane": standing.plane,
        "is_converged": standing.is_converged,
        "decided_percent": standing.decided_percent,
        "percent": standing.percent,
        "reason": standing.why,
        "since": standing.since,
        "checked_at": standing.looked_at,
    }


class PlaneStandings:
    """GET /rollouts/{flag}/planes: whether each flag plane serves what was decided, and why not."""

    def __init__(
        self, board: FlagBoard, standings: Callable[[str], Sequence[PlaneStanding] | None]
    ) -> None:
        self._board = board
        self._standings = standings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one entry per plane; 404 if none is here: the flag's own replica has them."""
        flag_key: str = scope["path_params"]["flag_key"]
        standings = self._standings(flag_key)
        if standings is not None:
            body = msgspec.json.encode(
                {
                    "flag": flag_key,
                    "is_converged": all(one.is_converged for one in standings),
                    "planes": [_standing_document(one) for one in standings],
                }
            )
            await send_json(send, 200, body)
        elif self._board.get(flag_key) is None:
            await send_error(send, 404, "no rollout has this flag key")
        else:
            await send_error(
                send, 404, "another replica runs this flag: ask that one, or again in a second"
            )
