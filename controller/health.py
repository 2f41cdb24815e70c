"""The known state of the process itself: parts write it, the HTTP surface reads it.

It answers four questions: is the process alive (a restart would not help), has it started
(everything it needs was ready once), is it working (everything it needs is ready now), and is it
degraded (anything is not ready). It also lists the faults that are contained, each in the smallest
thing that it concerns. Values only: what is done about them is the supervisor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import structlog


@dataclass(frozen=True, slots=True)
class Component:
    """One part or dependency, as last reported."""

    name: str
    is_required: bool  # False: without it the flags stay where they are, and are still served
    why_not: str | None  # None: ready; else what it waits for, or what failed
    since: datetime  # when it became ready, or stopped being so, which may be before it was noticed


class Health:
    """The process's state. All names exist from the start: a part that never reports is visible."""

    def __init__(
        self,
        required: Iterable[str],
        optional: Iterable[str] = (),
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        counting: str = "",
    ) -> None:
        """`now` gives UTC time. `counting` is which fold counts: native, or python without it."""
        self._now = now
        self.counting = counting
        began = now()
        self._components = {name: Component(name, True, "not started", began) for name in required}
        self._components |= {
            name: Component(name, False, "not started", began) for name in optional
        }
        self._starting = {name for name, one in self._components.items() if one.is_required}
        self._unheard = set(self._components)  # nothing was reported of them yet
        self._broken: list[str] = []
        #: Set once every part was started. Before, the steps at the start say what they wait for.
        self.is_running = False

    def ready(self, name: str) -> None:
        """Note that a component does its work. Raises KeyError for an unknown name."""
        self._set(name, None)
        self._starting.discard(name)

    def not_ready(self, name: str, why: str, *, lasted_seconds: float = 0.0) -> None:
        """Note that a component waits or has failed; `why` is one sentence for a person.

        `lasted_seconds` is for how long it has been so: a silence is noticed late. Raises KeyError
        for an unknown name.
        """
        self._set(name, why, lasted_seconds)

    def others_wait_for(self, needs: str) -> None:
        """Note whose answer the start waits for: all of which nothing was reported wait with it."""
        why_not = f"not started: waits for {needs}" if needs else "not started"
        for name in self._unheard:
            self._components[name] = replace(self._components[name], why_not=why_not)

    def broken(self, why: str) -> None:
        """Note that only a restart helps: from now on the process is not alive."""
        if why not in self._broken and len(self._broken) < 20:  # the first reasons tell the story
            self._broken.append(why)

    @property
    def components(self) -> Mapping[str, Component]:
        """Every component by name."""
        return self._components

    @property
    def trouble(self) -> tuple[str, ...]:
        """Why only a restart helps; empty while alive."""
        return tuple(self._broken)

    @property
    def is_alive(self) -> bool:
        """False once only a restart helps."""
        return not self._broken

    @property
    def has_started(self) -> bool:
        """True once every required component has been ready: what failed later is an outage."""
        return not self._starting

    @property
    def is_working(self) -> bool:
        """True while alive and every required component is ready: it counts and decides."""
        return self.is_alive and all(
            part.why_not is None for part in self._components.values() if part.is_required
        )

    @property
    def is_degraded(self) -> bool:
        """True while any component is not ready, required or not."""
        return any(part.why_not is not None for part in self._components.values())

    def seconds_since(self, at: datetime) -> float:
        """Return how many seconds ago `at` was, at least 0."""
        return max(0.0, (self._now() - at).total_seconds())

    def _set(self, name: str, why_not: str | None, lasted_seconds: float = 0.0) -> None:
        known = self._components[name]
        self._unheard.discard(name)
        since = self._now() - timedelta(seconds=lasted_seconds)
        if (known.why_not is None) == (why_not is None):
            since = min(known.since, since)
        self._components[name] = Component(name, known.is_required, why_not, since)


# --- faults


