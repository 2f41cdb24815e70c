"""What people read about signals: in alerts, in the reason of a command, and in lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.responding.matching import Intent, Response
from controller.responding.memory import Act
from schemas.result import Result
from schemas.signal import Signal
from schemas.terms import AlertKind, CommandStatus, CommandVerb, Severity, SignalAction

#: Suspects that an alert names.
_MOST_NAMED: Final = 5

_DONE: Final[Mapping[SignalAction, str]] = {
    SignalAction.ROLL_BACK: "rolled back to 0 %",
    SignalAction.STEP_BACK: "stepped back",
    SignalAction.PAUSE: "paused",
    SignalAction.HOLD: "frozen while it fires",
    SignalAction.NOTE: "told to people",
}
#: What another verb than the action's did in its place.
_STOOD_IN: Final[Mapping[CommandVerb, str]] = {
    CommandVerb.PAUSE: "paused: there is no stage below",
    CommandVerb.ROLL_BACK: "rolled back to 0 %",
}
_NEXT: Final[Mapping[SignalAction, str]] = {
    SignalAction.ROLL_BACK: "look for the cause; nothing raises it again but a new start",
    SignalAction.STEP_BACK: "look for the cause; it goes on from the lower stage",
    SignalAction.PAUSE: "look for the cause, then `rolloutctl resume {flag}` or roll it back",
    SignalAction.HOLD: "look for the cause; it goes on when nothing that holds it fires",
    SignalAction.NOTE: "look whether the flag is the cause: `rolloutctl get {flag}`",
}
#: What follows where the command was not carried out.
_BY_HAND: Final = (
    "look whether the flag is the cause; lower it yourself: `rolloutctl rollback {flag}`"
)
_LOOK: Final = "look at the flag: `rolloutctl get {flag}`"


def reason_words(intent: Intent, signal: Signal) -> str:
    """Return the reason of a command: which rule, which signal, and where to see more."""
    where = f", {signal.link}" if signal.link else ""
    return f"{intent.rule.name}: {_what(signal)}{where}"[:1_000]


def done_words(intent: Intent, answer: Result | str | None) -> str:
    """Return what was done; `answer` None: nothing was sent."""
    if intent.rule.dry_run:
        return f"nothing was done: the dry rule {intent.rule.name} would {_would(intent)}"
    if answer is None:
        is_held = intent.action is SignalAction.HOLD
        return "frozen already" if is_held else _DONE[intent.action]
    if isinstance(answer, str):
        return answer
    if answer.status is CommandStatus.ACCEPTED:
        if answer.verb in (None, intent.usual_verb):
            return _DONE[intent.action]
        return _STOOD_IN.get(answer.verb, answer.verb.value)
    return f"{intent.action.value} was refused: {answer.reason}"


def outcome_words(intent: Intent, answer: Result | str, tries: int) -> str:
    """Return what became of a command that was given so often."""
    return f"{done_words(intent, answer)} (try {tries})"


def _would(intent: Intent) -> str:
    return intent.rule.do.value.replace("_", " ")


def released_words(*, is_held: bool) -> str:
    """Return what became of a flag that a condition held."""
    return "held by another condition still" if is_held else "no longer held by it"


def alert_of(
    intent: Intent,
    found: Response,
    signal: Signal,
    done: str,
    *,
    is_refused: bool = False,
    is_tried: bool = False,
) -> RaiseAlert:
    """Return the alert about one flag: what fired, what was done, and who else is suspect.

    `is_tried`: what was refused is given again.
    """
    rollout = intent.rollout
    action = _NEXT[intent.action]
    if is_refused:
        action = _BY_HAND if is_tried else _LOOK
    meant = {one.rollout.flag_key: one.suspect for one in found.intents}
    suspects = [*meant.values(), *found.left_out]
    named = [f"{at}. {one.words}" for at, one in enumerate(suspects[:_MOST_NAMED], start=1)]
    more = len(suspects) - len(named)
    others = f" Most suspect: {', '.join(named)}" + (f", and {more} more" if more else "")
    changed = intent.action not in (SignalAction.NOTE, SignalAction.HOLD)
    return RaiseAlert(
        AlertKind.SIGNAL,
        Severity.WARNING if changed or intent.action is SignalAction.HOLD else Severity.INFO,
        f"{rollout.flag_key}: {done.rstrip('.')}, because {_what(signal)}.{others}",
        action.format(flag=rollout.flag_key),
        _key(rollout, intent.rule.name),
    )


def tried_alert(intent: Intent, signal: Signal, words: str) -> RaiseAlert:
    """Return the alert that what was refused at first is done."""
    return _outcome_alert(intent, signal, words, _NEXT[intent.action])


def given_up_alert(intent: Intent, signal: Signal, words: str) -> RaiseAlert:
    """Return the alert that a command was refused so often that a person has to act."""
    return _outcome_alert(intent, signal, f"{words}, and is not tried again", _BY_HAND)


def _outcome_alert(intent: Intent, signal: Signal, words: str, action: str) -> RaiseAlert:
    rollout = intent.rollout
    return RaiseAlert(
        AlertKind.SIGNAL,
        Severity.WARNING,
        f"{rollout.flag_key}: {words}, because {_what(signal)}",
        action.format(flag=rollout.flag_key),
        _key(rollout, intent.rule.name),
    )


def over_alert(rollout: Rollout, act: Act, signal: Signal) -> RaiseAlert:
    """Return the alert that what lowered a flag is over, and that the flag stays."""
    return RaiseAlert(
        AlertKind.SIGNAL,
        Severity.INFO,
        f"{rollout.flag_key}: {_what(signal)} is over; the flag stays at {rollout.served_words}: "
        f"recovery raises nothing",
        f"look for the cause first: `rolloutctl get {rollout.flag_key}` says what fits now",
        _key(rollout, act.rule),
    )


def _key(rollout: Rollout, rule: str) -> str:
    return f"{rollout.flag_key}/{rollout.rollout_id}/{AlertKind.SIGNAL}/{rule}"


def _what(signal: Signal) -> str:
    about = f" on {signal.service}" if signal.service and signal.service not in signal.title else ""
    return f"{signal.hook} says {signal.title!r}{about}"
