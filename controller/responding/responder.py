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
from datetime import timedelta
from typing import Final, Protocol

import structlog

from controller.core.rollout import RaiseAlert, Rollout
from controller.errors import OperatingTrouble
from controller.ports import Clock
from controller.responding.matching import Intent, Response, concerned, response
from controller.responding.memory import Act, Condition, Hold, Recent, SignalMemory
from controller.responding.words import (
    alert_of,
    done_words,
    over_alert,
    reason_words,
    released_words,
)
from controller.settings.signal_rules import SignalRule
from schemas.command import Command
from schemas.decision import JudgementRecord
from schemas.report import LiveReport
from schemas.result import Result
from schemas.signal import Signal
from schemas.terms import CommandVerb, SignalAction, SignalStatus

#: The issuer of what is commanded begins so.
ISSUER: Final = "signal:"
#: Flags whose evidence is looked at for the order of suspects.
MOST_LOOKED_AT: Final = 50
#: Evidence that is not there by then does not count: a flag must be lowered within a second.
EVIDENCE_SECONDS: Final = 0.3
#: A condition that fires for long is remembered anew so often.
TOLD_AGAIN: Final = timedelta(hours=1)
#: Commands of one signal that are on their way at once.
_AT_ONCE: Final = 20

_VERBS: Final[Mapping[SignalAction, CommandVerb]] = {
    SignalAction.ROLL_BACK: CommandVerb.ROLL_BACK,
    SignalAction.STEP_BACK: CommandVerb.STEP_BACK,
    SignalAction.PAUSE: CommandVerb.PAUSE,
    SignalAction.HOLD: CommandVerb.FREEZE,
}


class CommandSender(Protocol):
    """Sends commands: `running/command_desk.py`."""

    async def send(self, command: Command) -> Result | str:
        """Return the result, or what is known of it. Raises OperatingTrouble."""


