"""Whole histories of one flag, drawn near what its state waits for: short ones reach every phase.

An event is chosen by `event_near` with a `Pick`; Hypothesis draws single events (`events_near`) or,
faster by far, a string of bytes that `walk` turns into a history: byte 0 picks the likeliest
option, so a counterexample shrinks towards plain ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from hypothesis import strategies as st

from controller.core.analysis.sequential_tests import GapTime
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    Event,
    EvidenceJudged,
    Restarted,
    Ticked,
)
from controller.core.evidence import WebhookReply
from controller.core.invariants import Step
from controller.core.judging.judgement import Advice, Gap, Judgement
from controller.core.machine import decide, next_deadline
from controller.core.plan import DEFAULT_GAP_POLICIES, AdvisorPolicy, Plan, Window
from controller.core.rollout import AwaitingApproval, Baking, Gating, Paused, Rollout, Scheduled
from schemas.command import NEEDS_PLAN
from schemas.terms import (
    AdviceChoice,
    AdvisorMode,
    Approval,
    CommandVerb,
    GapPolicy,
    GateAnswer,
    HealthGap,
    MetricRole,
    OnBreach,
    Verdict,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_breach,
    make_judgement,
    make_plan,
    make_report,
    make_stages,
)

T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]
SECOND = timedelta(seconds=1)

ADVISED = AdvisorPolicy(
    mode=AdvisorMode.CAN_HOLD, deadline=30 * SECOND, hold_rounds=2, hold_for=5 * MINUTE
)
_STAGES = make_stages(1, 10, 50, 100)
_NIGHT = Window(frozenset(range(1, 8)), 22 * 60, 600, "Europe/Berlin")  # 22:00 to 08:00, every day

PLAIN = make_plan(stages=_STAGES)
CAN_HOLD = make_plan(stages=_STAGES, advisor=ADVISED)
REQUIRED = make_plan(
    stages=tuple(replace(stage, approval=Approval.REQUIRED) for stage in _STAGES[:3]) + _STAGES[3:],
    advisor=replace(ADVISED, mode=AdvisorMode.REQUIRED),
)
APPROVED = make_plan(stages=tuple(replace(stage, approval=Approval.REQUIRED) for stage in _STAGES))
OBSERVED = make_plan(stages=_STAGES, advisor=replace(ADVISED, mode=AdvisorMode.OBSERVE))
NIGHTLY = make_plan(
    stages=_STAGES, advisor=ADVISED, freeze_windows=(_NIGHT,), expires_at=T0 + timedelta(days=5)
)
STRICT = make_plan(
    stages=_STAGES,
    advisor=ADVISED,
    start_at=T0 + HOUR,
    gap_policies={
        **DEFAULT_GAP_POLICIES,
        HealthGap.SRM: GapPolicy.ROLL_BACK,
        HealthGap.STALE: GapPolicy.PAUSE,
        HealthGap.NO_TRAFFIC: GapPolicy.ROLL_BACK,
    },
)
ENDING = make_plan(stages=_STAGES, ends_at=T0 + 2 * HOUR)
#: Active in every other hour.
_HOURS = tuple(
    Window(frozenset(range(1, 8)), 60 * at, 60, "Europe/Berlin") for at in range(0, 24, 2)
)
WINDOWED = make_plan(stages=_STAGES, advisor=ADVISED, active=_HOURS)
PLANS = (PLAIN, CAN_HOLD, REQUIRED, APPROVED, OBSERVED, NIGHTLY, STRICT, ENDING, WINDOWED)

_SIGNAL = make_report(role=MetricRole.SIGNAL, harm=Verdict.FAIL, safe=Verdict.FAIL)
PASSING: tuple[Judgement, ...] = (
    make_judgement(),
    make_judgement(metrics=()),
    make_judgement(
        metrics=(
            make_report(),
            make_report(role=MetricRole.OBSERVE, harm=Verdict.FAIL, safe=Verdict.FAIL),
        )
    ),
)
MOMENTARY = tuple(make_judgement(gaps=(Gap(kind, f"{kind} for a test"),)) for kind in HealthGap)
#: Each gap after an hour.
GAPS = tuple(
    replace(seen, gap_times={seen.gaps[0].kind: GapTime(HOUR.total_seconds())})
    for seen in MOMENTARY
)
MISSING = make_judgement(gaps=(Gap(HealthGap.SRM, "treatment is away", treatment_missing=True),))
DRIFTED = make_judgement(
    gaps=(Gap(HealthGap.ACTUATION_DRIFT, "the share is that of before", is_observed=True),)
)
OPEN: tuple[Judgement, ...] = (
    DRIFTED,
    *(
        make_judgement(metrics=(make_report(safe=safe),))
        for safe in (Verdict.INCONCLUSIVE, Verdict.NO_DATA)
    ),
    make_judgement(metrics=(make_report(), _SIGNAL)),
    *(gap for gap in (*GAPS, *MOMENTARY) if gap.gaps[0].kind is not HealthGap.SRM),
    # A webhook's answer holds whatever the plan asks; what it fails at is its plan's.
    make_judgement(replies=(WebhookReply("load-test", "any", "any", T0, GateAnswer.HOLD),)),
    make_judgement(gaps=(Gap(HealthGap.STALE, "old"), Gap(HealthGap.NO_TRAFFIC, "nobody"))),
)
SPLIT = (next(gap for gap in GAPS if gap.gaps[0].kind is HealthGap.SRM), MISSING)
BREACHES: tuple[Judgement, ...] = (
    make_judgement(metrics=(make_breach(),)),
    make_judgement(metrics=(make_breach(),), gaps=GAPS[3].gaps),
    make_judgement(metrics=(make_breach(on_breach=OnBreach.STEP_BACK),)),
    make_judgement(metrics=(make_breach(on_breach=OnBreach.PAUSE),)),
    *(
        replace(gap, metrics=(make_breach(on_breach=OnBreach.PAUSE),))
        for gap in GAPS
        if gap.gaps[0].kind in (HealthGap.STALE, HealthGap.NO_TRAFFIC)
    ),
    make_judgement(
        metrics=(make_breach(on_breach=OnBreach.PAUSE), make_breach(metric="latency_p99"))
    ),
)
JUDGEMENTS = (*PASSING, *OPEN, *SPLIT, *BREACHES)
ADVICE = tuple(make_advice(choice) for choice in AdviceChoice)


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Which events a history is made of.

    The whole-history comparison of advice leaves out what depends on who is ahead.
    """

    plans: Sequence[Plan] = PLANS
    judgements: Sequence[Judgement] = JUDGEMENTS
    verbs: Sequence[CommandVerb] = tuple(CommandVerb)
    answers: Sequence[Advice | None] = (*ADVICE, None)  # None: no advice
    jumps_back: bool = True
    is_untidy: bool = True  # stale gates, revisions and visits, old and repeated commands


