"""Looks at every check when it is due, and lets what is missed be known as a signal.

One replica at a time does it. What a look leads to is published before it is stored: a crash in
between lets it be said again, under the same id, and nothing is done twice.

Belongs here: the loop. Does not belong here: when a check fires (`objectives.py`), how a system is
asked (`adapters/measuring/`), what follows (`responding/`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

import msgspec
import structlog

from controller.checking.checks_file import BURN_RATES, WINDOW, Check
from controller.checking.objectives import CheckState, Look, after_look
from controller.errors import NotMeasured, OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Clock
from controller.turns import USUAL, Pulse, TurnLost, Turns, TurnStore, first_of
from schemas.signal import Signal
from schemas.terms import MeasurementGap, SignalStatus

PART: Final = "checks"
HOOK: Final = "checks/rolloutd"
RETRY_SECONDS: Final = 1.0
#: Questions at once.
_AT_ONCE: Final = 16
_FIX: Final = (
    "see that Redis and Kafka answer, and that their users have the rights, see ops/security.md: "
    "until then no objective is checked"
)

log = structlog.get_logger(__name__)


class Inlet(Protocol):
    """Stores signals: `running/signal_inlet.py`."""

    async def store(self, signals: Sequence[Signal]) -> None:
        """Return once Kafka has them. Raises OperatingTrouble when it is not known to."""


class Measures(Protocol):
    """Asks monitoring systems: `adapters/measuring/measures.py`."""

    async def value(self, check: Check) -> float:
        """Return the number of a check that has one. Raises NotMeasured."""

    async def query(self, query: str) -> float:
        """Return the number of a Prometheus query. Raises NotMeasured."""


class Checker:
    """Checks while it is this replica's turn."""

    def __init__(
        self,
        store: TurnStore,
        measures: Measures,
        inlet: Inlet,
        checks: Callable[[], Sequence[Check]],
        replica: str,
        clock: Clock,
        faults: Faults,
        pulse: Pulse = USUAL,
    ) -> None:
        """`checks` returns the present ones."""
        self._turns = Turns(store, PART, replica, clock, pulse)
        self._measures = measures
        self._inlet = inlet
        self._checks = checks
        self._clock = clock
        self._faults = faults
        self._states: dict[str, CheckState] = {}
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            try:
                self._states = states_in(await self._turns.wait())
                self._faults.clear(Scope.DEPENDENCY, PART)
                await self._check()
            except* TurnLost:
                log.info("checks_elsewhere")
            except* OperatingTrouble as troubles:
                why = f"checks wait: {first_of(troubles)}"
                self._faults.report(Scope.DEPENDENCY, PART, why, _FIX)
                log.warning("checks_wait", error=why)
            await asyncio.sleep(RETRY_SECONDS)

    async def _check(self) -> None:
        """Look at what is due, again and again."""
        try:
            while True:
                await self._forget_removed()
                due = self._due(self._clock.now())
                async with asyncio.TaskGroup() as looks:
                    for check in due:
                        looks.create_task(self._look(check), name=f"check {check.name}")
                await self._turns.save({})
                await asyncio.sleep(min(1.0, self._turns.pulse.beat))
        except asyncio.CancelledError:
            await self._turns.give_back({})
            raise

    def _due(self, now: datetime) -> list[Check]:
        return [
            one
            for one in self._checks()
            if (last := self._states.get(one.name, CheckState()).last) is None
            or now - last.at >= one.every
        ]

    async def _look(self, check: Check) -> None:
        """Look once, say what is new, and store it. Raises what the inlet and the store raise."""
        async with self._free:
            look = await self._measure(check)
        state = self._states.get(check.name, CheckState())
        outcome = after_look(check, state, look)
        if outcome.says is not None:
            await self._inlet.store([self._signal(check, outcome.state, state, look, outcome.says)])
            log.info("check_says", check=check.name, status=outcome.says.value, found=look.words)
        self._note_gap(check, look)
        self._states[check.name] = outcome.state
        await self._turns.save({f"check|{check.name}": msgspec.json.encode(outcome.state)})

    async def _measure(self, check: Check) -> Look:
        at = self._clock.now()
        try:
            if check.burn_rate is not None:
                is_met, value, words = await self._burn(check)
                return Look(at, is_met, value, None, words)
            value = await self._measures.value(check)
        except NotMeasured as trouble:
            return Look(at, None, None, trouble.gap, str(trouble))
        words = f"{value:.6g}, objective: {check.objective}"
        return Look(at, check.is_met(value), value, None, words)

    async def _burn(self, check: Check) -> tuple[bool, float, str]:
        """Return whether no pair of windows burns too fast, and the pair nearest to it."""
        assert check.burn_rate is not None
        budget = 1 - check.burn_rate.objective / 100
        spans = sorted({span for long, short, _ in BURN_RATES for span in (long, short)})
        shares = await asyncio.gather(
            *(self._measures.query(check.burn_rate.errors.replace(WINDOW, span)) for span in spans)
        )
        burn = {span: share / budget for span, share in zip(spans, shares, strict=True)}
        # Both windows must burn: the long one shows that it matters, the short one that it goes on.
        worst = max(
            (min(burn[long], burn[short]) / rate, long, rate) for long, short, rate in BURN_RATES
        )
        _, long, rate = worst
        words = f"burns its budget {burn[long]:.3g} times as fast as allowed over {long}"
        return worst[0] <= 1.0, burn[long], f"{words} (limit {rate:g}), {check.objective}"

    def _note_gap(self, check: Check, look: Look) -> None:
        """Tell people of a check that gives no number."""
        name = f"check/{check.name}"
        if look.gap is None:
            self._faults.clear(Scope.DEPENDENCY, name)
        elif look.gap is not MeasurementGap.PAUSED:
            self._faults.report(
                Scope.DEPENDENCY,
                name,
                f"{look.gap.value.replace('_', ' ')}: {look.words}",
                "fix the query or the monitoring system: until then this objective is not checked",
            )

    def _signal(
        self,
        check: Check,
        after: CheckState,
        before: CheckState,
        look: Look,
        says: SignalStatus,
    ) -> Signal:
        since = after.fires_since if says is SignalStatus.FIRING else before.fires_since
        parts = (check.name, says.value, "" if since is None else since.isoformat())
        digest = hashlib.sha256("\x00".join(parts).encode()).hexdigest()
        verb = "is missed" if says is SignalStatus.FIRING else "is met again"
        return Signal(
            id=digest[:32],
            hook=HOOK,
            status=says,
            condition=check.name,
            title=f"{check.name} {verb}: {look.words}"[:300],
            service=check.service,
            severity=check.severity.lower(),
            labels={"check": check.name},
            started_at=since,
            received_at=look.at,
        )

    async def _forget_removed(self) -> None:
        """Forget checks that the file has no more."""
        present = {one.name for one in self._checks()}
        gone = [name for name in self._states if name not in present]
        for name in gone:
            del self._states[name]
            self._faults.clear(Scope.DEPENDENCY, f"check/{name}")
        if gone:
            await self._turns.save({f"check|{name}": b"" for name in gone})


def states_in(stored: Mapping[bytes, bytes]) -> dict[str, CheckState]:
    """Return what is stored; what cannot be read is left out, and logged."""
    found: dict[str, CheckState] = {}
    for field, value in stored.items():
        kind, _, name = field.decode(errors="replace").partition("|")
        if kind != "check" or not value:
            continue
        try:
            found[name] = msgspec.json.decode(value, type=CheckState)
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("check_unreadable", check=name, error=str(error))
    return found
