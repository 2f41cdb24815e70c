"""A flag plane over HTTP, by a template: read, write, read back.

Belongs here: one bounded exchange at a time, when the next may be made, and what is remembered of a
flag. What is sent is `template.py`.

The other side is not trusted: no redirect is followed, no more than `max_answer_bytes` are read,
one deadline covers an exchange, nothing that it says gets into a header, and the secret is removed
from any part of its text that is repeated. It can neither compare revisions nor be locked. So only
our own memory distinguishes a late writer from the newest, and the replica that runs the flag
corrects what a late writer did.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from controller.adapters.http.bounded import read_answer
from controller.adapters.http.cooldown import Cooldown, retry_after_seconds
from controller.adapters.http.pool import make_client
from controller.adapters.http.signing import RequestSigner
from controller.adapters.http_plane.signing import checked_secret
from controller.adapters.http_plane.template import FilledRequest
from controller.adapters.http_plane.template_file import load_template
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve, serving
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Clock, Served
from controller.settings.planes import HttpPlaneSettings
from controller.text import excerpt

#: Waits between tries of what failed. A short outage is over by the next look, and a wrong token
#: must not cause a storm of requests.
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 1.0, 60.0

#: Characters of the server's own text that a reason repeats.
MAX_EXCERPT_CHARS = 200

CONNECTIONS = 4
#: Idle connections are dropped before the next look, because the server may close them any time.
KEEP_ALIVE_SECONDS = 4.0

#: Distinguishes what this process sent from what an earlier one did: a receiver that drops repeats
#: must not drop it.
_PROCESS = secrets.token_hex(4)


@dataclass(slots=True)
class _Memory:
    """What is remembered of one flag in the other system."""

    revision: int = -1  # the newest that was sent
    sent: set[float] = field(default_factory=set)  # percentages that we may have set there
    sent_count: int = 0
    percent: float | None = None  # as read last, or as sent where nothing can be read
    served: Served | None = None  # at the last look, until something is sent
    looked_at: float = 0.0  # monotonic
    is_acknowledged: bool = False  # the newest revision was
    replaced: float | None = None  # read just before the newest revision was sent

    @property
    def ours(self) -> set[float | None]:
        """What may be read without anybody's edit.

        A write that was not acknowledged may not have arrived: what it was to replace is there.
        """
        return {*self.sent} if self.is_acknowledged else {*self.sent, self.replaced}


class HttpPlane:
    """Implements `controller.ports.FlagPlane`; nothing is connected before the first call."""

    def __init__(self, name: str, settings: HttpPlaneSettings, clock: Clock) -> None:
        """Connect to nothing yet.

        Raises ConfigInvalid for a template, a secret or authorities that cannot be used.
        """
        self.name = f"http:{name}"
        at = f"planes.http.{name}"
        try:
            self._template = load_template(
                settings.template, settings.values, allow_plain_http=settings.allow_plain_http
            )
            self._secret = checked_secret(self._template, settings)
            self._signer = (
                RequestSigner(self._secret)
                if self._template.is_signed and self._secret is not None
                else None
            )
            context = ssl.create_default_context(cafile=settings.ca_file)
        except (ConfigInvalid, OSError) as error:
            raise ConfigInvalid(f"{at}: {error}") from error
        self._settings = settings
        self._clock = clock
        self._memories: dict[str, _Memory] = {}
        self._cooldown = Cooldown(
            clock, first_seconds=FIRST_WAIT_SECONDS, max_seconds=MAX_WAIT_SECONDS
        )
        self._flag_cooldowns: dict[str, Cooldown] = {}
        limits = httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEEP_ALIVE_SECONDS)
        self._http = make_client(context, limits)

    @classmethod
    def from_settings(cls, name: str, settings: HttpPlaneSettings, clock: Clock) -> Self:
        return cls(name, settings, clock)

    @staticmethod
    def can_serve_audiences(settings: HttpPlaneSettings) -> bool:
        """Return False: templates set a percentage of all contexts."""
        return False

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def retire(self, flag_key: str, revision: int) -> None:
        """Leave the flag there as it is, and forget what is remembered of it here."""
        self._memories.pop(flag_key, None)
        self._flag_cooldowns.pop(flag_key, None)

    async def look(self, rollout: Rollout) -> Served:
        return (await self._look(rollout)).short_of(serving(rollout).beyond_share)

    async def _look(self, rollout: Rollout) -> Served:
        memory = self._memory(rollout)
        decided = percent_to_serve(rollout)
        if rollout.revision < memory.revision:
            return Served(
                memory.percent,
                f"was sent revision {memory.revision}, newer than {rollout.revision}",
            )
        if not self._template.reads:
            return self._assumed(memory, rollout)
        now = self._clock.monotonic()
        if (
            memory.served is not None
            and now - memory.looked_at < self._settings.check_interval_seconds
        ):
            if memory.served.difference is None and memory.percent == decided:
                return memory.served
            if memory.served.edited_by is not None:
                return Served.compared(memory.percent, decided, edited_by=memory.served.edited_by)
        scope = await self._read(rollout)
        memory.percent = self._template.percent(scope)
        is_edited = bool(memory.sent) and memory.percent not in memory.ours
        editor = f"somebody at {self._host}" if is_edited else None
        memory.served = Served.compared(memory.percent, decided, edited_by=editor)
        memory.looked_at = now
        if memory.served.difference is None:
            memory.sent = {decided}
            memory.revision = rollout.revision
        return memory.served

    async def serve(self, rollout: Rollout) -> None:
        memory = self._memory(rollout)
        if rollout.revision < memory.revision or self._is_settled(memory, rollout):
            return
        scope = await self._read(rollout)
        request = self._template.write_request(scope)
        memory.revision = rollout.revision
        # Before it is sent: if the answer is lost, the percentage is still ours.
        memory.sent.add(percent_to_serve(rollout))
        memory.replaced = self._template.percent(scope)
        memory.served, memory.is_acknowledged = None, False
        await self._send(request, rollout)
        memory.is_acknowledged = True
        memory.sent_count += 1
        if not self._template.reads:
            memory.percent = percent_to_serve(rollout)

    # --- memory ---

    def _memory(self, rollout: Rollout) -> _Memory:
        return self._memories.setdefault(rollout.flag_key, _Memory())

    def _is_settled(self, memory: _Memory, rollout: Rollout) -> bool:
        """Return whether the decided percentage is certainly served.

        A plan that decides more than a percentage is not sent again and again.
        """
        if memory.revision != rollout.revision or memory.percent != percent_to_serve(rollout):
            return False
        return (
            memory.served is not None and memory.served.difference is None
            if self._template.reads
            else memory.is_acknowledged
        )

    def _assumed(self, memory: _Memory, rollout: Rollout) -> Served:
        """Return what a plane that cannot be read serves: what it acknowledged last."""
        if memory.is_acknowledged and memory.revision == rollout.revision:
            return Served.compared(memory.percent, percent_to_serve(rollout))
        return Served(memory.percent, f"has not acknowledged revision {rollout.revision}")

    def _is_urgent(self, rollout: Rollout) -> bool:
        """Return whether this lowers the percentage, or may do so, and must not wait."""
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
        """Return all values that a write can be filled in with. Raises FlagPlaneUnavailable."""
        scope = self._template.scope(rollout, self._secret)
        for place in range(len(self._template.reads)):
            body = await self._send(self._template.read_request(place, scope), rollout)
            try:
                answer = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise FlagPlaneUnavailable(
                    f"{self._host} answered with what is no JSON: {self._quoted(str(error))}"
                ) from None
            self._template.extract(place, answer, scope)
        if (why := self._template.why_refused(scope)) is not None:
            raise FlagPlaneUnavailable(f"the flag {why}")
        return scope

    # --- one exchange ---

    async def _send(self, request: FilledRequest, rollout: Rollout) -> bytes:
        """Return the body of a success.

        Raises FlagPlaneUnavailable, also while nothing may be sent.
        """
        for cooldown in (self._cooldown, self._flag_cooldowns.get(rollout.flag_key)):
            if (
                cooldown is not None
                and (why := cooldown.why_waiting(is_urgent=self._is_urgent(rollout))) is not None
            ):
                raise FlagPlaneUnavailable(why)
        seconds = self._settings.call_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                response, body = await self._exchange(request, rollout)
        except TimeoutError:
            raise self._failed(
                self._cooldown, f"{self._host} gave no complete answer within {seconds:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            why = self._quoted(str(error)) or type(error).__name__
            raise self._failed(
                self._cooldown, f"{self._host} gave no usable answer: {why}"
            ) from None
        if not response.is_success:
            raise self._trouble(response, body, rollout)
        self._cooldown.worked()
        self._flag_cooldowns.pop(rollout.flag_key, None)
        return body

    async def _exchange(
        self, request: FilledRequest, rollout: Rollout
    ) -> tuple[httpx.Response, bytes]:
        headers = dict(request.headers)
        content: bytes | None = None
        if request.body is not None:
            content = json.dumps(request.body, separators=(",", ":"), allow_nan=False).encode()
            headers = {"Content-Type": "application/json", **headers}
        if self._signer is not None:
            count = self._memory(rollout).sent_count
            message_id = f"{rollout.flag_key}/{rollout.revision}/{_PROCESS}-{count}"
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
        """Return the error that an unsuccessful answer means, and set when to ask again."""
        status = response.status_code
        message = self._quoted(body[: 4 * MAX_EXCERPT_CHARS].decode("utf-8", "replace"))
        words = f"{self._host} answered {status}" + (f": {message}" if message else "")
        if 300 <= status < 400:
            return self._failed(
                self._cooldown,
                f"{words}; a redirect is not followed: give the template the right address",
            )
        if status == 401:
            return self._failed(self._cooldown, f"{words}; is the secret of {self.name} right?")
        if status == 429 or status >= 500:
            return self._failed(
                self._cooldown, words, retry_after_seconds(response.headers, self._clock.now())
            )
        # A matter of this flag (unknown, archived, in conflict, needs approval): other flags do not
        # wait.
        cooldown = self._flag_cooldowns.setdefault(
            rollout.flag_key,
            Cooldown(self._clock, first_seconds=FIRST_WAIT_SECONDS, max_seconds=MAX_WAIT_SECONDS),
        )
        return self._failed(cooldown, words)

    def _failed(
        self, cooldown: Cooldown, why: str, requested_seconds: float | None = None
    ) -> FlagPlaneUnavailable:
        cooldown.failed(why, requested_seconds=requested_seconds)
        return FlagPlaneUnavailable(why)

    def _quoted(self, text: str) -> str:
        """Return the beginning of the server's text, printable and without our secret."""
        for secret in (self._secret, None if self._signer is None else self._signer.encoded_key):
            if secret:
                text = text.replace(secret, "***")
        return excerpt(text, MAX_EXCERPT_CHARS)