ANYTHING = Alphabet()


def events_near(
    rollout: Rollout | None, now: datetime, alphabet: Alphabet = ANYTHING
) -> st.SearchStrategy[tuple[Event, datetime]]:
    """Draw what might happen next to `rollout`, around `now`, and when it is decided."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> tuple[Event, datetime]:
        return event_near(rollout, now, lambda options: draw(st.sampled_from(options)), alphabet)

    return draw_one()


def walk(script: bytes, alphabet: Alphabet = ANYTHING) -> Iterator[Step]:
    """Yield the history that `script` tells, as long as its bytes last."""
    choices = iter(script)

    def pick(options: Sequence[T]) -> T:
        return options[next(choices) % len(options)]

    rollout: Rollout | None = None
    now, count = T0, 0
    while True:
        try:
            event, now = event_near(rollout, now, pick, alphabet, count)
        except StopIteration:
            return
        count += 1
        after, effects = decide(rollout, event, now)
        yield Step(rollout, event, now, after, effects)
        rollout = after


def event_near(
    rollout: Rollout | None,
    now: datetime,
    pick: Pick[T],
    alphabet: Alphabet = ANYTHING,
    count: int = 0,
) -> tuple[Event, datetime]:
    """Return one event and its time: mostly what the state waits for, else anything at all.

    `count` makes command ids distinct.
    """
    if rollout is None or rollout.has_ended:
        kinds = "ccccjr"
    elif isinstance(rollout.phase, Baking | Scheduled):
        kinds = "ttttttjc"
    elif isinstance(rollout.phase, Gating):
        is_asked = rollout.phase.advice is not None and not rollout.phase.advice.is_closed
        kinds = "aaatjcr" if is_asked else "jjjjjtcra"
    elif isinstance(rollout.phase, AwaitingApproval):
        kinds = "cccjjt"
    else:
        kinds = "cccjt"
    kind: str = pick(kinds)  # type: ignore[assignment, arg-type]
    at = _moment(rollout, now, pick, alphabet, is_tick=kind == "t")
    match kind:
        case "t":
            return Ticked(), at
        case "r":
            return Restarted(), at
        case "j":
            return EvidenceJudged(_judgement(rollout, at, pick, alphabet)), at
        case "a":
            return _answer(rollout, pick, alphabet), at
        case _:
            return _command(rollout, at, pick, alphabet, count), at


def _moment(
    rollout: Rollout | None, now: datetime, pick: Pick[Any], alphabet: Alphabet, *, is_tick: bool
) -> datetime:
    """Return when it happens: a tick mostly at the deadline or about it, all else mostly soon."""
    deadline = None if rollout is None else next_deadline(rollout)
    due = now + MINUTE if deadline is None else max(deadline, now)
    options = [now, now + SECOND, now, now + 2 * MINUTE, now + SECOND, due]
    if is_tick:
        options = [
            due,
            due,
            now,
            now + SECOND,
            now + 2 * MINUTE,
            due - SECOND if due > now else now,
            due + HOUR,
        ]
    if alphabet.jumps_back:
        options += [now - HOUR, now - SECOND]
    chosen: datetime = pick(options)
    return chosen


def _judgement(
    rollout: Rollout | None, at: datetime, pick: Pick[Any], alphabet: Alphabet
) -> Judgement:
    seen: Judgement = pick(PASSING) if pick((True, True, False)) else pick(alphabet.judgements)
    present = 0 if rollout is None else rollout.visit_index
    visit = pick((present,) * 7 + (max(present - 1, 0),)) if alphabet.is_untidy else present
    return replace(seen, at=at, visit=visit)


def _answer(
    rollout: Rollout | None, pick: Pick[Any], alphabet: Alphabet
) -> AdviceReceived | AdviceUnavailable:
    phase = None if rollout is None else rollout.phase
    gate_id, number = "never", 1
    if isinstance(phase, Gating):
        gate_id, number = phase.gate_id, 1 if phase.advice is None else phase.advice.number
    if alphabet.is_untidy:
        gate_id = pick((gate_id, gate_id, gate_id, "earlier"))
        number = pick((number, number, number, number - 1, number + 1))
    advice: Advice | None = pick(alphabet.answers)
    if advice is None:
        return AdviceUnavailable(gate_id, number, "no answer")
    return AdviceReceived(gate_id, number, advice)


def _command(
    rollout: Rollout | None, at: datetime, pick: Pick[Any], alphabet: Alphabet, count: int
) -> CommandReceived:
    revision = 0 if rollout is None else rollout.revision
    verb: CommandVerb = pick(alphabet.verbs)
    wanted = [likely for likely in _likely_verbs(rollout) if likely in alphabet.verbs]
    if wanted and pick((True, False)):
        verb = pick(wanted)
    expected, issued_at, command_id = pick((revision, None)), at, f"command-{count}"
    if verb is CommandVerb.APPROVE:
        expected = pick((revision, revision, None))
    if alphabet.is_untidy:
        expected = pick((expected, expected, expected, revision - 1, revision + 1))
        issued_at = at - pick((0 * MINUTE, 0 * MINUTE, MINUTE, 11 * MINUTE))
        if rollout is not None:
            command_id = pick((command_id, command_id, command_id, rollout.rollout_id))
    needs_plan = verb in NEEDS_PLAN or (verb is CommandVerb.RESTART and pick((True, False)))
    plan = (
        pick(alphabet.plans)
        if needs_plan and pick((True, True, True, not alphabet.is_untidy))
        else None
    )
    is_backlog = alphabet.is_untidy and pick((False, False, True))
    to_stage = None
    if verb in (CommandVerb.PROMOTE, CommandVerb.STEP_BACK) and alphabet.is_untidy:
        to_stage = pick((None, None, "1%", "50%", "100%", "nowhere"))
    return CommandReceived(
        command_id, verb, "ada", "because", issued_at, expected, plan, is_backlog, to_stage=to_stage
    )


def _likely_verbs(rollout: Rollout | None) -> tuple[CommandVerb, ...]:
    """Return what an operator would do here, likeliest first.

    A freeze, because what it forbids must be tried in one.
    """
    if rollout is None or rollout.has_ended:
        return (CommandVerb.START,)
    if isinstance(rollout.phase, AwaitingApproval):
        return CommandVerb.APPROVE, CommandVerb.APPROVE, CommandVerb.REJECT, CommandVerb.FREEZE
    if isinstance(rollout.phase, Paused):
        return (CommandVerb.RESUME,)
    return CommandVerb.PROMOTE, CommandVerb.FREEZE