class AlertQueue(Protocol):
    """Publishes alerts: `running/visibility_alerts.py`."""

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Queue an alert. Returns at once."""


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
        sender: CommandSender,
        alerts: AlertQueue,
        memory: SignalMemory,
        clock: Clock,
    ) -> None:
        """`rules` and `rollouts` return the present ones."""
        self._rules = rules
        self._rollouts = rollouts
        self._reports = reports
        self._sender = sender
        self._alerts = alerts
        self._memory = memory
        self._clock = clock
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
        match signal.status:
            case SignalStatus.FIRING:
                done = await self._fire(signal, occurrence)
            case SignalStatus.RESOLVED:
                done = await self._resolve(signal, occurrence)
            case SignalStatus.NOTE:
                pass  # shown, and nothing follows from it
        await self._remember(signal, known, occurrence, done)

    async def _repeat(self, signal: Signal, known: Condition) -> None:
        """Hold flags that were started while it fires; all else was done the first time."""
        self._logger.info("signal_repeated", hook=signal.hook, condition=signal.condition)
        if not (signal.status is SignalStatus.FIRING and known.is_firing):
            return  # a late copy
        await self._fire(signal, known.occurrence, is_repeat=True)
        if self._clock.now() - known.at > TOLD_AGAIN:
            at = self._clock.now()
            condition = Condition(at, known.is_firing, known.occurrence, known.ids)
            await self._memory.keep_condition(signal.hook, signal.condition, condition)

    async def _remember(
        self, signal: Signal, known: Condition | None, occurrence: str, done: tuple[str, ...]
    ) -> None:
        ids = () if known is None else known.ids
        was_firing = known is not None and known.is_firing
        is_firing = {
            SignalStatus.FIRING: True,
            SignalStatus.RESOLVED: False,
            SignalStatus.NOTE: was_firing,
        }[signal.status]
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
        condition = Condition(self._clock.now(), is_firing, occurrence, (*ids, signal.id))
        await self._memory.keep_condition(signal.hook, signal.condition, condition)

    # --- something fires ---

    async def _fire(
        self, signal: Signal, occurrence: str, *, is_repeat: bool = False
    ) -> tuple[str, ...]:
        """Do what the rules say; of a repeat only what holds. Return what was done, for people."""
        rules, rollouts = self._rules(), self._rollouts()
        if is_repeat:
            rules = [rule for rule in rules if rule.do is SignalAction.HOLD]
        evidence = await self._evidence(concerned(rules, signal, rollouts))
        found = response(
            rules,
            signal,
            rollouts,
            lambda one: evidence.get(one.flag_key),
            lambda rule, one: self._rests(rule, one, occurrence),
        )
        if not found.rules:
            return ("no rule is about it",)
        if not found.intents:
            names = ", ".join(rule.name for rule in found.rules)
            return (f"{names}: no flag that is on, or rose in time, is meant",)
        limit = asyncio.Semaphore(_AT_ONCE)

        async def carry_out(intent: Intent) -> str:
            async with limit:
                return await self._carry_out(intent, found, signal, occurrence)

        outcomes = await asyncio.gather(
            *(carry_out(intent) for intent in found.intents), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return tuple(one for one in outcomes if isinstance(one, str))

    async def _carry_out(
        self, intent: Intent, found: Response, signal: Signal, occurrence: str
    ) -> str:
        """Do what a rule intends for a flag, once; return what was done, for people."""
        flag_key, rule = intent.rollout.flag_key, intent.rule
        if intent.action is SignalAction.HOLD:
            hold = Hold(self._clock.now(), flag_key, rule.name)
            await self._memory.keep_hold(signal.hook, signal.condition, hold)
        if (why := self._why_not_again(intent, occurrence)) is not None:
            return f"{flag_key}: {why}"
        answer = await self._command(intent, signal)
        done = done_words(intent, answer)
        self._alerts.add(self._newest(intent.rollout), alert_of(intent, found, signal, done))
        await self._memory.keep_act(
            Act(
                self._clock.now(),
                flag_key,
                intent.rollout.rollout_id,
                rule.name,
                intent.action.value,
                occurrence,
            )
        )
        return f"{flag_key}: {done}"

    def _rests(self, rule: SignalRule, rollout: Rollout, occurrence: str) -> bool:
        """Return whether a rule acted on a flag in an earlier firing, and is still quiet."""
        act = self._memory.act(rollout.flag_key, rule.name)
        return (
            act is not None
            and act.rollout_id == rollout.rollout_id
            and act.occurrence != occurrence
            and self._clock.now() - act.at < rule.quiet
        )

    def _why_not_again(self, intent: Intent, occurrence: str) -> str | None:
        """Return why a rule leaves a flag alone on which it has acted; None: it has not."""
        rule, act = intent.rule, self._memory.act(intent.rollout.flag_key, intent.rule.name)
        if act is None or act.rollout_id != intent.rollout.rollout_id:
            return None
        if act.occurrence == occurrence:
            return f"{rule.name} has acted on it already, while this fires"
        if self._clock.now() - act.at < rule.quiet:
            return f"{rule.name} has acted on it just now, and is quiet"
        return None

    async def _command(self, intent: Intent, signal: Signal) -> Result | str | None:
        """Send what a rule intends; return the answer, None where there is nothing to send."""
        verb = _verb(intent)
        if verb is None:
            return None
        rollout = intent.rollout
        return await self._send(rollout, verb, signal, reason_words(intent, signal), intent.rule)

    async def _send(
        self, rollout: Rollout, verb: CommandVerb, signal: Signal, reason: str, rule: SignalRule
    ) -> Result | str:
        made_of = (signal.id, rule.name, rollout.flag_key, verb.value)
        digest = hashlib.sha256("\x00".join(made_of).encode()).hexdigest()
        return await self._sender.send(
            Command(
                id=f"signal-{digest[:32]}",
                flag=rollout.flag_key,
                verb=verb,
                issuer=f"{ISSUER}{signal.hook}",
                reason=reason,
                issued_at=signal.received_at,
            )
        )

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
        done: list[str] = []
        for hold in self._memory.held_by(signal.hook, signal.condition):
            done.append(f"{hold.flag}: {await self._release(hold, signal)}")
            await self._memory.drop_hold(signal.hook, signal.condition, hold.flag)
        rollouts = self._rollouts()
        for act in self._memory.acts_for(occurrence) if occurrence else ():
            rollout = rollouts.get(act.flag)
            if rollout is None or rollout.rollout_id != act.rollout_id:
                continue
            if act.action in (SignalAction.HOLD, SignalAction.NOTE):
                continue
            self._alerts.add(rollout, over_alert(rollout, act, signal))
            done.append(f"{act.flag}: stays at {rollout.served_words}, for a person to look at")
        return tuple(done)

    async def _release(self, hold: Hold, signal: Signal) -> str:
        """Lift the freeze of a condition that is over, unless another one holds the flag."""
        rollout = self._rollouts().get(hold.flag)
        others = [one for one in self._memory.holds(hold.flag) if one != hold]
        rule = next((one for one in self._rules() if one.name == hold.rule), None)
        if rollout is None or rollout.freeze is None or others or rule is None:
            return released_words(is_held=bool(others))
        if not rollout.freeze.issuer.startswith(ISSUER):
            return f"frozen by {rollout.freeze.issuer}, and stays so"
        reason = f"{hold.rule}: over: {signal.title}"
        answer = await self._send(rollout, CommandVerb.UNFREEZE, signal, reason, rule)
        return answer if isinstance(answer, str) else released_words(is_held=False)

    def _newest(self, rollout: Rollout) -> Rollout:
        """Return the rollout as it is after a command, where that is known already."""
        newest = self._rollouts().get(rollout.flag_key)
        if newest is None or newest.rollout_id != rollout.rollout_id:
            return rollout
        return newest


def _verb(intent: Intent) -> CommandVerb | None:
    """Return what is commanded; None: nothing.

    In the first stage, and while it waits, there is nothing to step back to: it is paused. At the
    end of a rollout there is no stage either: it is rolled back.
    """
    rollout, action = intent.rollout, intent.action
    if action is SignalAction.NOTE:
        return None
    if action is SignalAction.HOLD and rollout.freeze is not None:
        return None
    if action is SignalAction.STEP_BACK:
        if rollout.has_ended:
            return CommandVerb.ROLL_BACK
        if not rollout.stage_index:
            return CommandVerb.PAUSE
    return _VERBS[action]


def _occurrence(signal: Signal, known: Condition | None) -> str:
    """Return the name of the firing that a signal is about; empty: of none that is known."""
    if signal.status is not SignalStatus.FIRING:
        return "" if known is None else known.occurrence
    began = "" if signal.started_at is None else signal.started_at.isoformat()
    parts = (signal.hook, signal.condition, began or signal.id)
    made = hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:24]
    # A system that does not tell since when may repeat that it fires: it is the same firing.
    goes_on = known is not None and known.is_firing and not began
    return known.occurrence if known is not None and goes_on else made
