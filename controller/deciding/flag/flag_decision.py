"""Decides what follows from one event of a flag. Saves nothing, publishes nothing.

The decision itself is `core/machine`'s, the judgement of evidence is `core/judging`'s. Here they
are put together, with the safeguards after them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.effects import AnswerCommand, Effect
from controller.core.events import CommandReceived, CommandUnusable, Event, EvidenceJudged
from controller.core.evidence import Evidence
from controller.core.invariants import Step
from controller.core.judging.carried_tests import carried_tests
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Judgement
from controller.core.judging.quiet import after_quiet_until, quiet_until
from controller.core.machine import decide, hold_back, with_evidence
from controller.core.machine.health import is_alarming
from controller.core.rollout import Gating, Rollout
from controller.deciding.flag.command_answers import Binding
from controller.deciding.flag.flag_inbox import NewTotals
from controller.deciding.flag.flag_state import FlagState
from controller.deciding.flag.safeguards import OUTBOX_FULL, Safeguards
from controller.ports import Clock
from schemas.terms import CommandStatus, CommandVerb, HealthGap

#: While a stage bakes, only harm has to act at once, so only harm is tested; that costs a third of
#: a full judgement. Gaps, which act when they have lasted, intervals and texts are computed this
#: often.
JUDGED_EVERY_SECONDS = 1.0
#: Whoever sends one of these acts on the evidence, or in spite of it.
_TELLS_GAPS: Final = frozenset(
    {
        CommandVerb.APPROVE,
        CommandVerb.PROMOTE,
        CommandVerb.PROMOTE_FULL,
        CommandVerb.RESUME,
        CommandVerb.RETRY,
        CommandVerb.ROLL_BACK,
    }
)


@dataclass(frozen=True, slots=True)
class PendingSave:
    """What is to be saved, and then performed."""

    after: Rollout | None
    effects: tuple[Effect, ...]
    tests: SequentialTests


class EvidenceJudge:
    """Judges the totals of one flag, in full or for harm alone."""

    def __init__(self, clock: Clock, on_judgement: Callable[[], object] = lambda: None) -> None:
        """`on_judgement` is called after each full judgement."""
        self._clock = clock
        self._on_judgement = on_judgement
        self._judged_at = float("-inf")  # monotonic seconds
        #: The newest full judgement, perhaps of an earlier rollout.
        self.judgement: Judgement | None = None
        self._rollout_id = ""  # of the rollout that it is about
        #: Until when the same totals would lead to the same; None: they were not judged in full.
        self.quiet_until: datetime | None = None
        #: Why no evidence could be had when a command needed it; None: it was not tried, or it was.
        self.trouble: str | None = None

    def judge(
        self, rollout: Rollout, totals: NewTotals, tests: SequentialTests, now: datetime
    ) -> tuple[Judgement | None, SequentialTests]:
        """Return the judgement of new totals, and the tests after it.

        None where the tests show that a judgement would change nothing.
        """
        evidence, tests = totals.evidence, self._after_quiet(tests, totals.same_until)
        since = self._clock.monotonic() - self._judged_at
        is_new = self.judgement is None or self.judgement.at < rollout.updated_at
        if not is_new and since < JUDGED_EVERY_SECONDS and not isinstance(rollout.phase, Gating):
            signals, tests = check_harm(rollout, evidence, tests, now)
            if not any(signal.is_possible for signal in signals):
                self.quiet_until = None
                return None, tests
        self.judgement, tests = judge(rollout, evidence, tests, now)
        self.quiet_until = quiet_until(rollout, tests, now)
        self._rollout_id = rollout.rollout_id
        self._judged_at = self._clock.monotonic()
        self._on_judgement()
        return self.judgement, tests

    def _after_quiet(self, tests: SequentialTests, same_until: datetime | None) -> SequentialTests:
        """Return the tests after the time in which nothing changed since they were judged here."""
        until, newest = self.quiet_until, self.judgement
        if until is None or newest is None or same_until is None or newest.at != tests.judged_at:
            return tests
        return after_quiet_until(tests, min(same_until, until))

    def observe(
        self, rollout: Rollout, evidence: Evidence, tests: SequentialTests, now: datetime
    ) -> None:
        """Judge evidence to show it alone: the tests stay as they are, and nothing is decided."""
        self.judgement, _ = judge(rollout, evidence, tests, now)
        self._rollout_id = rollout.rollout_id
        self._on_judgement()

    def newest_of(self, rollout: Rollout | None) -> Judgement | None:
        """Return the newest full judgement of a rollout; None: it was not judged here yet."""
        is_of_it = rollout is not None and rollout.rollout_id == self._rollout_id
        return self.judgement if is_of_it else None


class FlagDecider:
    """Decides about one flag by its state as saved last."""

    def __init__(self, state: FlagState, judge: EvidenceJudge, safeguards: Safeguards) -> None:
        self._state = state
        self._judge = judge
        self._safeguards = safeguards

    def decide(
        self, event: Event | NewTotals, binding: Binding | None, now: datetime
    ) -> PendingSave | None:
        """Return what follows from an event, None for totals that change nothing.

        `binding` is given for commands. `now` is the time of handling, not of arrival: an outage in
        between must neither shorten a bake nor make evidence look fresh.
        """
        rollout, tests, judgement = self._state.rollout, self._state.tests, None
        decided: Event
        if isinstance(event, NewTotals):
            if rollout is None or rollout.stage_index is None:
                return None
            if rollout.rollout_id != event.rollout_id:
                return None
            judgement, tests = self._judge.judge(rollout, event, tests, now)
            if judgement is None:
                return PendingSave(rollout, (), tests)
            decided = EvidenceJudged(judgement)
        else:
            decided = self._with_gaps(event)
        if binding is not None and binding.refusal:
            answer = _bound(self._rejected(decided, binding.refusal), binding)
            return PendingSave(rollout, (answer,), tests)
        after, effects = decide(rollout, decided, now)
        if rollout is not None and after is not None and after.rollout_id == rollout.rollout_id:
            tests = carried_tests(tests, rollout, after)
        decision = PendingSave(after, effects, tests)
        if (why := self._safeguards.why_not_raise(after)) is not None:
            decision = self._held_back(decided, judgement, why, now)
        if rollout is not None and after is not None and after.rollout_id == rollout.rollout_id:
            newest = self._judge.newest_of(rollout)
            effects = with_evidence(decision.effects, newest, self._judge.trouble)
            decision = replace(decision, effects=effects)
        decision = self._checked(decided, decision, now)
        if binding is not None:
            effects = tuple(_bound(effect, binding) for effect in decision.effects)
            decision = replace(decision, effects=effects)
        return decision

    def _with_gaps(self, event: Event) -> Event:
        """Return a command with the gaps of the newest evidence; other events as they are.

        That a sample is still small is no news but for an approval, which it refuses. Whoever rolls
        back has to know of a plane that does not serve what was decided, and of nothing else: the
        answer is read in an emergency. While it is closed nothing is counted, which is no gap.
        """
        rollout = self._state.rollout
        newest = self._judge.newest_of(rollout)
        if not isinstance(event, CommandReceived) or event.verb not in _TELLS_GAPS:
            return event
        if rollout is None or rollout.closed_since is not None:
            return event
        if newest is None or newest.visit != rollout.visit_index:
            return event
        is_approval = event.verb is CommandVerb.APPROVE
        gaps = [gap for gap in newest.gaps if is_approval or is_alarming(gap)]
        if event.verb is CommandVerb.ROLL_BACK:
            gaps = [gap for gap in gaps if gap.kind is HealthGap.ACTUATION_DRIFT]
        return replace(event, gaps=tuple(f"{gap.kind}: {gap.detail}" for gap in gaps))

    def _held_back(
        self, event: Event, judgement: Judgement | None, why: str, now: datetime
    ) -> PendingSave:
        """Return a decision without the raise: a refused command, or a gate held, with reason."""
        rollout, tests = self._state.rollout, self._state.tests
        if isinstance(event, CommandReceived):
            return PendingSave(rollout, (self._rejected(event, why),), tests)
        if why == OUTBOX_FULL or rollout is None:
            return PendingSave(rollout, (), tests)  # even the reason would wait in the outbox
        held, effects = hold_back(rollout, why, judgement, now)
        return PendingSave(held, effects, tests)

    def _checked(self, event: Event, decision: PendingSave, now: datetime) -> PendingSave:
        """Return the decision, or none in its place when it would break a forbidding invariant."""
        rollout = self._state.rollout
        step = Step(rollout, event, now, decision.after, decision.effects)
        broken = self._safeguards.violations(step)
        if not any(violation.forbids for violation in broken):
            return decision
        why = f"the controller would break its own rule {broken[0].rule}: {broken[0].why}"
        is_command = isinstance(event, CommandReceived)
        effects = (self._rejected(event, why),) if is_command else ()
        return PendingSave(rollout, effects, self._state.tests)

    def _rejected(self, event: Event, why: str) -> AnswerCommand:
        assert isinstance(event, CommandReceived | CommandUnusable)
        rollout = self._state.rollout
        revision = 0 if rollout is None else rollout.revision
        return AnswerCommand(
            event.command_id,
            event.verb,
            CommandStatus.REJECTED,
            why,
            revision,
            issuer=event.issuer,
        )


def _bound(effect: Effect, binding: Binding) -> Effect:
    """Return an effect with its binding, if it is an answer."""
    if not isinstance(effect, AnswerCommand):
        return effect
    return replace(effect, digest=binding.digest, event=binding.event)
