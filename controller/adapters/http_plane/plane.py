"""A flag plane that is told by HTTP, as a template words it: read, write, read back.

Belongs here: one bounded exchange at a time, when the next may be made, and what is remembered of a
flag. What is sent is `http_template.py`.

The other side is not trusted: no redirect is followed, no more than `max_answer_bytes` are read,
one deadline covers an exchange, nothing it says gets into a header, and the secret is cut out of
whatever is repeated of its words. It can neither compare nor be locked: a late writer is told from
the newest by our own memory alone, and undone by whoever runs the flag.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import importlib
import json
import secrets
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from controller.adapters.http.backoff import Backoff, retry_after_seconds
from controller.adapters.http.bounded import read_answer
from controller.adapters.http_plane.template import HttpTemplate, Request, load_template
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve, serving
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Clock, Served
from controller.settings import HttpPlaneSettings
from controller.text import excerpt

FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0
"""Between tries of what failed: a blip is over by the next look, and a wrong token is no storm of requests."""

#: Characters of the server's own text that a reason repeats.
MAX_EXCERPT_CHARS = 200

CONNECTIONS = 4
KEEP_ALIVE_SECONDS = 4.0
"""Idle connections are dropped before the next look: a server closes them at a moment of its own."""

SIGNING_KEY_BYTES = range(24, 65)
"""Source: Standard Webhooks 1.0, symmetric signatures."""


@dataclass(slots=True)
class _Memory:
    """What is known of one flag there."""

    revision: int = -1  # the newest that was sent
    sent: set[float] = field(default_factory=set)  # percentages that may stand there by our doing
    sent_count: int = 0
    percent: float | None = None  # as read last, or as sent where nothing can be read
    seen: Served | None = None  # at the last look, while it still stands
    seen_at: float = 0.0
    is_told: bool = False  # the newest was acknowledged


class HttpPlane:
    """Implements `controller.ports.FlagPlane`; nothing is connected before the first call."""

    def __init__(self, name: str, settings: HttpPlaneSettings, clock: Clock) -> None:
        """Raises ConfigInvalid for a template, a secret or authorities that cannot be used."""
        self.name = f"http:{name}"
        at = f"planes.http.{name}"
        try:
            self._template = load_template(
                settings.template, settings.values, allow_plain_http=settings.allow_plain_http
            )
            self._secret = _checked_secret(self._template, settings)
            self._signer = (
                Signer(self._secret)
                if self._template.is_signed and self._secret is not None
                else None
            )
            context = ssl.create_default_context(cafile=settings.ca_file)
        except (ConfigInvalid, OSError) as error:
            raise ConfigInvalid(f"{at}: {error}") from error
        self._settings = settings
        self._clock = clock
        self._memories: dict[str, _Memory] = {}
        self._backoff = Backoff(
            clock, first_seconds=FIRST_BACKOFF_SECONDS, max_seconds=MAX_BACKOFF_SECONDS
        )
        self._flag_backoffs: dict[str, Backoff] = {}
        self._http = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", "User-Agent": "rolloutd"},
            timeout=None,  # noqa: S113 - one deadline of ours covers an exchange
            verify=context,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEEP_ALIVE_SECONDS),
        )
        # Otherwise loaded by the first request, which would hold up the loop for 0.15 s.
        importlib.import_module("anyio._backends._asyncio")

    async def close(self) -> None:
        """Close what is open."""
        await self._http.aclose()

    async def look(self, rollout: Rollout) -> Served:
        return (await self._look(rollout)).short_of(serving(rollout).beyond_share)

    async def _look(self, rollout: Rollout) -> Served:
        memory = self._memory(rollout)
        decided = percent_to_serve(rollout)
        if rollout.revision < memory.revision:
            return Served(
                memory.percent,
                f"was told revision {memory.revision}, newer than {rollout.revision}",
            )
        if not self._template.reads:
            return self._believed(memory, rollout)
        now = self._clock.monotonic()
        if memory.seen is not None and now - memory.seen_at < self._settings.check_interval_seconds:
            if memory.seen.difference is None and memory.percent == decided:
                return memory.seen
            if memory.seen.edited_by is not None:
                return Served.compared(memory.percent, decided, edited_by=memory.seen.edited_by)
        scope = await self._read(rollout)
        memory.percent = self._template.percent(scope)
        is_edited = bool(memory.sent) and memory.percent not in memory.sent
        editor = f"somebody at {self._host}" if is_edited else None
        memory.seen = Served.compared(memory.percent, decided, edited_by=editor)
        memory.seen_at = now
        if memory.seen.difference is None:
            memory.sent = {decided}
            memory.revision = rollout.revision
        return memory.seen

    async def serve(self, rollout: Rollout) -> None:
        memory = self._memory(rollout)
        if rollout.revision < memory.revision or self._is_settled(memory, rollout):
            return
        scope = await self._read(rollout)
        request = self._template.write_request(scope)
        memory.revision = rollout.revision
        memory.sent.add(
            percent_to_serve(rollout)
        )  # before it is sent: a lost answer does not make it somebody else's
        memory.seen, memory.is_told = None, False
        await self._send(request, rollout)
        memory.is_told = True
        memory.sent_count += 1
        if not self._template.reads:
            memory.percent = percent_to_serve(rollout)

    # --- what is known
    # ----------------------------------------------------------------------------------------------

    def _memory(self, rollout: Rollout) -> _Memory:
        return self._memories.setdefault(rollout.flag_key, _Memory())

    def _is_settled(self, memory: _Memory, rollout: Rollout) -> bool:
        """Whether the percentage is known to stand there.

        Where more was decided it is not sent again and again.
        """
        if memory.revision != rollout.revision or memory.percent != percent_to_serve(rollout):
            return False
        return (
            memory.seen is not None and memory.seen.difference is None
            if self._template.reads
            else memory.is_told
        )

    def _believed(self, memory: _Memory, rollout: Rollout) -> Served:
        """Return what a plane that tells nothing is believed to serve.

        What it acknowledged last.
        """
        if memory.is_told and memory.revision == rollout.revision:
            return Served.compared(memory.percent, percent_to_serve(rollout))
        return Served(memory.percent, f"was not told revision {rollout.revision}")

    def _is_urgent(self, rollout: Rollout) -> bool:
        """Whether this is a lowering, which waits for nothing, or may be one for all we know."""
        memory, decided = self._memory(rollout), percent_to_serve(rollout)
        return memory.percent is None or decided < memory.percent or decided == 0

    @property
    def _host(self) -> str:
        return urlsplit(
            self._template.url.text(
                {**dict.fromkeys(self._template.url.names, ""), **self._template.values}
            )
        ).netloc

    async def _read(self, rollout: Rollout) -> dict[str, Any]:
        """Return everything that a write can be filled in with. Raises FlagPlaneUnavailable."""
        scope = self._template.scope(rollout, self._secret)
        for place in range(len(self._template.reads)):
            body = await self._send(self._template.read_request(place, scope), rollout)
            try:
                answer = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise FlagPlaneUnavailable(
                    f"{self._host} answered with what is no JSON: {self._quoted(str(error))}"
                ) from None
            self._template.find(place, answer, scope)
        if (why := self._template.why_refused(scope)) is not None:
            raise FlagPlaneUnavailable(f"the flag {why}")
        return scope

    # --- one exchange
    # ----------------------------------------------------------------------------------------------

    async def _send(self, request: Request, rollout: Rollout) -> bytes:
        """Return the body of a success.

        Raises FlagPlaneUnavailable, also while nothing is to be sent.
        """
        of_flag = self._flag_backoffs.get(rollout.flag_key)
        for backoff in (self._backoff, of_flag):
            if (
                backoff is not None
                and (why := backoff.why_waiting(is_urgent=self._is_urgent(rollout))) is not None
            ):
                raise FlagPlaneUnavailable(why)
        seconds = self._settings.call_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                response, body = await self._exchange(request, rollout)
        except TimeoutError:
            raise self._failed(
                self._backoff, f"{self._host} gave no complete answer within {seconds:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            said = self._quoted(str(error)) or type(error).__name__
            raise self._failed(self._backoff, f"{self._host} cannot be asked: {said}") from None
        if not response.is_success:
            raise self._trouble(response, body, rollout)
        self._backoff.worked()
        self._flag_backoffs.pop(rollout.flag_key, None)
        return body

    async def _exchange(self, request: Request, rollout: Rollout) -> tuple[httpx.Response, bytes]:
        headers = dict(request.headers)
        content: bytes | None = None
        if request.body is not None:
            content = json.dumps(request.body, separators=(",", ":"), allow_nan=False).encode()
            headers = {"Content-Type": "application/json", **headers}
        if self._signer is not None:
            message_id = (
                f"{rollout.flag_key}/{rollout.revision}/{_START}-{self._memory(rollout).sent_count}"
            )
            headers |= self._signer.headers(
                message_id, int(self._clock.now().timestamp()), content or b""
            )
        response = await self._http.send(
            self._http.build_request(request.method, request.url, headers=headers, content=content),
            stream=True,
        )
        return response, await read_answer(response, self._settings.max_answer_bytes)

    def _trouble(
        self, response: httpx.Response, body: bytes, rollout: Rollout
    ) -> FlagPlaneUnavailable:
        """Return what an unsuccessful answer means, and learn from it when to ask again."""
        status = response.status_code
        said = self._quoted(body[: 4 * MAX_EXCERPT_CHARS].decode("utf-8", "replace"))
        words = f"{self._host} answered {status}" + (f": {said}" if said else "")
        if 300 <= status < 400:
            return self._failed(
                self._backoff,
                f"{words}; a redirect is not followed: give the template the right address",
            )
        if status == 401:
            return self._failed(self._backoff, f"{words}; is the secret of {self.name} right?")
        if status == 429 or status >= 500:
            return self._failed(
                self._backoff, words, retry_after_seconds(response.headers, self._clock.now())
            )
        # A matter of this flag (unknown, archived, in conflict, approval wanted): the others are
        # not kept waiting.
        backoff = self._flag_backoffs.setdefault(
            rollout.flag_key,
            Backoff(
                self._clock, first_seconds=FIRST_BACKOFF_SECONDS, max_seconds=MAX_BACKOFF_SECONDS
            ),
        )
        return self._failed(backoff, words)

    def _failed(
        self, backoff: Backoff, why: str, requested_seconds: float | None = None
    ) -> FlagPlaneUnavailable:
        backoff.failed(why, requested_seconds=requested_seconds)
        return FlagPlaneUnavailable(why)

    def _quoted(self, text: str) -> str:
        """Return the beginning of the server's text for a log line and an alert, without our secret."""
        for secret in (self._secret, None if self._signer is None else self._signer.encoded_key):
            if secret:
                text = text.replace(secret, "***")
        return excerpt(text, MAX_EXCERPT_CHARS)


