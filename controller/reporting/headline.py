"""The first line about a rollout: whether anything is wrong, and what comes next.

Pure. Made from the words of `situation.py` and `evidence_words.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Completed,
    Paused,
    Retired,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.reporting.progress import evidence_share, troubles
from controller.reporting.situation import Situation, moment
from controller.reporting.views import needs_person
from controller.text import one_line, plural
from schemas.terms import Arm, Verdict

#: For so long a person is asked to look at a rollout that was rolled back.
LOOK_AT_ROLLBACK: Final = timedelta(hours=24)


class Tone(StrEnum):
    """What a rollout asks of a person. Each has a mark of its own, not only a color."""

    HARM = "harm"  # something was worse than allowed
    WAITS = "waits"  # for a person
    UNKNOWN = "unknown"  # it should know more than it does
    MOVES = "moves"
    DONE = "done"
    RESTS = "rests"


MARKS: Final = {
    Tone.HARM: "▲",
    Tone.WAITS: "◆",
    Tone.UNKNOWN: "?",
    Tone.MOVES: "●",
    Tone.DONE: "✓",
    Tone.RESTS: "○",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """Where a rollout stands, in plain words."""

    tone: Tone
    now: str  # a sentence
    next: str  # what has to happen next, empty for nothing

    @property
    def mark(self) -> str:
        """Return the sign that stands for the tone."""
        return MARKS[self.tone]


def is_to_review(rollout: Rollout, now: datetime) -> bool:
    """Return whether it was rolled back so lately that a person should look at it."""
    return isinstance(rollout.phase, RolledBack) and now - rollout.updated_at < LOOK_AT_ROLLBACK


def needs_attention(rollout: Rollout, now: datetime) -> bool:
    """Return whether a person should look: nothing goes on without one, or it was rolled back."""
    return needs_person(rollout) or is_to_review(rollout, now)


def tone_of(situation: Situation) -> Tone:
    """Return what a rollout asks of a person."""
    match situation.rollout.phase:
        case RolledBack():
            return Tone.HARM
        case Paused() if _harm(situation):
            return Tone.HARM
        case Paused() | AwaitingApproval():
            return Tone.WAITS
        case Completed():
            return Tone.DONE
        case Aborted() | Retired():
            return Tone.RESTS
    is_unseen = situation.unwatched is not None or situation.overdue is not None
    if is_unseen or troubles(situation.judgement):
        return Tone.UNKNOWN
    return Tone.RESTS if isinstance(situation.rollout.phase, Scheduled) else Tone.MOVES


def headline(situation: Situation) -> Headline:
    """Return where a rollout stands: its state in plain words, harm or none, and what comes."""
    rollout = situation.rollout
    parts = [situation.state]
    if (unwatched := situation.unwatched) is not None:
        since = moment(unwatched.since, situation.now).removeprefix("at ")
        parts = [f"unwatched since {since}: {unwatched.why}", f"to fix it: {unwatched.action}"]
    elif not rollout.has_ended:
        parts.append(_evidence(situation))
    if situation.overdue is not None:
        parts.append(situation.overdue)
    waits = "" if rollout.has_ended and not rollout.may_open_again else situation.waits_for
    return Headline(
        tone_of(situation), " ".join(_sentence(part) for part in parts if part), one_line(waits)
    )


def brief(situation: Situation) -> str:
    """Return what a rollout does now in a few words, for one line of a list."""
    rollout, judgement = situation.rollout, situation.judgement
    if situation.unwatched is not None:
        return one_line(f"unwatched: {situation.unwatched.why}")
    if situation.overdue is not None:
        return one_line(f"overdue: {situation.overdue}")
    if rollout.has_ended:
        frozen = "" if situation.frozen is None else f"; {situation.frozen}"
        return one_line(f"{situation.brief}{frozen}")
    if situation.closed is not None and not isinstance(rollout.phase, Paused):
        return one_line(f"closed: {situation.closed}")
    if situation.frozen is not None:
        return one_line(situation.frozen)
    if isinstance(rollout.phase, Scheduled) or needs_person(rollout):
        return one_line(situation.brief)
    if found := troubles(judgement):
        return one_line(f"{found[0].kind.replace('_', ' ')}: {found[0].detail}")
    words = situation.brief
    if judgement is not None and judgement.gaps:
        return one_line(f"{words}: {judgement.gaps[0].detail}")
    share = None if judgement is None else evidence_share(judgement)
    if share is not None:
        enough = "enough evidence" if share >= 1 else f"{100 * share:.0f} % of the evidence needed"
        return f"{words}, {enough}"
    return words


def _evidence(situation: Situation) -> str:
    judgement = situation.judgement
    if situation.rollout.plan.blind:
        return "the plan is blind: no evidence is judged"
    if not situation.rollout.visits:
        return ""
    if judgement is None:
        return "nothing was judged yet in this stage"
    if harm := _harm(situation):
        return f"worse than allowed: {harm}"
    users = judgement.exposures.get(Arm.TREATMENT, 0)
    if not users and judgement.incomplete is not None:
        return f"no user of the new version is counted again so far: {judgement.incomplete}"
    if not users:
        return "no user of the new version was counted yet in this stage"
    gaps = ", ".join(gap.kind.replace("_", " ") for gap in troubles(judgement))
    if gaps:
        counted = plural(users, "user was", "users were")
        return f"{counted} counted, but the evidence cannot be judged: {gaps}"
    return f"no harm found in {plural(users, 'user')} of the new version"


def _harm(situation: Situation) -> str:
    """Return the metrics that are worse than allowed; empty for none."""
    judgement = situation.judgement
    if judgement is None:
        return ""
    return ", ".join(one.metric for one in judgement.metrics if one.harm is Verdict.FAIL)


def _sentence(words: str) -> str:
    """Return words as a sentence: a capital first, a full stop last."""
    line = one_line(words).rstrip(". ")
    return f"{line[:1].upper()}{line[1:]}."