class Scope(StrEnum):
    """The smallest thing that a fault concerns. Everything outside it goes on."""

    # One command, named by its id, or by `topic/partition/offset` if it cannot be read.
    COMMAND = "command"
    FLAG = "flag"  # one flag, named by its key
    PARTITION = "partition"  # of an event or command topic, named `topic/partition`
    TOPIC = "topic"  # of events, named as in Kafka: most of its records are refused
    PLANE = "plane"  # one flag plane
    DEPENDENCY = "dependency"  # kafka, redis, quarantine, the model, a file
    CLOCK = "clock"  # this replica's clock against others'
    PART = "part"  # one loop of this process, restarted by the supervisor


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that does not work, while everything outside its scope does."""

    scope: Scope
    name: str
    why: str  # one sentence for a person
    fix: str  # what to do about it, a command where there is one; empty: it passes by itself
    since: datetime
    times: int = 1  # how often it was reported
    reporter: str = ""  # the part that reported it, which alone clears it


class Faults:
    """Every fault that is contained now. Each is logged when it begins and when it ends.

    Several parts may report faults of one flag: each clears only its own. Bounded: of each scope
    the newest `MOST_PER_SCOPE` are shown and the newest `MOST_KEPT` are kept. Safe to read from
    another thread.
    """

    MOST_PER_SCOPE: Final = 100
    MOST_KEPT: Final = 1_000

    def __init__(self, now: Callable[[], datetime]) -> None:
        """`now` gives UTC time."""
        self._now = now
        # By scope; by name and reporter, oldest first.
        self._faults: dict[Scope, dict[tuple[str, str], Fault]] = {scope: {} for scope in Scope}
        self._logger = structlog.get_logger()
        self.reported: dict[Scope, int] = dict.fromkeys(Scope, 0)  # reports so far, for a counter

    def report(
        self, scope: Scope, name: str, why: str, fix: str = "", *, reporter: str = ""
    ) -> None:
        """Note a fault, or that it lasts.

        The time of the first report is kept; the newest reason is shown.
        """
        self.reported[scope] += 1
        faults, key = self._faults[scope], (name, reporter)
        known = faults.get(key)
        if known is not None:
            faults[key] = replace(known, why=why, fix=fix, times=known.times + 1)
            return
        is_full = len(faults) >= self.MOST_KEPT
        if is_full:
            del faults[next(iter(faults))]
        faults[key] = Fault(scope, name, why, fix, self._now(), reporter=reporter)
        if not is_full:  # thousands of faults must not flood the log
            self._logger.error(
                "fault_contained",
                scope=scope.value,
                name=name,
                reporter=reporter,
                error=why,
                fix=fix,
            )

    def clear(self, scope: Scope, name: str, *, reporter: str = "") -> None:
        """Note that a fault of this reporter is over. Nothing happens when it reported none."""
        gone = self._faults[scope].pop((name, reporter), None)
        if gone is not None:
            seconds = round((self._now() - gone.since).total_seconds(), 3)
            self._logger.info(
                "fault_cleared",
                scope=scope.value,
                name=name,
                reporter=reporter,
                seconds=seconds,
                times=gone.times,
            )

    def of(self, scope: Scope, name: str, *, reporter: str | None = None) -> Fault | None:
        """Return one fault, None when there is none.

        Without a reporter: the oldest fault of that name.
        """
        if reporter is not None:
            return self._faults[scope].get((name, reporter))
        return next((one for (of, _), one in self._faults[scope].items() if of == name), None)

    @property
    def degrading(self) -> bool:
        """Whether there is a fault of more than single commands, which are over."""
        return any(self._faults[scope] for scope in Scope if scope is not Scope.COMMAND)

    @property
    def counts(self) -> Mapping[Scope, int]:
        """How many faults of each scope there are now; safe to call from another thread."""
        return {scope: len(faults) for scope, faults in self._faults.items()}

    @property
    def more(self) -> Mapping[Scope, int]:
        """How many faults of each scope are there now and are not shown."""
        return {scope: max(count - self.MOST_PER_SCOPE, 0) for scope, count in self.counts.items()}

    @property
    def current(self) -> tuple[Fault, ...]:
        """The newest faults of each scope that there are now, oldest first."""
        shown = (list(faults.values())[-self.MOST_PER_SCOPE :] for faults in self._faults.values())
        return tuple(sorted((one for some in shown for one in some), key=lambda fault: fault.since))


#: The dependency that the fault of a broker that does not answer names.
KAFKA: Final = "kafka"
#: How the reason of a partition's fault ends when a newer release wrote its totals.
UPGRADE_FIRST: Final = "upgrade it"


def partition_remedy(topic_partition: str, why: str) -> str:
    """Return how to fix a partition. What a newer release wrote is never discarded."""
    if why.endswith(UPGRADE_FIRST):
        return "finish the upgrade of this replica; do not discard the partition"
    return f"rolloutd repair partition {topic_partition}"


def redis_fix(keys: str, lack: str) -> str:
    """Return how to fix a key of Redis that cannot be used, and what is lacking `until then`."""
    return (
        "start Redis, or correct redis.url, if it does not answer; free memory if it is full; "
        f"grant its user {keys} if it denies the right, see ops/security.md: until then {lack}"
    )


def kafka_fix(address: str) -> str:
    """Return what helps while no broker at an address answers."""
    return (
        f"start Kafka at {address}, or correct kafka.bootstrap_servers, if it does not answer; "
        "check TLS, user and password if it does: until then flags stay where they are, and "
        "commands that lower go over HTTP, see ops/operating.md"
    )
