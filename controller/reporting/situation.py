"""Describes where a rollout stands: what it waits for, why it holds, whether it may advance.

Belongs here: sentences about a rollout and its newest decisions. Pure functions.
Does not belong here: layout (`status_view.py`), and deciding anything (`controller/core/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controller.core.advice_outcome import agrees, ended_by_evidence
from controller.core.machine import is_frozen, next_deadline
from controller.core.machine.announcements import AFTER_COMPLETION
from controller.core.machine.times import opens_words, time_for_advice, window_boundary
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Baking,
    Completed,
    Ended,
    Gating,
    Paused,
    Retired,
    RolledBack,
    Rollout,
    Scheduled,
    Waiting,
)
from controller.core.windows import closes_at, frozen_until, is_active, local_words
from controller.reporting.unwatched import Unwatched
from schemas.command import CONTROLLER_NAME
from schemas.decision import Decision, JudgementRecord
from schemas.fields import format_duration
from schemas.result import Result
from schemas.terms import AdviceChoice, DecisionKind, HoldReason, Safe, Verdict

#: A deadline is acted on within a second. One that passed this long ago means that no replica
#: runs the flag.
OVERDUE_AFTER = timedelta(seconds=15)
#: A quiet stage is judged every five minutes, and within another one everybody can read of it:
#: evidence that is older is told. That nobody sees what a rollout does is told at once.
NOT_JUDGED_AFTER = timedelta(seconds=370)

#: Decisions after which a rollout is held as it was before.
_LEAVES_A_HOLD = frozenset({DecisionKind.APPLY, DecisionKind.CLOSE, DecisionKind.OPEN})
_HELD_BY_PEOPLE = frozenset({HoldReason.OPERATOR, HoldReason.REJECTED})

HOLD_WORDS = {
    HoldReason.HEALTH: "the evidence cannot be judged yet",
    HoldReason.INCONCLUSIVE: "not enough evidence yet",
    HoldReason.SIGNAL: "a signal regressed",
    HoldReason.ADVISOR: "the model advises to hold",
    HoldReason.WEBHOOK: "a gate webhook holds",
    HoldReason.APPROVAL: "a person must approve",
    HoldReason.FROZEN: "frozen",
    HoldReason.MAX_BAKE: "the gate was still undecided at max_bake",
    HoldReason.OPERATOR: "an operator paused it",
    HoldReason.REJECTED: "a person rejected the next stage",
    HoldReason.BREACH: "a guardrail was breached",
    HoldReason.EXPIRED: "the plan has expired",
    HoldReason.OSCILLATES: "it went up and down too often",
}


@dataclass(frozen=True, slots=True)
class Situation:
    """One rollout as it stands at `now`, for people.

    `decisions` are its newest, oldest first. There may be none.
    """

    rollout: Rollout
    decisions: Sequence[Decision]
    now: datetime
    #: The newest evidence as a daemon has it, None where none was asked.
    newest: JudgementRecord | None = None
    #: That nobody sees what it does, as a replica told; None where none did, or it is over.
    unwatched: Unwatched | None = None
    #: The newest command of the flag, of the last hour, that was refused; where that was looked up.
    refused: Result | None = None

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
        """The newest evidence of the present visit: a daemon's, else what was published."""
        published = None if self.judged_by is None else self.judged_by.judgement
        newest = self.newest
        if newest is None or newest.visit != self.rollout.visit_index:
            return published
        return newest if published is None or newest.at >= published.at else published

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
        ended = self.decision
        if ended is None or not self.advised or not ended_by_evidence(ended.kind, ended.issuer):
            return None
        return sum(agrees(choice, ended.kind) for choice in self.advised), len(self.advised)

    @property
    def stage_number(self) -> int | None:
        """The present stage, 1 for the first; None before the start and after the end."""
        return None if self.rollout.stage_index is None else self.rollout.stage_index + 1

    @property
    def stage_words(self) -> str:
        """`stage 2 of 3`, and `stage 2 of 3 (half)` where the stage has a name; else nothing."""
        stage, number = self.rollout.stage, self.stage_number
        if stage is None or number is None:
            return ""
        called = f" ({stage.given_name})" if stage.given_name else ""
        return f"stage {number} of {len(self.rollout.plan.stages)}{called}"

    @property
    def since(self) -> datetime:
        """When the present phase began."""
        return self.rollout.phase_since

    @property
    def frozen(self) -> str | None:
        """Why nothing may advance now, None when it may.

        An operator's freeze of a completed rollout is told, too: no active window opens it. The
        plan's freeze windows mean nothing after the end.
        """
        rollout = self.rollout
        if isinstance(rollout.phase, RolledBack | Aborted) or not is_frozen(rollout, self.now):
            return None
        if rollout.freeze is not None:
            why = f": {rollout.freeze.reason}" if rollout.freeze.reason else ""
            return (
                f"frozen by {rollout.freeze.issuer} {moment(rollout.freeze.since, self.now)}{why}"
            )
        if rollout.has_ended:
            return None
        until = frozen_until(rollout.plan.freeze_windows, self.now)
        return (
            "in a freeze window"
            if until is None
            else f"in a freeze window that ends {moment(until, self.now)}"
        )

    @property
    def closed(self) -> str | None:
        """That it is outside its plan's active windows, with what opens it; None when it is not."""
        rollout = self.rollout
        if rollout.closed_since is None:
            return None
        words = opens_words(rollout, self.now)
        if isinstance(rollout.phase, Paused):
            return f"{words}, and then until `resume`, because it is paused"
        if rollout.freeze is not None:
            return f"{words}, and then until `unfreeze`"
        return f"{words}; then {rollout.decided_percent:g} % is served"

    @property
    def active(self) -> str | None:
        """Where it stands in its plan's active windows; None where the plan has none."""
        rollout, windows = self.rollout, self.rollout.plan.active
        if not windows or rollout.phase.serves_nothing:
            return None
        if self.closed is not None or rollout.serves_nothing:
            return self.closed
        closing = closes_at(windows, self.now)
        if closing == self.now:
            return "not closed yet, though the active window is over"
        return (
            "open" if closing is None else f"open until {local_words(closing, windows, self.now)}"
        )

    @property
    def overdue(self) -> str | None:
        """A sentence about what should have happened, such as a deadline; None for nothing."""
        deadline = next_deadline(self.rollout, self.now)
        if deadline is None or self.now - deadline < OVERDUE_AFTER:
            return self._not_judged
        return f"{self._due(deadline)} {moment(deadline, self.now)}; is rolloutd running?"

    def _due(self, deadline: datetime) -> str:
        """Return what should have happened at a deadline."""
        plan = self.rollout.plan
        if deadline == plan.ends_at:
            return "everybody should have got control, by the plan's ends_at,"
        if deadline == window_boundary(self.rollout, self.now):
            return "the rollout should have closed by its windows"
        match self.rollout.phase:
            case _ if deadline == plan.expires_at:
                return "the rollout should have paused, because the plan expires,"
            case Scheduled():
                return "the rollout should have started"
            case Baking():
                return "the gate should have opened"
            case Gating(advice=round_) if round_ is not None and not round_.is_closed:
                return "the model's advice should have come"
            case Gating() | AwaitingApproval() | Paused():
                return "the rollout should have paused"
            case Completed() | RolledBack() | Aborted() | Retired():
                return "the rollout should have ended"

    @property
    def _not_judged(self) -> str | None:
        """That a live stage is not judged any more, as far as the newest evidence is known here.

        A long bake has no deadline for hours, and no guardrail can fire in a time in which nobody
        judges.
        """
        newest, visit = self.newest, self.rollout.present_visit
        if newest is None or visit is None or self.rollout.stage_index is None:
            return None
        since = max(newest.at, self.rollout.updated_at, visit.counts_from)
        if self.now - since < NOT_JUDGED_AFTER:
            return None
        return f"nobody has judged its events since {clock(since, self.now)}; is rolloutd running?"

    @property
    def hold(self) -> str | None:
        """Why the rollout does not move, with the numbers where a decision gave them.

        None while nothing holds it.
        """
        if self.rollout.hold is None:
            return None
        words = HOLD_WORDS[self.rollout.hold]
        if self.rollout.hold is HoldReason.INCONCLUSIVE and self._lacking:
            return f"{words} for {self._lacking}"
        newest = self._holding_decision
        if newest is None or not newest.reason:
            return words
        # What is told of a paused rollout came after its pause, and is not why it was paused.
        is_later = isinstance(self.rollout.phase, Paused) and newest.kind is DecisionKind.HOLD
        if self.rollout.hold is HoldReason.MAX_BAKE and "max_bake" in newest.reason:
            return newest.reason  # it says the same, with what was lacking
        return f"{words}{'; since then' if is_later else ''}: {newest.reason}"

    @property
    def _holding_decision(self) -> Decision | None:
        """The decision that led to where the rollout is held, None where it is not known here.

        It is the newest one, but for those that leave a hold as it is: a changed plan, what active
        windows close and open, and what people do (a freeze, its end) where no person holds it.
        """
        revision = self.rollout.revision
        is_by_rule = self.rollout.hold not in _HELD_BY_PEOPLE
        for one in reversed(self.decisions):
            if one.rollout_id != self.rollout.rollout_id or one.revision != revision:
                continue
            is_beside_it = is_by_rule and one.issuer != CONTROLLER_NAME
            if one.kind not in _LEAVES_A_HOLD and not is_beside_it:
                return one
            revision -= 1
        return None

    @property
    def _lacking(self) -> str:
        """The metrics that newer evidence than the decision's leaves open; empty without any.

        The decision's numbers are of another moment than those that are shown below it.
        """
        if self.judgement is None or self.judgement is not self.newest:
            return ""
        return ", ".join(
            one.metric for one in self.judgement.metrics if one.safe is not Verdict.PASS
        )

    @property
    def brief(self) -> str:
        """What it does now, in a few words."""
        match self.rollout.phase:
            case Scheduled():
                return "not started yet"
            case Baking():
                return "baking"
            case Gating():
                return "at the gate"
            case AwaitingApproval():
                return "waiting for approval: every gate has passed"
            case Paused():
                return f"paused: {self.hold or 'an operator paused it'}"
            case Completed() | RolledBack() | Aborted() | Retired() as ended:
                return ended_words(ended)

    @property
    def state(self) -> str:
        """What it does now and what is served, as the beginning of a sentence."""
        rollout = self.rollout
        serving = f"{rollout.served_words}, {self.stage_words}"
        match rollout.phase:
            case Scheduled():
                return "not started yet: 0 % is served"
            case Baking():
                return f"serving {serving}, and gathering evidence"
            case Gating() if self.hold is not None:
                return f"holding at {serving}: {self.hold}"
            case Gating():
                return f"the gate of {serving} is being judged"
            case AwaitingApproval():
                return f"waiting for a person at {serving}: {self.safe_to_advance[1]}"
            case Paused():
                why = self.hold or "an operator paused it"
                return f"paused at {rollout.served_words}: {why}"
            case Completed() | RolledBack() | Aborted() | Retired() as ended:
                frozen = "" if self.frozen is None else f"; {self.frozen}"
                return f"{ended_words(ended)}; {rollout.served_words} is served{frozen}"

    @property
    def waits_for(self) -> str:
        """What has to happen next."""
        if self.closed is not None and not isinstance(self.rollout.phase, Paused):
            return f"an active window: {self.closed}"
        return self._waits_while_open

    @property
    def _waits_while_open(self) -> str:
        rollout, now = self.rollout, self.now
        match rollout.phase:
            case Baking(until=until) if until > now:
                # A freeze window may be over by then; an operator's freeze is not.
                then = "" if rollout.freeze is None else ", then unfreeze"
                return f"the bake to end {moment(until, now)}{then}"
            case phase if isinstance(phase, Waiting) and self.frozen is not None:
                then = ", then approval" if isinstance(rollout.phase, AwaitingApproval) else ""
                return ("the freeze window to end" if rollout.freeze is None else "unfreeze") + then
            case Scheduled(start_at=start_at):
                return self._start_words(start_at)
            case Baking():
                return "the gate to open"
            case Gating(advice=round_) if round_ is not None and not round_.is_closed:
                return f"the model's advice, at most until {clock(round_.until, now)}"
            case Gating(until=until):
                return f"evidence; pauses if still undecided {moment(until, now)}{self._added}"
            case AwaitingApproval():
                return f"approval of revision {rollout.revision}"
            case Paused(reason=HoldReason.EXPIRED):
                return "promote, rollback or abort: the plan has expired"
            case Paused(reason=HoldReason.OSCILLATES):
                return "promote, rollback or abort: it went up and down too often"
            case Paused():
                return "resume, promote, rollback or abort"
            case Completed() if rollout.plan.ends_at is not None:
                return f"its end {moment(rollout.plan.ends_at, now)}; then 0 % is served"
            case Completed():
                return f"nothing; {AFTER_COMPLETION[rollout.plan.flag_type]}"
            case RolledBack():
                return "nothing; find the cause, then restart it"
            case Aborted() | Retired():
                return "nothing; it has ended"

    def _start_words(self, start_at: datetime) -> str:
        """Return what a rollout that has not begun waits for: its start, or an active window."""
        windows, asked = self.rollout.plan.active, self.rollout.started_at
        asked = max(self.rollout.plan.start_at or asked, asked)
        if start_at <= asked or is_active(windows, start_at - timedelta(seconds=1)):
            return f"the start {moment(start_at, self.now)}"
        until = local_words(start_at, windows, self.now)
        return f"an active window: closed until {until}; then the first stage begins"

    @property
    def _added(self) -> str:
        """What asking a model adds to `max_bake`, in words; empty for nothing."""
        stage = self.rollout.stage_index
        added = timedelta(0) if stage is None else time_for_advice(self.rollout, stage)
        if stage is None or not added:
            return ""
        limit = self.rollout.plan.stages[stage].max_bake
        return f", max_bake {about(limit)} and {about(added)} for the model's advice"

    @property
    def safe_to_advance(self) -> tuple[Safe, str]:
        """Whether the next stage may be entered now, and why or why not."""
        rollout = self.rollout
        if self.frozen is not None and not rollout.has_ended:
            return Safe.NO, self.frozen
        if self.closed is not None and not rollout.has_ended:
            return Safe.NO, self.closed
        match rollout.phase:
            case Completed() | RolledBack() | Aborted() | Retired():
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
                HoldReason.ADVISOR,
                HoldReason.WEBHOOK,
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
                blind = "" if self.hold is None else f"{self.hold}; "
                then = "then its gate is judged"
                return Safe.NOT_YET, f"{blind}it waits for {self.waits_for}; {then}"


def ended_words(phase: Ended) -> str:
    """Return how a rollout ended."""
    match phase:
        case RolledBack(reason=reason):
            return f"rolled back: {reason}" if reason else "rolled back"
        case Aborted(reason=reason):
            return f"aborted: {reason}" if reason else "aborted"
        case Retired(reason=reason):
            return f"retired: {reason}" if reason else "retired"
        case Completed():
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
