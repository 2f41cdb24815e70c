"""Describes where a rollout stands: what it waits for, why it holds, whether it may advance.

Belongs here: sentences about a rollout and its newest decisions. Pure functions.
Does not belong here: layout (`status_view.py`), and deciding anything (`controller/core/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from controller.core.advice_outcome import agrees, ended_by_evidence
from controller.core.machine import is_frozen, next_deadline
from controller.core.machine.announcements import AFTER_COMPLETION
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
    Scheduled,
    Waiting,
)
from controller.core.timeline import frozen_until
from schemas.decision import Decision, JudgementRecord
from schemas.fields import format_duration
from schemas.terms import AdviceChoice, HoldReason

#: A deadline is acted on within a second. One that passed this long ago means that no replica
#: runs the flag.
OVERDUE_AFTER = timedelta(seconds=15)

HOLD_WORDS = {
    HoldReason.HEALTH: "the evidence cannot be judged yet",
    HoldReason.INCONCLUSIVE: "not enough evidence yet",
    HoldReason.FAILING: "a guardrail does not pass",
    HoldReason.SIGNAL: "a signal regressed",
    HoldReason.ADVISOR: "the model advises to hold",
    HoldReason.APPROVAL: "a person must approve",
    HoldReason.FROZEN: "frozen",
    HoldReason.MAX_BAKE: "the gate was still undecided at max_bake",
    HoldReason.OPERATOR: "an operator paused it",
    HoldReason.REJECTED: "a person rejected the next stage",
    HoldReason.BREACH: "a guardrail was breached",
    HoldReason.EXPIRED: "the plan has expired",
}


class Safe(StrEnum):
    """The answer to "safe to advance?"."""

    YES = "yes"
    NOT_YET = "not yet"
    NO = "no"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Situation:
    """One rollout as it stands at `now`, for people.

    `decisions` are its newest, oldest first. There may be none.
    """

    rollout: Rollout
    decisions: Sequence[Decision]
    now: datetime

    @property
    def decision(self) -> Decision | None:
        """The newest decision about this rollout."""
        return next(
            (one for one in reversed(self.decisions) if one.rollout_id == self.rollout.rollout_id),
            None,
        )

    @property
    def judged_by(self) -> Decision | None:
        """The newest decision with evidence of the present visit of a stage, or of the last one."""
        visit = self.rollout.visit_index
        for one in reversed(self.decisions):
            if (
                one.rollout_id == self.rollout.rollout_id
                and one.judgement is not None
                and one.judgement.visit == visit
            ):
                return one
        return None

    @property
    def judgement(self) -> JudgementRecord | None:
        """The newest published evidence of the present visit."""
        return None if self.judged_by is None else self.judged_by.judgement

    @property
    def advised(self) -> Sequence[AdviceChoice]:
        """The last advice at each of this rollout's gates in `decisions`, oldest first."""
        by_gate = {
            one.gate_id: one.advice.choice
            for one in self.decisions
            if one.rollout_id == self.rollout.rollout_id
            and one.advice is not None
            and one.gate_id is not None
        }
        return tuple(by_gate.values())

    @property
    def advice_agreement(self) -> tuple[int, int] | None:
        """How many of `advised` agree with how the rollout ended, and how many there are.

        None while the rollout has not ended, and where people ended it.
        """
        ended = next(
            (one for one in reversed(self.decisions) if one.rollout_id == self.rollout.rollout_id),
            None,
        )
        if ended is None or not self.advised or not ended_by_evidence(ended.kind, ended.issuer):
            return None
        return sum(agrees(choice, ended.kind) for choice in self.advised), len(self.advised)

    @property
    def stage_number(self) -> int | None:
        """The present stage, 1 for the first; None before the start and after the end."""
        return None if self.rollout.stage_index is None else self.rollout.stage_index + 1

    @property
    def since(self) -> datetime:
        """When the present phase began."""
        return self.rollout.phase_since

    @property
    def frozen(self) -> str | None:
        """Why nothing may advance now, None when it may."""
        rollout = self.rollout
        if rollout.has_ended or not is_frozen(rollout, self.now):
            return None
        if rollout.freeze is not None:
            why = f": {rollout.freeze.reason}" if rollout.freeze.reason else ""
            return (
                f"frozen by {rollout.freeze.issuer} {moment(rollout.freeze.since, self.now)}{why}"
            )
        until = frozen_until(rollout.plan.freeze_windows, self.now)
        return (
            "in a freeze window"
            if until is None
            else f"in a freeze window that ends {moment(until, self.now)}"
        )

    @property
    def overdue(self) -> str | None:
        """A sentence about a deadline that passed without effect, None when there is none."""
        deadline = next_deadline(self.rollout)
        if deadline is None or self.now - deadline < OVERDUE_AFTER:
            return None
        return (
            f"something was due {moment(deadline, self.now)} and has not happened: is rolloutd "
            f"running?"
        )

    @property
    def hold(self) -> str | None:
        """Why the rollout does not move, with the numbers where a decision gave them.

        None while nothing holds it.
        """
        if self.rollout.hold is None:
            return None
        words = HOLD_WORDS[self.rollout.hold]
        newest = self.decision
        if newest is None or newest.revision != self.rollout.revision or not newest.reason:
            return words
        return f"{words}: {newest.reason}"

    @property
    def waits_for(self) -> str:
        """What has to happen next."""
        rollout, now = self.rollout, self.now
        match rollout.phase:
            case Baking(until=until) if until > now:
                return f"the bake to end {moment(until, now)}"
            case phase if isinstance(phase, Waiting) and self.frozen is not None:
                then = ", then approval" if isinstance(rollout.phase, AwaitingApproval) else ""
                return ("the freeze window to end" if rollout.freeze is None else "unfreeze") + then
            case Scheduled(start_at=start_at):
                return f"the start {moment(start_at, now)}"
            case Baking():
                return "the gate to open"
            case Gating(advice=round_) if round_ is not None and not round_.is_closed:
                return f"the model's advice, at most until {clock(round_.until, now)}"
            case Gating(until=until):
                return f"a verdict; pauses if there is none {moment(until, now)}"
            case AwaitingApproval():
                return f"approval of revision {rollout.revision}"
            case Paused(reason=HoldReason.EXPIRED):
                return "promote, roll-back or abort: the plan has expired"
            case Paused():
                return "resume, promote, roll-back or abort"
            case Completed():
                return f"nothing; {AFTER_COMPLETION[rollout.plan.flag_type]}"
            case RolledBack():
                return "nothing; find the cause, then restart it"
            case Aborted():
                return "nothing; it has ended"

    @property
    def safe_to_advance(self) -> tuple[Safe, str]:
        """Whether the next stage may be entered now, and why or why not."""
        rollout = self.rollout
        if self.frozen is not None:
            return Safe.NO, self.frozen
        match rollout.phase:
            case Completed() | RolledBack() | Aborted():
                return Safe.ENDED, ended_words(rollout.phase)
            case Scheduled():
                return Safe.NOT_YET, f"it waits for {self.waits_for}"
            case AwaitingApproval(reason=HoldReason.ADVISOR):
                return (
                    Safe.NO,
                    (
                        "the statistics pass, but the model held in every round: read its "
                        "reasons, then decide"
                    ),
                )
            case AwaitingApproval():
                return (
                    Safe.YES,
                    (
                        f"everything else has passed; approving revision {rollout.revision} "
                        f"advances it"
                    ),
                )
            case Gating() if rollout.hold in (
                HoldReason.SIGNAL,
                HoldReason.FAILING,
                HoldReason.ADVISOR,
            ):
                return Safe.NO, self.hold or ""
            case Gating() if rollout.hold is not None:
                return Safe.NOT_YET, self.hold or ""
            case Gating():
                return Safe.NOT_YET, "the gate is being judged"
            case Paused():
                return Safe.NO, self.hold or "paused"
            case Baking() if rollout.plan.blind:
                return (
                    Safe.NOT_YET,
                    f"it waits for {self.waits_for}, and for nothing else: the plan is blind",
                )
            case Baking():
                return Safe.NOT_YET, f"it waits for {self.waits_for}; then its gate is judged"


def ended_words(phase: Phase) -> str:
    """Return how a rollout ended."""
    match phase:
        case RolledBack(reason=reason):
            return f"rolled back: {reason}" if reason else "rolled back"
        case Aborted(reason=reason):
            return f"aborted: {reason}" if reason else "aborted"
        case _:
            return "completed"


def clock(at: datetime, now: datetime) -> str:
    """Return a moment in UTC, with its date when that is not today's."""
    at, now = at.astimezone(UTC), now.astimezone(UTC)
    return f"{at:%H:%M:%S} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M} UTC"


def moment(at: datetime, now: datetime) -> str:
    """Return a moment as `at 07:18:00 UTC (in 23m)` or `at 06:40:00 UTC (15m ago)`."""
    distance = f"in {about(at - now)}" if at > now else f"{about(now - at)} ago"
    return f"at {clock(at, now)} ({distance})"


def about(duration: timedelta) -> str:
    """Return a duration in its two largest units: `2d 3h`, `1m 5s`, `0s`."""
    whole = timedelta(seconds=round(max(duration, timedelta(0)).total_seconds()))
    return " ".join(format_duration(whole).split()[:2])
