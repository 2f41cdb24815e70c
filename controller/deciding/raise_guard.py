"""Reasons why this replica must not raise a percentage now.

A replica that is cut off may not know the newest decision, and one with a wrong clock ends a bake
too early. Lowering is never held back.
"""

from __future__ import annotations

from typing import Final, Protocol

from controller.health import Faults, Scope

#: The shortest age at which knowledge is too old. Brokers are asked once a second.
SHORTEST_AGE_SECONDS: Final = 3.0

REDIS_IDENTITY: Final = "redis_identity"
"""The fault that says that Redis holds the keys of another environment."""

TOPIC_EPOCH: Final = "topic_epoch"
"""The fault that says that other replicas count under a newer epoch."""


class Feed(Protocol):
    """The state topic, as far as its age matters."""

    @property
    def silent_seconds(self) -> float | None: ...


class DoubtfulClock(Protocol):
    """A clock that says why it may be wrong."""

    def why_not(self) -> str | None: ...


class RaiseGuard:
    """Knows whether this replica's knowledge, clock or store is in doubt."""

    def __init__(
        self,
        feed: Feed,
        clock: DoubtfulClock,
        faults: Faults,
        *,
        session_timeout_seconds: float,
    ) -> None:
        self._feed = feed
        self._clock = clock
        self._faults = faults
        self._session_timeout_seconds = session_timeout_seconds

    def why_not(self) -> str | None:
        """Return why nothing may be raised now, None while raising is allowed."""
        # `running/environment.py` checks Redis now and then and reports this fault.
        identity = self._faults.of(Scope.DEPENDENCY, REDIS_IDENTITY)
        identity = identity or self._faults.of(Scope.DEPENDENCY, TOPIC_EPOCH)
        return (
            why_knowledge_is_old(self._feed.silent_seconds, self._session_timeout_seconds)
            or self._clock.why_not()
            or (None if identity is None else identity.why)
        )


def why_knowledge_is_old(
    silent_seconds: float | None, session_timeout_seconds: float
) -> str | None:
    """Return why this replica's knowledge is too old to raise anything by it (I11), else None.

    After a session timeout another replica may have taken the flags over. Half of it leaves time
    to act; with very short sessions the limit is `SHORTEST_AGE_SECONDS`. `silent_seconds` is the
    time since a broker said that nothing newer was decided, None for never.
    """
    limit = max(session_timeout_seconds / 2, SHORTEST_AGE_SECONDS)
    if silent_seconds is None:
        return "no broker has said yet that nothing newer was decided elsewhere"
    if silent_seconds <= limit:
        return None
    return (
        f"no broker has said for {silent_seconds:.1f} s that nothing newer was decided elsewhere; "
        f"at most {limit:g} s are trusted"
    )
