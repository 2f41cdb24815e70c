"""Unleash's Admin API: the requests that we use, their answers, and messages for operators.

Belongs here: one HTTP exchange at a time, bounded in time and size, and when the next may be made.
What a flag should look like is `target.py`; what is done about it, `plane.py`. Source: the API of
Unleash 7.6 and 8.2, tried call by call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from controller.adapters.http.bounded import read_answer
from controller.adapters.http.cooldown import Cooldown, retry_after_seconds
from controller.adapters.http.pool import make_client
from controller.adapters.http.tls import client_context
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Clock
from controller.settings.planes import UnleashSettings
from controller.text import excerpt

#: First wait after a failure; it doubles from there. A short outage is over by the next round of
#: reconciling.
FIRST_WAIT_SECONDS = 1.0
#: Characters of Unleash's own text that a reason repeats.
MAX_EXCERPT_CHARS = 300
#: Entries of the audit trail that are searched for who changed a flag.
EVENTS = 50
#: Idle connections are dropped before the next round, because the server may close them any time.
KEEP_ALIVE_SECONDS = 4.0

#: How Unleash words it, with status 500, when a patch's `test` operation does not hold.
_TEST_FAILED = "TEST_OPERATION_FAILED"

T = TypeVar("T")


class Strategy(msgspec.Struct):
    """One activation strategy of a flag in one environment: it lets some users in."""

    id: str
    name: str
    title: str | None = None
    disabled: bool | None = False
    parameters: dict[str, Any] = {}
    constraints: list[dict[str, Any]] = []
    variants: list[dict[str, Any]] | None = None
    segments: list[int] | None = None


class Environment(msgspec.Struct, rename="camel"):
    """A flag in one environment."""

    name: str
    enabled: bool
    strategies: list[Strategy] = []
    last_seen_at: datetime | None = None  # when an SDK last reported that it asked for the flag


class Feature(msgspec.Struct):
    """A flag with its environments."""

    name: str
    environments: list[Environment]


class AuditEntry(msgspec.Struct, rename="camel"):
    """An entry of the audit trail."""

    id: int
    type: str
    created_by: str | None = None
    environment: str | None = None
    data: Any = None
    pre_data: Any = None


class _Changes(msgspec.Struct):
    events: list[AuditEntry]


class ErrorBody(msgspec.Struct):
    """The body of an unsuccessful answer."""

    name: str = ""
    message: str = ""


class Away(FlagPlaneUnavailable):
    """The server or the network is in trouble, which may pass; the flag's state is not known."""


class Refused(FlagPlaneUnavailable):
    """Unleash answered and refused: a matter of this request, not of the server's health."""

    def __init__(self, message: str, status: int, problem: ErrorBody) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem


class Overtaken(FlagPlaneUnavailable):
    """A strategy is no longer as it was when we read it."""


