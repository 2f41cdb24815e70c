"""Looks at every check when it is due, and lets what is missed be known as a signal.

One replica at a time does it. What a look leads to is stored with its id before it is published: a
crash, and an answer of Kafka that comes too late, let it be said again under the same id, and
nothing is done twice.

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

from controller.cancellation import task_group
from controller.checking.checks_file import BURN_RATES, WINDOW, Check
from controller.checking.objectives import CheckLook, CheckState, after_look
from controller.errors import NotMeasured, OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Clock, Inlet
from controller.text import excerpt
from controller.turns import USUAL, Pulse, TurnLost, Turns, TurnStore, first_of
from schemas.signal import Signal
from schemas.terms import MeasurementGap, SignalStatus

PART: Final = "checks"
HOOK: Final = "checks/rolloutd"
RETRY_SECONDS: Final = 1.0
#: Questions at once.
_AT_ONCE: Final = 16
#: Of a check that could not be looked at because of a mistake of ours.
_MOST_WORDS: Final = 200
_FIX: Final = (
    "see that Redis and Kafka answer, and that their users have the rights, see ops/security.md: "
    "until then no objective is checked"
)

log = structlog.get_logger(__name__)


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
        self._without_number: set[str] = set()  # checks whose fault this replica has reported
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            try:
                self._states = states_in(await self._turns.wait(self._clear_faults, self._fields))
                self._faults.clear(Scope.DEPENDENCY, PART)
                await self._check()
            except* TurnLost:
                self._clear_faults()
                log.info("checks_elsewhere")
            except* OperatingTrouble as troubles:
                why = f"checks wait: {first_of(troubles)}"
                self._faults.report(Scope.DEPENDENCY, PART, why, _FIX)
                log.warning("checks_wait", error=why)
            await asyncio.sleep(RETRY_SECONDS)

    def _fields(self) -> Mapping[str, bytes]:
        """Return every state as it is stored."""
        return {f"check|{name}": msgspec.json.encode(one) for name, one in self._states.items()}

    def _clear_faults(self) -> None:
        """Forget this replica's troubles: another one checks, and tells of its own."""
        self._faults.clear(Scope.DEPENDENCY, PART)
        for name in self._without_number:
            self._faults.clear(Scope.DEPENDENCY, f"check/{name}")
        self._without_number.clear()

    async def _check(self) -> None:
        """Look at what is due, again and again."""
        try:
            while True:
                for name in list(self._states):
                    await self._say(name)
                await self._forget_removed()
                due = self._due(self._clock.now())
                async with task_group() as looks:
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
        """Look once, store what is new, and say it. Raises what the inlet and the store raise."""
        async with self._free:
            look = await self._measure(check)
        state = self._states.get(check.name, CheckState())
        outcome = after_look(check, state, look)
        after = outcome.state
        if outcome.says is not None:
            signal = self._signal(check, after, state, look, outcome.says)
            after = msgspec.structs.replace(after, unsaid=signal.model_dump_json())
        self._note_gap(check, look)
        await self._keep(check.name, after)
        await self._say(check.name)

    async def _keep(self, name: str, state: CheckState) -> None:
        self._states[name] = state
        await self._turns.save({f"check|{name}": msgspec.json.encode(state)})

    async def _say(self, name: str) -> None:
        """Publish what is not known to be published. Raises what the inlet and the store raise."""
        state = self._states[name]
        if not state.unsaid:
            return
        try:
            signal = Signal.model_validate_json(state.unsaid)
        except ValueError as error:  # damaged: the check begins anew
            log.warning("check_unreadable", check=name, error=str(error)[:200])
            await self._keep(name, CheckState())
            return
        if self._is_stale(signal):
            log.warning("check_unsaid_too_late", check=name, since=signal.received_at.isoformat())
        else:
            await self._inlet.store([signal])
            log.info("check_says", check=name, status=signal.status.value, title=signal.title)
        await self._keep(name, msgspec.structs.replace(state, unsaid=""))

    def _is_stale(self, signal: Signal) -> bool:
        """Return whether a firing is so old that the next look is to decide whether it fires again.

        The end of a firing is never too old: something may be held until it is said.
        """
        check = next((one for one in self._checks() if one.name == signal.condition), None)
        age = self._clock.now() - signal.received_at
        return signal.status is SignalStatus.FIRING and (check is None or age >= check.again)

    async def _measure(self, check: Check) -> CheckLook:
        at = self._clock.now()
        try:
            if check.burn_rate is not None:
                is_met, value, words = await self._burn(check)
                return CheckLook(at, is_met, value, None, words)
            value = await self._measures.value(check)
        except NotMeasured as trouble:
            return CheckLook(at, None, None, trouble.gap, str(trouble))
        except Exception as mistake:  # ours: the other checks go on, and this one has no number
            log.exception("check_failed", check=check.name)
            why = f"a mistake of rolloutd: {excerpt(repr(mistake), _MOST_WORDS)}"
            return CheckLook(at, None, None, MeasurementGap.NO_ANSWER, why)
        words = f"{value:.6g}, objective: {check.objective}"
        return CheckLook(at, check.is_met(value), value, None, words)

    async def _burn(self, check: Check) -> tuple[bool, float, str]:
        """Return whether no pair of windows burns too fast, and the pair nearest to it.

        A window without a number (no request at night) hides no other pair that burns. Raises
        NotMeasured where there is one and no other pair burns.
        """
        assert check.burn_rate is not None
        budget = 1 - check.burn_rate.objective / 100
        spans = sorted({span for long, short, _ in BURN_RATES for span in (long, short)})
        shares = await asyncio.gather(
            *(self._share(check.burn_rate.errors.replace(WINDOW, span)) for span in spans)
        )
        burn = {
            span: share / budget
            for span, share in zip(spans, shares, strict=True)
            if not isinstance(share, NotMeasured)
        }
        # Both windows must burn: the long one shows that it matters, the short one that it goes on.
        pairs = [
            (min(burn[long], burn[short]) / rate, long, rate)
            for long, short, rate in BURN_RATES
            if long in burn and short in burn
        ]
        ratio, long, rate = max(pairs, default=(0.0, "", 0.0))
        if ratio <= 1.0:
            for share in shares:
                if isinstance(share, NotMeasured):
                    raise share
        words = f"burns its budget {burn[long]:.3g} times as fast as allowed over {long}"
        return ratio <= 1.0, burn[long], f"{words} (limit {rate:g}), {check.objective}"

    async def _share(self, query: str) -> float | NotMeasured:
        try:
            return await self._measures.query(query)
        except NotMeasured as trouble:
            return trouble

    def _note_gap(self, check: Check, look: CheckLook) -> None:
        """Tell people of a check that gives no number."""
        name = f"check/{check.name}"
        if look.gap is None:
            self._faults.clear(Scope.DEPENDENCY, name)
            self._without_number.discard(check.name)
        elif look.gap is not MeasurementGap.PAUSED:
            self._without_number.add(check.name)
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
        look: CheckLook,
        says: SignalStatus,
    ) -> Signal:
        since = after.fires_since if says is SignalStatus.FIRING else before.fires_since
        verb = "is missed" if says is SignalStatus.FIRING else "is met again"
        return Signal(
            id=_id(check.name, says, since),
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
        """Forget checks that the file has no more.

        One that fires is over then: else what it holds is held for ever, and nobody knows why.
        """
        present = {one.name for one in self._checks()}
        gone = [name for name in self._states if name not in present]
        over = [
            Signal(
                id=_id(name, SignalStatus.RESOLVED, since),
                hook=HOOK,
                status=SignalStatus.RESOLVED,
                condition=name,
                title=f"{name} is no longer checked: the checks file has it no more",
                labels={"check": name},
                started_at=since,
                received_at=self._clock.now(),
            )
            for name in gone
            if (since := self._states[name].fires_since) is not None
        ]
        if over:
            await self._inlet.store(over)
            log.warning("checks_removed_while_firing", checks=[one.condition for one in over])
        for name in gone:
            del self._states[name]
            self._faults.clear(Scope.DEPENDENCY, f"check/{name}")
            self._without_number.discard(name)
        if gone:
            await self._turns.save({f"check|{name}": b"" for name in gone})


def _id(name: str, says: SignalStatus, since: datetime | None) -> str:
    """Return the id of a signal: one for the beginning of a firing, one for its end."""
    parts = (name, says.value, "" if since is None else since.isoformat())
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:32]


def states_in(stored: Mapping[bytes, bytes]) -> dict[str, CheckState]:
    """Return what is stored; what cannot be read is left out, and logged."""
    found: dict[str, CheckState] = {}
    for field, value in stored.items():
        kind, _, name = field.decode(errors="replace").partition("|")
        if kind != "check" or not value:
            continue
        try:
            found[name] = msgspec.json.decode(value, type=CheckState)
        except (ValueError, RecursionError) as error:
            log.warning("check_unreadable", check=name, error=str(error))
    return found
