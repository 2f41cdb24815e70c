"""Which rules a signal meets, and what they intend for which flags.

Belongs here: the choice, as a function of rules, signal and rollouts. Does not belong here: whether
a rule has acted already (`responder.py`), and sending commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controller.core.rollout import Rollout
from controller.responding.suspects import (
    Suspect,
    newest_first,
    ranked,
    rose_within,
    suspect,
)
from controller.settings.signal_rules import SignalRule
from schemas.decision import JudgementRecord
from schemas.signal import Signal
from schemas.terms import CommandVerb, PhaseName, SignalAction

#: The strongest first: of two rules for one flag the stronger acts. A hold acts besides what leaves
#: the rollout something to go on with.

#: What each action usually commands; None: nothing. `commanding.py` has what stands in for it.
_VERBS: Final[Mapping[SignalAction, CommandVerb | None]] = {
    SignalAction.ROLL_BACK: CommandVerb.ROLL_BACK,
    SignalAction.STEP_BACK: CommandVerb.STEP_BACK,
    SignalAction.PAUSE: CommandVerb.PAUSE,
    SignalAction.HOLD: CommandVerb.FREEZE,
    SignalAction.NOTE: None,
}

#: What is known of a flag's evidence; None: nothing.
Evidence = Callable[[Rollout], JudgementRecord | None]


@dataclass(frozen=True, slots=True)
class Intent:
    """What a rule intends for one flag."""

    rule: SignalRule
    suspect: Suspect
    action: SignalAction  # of the rule; note for one that is tried dry

    @property
    def rollout(self) -> Rollout:
        """The flag's rollout as it was seen."""
        return self.suspect.rollout

    @property
    def usual_verb(self) -> CommandVerb | None:
        """What the action commands where nothing has to stand in for it; None: nothing."""
        return _VERBS[self.action]


@dataclass(frozen=True, slots=True)
class Response:
    """What a signal leads to."""

    rules: tuple[SignalRule, ...]  # that it meets
    intents: tuple[Intent, ...]  # the most suspect flag first; at most a change and a hold of each
    left_out: tuple[Suspect, ...]  # suspect too, and beyond the rules' `most`


def concerned(
    rules: Sequence[SignalRule], signal: Signal, rollouts: Mapping[str, Rollout]
) -> dict[str, list[Rollout]]:
    """Return the rollouts that each rule would look at, by the rule's name.

    A flag that serves nothing and that nothing will raise is not looked at, and none whose rollout
    began after the signal came.
    """
    chosen: dict[str, list[Rollout]] = {}
    for rule in rules:
        if rule.when.fits(signal):
            chosen[rule.name] = [
                one for one in _candidates(rollouts) if _is_meant(rule, one, signal)
            ]
    return chosen


def response(
    rules: Sequence[SignalRule],
    signal: Signal,
    rollouts: Mapping[str, Rollout],
    evidence: Evidence = lambda _: None,
    rests: Callable[[SignalRule, Rollout], bool] = lambda _rule, _rollout: False,
    spent: Callable[[SignalRule], int] = lambda _rule: 0,
    has_acted: Callable[[SignalRule, Rollout], bool] = lambda _rule, _rollout: False,
) -> Response:
    """Return what the rules intend when something fires.

    `rests`: a rule has acted on a flag during an earlier firing, and leaves it alone for a while.
    Such a flag takes no place of `most`, so that the next one comes in its turn. `spent`: places of
    `most` that are taken, by this firing or by other conditions just now: a storm is one incident.
    `has_acted`: in this firing; such a flag has its place.
    """
    chosen = concerned(rules, signal, rollouts)
    met = tuple(rule for rule in rules if rule.name in chosen)
    best: dict[str, Intent] = {}
    holds: dict[str, Intent] = {}
    left_out: dict[str, Suspect] = {}
    for rule in met:
        order_of = newest_first if rule.order == "newest" else ranked
        suspects = order_of(
            suspect(one, began_at(signal), signal.service, evidence(one))
            for one in chosen[rule.name]
            if rule.most_flags is None or not rests(rule, one)
        )
        most = len(suspects)
        if rule.most_flags is not None:
            suspects.sort(key=lambda one: not has_acted(rule, one.rollout))
            placed = sum(has_acted(rule, one.rollout) for one in suspects)
            most = placed + max(0, rule.most_flags - spent(rule))
        left_out |= {one.rollout.flag_key: one for one in suspects[most:]}
        for one in suspects[:most]:
            intent = Intent(rule, one, SignalAction.NOTE if rule.dry_run else rule.do)
            if intent.action is SignalAction.HOLD:
                holds.setdefault(one.rollout.flag_key, intent)
            known = best.get(one.rollout.flag_key)
            if known is None or intent.action.strength > known.action.strength:
                best[one.rollout.flag_key] = intent
    order = [one.rollout.flag_key for one in ranked(one.suspect for one in best.values())]
    return Response(
        met,
        tuple(one for flag_key in order for one in _both(best[flag_key], holds.get(flag_key))),
        tuple(one for flag_key, one in left_out.items() if flag_key not in best),
    )


def still_there(
    rules: Iterable[SignalRule],
    rollouts: Mapping[str, Rollout],
    name: str,
    flag_key: str,
    rollout_id: str,
) -> tuple[SignalRule, Rollout] | None:
    """Return a rule and a rollout on which it acts, as they are now.

    None: the rule is gone or tried dry by now, or the flag has another rollout.
    """
    rule = next((one for one in rules if one.name == name), None)
    rollout = rollouts.get(flag_key)
    if rule is None or rule.dry_run or rollout is None or rollout.rollout_id != rollout_id:
        return None
    return rule, rollout


def intent_of(rule: SignalRule, rollout: Rollout, signal: Signal, action: SignalAction) -> Intent:
    """Return what a rule intends for one flag; nothing is known of its evidence."""
    return Intent(rule, suspect(rollout, began_at(signal), signal.service, None), action)


def _both(strongest: Intent, hold: Intent | None) -> tuple[Intent, ...]:
    """Return the strongest intent for a flag, and what holds it besides.

    After it the rollout would go on by itself, or be resumed, while the condition fires.
    """
    goes_on = strongest.action in (SignalAction.STEP_BACK, SignalAction.PAUSE)
    if hold is None or not goes_on or strongest.rollout.has_ended:
        return (strongest,)
    return strongest, hold


def began_at(signal: Signal) -> datetime:
    """Return since when it fires, as far as it is told; never later than it was received."""
    told = signal.started_at
    return signal.received_at if told is None else min(told, signal.received_at)


def _candidates(rollouts: Mapping[str, Rollout]) -> Iterable[Rollout]:
    for one in rollouts.values():
        if one.phase.name is PhaseName.RETIRED:
            continue
        if not one.has_ended or one.percent > 0 or one.may_open_again:
            yield one


def _is_meant(rule: SignalRule, rollout: Rollout, signal: Signal) -> bool:
    if rollout.started_at > signal.received_at:
        return False
    if rule.is_recent:
        return rose_within(rollout, rule.within, began_at(signal))
    return rule.names(rollout.flag_key) and (rule.completed or not rollout.has_ended)
