"""Incidents that people were told of: who may take one, and taking it, for the API and the page.

Taking is a request on `rollout.signals`, as `rolloutctl notify ack` makes it: whichever replica
notifies carries it out.

Belongs here: the checks before it is sent, waiting until it is seen, and the API's endpoint. Does
not belong here: what follows from it (`notifying/planner.py`), and the screen
(`page/incidents.py`).
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import structlog
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from controller.errors import OperatingTrouble
from controller.text import describe_faults
from controller.web.access.identity import Identity, IdentityRefused
from controller.web.access.reading import CHALLENGE, identity_of
from controller.web.access.recognition import Guardian
from controller.web.access.roles import TAKE
from controller.web.answers import CLOSE, BodyRefused, header, read_json_body, send_error, send_json
from controller.web.clients import RateLimit
from controller.web.commands import FORM_TOKEN, NotTaken, PerhapsTaken
from schemas.notifications import (
    Acknowledgement,
    IncidentEntry,
    NotificationsView,
    Taken,
    TakePending,
)
from schemas.signal import Signal
from schemas.terms import NotificationRequest, SignalStatus

#: As `controller.notifying.intake.HTTP_HOOK`, of a layer that this one does not know.
HOOK: Final = "rolloutd/http"
MAX_ACKNOWLEDGEMENT_BYTES: Final = 16 * 1024
#: Of one person or machine, with a burst of ten seconds' worth.
PER_SECOND: Final = 2.0
#: It takes some hundred milliseconds; then people are told that it is on its way.
WAIT_SECONDS: Final = 4.0
_LOOK_EVERY_SECONDS: Final = 0.1
#: What is known is asked for no more often, and rests for nine times as long as that took.
FRESH_SECONDS: Final = 0.8  # below the pace of open pages
_REST: Final = 9.0
_LONGEST_REST: Final = 5.0
#: A page waits no longer for it: it has more to show.
_READ_SECONDS: Final = 1.5
_ON_ITS_WAY: Final = (
    "Kafka has it, and it is not seen to be taken yet: look again in some seconds. Escalation "
    "goes on until then"
)

log = structlog.get_logger(__name__)


class NotificationSource(Protocol):
    """What is known of notifications, and asked of them: `running/notification_parts.py`."""

    async def standing(self) -> NotificationsView:
        """Return how notifying stands. Raises StoreUnavailable."""

    async def ask(self, signal: Signal) -> None:
        """Store what somebody asks of notifications. Raises EventLogUnavailable."""


class Incidents:
    """What is known of incidents, and taking them."""

    def __init__(
        self, source: NotificationSource, guardian: Guardian | None, now: Callable[[], datetime]
    ) -> None:
        """`guardian` None: nobody can sign in, so nobody can take any here."""
        self.guardian = guardian
        self._source = source
        self._now = now
        self._limit = RateLimit(PER_SECOND, burst_seconds=10.0)
        self._reading = asyncio.Lock()
        self._known: NotificationsView | None = None
        self._trouble = ""
        self._fresh_until = -math.inf

    # --- what is known ---

    async def known(self) -> tuple[NotificationsView | None, str]:
        """Return how notifying stands, about a second old at most; None with why it is not known.

        However many pages are open, it is read once for all of them.
        """
        async with self._reading:
            began = time.monotonic()
            if began >= self._fresh_until:
                try:
                    async with asyncio.timeout(_READ_SECONDS):
                        self._known, self._trouble = await self._source.standing(), ""
                except (OperatingTrouble, TimeoutError) as trouble:
                    self._known, self._trouble = None, str(trouble) or "Redis does not answer"
                ended = time.monotonic()
                rest = min(_REST * (ended - began), _LONGEST_REST)
                self._fresh_until = ended + max(FRESH_SECONDS, rest)
            return self._known, self._trouble

    # --- taking ---

    def why_not_allowed(self, who: Identity | None, flag_key: str) -> str | None:
        """Return why somebody may not take incidents of a flag, None where they may."""
        if who is None or self.guardian is None:
            return "sign in first: an incident is taken in somebody's name"
        role = self.guardian.access.role(who, flag_key)
        if role is not None and role >= TAKE:
            return None
        has = "no role" if role is None else f"the role {role.word}"
        return f"taking it needs the role {TAKE.word}: {who.name} has {has} for {flag_key}"

    async def take(
        self, who: Identity, asked: Acknowledgement, opened_at: datetime | None = None
    ) -> Sequence[IncidentEntry]:
        """Take an incident, or all of a flag; return them as they are then.

        `opened_at`: when the one that was seen began; None: whichever is open. Those that are not
        seen to be taken yet have nobody in `taken_by`. Raises NotTaken.
        """
        if seconds := self._limit.seconds_to_wait(who.name):
            wait = (b"retry-after", str(max(1, math.ceil(seconds))).encode())
            raise NotTaken(429, f"too many requests of {who.name}: wait some seconds", wait)
        found = await self._find(asked, opened_at)
        for one in found:
            if (why_not := self.why_not_allowed(who, one.flag)) is not None:
                raise NotTaken(403, why_not)
        free = [one for one in found if not one.taken_by]
        if not free:
            first = found[0]
            raise NotTaken(409, f"{first.taken_by} has taken it at {first.taken_at:%H:%M:%S} UTC")
        issuer = f"{asked.by} ({who.name})" if asked.by else who.name
        for one in free:
            await self._ask(one, issuer)
        log.info("incident_take_asked", by=issuer, incidents=[one.key for one in free])
        return await self._seen(free)

    async def _find(
        self, asked: Acknowledgement, opened_at: datetime | None
    ) -> Sequence[IncidentEntry]:
        """Return the open incidents that are meant. Raises NotTaken where there are none."""
        view = await self._standing()
        found = [one for one in view.incidents if asked.key == one.key or asked.flag == one.flag]
        if not found:
            what = asked.key or f"of the flag {asked.flag}"
            raise NotTaken(404, f"there is no open incident {what}: it is over, or never was")
        if opened_at is not None and found[0].opened_at != opened_at:
            why = "it has changed since you saw it, and may have got worse: look again"
            raise NotTaken(409, why)
        return found

    async def _ask(self, incident: IncidentEntry, issuer: str) -> None:
        """Send one request. Raises PerhapsTaken."""
        signal = Signal(
            id=uuid.uuid4().hex,
            hook=HOOK,
            status=SignalStatus.NOTE,
            condition=f"notifications/{NotificationRequest.ACKNOWLEDGE}",
            title=f"{issuer} takes {incident.key}"[:1000],
            received_at=self._now(),
            started_at=incident.opened_at,
            request=NotificationRequest.ACKNOWLEDGE,
            request_about=incident.key,
            issuer=issuer[:1000],
        )
        try:
            await self._source.ask(signal)
        except OperatingTrouble as trouble:
            why = f"it is not known to be taken: {trouble}; take it where it pages, or try again"
            raise PerhapsTaken(503, why) from trouble

    async def _seen(self, asked: Sequence[IncidentEntry]) -> Sequence[IncidentEntry]:
        """Return the incidents as soon as they are seen to be taken, or as they are by then."""
        until = time.monotonic() + WAIT_SECONDS
        names = {(one.key, one.opened_at) for one in asked}
        while True:
            try:
                view = await self._standing()
            except NotTaken:
                return asked  # it is sent all the same
            found = [one for one in view.incidents if (one.key, one.opened_at) in names]
            over = [one.incident for one in view.ended]
            is_done = all(one.taken_by for one in found)
            if is_done or time.monotonic() >= until:
                self._fresh_until = -math.inf  # whoever took it sees that they did
                return [*found, *(one for one in over if (one.key, one.opened_at) in names)]
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def _standing(self) -> NotificationsView:
        """Return how notifying stands now. Raises NotTaken."""
        try:
            return await self._source.standing()
        except OperatingTrouble as trouble:
            wait = (b"retry-after", b"2")
            raise NotTaken(503, f"it is not known which incidents are open: {trouble}", wait) from (
                trouble
            )


class TakeIncidents:
    """POST /api/v1/notifications/acknowledge: takes incidents in the name of who is signed in."""

    purpose = "takes incidents, so that nobody else is told of them; needs to be signed in."

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the incidents that were taken; 202 where that is not seen yet."""
        who, guardian = identity_of(scope), self._incidents.guardian
        if who is None or guardian is None:
            why = "incidents are taken in somebody's name: send `Authorization: Bearer TOKEN`"
            await send_error(send, 401, why, CHALLENGE, CLOSE)
            return
        try:
            guardian.check_form(scope, who, header(scope, FORM_TOKEN))
            asked = await _asked(scope, receive)
            found = await self._incidents.take(who, asked)
        except NotTaken as refused:
            await send_error(send, refused.status, str(refused), CLOSE, *refused.headers)
            return
        except (BodyRefused, IdentityRefused) as refused:
            await send_error(send, refused.status, str(refused), CLOSE)
            return
        answer: Any = Taken(incidents=list(found))
        status = 200
        if missing := [one.key for one in found if not one.taken_by]:
            answer, status = TakePending(keys=missing, reason=f"{_ON_ITS_WAY}."), 202
        await send_json(send, status, answer.model_dump_json().encode())


async def _asked(scope: Scope, receive: Receive) -> Acknowledgement:
    """Return what a request asks for. Raises NotTaken and BodyRefused."""
    body = await read_json_body(scope, receive, MAX_ACKNOWLEDGEMENT_BYTES)
    try:
        return Acknowledgement.model_validate_json(body)
    except ValidationError as error:
        raise NotTaken(400, describe_faults(error)) from None
