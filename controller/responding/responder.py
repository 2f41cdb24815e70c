"""Acts on one signal: each rule once for each flag while a condition fires.

A crash in between lets the signal be read again: what was done is known by then, and a command that
is sent a second time has the same id. When the condition is over nothing is raised: what held a
gate lets go of it, and people are told which flags stay low.

Belongs here: what is done, once. Does not belong here: which flags a signal meets (`matching.py`),
reading signals (`signal_follower.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final, Protocol

import msgspec
import structlog

from controller.core.rollout import Rollout
from controller.errors import OperatingTrouble
from controller.ports import Clock
from controller.responding.acting import Actor
from controller.responding.commanding import ISSUER, Commander, is_refused
from controller.responding.matching import Intent, concerned, response
from controller.responding.memory import (
    Hold,
    KnownCondition,
    Recent,
    SignalMemory,
    condition_name,
)
from controller.responding.retries import ALERT_SECONDS, AwaitedAlerts, Retries
from controller.responding.words import (
    over_alert,
    released_words,
)
from controller.settings.signal_rules import SignalRule
from schemas.decision import JudgementRecord
from schemas.report import LiveReport
from schemas.signal import Signal
from schemas.terms import CommandVerb, SignalAction, SignalStatus

#: Flags whose evidence is looked at for the order of suspects.
MOST_LOOKED_AT: Final = 50
#: Evidence that is not there by then does not count: a flag must be lowered within a second.
EVIDENCE_SECONDS: Final = 0.3
#: A condition that fires for long is remembered again so often.
TOLD_AGAIN: Final = timedelta(hours=1)
#: Replicas of a monitoring system differ by less in when one firing began.
_SAME_FIRING: Final = timedelta(minutes=1)
#: Hooks so named are our own checks.
_IN_ORDER: Final = "checks/"
#: Commands of one signal that are on their way at once.
_AT_ONCE: Final = 20


class ReportSource(Protocol):
    """Reads the newest evidence of any flag: `running/report_reader.py`."""

    async def report(self, rollout: Rollout) -> LiveReport | None:
        """Return the newest report on a rollout; None: there is none. Raises OperatingTrouble."""


class Responder:
    """Acts on signals, one at a time."""

    def __init__(
        self,
        rules: Callable[[], Sequence[SignalRule]],
        rollouts: Callable[[], Mapping[str, Rollout]],
        reports: ReportSource,
        commander: Commander,
        retries: Retries,
        alerts: AwaitedAlerts,
        memory: SignalMemory,
        clock: Clock,
    ) -> None:
        """`rules` and `rollouts` return the present ones."""
        self._rules = rules
        self._rollouts = rollouts
        self._reports = reports
        self._commander = commander
        self._retries = retries
        self._alerts = alerts
        self._memory = memory
        self._clock = clock
        self._actor = Actor(rules, rollouts, commander, retries, alerts, memory, clock)
        self._logger = structlog.get_logger()

    async def handle(self, signal: Signal) -> None:
        """Do what the rules say about a signal, and remember it.

        Raises OperatingTrouble when it is to be handled again, because a command could not be sent.
        """
        await self._memory.refresh()
        known = self._memory.condition(signal.hook, signal.condition)
        if known is not None and signal.id in known.ids:
            await self._repeat(signal, known)
            return
        occurrence = _occurrence(signal, known)
        done: tuple[str, ...] = ()
        is_late = _is_late(signal, known)
        match signal.status:
            case SignalStatus.FIRING:
                goes_on = known is not None and known.is_firing
                done = await self._actor.finish(signal)
                done += await self._fire(signal, occurrence, goes_on=goes_on)
            case SignalStatus.RESOLVED if is_late:
                done = ("an earlier firing is over, and a later one goes on: nothing is let go",)
            case SignalStatus.RESOLVED:
                done = await self._resolve(signal, occurrence)
            case SignalStatus.NOTE:
                pass  # shown, and nothing follows from it
        await self._remember(signal, known, occurrence, done)

    async def _repeat(self, signal: Signal, known: KnownCondition) -> None:
        """Hold flags that were started while it fires; all else was done the first time."""
        self._logger.info("signal_repeated", hook=signal.hook, condition=signal.condition)
        if not (signal.status is SignalStatus.FIRING and known.is_firing):
            return  # a late copy
        await self._fire(signal, known.occurrence, is_repeat=True)
        if self._clock.now() - known.at > TOLD_AGAIN:
            condition = msgspec.structs.replace(known, at=self._clock.now())
            await self._memory.keep_condition(signal.hook, signal.condition, condition)

    async def _remember(
        self, signal: Signal, known: KnownCondition | None, occurrence: str, done: tuple[str, ...]
    ) -> None:
        self._logger.info(
            "signal_handled",
            hook=signal.hook,
            status=signal.status.value,
            condition=signal.condition,
            title=signal.title,
            done=list(done),
        )
        recent = Recent(
            self._clock.now(),
            signal.hook,
            signal.status.value,
            signal.title,
            signal.service,
            signal.condition,
            signal.link,
            done,
        )
        await self._memory.keep_recent(signal.id, recent)
        # Last: a crash before it lets the signal be handled again.
        condition = _after(signal, known, occurrence, self._clock.now())
        await self._memory.keep_condition(signal.hook, signal.condition, condition)

    # --- something fires ---

    async def _fire(
        self, signal: Signal, occurrence: str, *, is_repeat: bool = False, goes_on: bool = False
    ) -> tuple[str, ...]:
        """Do what the rules say; of a repeat only what holds. Return what was done, for people.

        `goes_on`: its condition has fired all the time, and fires again.
        """
        rules, rollouts = self._rules(), self._rollouts()
        if is_repeat:
            rules = [rule for rule in rules if rule.do is SignalAction.HOLD]
        chosen = concerned(rules, signal, rollouts)
        if any(rule.most_flags is not None and chosen.get(rule.name) for rule in rules):
            await self._memory.refresh(0.0)  # other replicas may take places of `most` right now
        evidence = await self._evidence(chosen)
        found = response(
            rules,
            signal,
            rollouts,
            lambda one: evidence.get(one.flag_key),
            lambda rule, one: self._actor.rests(rule, one, occurrence),
            lambda rule: self._spent(rule, signal, occurrence, goes_on=goes_on),
            lambda rule, one: self._actor.has_acted(rule, one, occurrence),
        )
        if not found.rules:
            return ("no rule is about it",)
        if not found.intents:
            names = ", ".join(rule.name for rule in found.rules)
            if found.left_out:
                why = (
                    f"has changed its most flags within its quiet time: {len(found.left_out)} left"
                )
                return (f"{names} {why}",)
            return (f"{names}: no flag that is on, or rose in time, is meant",)
        limit = asyncio.Semaphore(_AT_ONCE)

        async def carry_out(intents: Sequence[Intent]) -> list[str]:
            async with limit:  # of one flag in their order
                return [
                    await self._actor.carry_out(one, found, signal, occurrence) for one in intents
                ]

        by_flag = groupby(found.intents, lambda one: one.rollout.flag_key)
        outcomes = await asyncio.gather(
            *(carry_out(list(intents)) for _, intents in by_flag), return_exceptions=True
        )
        await self._actor.end()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return tuple(one for each in outcomes if isinstance(each, list) for one in each)

    def _spent(self, rule: SignalRule, signal: Signal, occurrence: str, *, goes_on: bool) -> int:
        """Return how many flags a rule has changed in this firing, or in others while it is quiet.

        What fires again while it goes on takes the next flags in their turn.
        """
        own = condition_name(signal.hook, signal.condition) if goes_on else None
        flags = {
            act.flag
            for act in self._memory.acts_of(rule.name)
            if act.occurrence == occurrence
            or (act.condition != own and self._clock.now() - act.at < rule.quiet)
        }
        return len(flags)

    async def _evidence(
        self, chosen: Mapping[str, Sequence[Rollout]]
    ) -> Mapping[str, JudgementRecord]:
        """Return the newest judgement of each flag that a rule would look at, as far as known."""
        rollouts = {one.flag_key: one for each in chosen.values() for one in each}
        if not 1 < len(rollouts) <= MOST_LOOKED_AT:
            return {}  # one alone needs no order, and many take too long
        found: dict[str, JudgementRecord] = {}

        async def read(rollout: Rollout) -> None:
            try:
                report = await self._reports.report(rollout)
            except OperatingTrouble:
                return  # the order is made without it
            if report is not None and report.judgement is not None:
                found[rollout.flag_key] = report.judgement

        tasks = [asyncio.create_task(read(one)) for one in rollouts.values()]
        try:
            await asyncio.wait(tasks, timeout=EVIDENCE_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    # --- something is over ---

    async def _resolve(self, signal: Signal, occurrence: str) -> tuple[str, ...]:
        """Let go of what was held, and tell which flags stay low."""
        done = await self._let_go(signal)
        rollouts = self._rollouts()
        for act in self._memory.acts_for(occurrence) if occurrence else ():
            rollout = rollouts.get(act.flag)
            if rollout is None or rollout.rollout_id != act.rollout_id:
                continue
            if act.action in (SignalAction.HOLD, SignalAction.NOTE) or act.is_refused:
                continue
            self._alerts.add(rollout, over_alert(rollout, act, signal))
            done.append(f"{act.flag}: stays at {rollout.served_words}, for a person to look at")
        if not await self._alerts.flush(ALERT_SECONDS):
            self._logger.warning("signal_alert_waits", hook=signal.hook)
        return tuple(done)

    async def _let_go(self, signal: Signal) -> list[str]:
        """Let go of each flag that the condition holds; return what became of each.

        Looked at twice: other replicas may begin to hold a flag, or let go of it, at the same time.
        """
        await self._memory.refresh(0.0)
        holds = self._memory.held_by(signal.hook, signal.condition)
        became: dict[str, tuple[str, bool]] = {}
        for hold in holds:
            became[hold.flag] = await self._release(hold, signal)
            await self._memory.drop_hold(signal.hook, signal.condition, hold.flag)
        if holds:
            await self._memory.refresh(0.0)
        for hold in holds:
            words, is_lifted = became[hold.flag]
            others = self._others(hold, signal)
            rollout = self._rollouts().get(hold.flag)
            if others and is_lifted and rollout is not None:
                reason = f"{others[0].rule}: another condition holds it"
                rule = others[0].rule
                await self._commander.give(rollout, CommandVerb.FREEZE, signal, reason, rule)
                became[hold.flag] = (released_words(is_held=True), False)
            elif not others and words == released_words(is_held=True):
                became[hold.flag] = await self._release(hold, signal)
        return [f"{flag_key}: {words}" for flag_key, (words, _) in became.items()]

    def _others(self, hold: Hold, signal: Signal) -> list[Hold]:
        return self._memory.held_besides(signal.hook, signal.condition, hold.flag)

    async def _release(self, hold: Hold, signal: Signal) -> tuple[str, bool]:
        """Lift the freeze of a condition that is over, unless another one holds the flag.

        Also of a rule that is there no more. Return what became of it, and whether it was lifted.
        """
        rollout = self._rollouts().get(hold.flag)
        others = self._others(hold, signal)
        if rollout is None or rollout.freeze is None or others:
            return released_words(is_held=bool(others)), False
        if not rollout.freeze.issuer.startswith(ISSUER):
            return f"frozen by {rollout.freeze.issuer}, and stays so", False
        reason = f"{hold.rule}: over: {signal.title}"
        answer = await self._commander.give(
            rollout, CommandVerb.UNFREEZE, signal, reason, hold.rule
        )
        await self._retries.follow_release(rollout, signal, answer)
        if isinstance(answer, str):
            return answer, True
        if is_refused(answer):
            return f"unfreeze was refused: {answer.reason}", False
        return released_words(is_held=False), True


def _occurrence(signal: Signal, known: KnownCondition | None) -> str:
    """Return the name of the firing that a signal is about; empty: of none that is known."""
    if signal.status is not SignalStatus.FIRING:
        return "" if known is None else known.occurrence
    began = "" if signal.started_at is None else signal.started_at.isoformat()
    parts = (signal.hook, signal.condition, began or signal.id)
    made = hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:24]
    # A system that does not tell since when may repeat that it fires: it is the same firing.
    goes_on = known is not None and known.is_firing and not began
    return known.occurrence if known is not None and goes_on else made


def _is_late(signal: Signal, known: KnownCondition | None) -> bool:
    """Return whether a signal tells the end of a firing that a later one has followed already.

    Our own checks come in order; after a crash they tell the end under an earlier begin.
    """
    if known is None or not known.is_firing or signal.hook.startswith(_IN_ORDER):
        return False
    began, told = known.began, signal.started_at
    if known.unended is None or began is None or told is None:
        return False
    return known.unended <= told < began - _SAME_FIRING


def _after(
    signal: Signal, known: KnownCondition | None, occurrence: str, now: datetime
) -> KnownCondition:
    """Return what is to be remembered of a condition after a signal."""
    was = KnownCondition(now, False, occurrence, ()) if known is None else known
    ids = (*was.ids, signal.id)
    kept = msgspec.structs.replace(was, at=now, occurrence=occurrence, ids=ids)
    if signal.status is SignalStatus.NOTE or _is_late(signal, known):
        return kept
    if signal.status is SignalStatus.RESOLVED:
        return msgspec.structs.replace(kept, is_firing=False, began=None, unended=None)
    began, unended = signal.started_at, was.unended
    if was.is_firing and was.began not in (None, began):
        unended = unended or was.began
    return msgspec.structs.replace(kept, is_firing=True, began=began, unended=unended)
