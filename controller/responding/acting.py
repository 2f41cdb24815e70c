"""Carries out what a rule intends for a flag: once, also through crashes.

What is begun is remembered before its command goes out, with the command's verb. After a crash the
same command goes out again under the same id, whatever the flag has come to by then, and people
are told what came of it.

Belongs here: one rule and one flag. Does not belong here: which flags a signal meets
(`matching.py`), and whether a refused command is given again (`retries.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import structlog

from controller.core.rollout import Rollout
from controller.ports import Clock
from controller.responding.commanding import Commander, is_refused, verb_of
from controller.responding.matching import Intent, Response, intent_of, still_there
from controller.responding.memory import Act, Hold, SignalMemory, condition_name
from controller.responding.retries import ALERT_SECONDS, AwaitedAlerts, Retries
from controller.responding.words import alert_of, done_words, reason_words
from controller.settings.signal_rules import SignalRule
from schemas.signal import Signal
from schemas.terms import CommandVerb, SignalAction

#: Begun, and there is no command to give.
_NOTHING: Final = "nothing"


class Actor:
    """Acts on flags because of signals."""

    def __init__(
        self,
        rules: Callable[[], Sequence[SignalRule]],
        rollouts: Callable[[], Mapping[str, Rollout]],
        commander: Commander,
        retries: Retries,
        alerts: AwaitedAlerts,
        memory: SignalMemory,
        clock: Clock,
    ) -> None:
        """`rules` and `rollouts` return the present ones."""
        self._rules = rules
        self._rollouts = rollouts
        self._commander = commander
        self._retries = retries
        self._alerts = alerts
        self._memory = memory
        self._clock = clock
        self._ended: list[Act] = []  # carried out, and remembered as begun
        self._logger = structlog.get_logger()

    async def carry_out(
        self, intent: Intent, found: Response, signal: Signal, occurrence: str
    ) -> str:
        """Do what a rule intends for a flag, unless it did; return what was done, for people.

        Call `end` after the last flag. Raises OperatingTrouble when the command could not be sent:
        it is begun, see `finish`.
        """
        flag_key, rule = intent.rollout.flag_key, intent.rule
        if intent.action is SignalAction.HOLD:
            hold = Hold(self._clock.now(), flag_key, rule.name)
            await self._memory.keep_hold(signal.hook, signal.condition, hold)
        if (why := self._why_not_again(intent, occurrence)) is not None:
            return f"{flag_key}: {why}"
        verb = verb_of(intent)
        act = Act(
            self._clock.now(),
            flag_key,
            intent.rollout.rollout_id,
            rule.name,
            intent.action.value,
            occurrence,
            signal.id,
            condition_name(signal.hook, signal.condition),
            begun=_NOTHING if verb is None else verb.value,
            earlier=self._lately(rule, intent.rollout),
        )
        if not await self._memory.claim(act):
            return f"{flag_key}: {rule.name} acts on it just now, because of another signal"
        await self._memory.keep_act(act)
        return await self._do(act, intent, found, signal)

    async def finish(self, signal: Signal) -> tuple[str, ...]:
        """Go on with what a crash cut off of this signal; return what was done, for people.

        A rule that is there no more, or is tried dry by now, leaves its flag as it is. Raises
        OperatingTrouble as `carry_out`.
        """
        rules, rollouts = self._rules(), self._rollouts()
        left: list[tuple[Act, Intent]] = []
        for act in self._memory.begun_by(signal.id):
            there = still_there(rules, rollouts, act.rule, act.flag, act.rollout_id)
            if there is not None:
                left.append((act, intent_of(*there, signal, SignalAction(act.action))))
        intents = tuple(intent for _, intent in left)
        found = Response(tuple(one.rule for one in intents), intents, ())
        try:
            return tuple([await self._do(act, intent, found, signal) for act, intent in left])
        finally:
            await self.end()  # what is handled again must not be told again

    async def end(self) -> None:
        """Remember that what was carried out is done, once Kafka has the alerts.

        After all commands: where Kafka takes no alert, no flag is lowered later for that.
        """
        ended, self._ended = self._ended, []
        if ended and not await self._alerts.flush(ALERT_SECONDS):
            self._logger.warning("signal_alerts_wait", flags=[act.flag for act in ended])
        for act in ended:
            await self._memory.keep_act(act)

    async def _do(self, act: Act, intent: Intent, found: Response, signal: Signal) -> str:
        """Give the command of what is begun, and tell people."""
        answer = None
        if act.begun != _NOTHING:
            verb, reason = CommandVerb(act.begun), reason_words(intent, signal)
            answer = await self._commander.give(intent.rollout, verb, signal, reason, act.rule)
        done, refused = done_words(intent, answer), is_refused(answer)
        if is_tried := await self._retries.follow(intent, signal, answer) and refused:
            done += "; it is tried again while this fires"
        at = self._clock.now()
        if act.earlier is not None and act.earlier.is_refused == refused:
            at = act.earlier.at  # when people heard: else what flaps for days would be told once
        else:
            alert = alert_of(intent, found, signal, done, is_refused=refused, is_tried=is_tried)
            self._alerts.add(self._newest(intent.rollout), alert)
        ended = msgspec.structs.replace(act, at=at, is_refused=refused, begun="", earlier=None)
        self._ended.append(ended)
        return f"{act.flag}: {done}"

    # --- what a rule did before ---

    def rests(self, rule: SignalRule, rollout: Rollout, occurrence: str) -> bool:
        """Return whether a rule acted on a flag in an earlier firing, and is still quiet."""
        act = self._memory.act(rollout.flag_key, rule.name)
        return (
            act is not None
            and act.occurrence != occurrence
            and self._is_quiet(rule, rollout)
            and not self._must_hold(rule, rollout)
        )

    def has_acted(self, rule: SignalRule, rollout: Rollout, occurrence: str) -> bool:
        """Return whether a flag has its place: a rule acted on it in this firing.

        What it holds keeps its place for the quiet time, or it would not be held again.
        """
        act = self._memory.act(rollout.flag_key, rule.name)
        if act is None:
            return False
        is_held = rule.do is SignalAction.HOLD and self._is_quiet(rule, rollout)
        return act.occurrence == occurrence or is_held

    def _why_not_again(self, intent: Intent, occurrence: str) -> str | None:
        """Return why a rule leaves a flag alone on which it has acted; None: it has not."""
        rule, act = intent.rule, self._memory.act(intent.rollout.flag_key, intent.rule.name)
        if act is None or act.rollout_id != intent.rollout.rollout_id:
            return None
        if act.occurrence == occurrence:
            return f"{rule.name} has acted on it already, while this fires"
        if self.rests(rule, intent.rollout, occurrence):
            return f"{rule.name} has acted on it just now, and is quiet"
        return None

    def _is_quiet(self, rule: SignalRule, rollout: Rollout) -> bool:
        """Return whether a rule acted on a flag just now, in whichever firing."""
        act = self._lately(rule, rollout)
        return act is not None and not act.is_refused

    def _lately(self, rule: SignalRule, rollout: Rollout) -> Act | None:
        """Return of what act people heard just now, also that it was refused; None: of none."""
        act = self._memory.act(rollout.flag_key, rule.name)
        if act is None or act.rollout_id != rollout.rollout_id:
            return None
        return act if self._clock.now() - act.at < rule.quiet else None

    def _must_hold(self, rule: SignalRule, rollout: Rollout) -> bool:
        """Return whether a flag is to be frozen also in a quiet time: nothing holds it any more.

        A quiet rule says nothing again, but what fires again must not let the flag advance.
        """
        is_hold = rule.do is SignalAction.HOLD and not rule.dry_run
        return is_hold and self._newest(rollout).freeze is None

    def _newest(self, rollout: Rollout) -> Rollout:
        """Return the rollout as it is after a command, where that is known already."""
        newest = self._rollouts().get(rollout.flag_key)
        if newest is None or newest.rollout_id != rollout.rollout_id:
            return rollout
        return newest
