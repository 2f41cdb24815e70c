"""Every exception we raise, whose fault it is, and whether a retry helps.

RolloutdError
+-- BadInput                 the sender's: refuse it with place and fix; a retry never helps
|   +-- ConfigInvalid          the operator's settings or plan
|   +-- CommandRefused         the issuer's: it can be answered, and not be carried out
|   +-- CommandUnreadable      the issuer's: not even an id to answer; to quarantine
|   +-- SignInRefused          the person's or the provider's: nobody is signed in
|   +-- MessageRefused         a notification that its channel will never take
+-- OperatingTrouble         the environment's: retry with backoff until a deadline, then an event
|   +-- EventLogUnavailable    Kafka
|   +-- StoreUnavailable       Redis; the outcome of a write is unknown
|   +-- AdviceUnavailableError   the model: late, absent, unparsable; no retry within a round
|   +-- FlagPlaneUnavailable   a plane is not known to serve what was decided
|   +-- ProviderUnavailable    the OpenID Connect provider: nobody can sign in meanwhile
|   +-- LastKnownUnavailable   the file of the last known state cannot be read or written
|   +-- HeartbeatUnheard       the dead man's switch: its monitoring service has not heard from us
|   +-- ChannelUnavailable     a channel of notifications: the message is sent again
|   +-- NotMeasured            a monitoring system gives no number, for a reason that has a name
|   +-- NotAnswered            a gate webhook gives no answer, for a reason that has a name
+-- BrokenInvariant          our own: stop the worker, turn health red
    +-- DocumentUnreadable     a stored rollout is damaged
        +-- DocumentNewer        a newer release wrote it: it is never written over
        +-- ForeignDocument      another environment's rolloutd wrote it

A record of a topic that cannot be used is `schemas.wire.RecordRefused`: the contract refuses it,
and it goes to the quarantine topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemas.terms import CommandVerb, HealthGap, MeasurementGap, QuarantineReason

if TYPE_CHECKING:
    from schemas.command import Command  # slow to load, and every light command loads this file


class RolloutdError(Exception):
    """Anything rolloutd raises on purpose."""


class BadInput(RolloutdError):
    """What came in cannot be used; the message says what, where and how to fix it."""


class ConfigInvalid(BadInput):
    """Settings or a plan cannot be used."""


class MessageRefused(BadInput):
    """A channel of notifications will never take this message; it takes others."""


class CommandRefused(BadInput):
    """A command that gets its one result, `rejected`, because it cannot be meant as it stands."""

    def __init__(
        self,
        *,
        command_id: str,
        flag_key: str,
        verb: CommandVerb | None,
        reason: str,
        issuer: str = "",
        command: Command | None = None,
    ) -> None:
        """`issuer`: empty where the command does not say.

        `command`: what was read, where it is whole and its plan alone cannot be used.
        """
        super().__init__(reason)
        self.command_id = command_id
        self.flag_key = flag_key
        self.verb = verb
        self.reason = reason
        self.issuer = issuer
        self.command = command


class CommandUnreadable(BadInput):
    """A record of the command topic that names no flag and id.

    There is nobody to answer, so it goes to quarantine.
    """

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class SignInRefused(BadInput):
    """A sign-in that proves nothing: the message says why, and what to do."""


class OperatingTrouble(RolloutdError):
    """The surroundings do not answer as they should; it may pass."""


class EventLogUnavailable(OperatingTrouble):
    """Kafka does not answer in time or refuses."""


class StoreUnavailable(OperatingTrouble):
    """Redis does not answer in time or refuses; what was sent may or may not have been done."""


class AdviceUnavailableError(OperatingTrouble):
    """No usable advice in time; `fix` is what to do, in terms of settings, where that is known."""

    def __init__(self, reason: str, *, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


class FlagPlaneUnavailable(OperatingTrouble):
    """The plane is not known to serve what was decided."""


class ProviderUnavailable(OperatingTrouble):
    """The OpenID Connect provider does not answer, or not as one."""


class LastKnownUnavailable(OperatingTrouble):
    """The file of the last known state cannot be read or written; without it all else goes on."""


class ChannelUnavailable(OperatingTrouble):
    """A channel has not taken a message, and may take it later."""

    def __init__(self, why: str, retry_after_seconds: float | None = None) -> None:
        """`retry_after_seconds` is the wait that its server asked for."""
        super().__init__(why)
        self.retry_after_seconds = retry_after_seconds


class RecipientsMissed(OperatingTrouble):
    """A channel has given a message to its recipients, except for these."""

    def __init__(self, why: str, *, later: Sequence[str] = (), never: Sequence[str] = ()) -> None:
        """`later` may get it when it is sent again, `never` will not."""
        super().__init__(why)
        self.later = tuple(later)
        self.never = tuple(never)


class NotMeasured(OperatingTrouble):
    """A monitoring system gives no number. It is never taken for zero."""

    def __init__(self, gap: MeasurementGap, why: str) -> None:
        super().__init__(why)
        self.gap = gap


class NotAnswered(OperatingTrouble):
    """A gate webhook gives no answer. It is never taken for a pass."""

    def __init__(self, gap: HealthGap, why: str) -> None:
        super().__init__(why)
        self.gap = gap


class HeartbeatUnheard(OperatingTrouble):
    """The monitoring service was called and has not heard; without it all else goes on."""


class BrokenInvariant(RolloutdError):
    """We are wrong about something we rely on."""


class DocumentUnreadable(BrokenInvariant):
    """A stored rollout document has an unknown version or is not one: never guessed at."""


class DocumentNewer(DocumentUnreadable):
    """A newer release wrote it. Whatever it says stays as it is."""


class ForeignDocument(DocumentUnreadable):
    """A rollout document that the rolloutd of another environment wrote."""

    def __init__(self, environment: str) -> None:
        super().__init__(f"the document was written by the rolloutd of environment {environment!r}")
        self.environment = environment


def without_history(error: BaseException) -> None:
    """Drop the traceback, the cause and the context of an error that is going to be kept.

    They hold every frame that the error passed, with all values in it.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