# : Tells what this process sent from what an earlier one did: a receiver that drops what it has
# seen must not drop it.
_START = secrets.token_hex(4)


class Signer:
    """Signs requests so that the receiver knows who sent them and when.

    Source: Standard Webhooks 1.0, symmetric signatures (HMAC-SHA256 over id, timestamp and body).
    """

    def __init__(self, secret: str) -> None:
        """`secret` is `whsec_` and 24 to 64 bytes in base64.

        Raises ConfigInvalid for anything else.
        """
        self.encoded_key = secret.removeprefix("whsec_")
        try:
            self._key = base64.b64decode(self.encoded_key, validate=True)
        except (binascii.Error, ValueError):
            self._key = b""
        if not secret.startswith("whsec_") or len(self._key) not in SIGNING_KEY_BYTES:
            raise ConfigInvalid(
                f"a signing secret is `whsec_` and {SIGNING_KEY_BYTES.start} to "
                f"{SIGNING_KEY_BYTES.stop - 1} random bytes in "
                'base64: echo "whsec_$(openssl rand -base64 32)"'
            )

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the headers that prove a message.

        `timestamp` is in seconds; receivers refuse one that is minutes off.
        """
        signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
        signature = base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256)).decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{signature}",
        }


def _checked_secret(template: HttpTemplate, settings: HttpPlaneSettings) -> str | None:
    """Return the secret.

    Raises ConfigInvalid when it is missing, has no use, or cannot stand in a header.
    """
    secret = None if settings.secret is None else settings.secret.get_secret_value()
    if template.uses_secret and not secret:
        raise ConfigInvalid("the template needs secret or secret_file")
    if secret and not template.uses_secret:
        raise ConfigInvalid("the template has no use for a secret: is it the right one?")
    if secret and not (secret.isascii() and secret.isprintable()):
        raise ConfigInvalid("the secret is not one line of ASCII: copy it once more")
    return secret
