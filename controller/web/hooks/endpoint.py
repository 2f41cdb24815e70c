"""POST /hooks/<source>/<name>: takes deliveries of monitoring systems, and stores them.

A delivery is answered with 202 once its signals are in Kafka, so a crash loses none; what is done
about them is somebody else's. Senders repeat what was not taken, each by its own rules, so that
every delivery that is understood is answered with 2xx, also one that no rule is about.

Belongs here: who may deliver, limits, and answers. Does not belong here: the form of a delivery
(the files beside this one).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from controller.errors import OperatingTrouble
from controller.ports import Inlet
from controller.settings import HookSettings, HooksSettings
from controller.web.answers import (
    CLOSE,
    BodyRefused,
    header,
    refuse_declared,
    send_error,
    send_json,
)
from controller.web.clients import RateLimit, client_of, networks_of
from controller.web.hooks.body_room import BodyRoom
from controller.web.hooks.client_certificates import certificate_names
from controller.web.hooks.heard import NotUnderstood
from controller.web.hooks.proofs import SIGNATURES, Headers, is_named
from controller.web.hooks.sources import read_signals

PATH: Final = "/hooks/{source}/{name}"
_PREFIX: Final = "/hooks/"
#: Bodies of the greatest length that are held at once, while they come.
_MOST_BODIES: Final = 8
#: Deliveries without a proof, of one client: more are answered 429, and not logged.
_REFUSED_PER_SECOND: Final = 2.0
#: What CloudEvents calls the rate that it may be sent, per minute.
_RATE: Final = "600"

log = structlog.get_logger(__name__)


class Hooks:
    """POST /hooks/{source}/{name}: takes deliveries of monitoring systems, and stores them."""

    def __init__(
        self,
        settings: HooksSettings,
        inlet: Inlet,
        now: Callable[[], datetime],
        count: Callable[[str, str], object] = lambda _hook, _outcome: None,
    ) -> None:
        """`count` is told what became of each delivery, by its endpoint."""
        self._endpoints: Mapping[tuple[str, str], HookSettings] = {
            (hook.source, name): hook for name, hook in settings.endpoints.items()
        }
        self._most_bytes = settings.max_body_bytes
        self._inlet = inlet
        self._now = now
        self._count = count
        self._refused = RateLimit(_REFUSED_PER_SECOND, burst_seconds=5.0)
        self._misdirected = RateLimit(_REFUSED_PER_SECOND, burst_seconds=5.0)
        self._proxies = networks_of(settings.proxy.addresses)
        self._certificate_header = settings.proxy.certificate_header
        # Apart, so that who has no proof keeps nobody out who has one.
        self._proven = BodyRoom(_MOST_BODIES * self._most_bytes)
        self._unproven = BodyRoom(_MOST_BODIES * self._most_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path_params"]
        source, name = path["source"], path["name"]
        hook = self._endpoints.get((source, name))
        if hook is None:
            self._count(f"{source}/{name}", "no_endpoint")
            why = "there is no such endpoint: see hooks.endpoints of the settings"
            await send_error(send, 404, why, CLOSE)
            return
        if scope["method"] == "OPTIONS":
            await _consent(scope, send, is_wanted=source == "cloudevents")
            return
        status, answer, headers = await self._take(f"{source}/{name}", hook, scope, receive)
        await send_json(send, status, msgspec.json.encode(answer), *headers)

    def misdirected(self, scope: Scope) -> None:
        """Count a delivery for a name that is none of ours, and say how to allow it."""
        if scope["method"] != "POST" or not scope["path"].startswith(_PREFIX):
            return
        name = scope["path"].removeprefix(_PREFIX)[:100]
        self._count(name, "wrong_host")
        client = client_of(scope["client"])
        if not self._misdirected.seconds_to_wait(client):
            asked = header(scope, b"host")[:200]
            fix = "add the name to http.allowed_hosts, or let the monitor use one that is there"
            log.warning("hook_misdirected", hook=name, host=asked, client=client, fix=fix)

    async def _take(
        self, name: str, hook: HookSettings, scope: Scope, receive: Receive
    ) -> tuple[int, object, Sequence[tuple[bytes, bytes]]]:
        """Take a delivery; return status, answer and headers."""
        client = client_of(scope["client"])

        def headers(header_name: str) -> str:
            return header(scope, header_name.encode())

        if hook.secret is None and not self._is_known(scope, headers, hook):
            return self._refuse(name, client)
        coding = headers("content-encoding").strip().lower()
        if coding not in ("", "identity"):
            self._count(name, "not_understood")
            why = f"Content-Encoding is {coding[:50]!r}: turn compression off, and send plain JSON"
            return 415, {"error": why}, ((b"accept-encoding", b"identity"), CLOSE)
        room = self._proven if hook.secret is None else self._unproven
        try:
            refuse_declared(scope, self._most_bytes)
            body = await room.read(receive, self._most_bytes)
        except BodyRefused as refused:
            self._count(name, "refused" if refused.status < 500 else "busy")
            headers_ = (_RETRY_SOON, CLOSE) if refused.status == 503 else (CLOSE,)
            return refused.status, {"error": str(refused)}, headers_
        if hook.secret is not None and not _is_signed(hook, headers, body):
            return self._refuse(name, client)
        return await self._store(name, headers, body)

    def _is_known(self, scope: Scope, headers: Headers, hook: HookSettings) -> bool:
        """Return whether the sender has shown what the endpoint asks for before a body is read."""
        if not hook.certificates:
            return is_named(headers, hook, scope.get("query_string", b"").decode("latin-1"))
        shown = certificate_names(scope, self._proxies, self._certificate_header)
        return not shown.isdisjoint(hook.certificates)

    def _refuse(self, name: str, client: str) -> tuple[int, object, Sequence[tuple[bytes, bytes]]]:
        """Refuse a delivery whose sender is not known. Nothing in it is looked at."""
        self._count(name, "unproven")
        if seconds := self._refused.seconds_to_wait(client):
            retry = (b"retry-after", str(max(1, round(seconds))).encode())
            return 429, {"error": "too many deliveries without a proof"}, (retry, CLOSE)
        log.warning("hook_refused", hook=name, client=client)
        why = "this endpoint needs the proof that hooks.endpoints of the settings names for it"
        return 401, {"error": why}, (CLOSE,)

    async def _store(
        self, name: str, headers: Headers, body: bytes
    ) -> tuple[int, object, Sequence[tuple[bytes, bytes]]]:
        """Store what a delivery says."""
        source, _, endpoint = name.partition("/")
        try:
            signals = read_signals(
                source,
                endpoint,
                body,
                self._now(),
                headers("webhook-id"),
                _attributes(source, headers),
            )
        except NotUnderstood as fault:
            self._count(name, "not_understood")
            log.warning("hook_not_understood", hook=name, error=str(fault))
            return 400, {"error": f"not in the form of {source}: {fault}"}, ()
        try:
            await self._inlet.store(signals)
        except OperatingTrouble as trouble:
            self._count(name, "not_stored")
            log.warning("hook_not_stored", hook=name, error=str(trouble))
            return 503, {"error": f"not stored, send it again: {trouble}"}, (_RETRY_SOON,)
        self._count(name, "taken")
        return 202, {"signals": [one.id for one in signals]}, ()


_RETRY_SOON: Final = (b"retry-after", b"5")


def _is_signed(hook: HookSettings, headers: Headers, body: bytes) -> bool:
    assert hook.secret is not None
    return SIGNATURES[hook.source](headers, body, hook.secret.get_secret_value(), time.time())


def _attributes(source: str, headers: Headers) -> Mapping[str, str] | None:
    """Return the attributes of a CloudEvent that came as headers; None: they are in its body."""
    if source != "cloudevents" or not headers("ce-id"):
        return None
    return {"id": headers("ce-id"), "source": headers("ce-source")}


async def _consent(scope: Scope, send: Send, *, is_wanted: bool) -> None:
    """Answer CloudEvents' question whether it may deliver here. Others deliver without one."""
    origin = header(scope, b"webhook-request-origin")
    if not is_wanted or not origin or len(origin) > 300:
        await send_error(send, 405, "send a POST", (b"allow", b"POST"))
        return
    allowed = [(b"allow", b"POST"), (b"webhook-allowed-origin", origin.encode("latin-1"))]
    allowed.append((b"webhook-allowed-rate", _RATE.encode()))
    await send_json(send, 200, b"{}", *allowed)
