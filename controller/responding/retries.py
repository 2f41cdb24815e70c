"""Gives a command again that was refused, while its condition fires.

A refusal is final where the flag has nothing left that the rule means: another rollout has begun,
it serves 0 %, or nothing in it moves any more. All others pass: the flag was in the middle of
another change, too many commands waited for it, its worker failed. These are given again, later
each time, and a person is told once when it works or is given up. So are those whose result is not
known: under the same id, which carries nothing out twice.

Belongs here: whether, when and how often it is tried again. Does not belong here: the first time
(`responder.py`), and the command itself (`commanding.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final, Protocol

import msgspec
import structlog

from controller.core.rollout import Rollout
from controller.errors import OperatingTrouble
from controller.ports import AlertQueue, Clock
from controller.responding.commanding import ISSUER, Commander, is_refused, verb_of
from controller.responding.matching import Intent, concerned, intent_of, still_there
from controller.responding.memory import Retry, SignalMemory
from controller.responding.words import (
    given_up_alert,
    outcome_words,
    reason_words,
    tried_alert,
)
from controller.settings.signal_rules import SignalRule
from schemas.result import Result
from schemas.signal import Signal
from schemas.terms import CommandVerb, SignalAction

LOOK_SECONDS: Final = 1.0
#: Retries of a replica that is gone are found so soon.
_OTHERS_SECONDS: Final = 30.0
#: Seconds before each further try. What passes has passed within minutes; then a person decides.
DELAYS: Final = (5, 10, 20, 40, 80, 160)
#: An alert that Kafka has not taken by then waits in memory alone, and what it tells of is done.
ALERT_SECONDS: Final = 5.0
#: The rule of a retry that lets go of a flag: no rule is called so.
_RELEASE: Final = ""


class AwaitedAlerts(AlertQueue, Protocol):
    """Alerts whose publishing can be waited for."""

    async def flush(self, seconds: float) -> bool:
        """Wait until what was queued is published, so long at most; return whether it is."""


class Retries:
    """Commands that are given again."""

    def __init__(
        self,
        rules: Callable[[], Sequence[SignalRule]],
        rollouts: Callable[[], Mapping[str, Rollout]],
        commander: Commander,
        alerts: AwaitedAlerts,
        memory: SignalMemory,
        clock: Clock,
    ) -> None:
        """`rules` and `rollouts` return the present ones."""
        self._rules = rules
        self._rollouts = rollouts
        self._commander = commander
        self._alerts = alerts
        self._memory = memory
        self._clock = clock
        self._ended: list[Retry] = []  # tried to their end, and not forgotten yet
        self._logger = structlog.get_logger()

    # --- what is tried again ---

    async def follow(self, intent: Intent, signal: Signal, answer: Result | str | None) -> bool:
        """Try it again where the answer says that it was not done; return whether it is tried."""
        flag_key, rule = intent.rollout.flag_key, intent.rule.name
        is_open = isinstance(answer, str) or (
            is_refused(answer)
            and self._intent(rule, flag_key, intent.rollout.rollout_id, signal) is not None
        )
        if is_open:
            retry = self._next(intent.rollout, rule, signal, answer)
            await self._memory.keep_retry(retry)
        elif self._memory.retry(flag_key, rule) is not None:
            await self._memory.drop_retry(flag_key, rule)
        return is_open

    async def follow_release(self, rollout: Rollout, signal: Signal, answer: Result | str) -> bool:
        """Let go of a flag later where that was not done; return whether it is tried."""
        is_open = isinstance(answer, str) or (
            is_refused(answer) and self._is_frozen(rollout.flag_key, rollout.rollout_id)
        )
        if is_open:
            await self._memory.keep_retry(self._next(rollout, _RELEASE, signal, answer))
        return is_open

    def _next(self, rollout: Rollout, rule: str, signal: Signal, answer: object) -> Retry:
        """Return what is tried again; another condition goes on with an earlier one's tries."""
        now, refused = self._clock.now(), 0 if isinstance(answer, str) else 1
        written = signal.model_dump_json()
        known = self._memory.retry(rollout.flag_key, rule)
        if known is not None and known.rollout_id == rollout.rollout_id:
            refused, sent = known.refused + refused, known.sent + 1
            return msgspec.structs.replace(
                known,
                at=now,
                signal=written,
                begun=now,
                refused=refused,
                sent=sent,
                begun_verb="",
            )
        return Retry(now, rollout.flag_key, rollout.rollout_id, rule, written, now, refused, 1)

    def _intent(self, name: str, flag_key: str, rollout_id: str, signal: Signal) -> Intent | None:
        """Return what a rule still intends for a flag as it is now; None: nothing."""
        there = still_there(self._rules(), self._rollouts(), name, flag_key, rollout_id)
        if there is None:
            return None
        rule, rollout = there
        if not concerned([rule], signal, {flag_key: rollout}).get(name):
            return None
        if rule.do is SignalAction.HOLD and rollout.has_ended and not rollout.may_open_again:
            return None
        intent = intent_of(rule, rollout, signal, rule.do)
        return None if verb_of(intent) is None else intent

    def _begun(self, retry: Retry, signal: Signal) -> Intent | None:
        """Return what a crash cut off while its command was given; None: nothing.

        The command may have been carried out, so that the flag has nothing left that is meant.
        """
        there = still_there(
            self._rules(), self._rollouts(), retry.rule, retry.flag, retry.rollout_id
        )
        if not retry.begun_verb or there is None:
            return None
        rule, rollout = there
        return intent_of(rule, rollout, signal, rule.do)

    def _is_frozen(self, flag_key: str, rollout_id: str) -> bool:
        """Return whether a flag is frozen by a signal."""
        rollout = self._rollouts().get(flag_key)
        if rollout is None or rollout.rollout_id != rollout_id or rollout.freeze is None:
            return False
        return rollout.freeze.issuer.startswith(ISSUER)

    # --- the tries ---

    async def run(self) -> None:
        """Try what is due until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.try_due()

    async def try_due(self) -> None:
        """Give each command again that is due."""
        await self._memory.refresh(_OTHERS_SECONDS)
        if not any(map(self._is_due, self._memory.retries)):
            return
        await self._memory.refresh()
        for retry in filter(self._is_due, self._memory.retries):
            try:
                await self._try(retry)
            except OperatingTrouble as trouble:  # it was not refused: that is no try
                self._logger.warning(
                    "signal_retry_waits", flag_key=retry.flag, rule=retry.rule, error=str(trouble)
                )
                await self._memory.keep_retry(
                    msgspec.structs.replace(retry, at=self._clock.now(), sent=retry.sent + 1)
                )
        await self._end()

    async def _end(self) -> None:
        """Forget what was tried to its end, once Kafka has the alerts: a crash before repeats it.

        After all commands: where Kafka takes no alert, none of them comes later for that.
        """
        ended, self._ended = self._ended, []
        if ended and not await self._alerts.flush(ALERT_SECONDS):
            self._logger.warning("signal_alerts_wait", flags=[retry.flag for retry in ended])
        for retry in ended:
            if self._memory.retry(retry.flag, retry.rule) == retry:  # no signal began another
                await self._memory.drop_retry(retry.flag, retry.rule)

    def _is_due(self, retry: Retry) -> bool:
        delay = DELAYS[min(retry.sent, len(DELAYS)) - 1]
        return self._clock.now() - retry.at >= timedelta(seconds=delay)

    async def _try(self, retry: Retry) -> None:
        try:
            signal = Signal.model_validate_json(retry.signal)
        except ValueError:  # of another release
            await self._memory.drop_retry(retry.flag, retry.rule)
            return
        condition = self._memory.condition(signal.hook, signal.condition)
        if condition is None or (signal.id not in condition.ids and condition.at < retry.begun):
            return  # it is being handled
        is_release = retry.rule == _RELEASE
        intent = None
        if is_release:
            is_over = condition.is_firing or self._memory.holds_of(retry.flag)
            goes_on = not is_over and self._is_frozen(retry.flag, retry.rollout_id)
        else:
            intent = self._begun(retry, signal) or self._intent(
                retry.rule, retry.flag, retry.rollout_id, signal
            )
            goes_on = intent is not None and (condition.is_firing or bool(retry.begun_verb))
        if not goes_on:
            self._logger.info("signal_retry_ended", flag_key=retry.flag, rule=retry.rule)
            await self._tell_outcome(retry, signal)
            await self._memory.drop_retry(retry.flag, retry.rule)
            return
        if not await self._memory.claim_retry(retry):
            return
        if intent is None:
            await self._release(retry, signal)
        else:
            await self._carry_out(retry, intent, signal)

    async def _tell_outcome(self, retry: Retry, signal: Signal) -> None:
        """Say in the list of signals what became of a command whose result was not known."""
        rollout = self._rollouts().get(retry.flag)
        if not retry.refused and rollout is not None and rollout.rollout_id == retry.rollout_id:
            words = f"{retry.flag}: serves {rollout.served_words} now"
            await self._memory.add_done(signal.id, words)

    async def _carry_out(self, retry: Retry, intent: Intent, signal: Signal) -> None:
        verb = CommandVerb(retry.begun_verb) if retry.begun_verb else verb_of(intent)
        assert verb is not None  # `_intent` has asked
        retry = msgspec.structs.replace(retry, begun_verb=verb.value)
        await self._memory.keep_retry(retry)
        reason = reason_words(intent, signal)
        number = retry.refused + 1
        answer = await self._commander.give(
            intent.rollout, verb, signal, reason, retry.rule, number
        )
        if not await self._is_done(retry, signal, answer):
            return
        is_given_up = is_refused(answer)
        words = outcome_words(intent, answer, retry.sent + 1)
        make = given_up_alert if is_given_up else tried_alert
        self._alerts.add(intent.rollout, make(intent, signal, words))
        self._ended.append(retry)
        await self._memory.add_done(signal.id, f"{retry.flag}: {words}")
        act = self._memory.act(retry.flag, retry.rule)
        if act is not None and act.rollout_id == retry.rollout_id and not is_given_up:
            done = msgspec.structs.replace(act, at=self._clock.now(), is_refused=False)
            await self._memory.keep_act(done)

    async def _release(self, retry: Retry, signal: Signal) -> None:
        rollout = self._rollouts()[retry.flag]
        reason = f"over: {signal.title}"
        number = retry.refused + 1
        answer = await self._commander.give(
            rollout, CommandVerb.UNFREEZE, signal, reason, retry.rule, number
        )
        if not await self._is_done(retry, signal, answer):
            return
        await self._memory.drop_retry(retry.flag, retry.rule)
        if is_refused(answer):
            words = f"it is over, and the flag stays frozen: `rolloutctl unfreeze {retry.flag}`"
            await self._memory.add_done(signal.id, f"{retry.flag}: {words}")
            self._logger.warning("signal_release_refused", flag_key=retry.flag, answer=str(answer))
            return
        await self._memory.refresh(0.0)
        if self._memory.holds_of(retry.flag):  # something began to hold it at the same time
            words = "another condition holds it"
            await self._commander.give(rollout, CommandVerb.FREEZE, signal, words, retry.rule)

    async def _is_done(self, retry: Retry, signal: Signal, answer: Result | str) -> bool:
        """Return whether it ends here: it was carried out, or is given up."""
        refused = retry.refused + is_refused(answer)
        self._logger.info(
            "signal_retried",
            flag_key=retry.flag,
            rule=retry.rule,
            signal_id=signal.id,
            attempt=retry.sent + 1,
            answer=answer if isinstance(answer, str) else f"{answer.status}: {answer.reason}",
        )
        if isinstance(answer, str) or (is_refused(answer) and refused <= len(DELAYS)):
            again = msgspec.structs.replace(
                retry, at=self._clock.now(), refused=refused, sent=retry.sent + 1, begun_verb=""
            )
            await self._memory.keep_retry(again)
            return False
        return True