class UnleashApi:
    """Makes requests for one project and environment.

    After a failure of the server or the network only urgent requests are sent for a while: see
    `Cooldown`.
    """

    def __init__(self, settings: UnleashSettings, clock: Clock) -> None:
        """Connect to nothing yet.

        Raises ConfigInvalid without an address, or with certificates that cannot be used.
        """
        if settings.url is None or settings.token is None:
            raise ConfigInvalid(
                "planes.unleash.url and planes.unleash.token are not set: give the address "
                "and an Admin API token"
            )
        self._settings = settings
        self._clock = clock
        self.name = settings.url
        self._token = settings.token.get_secret_value()
        self._cooldown = Cooldown(
            clock, first_seconds=FIRST_WAIT_SECONDS, max_seconds=settings.max_backoff_seconds
        )
        self._features = (
            f"{settings.url}/api/admin/projects/{quote(settings.project, safe='')}/features"
        )
        self._http = make_client(
            client_context(
                settings, "planes.unleash", is_used=not settings.url.startswith("http:")
            ),
            httpx.Limits(max_connections=4, keepalive_expiry=KEEP_ALIVE_SECONDS),
            headers={"Authorization": self._token},
            timeout=httpx.Timeout(
                settings.request_timeout_seconds, connect=settings.connect_timeout_seconds
            ),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    # --- reading ---

    async def feature(self, flag_key: str, *, is_urgent: bool) -> Feature | None:
        """Return a flag, None when the project does not have it, or has it archived.

        Raises FlagPlaneUnavailable.
        """
        try:
            body = await self._send("GET", self._feature(flag_key), is_urgent=is_urgent)
        except Refused as refusal:
            if refusal.status == 404 and refusal.problem.name == "NotFoundError":
                return None
            raise self._failed(
                f"{refusal}, see that planes.unleash.url is the base address of Unleash"
            ) from refusal
        return self._parsed(body, Feature)

    async def changes(self, flag_key: str, *, is_urgent: bool) -> Sequence[AuditEntry]:
        """Return the last changes of a flag, newest first. Raises FlagPlaneUnavailable."""
        query = f"feature=IS:{quote(flag_key, safe='')}&limit={EVENTS}"
        address = f"{self.name}/api/admin/search/events?{query}"
        return self._parsed(await self._send("GET", address, is_urgent=is_urgent), _Changes).events

    # --- writing: each is harmless to repeat, except that adding adds again ---

    async def create(self, flag_key: str, flag_type: str, description: str) -> None:
        """Make a flag, off in every environment. Raises FlagPlaneUnavailable."""
        body = {"name": flag_key, "type": flag_type, "description": description}
        try:
            await self._send("POST", self._features, body)
        except Refused as refusal:
            if refusal.status == 409:
                raise FlagPlaneUnavailable(
                    f"{self.name} has the name in use, archived or in another project ({refusal}): "
                    "revive it in Unleash, or roll out under another key"
                ) from refusal
            raise

    async def add_strategy(self, flag_key: str, strategy: Mapping[str, Any]) -> Strategy:
        """Add a strategy and return it with its id. Raises FlagPlaneUnavailable."""
        return self._parsed(
            await self._send("POST", f"{self._here(flag_key)}/strategies", strategy), Strategy
        )

    async def patch_strategy(
        self,
        flag_key: str,
        strategy_id: str,
        *,
        replace: Mapping[str, Any],
        expect: Mapping[str, Any],
        is_urgent: bool,
    ) -> None:
        """Replace fields of a strategy if the `expect` fields still have their values.

        Both are by JSON pointer. Unleash has no If-Match, but the server checks the patch's own
        `test` operation as it writes. So a late writer has the milliseconds of one request rather
        than any length of time. Raises Overtaken, FlagPlaneUnavailable.
        """
        patch = [
            *({"op": "test", "path": path, "value": value} for path, value in expect.items()),
            *({"op": "replace", "path": path, "value": value} for path, value in replace.items()),
        ]
        address = f"{self._here(flag_key)}/strategies/{quote(strategy_id, safe='')}"
        try:
            await self._send("PATCH", address, patch, is_urgent=is_urgent)
        except Refused as refusal:
            if _TEST_FAILED in refusal.problem.message:
                raise Overtaken(
                    f"{self.name}: somebody changed the strategy while we wrote; "
                    "the next look reads it again"
                ) from None
            if refusal.status == 404:
                raise Overtaken(
                    f"{self.name}: somebody deleted the strategy while we wrote; "
                    "the next look reads it again"
                ) from None
            raise

    async def sort_strategies(self, flag_key: str, strategy_ids: Sequence[str]) -> None:
        """Put strategies in this order. Raises FlagPlaneUnavailable."""
        order = [{"id": each, "sortOrder": place} for place, each in enumerate(strategy_ids, 1)]
        await self._send("POST", f"{self._here(flag_key)}/strategies/set-sort-order", order)

    async def delete_strategy(self, flag_key: str, strategy_id: str) -> None:
        """Remove a strategy; a missing one is no fault. Raises FlagPlaneUnavailable."""
        try:
            await self._send(
                "DELETE", f"{self._here(flag_key)}/strategies/{quote(strategy_id, safe='')}"
            )
        except Refused as refusal:
            if refusal.status != 404:
                raise

    async def switch(self, flag_key: str, *, on: bool) -> None:
        """Switch a flag's environment on or off. Raises FlagPlaneUnavailable.

        On without an enabled strategy lets everybody in: Unleash adds one of 100 %.
        """
        await self._send(
            "POST", f"{self._here(flag_key)}/{'on' if on else 'off'}", is_urgent=not on
        )

    async def archive(self, flag_key: str) -> None:
        """Archive a flag: it is off everywhere. Raises FlagPlaneUnavailable."""
        await self._send("DELETE", self._feature(flag_key))

    # --- one exchange ---

    def _feature(self, flag_key: str) -> str:
        return f"{self._features}/{quote(flag_key, safe='')}"

    def _here(self, flag_key: str) -> str:
        return (
            f"{self._feature(flag_key)}/environments/{quote(self._settings.environment, safe='')}"
        )

    async def _send(
        self, method: str, address: str, content: Any = None, *, is_urgent: bool = False
    ) -> bytes:
        """Return the body of a success.

        Raises Refused, and Away for trouble of the server or the network.
        """
        if (why := self._cooldown.why_waiting(is_urgent=is_urgent)) is not None:
            raise Away(why)
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                response, body = await self._exchange(method, address, content)
        except (TimeoutError, httpx.TimeoutException):
            raise self._failed(
                f"{self.name} gave no complete answer within "
                f"{self._settings.request_timeout_seconds:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise self._failed(
                f"{self.name} gave no usable answer: {_quoted(str(error)) or type(error).__name__}"
            ) from error
        if response.is_success:
            self._cooldown.worked()
            return body
        raise self._trouble(response, body)

    async def _exchange(
        self, method: str, address: str, content: Any
    ) -> tuple[httpx.Response, bytes]:
        request = self._http.build_request(method, address, json=content)
        if content is None and method == "POST":
            request.headers["Content-Type"] = "application/json"
        response = await self._http.send(request, stream=True)
        return response, await read_answer(response, self._settings.max_answer_bytes)

    def _parsed(self, body: bytes, form: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=form)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._failed(
                f"{self.name} answered with what is no answer of Unleash "
                f"({_quoted(str(error))}): see that "
                "planes.unleash.url is its base address"
            ) from None

    def _trouble(self, response: httpx.Response, body: bytes) -> FlagPlaneUnavailable:
        """Return the error that an unsuccessful answer means, and set when to ask again."""
        status, settings = response.status_code, self._settings
        try:
            problem = msgspec.json.decode(body, type=ErrorBody)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            problem = ErrorBody()
        message = _quoted(problem.message.replace(self._token, "***"))
        words = f"HTTP {status}: {message}" if message else f"HTTP {status}"
        if status == 401:
            return self._failed(
                f"{self.name} does not know our token ({words}): give planes.unleash.token "
                f"an admin token of it"
            )
        requested = retry_after_seconds(response.headers, self._clock.now())
        if status == 429:
            return self._failed(
                f"{self.name} asks us to be slower ({words})", requested_seconds=requested
            )
        if 300 <= status < 400:
            return self._failed(
                f"{self.name} redirects us ({words}), which is not followed: give "
                f"planes.unleash.url its address"
            )
        if status >= 500 and _TEST_FAILED not in problem.message:
            return self._failed(f"{self.name} failed ({words})", requested_seconds=requested)
        if status == 403:
            what_to_do = (
                f"give planes.unleash.token an admin token that may read and change flags "
                f"of project {settings.project} in "
                f"{settings.environment}, also where people need a change request"
            )
            return Refused(f"{self.name} forbids it ({words}): {what_to_do}", status, problem)
        return Refused(f"{self.name} refused it ({words})", status, problem)

    def _failed(self, why: str, *, requested_seconds: float | None = None) -> Away:
        self._cooldown.failed(why, requested_seconds=requested_seconds)
        return Away(why)


def _quoted(text: str) -> str:
    """Return the beginning of Unleash's text, fit for a log line and an alert."""
    return excerpt(text, MAX_EXCERPT_CHARS)
