"""What a person is told about a rollout."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.cli.rendering import make_console
from controller.cli.status_view import brief, show_flag, status_table
from controller.codec.decisions import to_judgement_record
from controller.core.judging.judgement import Judgement
from controller.core.plan import AdvisorPolicy, Window
from controller.core.rollout import (
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.reporting.headline import brief as row
from controller.reporting.headline import headline
from controller.reporting.situation import Situation, about, clock, moment
from schemas.advice import AdviceRecord
from schemas.decision import Decision, PlanReference
from schemas.terms import DecisionKind, HealthGap, HoldReason, Safe, Verdict
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_judgement,
    make_plan,
    make_report,
    make_rollout,
    make_stages,
    make_visit,
)

BAKING = Baking(0, T0 + 11 * MINUTE)
GATING = Gating(0, "gate-1", T0, T0 + HOUR)


def advised(revision: int, choice: str, gate_id: str, **overrides: object) -> Decision:
    """Return a hold at a gate that a model had advised on."""
    advice = AdviceRecord.model_validate(make_advice(choice), from_attributes=True)
    return make_decision("r", revision=revision).model_copy(
        update={"advice": advice, "gate_id": gate_id, **overrides}
    )


def test_an_undecided_gate_is_said_once() -> None:
    """The reason of the pause has what was lacking; the general words would only repeat it."""
    reason = "the gate is still undecided at max_bake, held for health (stale)"
    rollout = make_rollout(
        phase=Paused(T0, HoldReason.MAX_BAKE, GATING), hold=HoldReason.MAX_BAKE, revision=3
    )
    decision = make_decision("r", revision=3).model_copy(
        update={
            "reason": reason,
            "kind": DecisionKind.PAUSE,
            "rollout_id": rollout.rollout_id,
        }
    )
    assert Situation(rollout, (decision,), T0).hold == reason
    assert Situation(rollout, (), T0).hold == "the gate was still undecided at max_bake"


def test_advice_so_far_and_at_the_end() -> None:
    """The last word at each gate counts.

    Once the evidence has ended the rollout, it is held against how it ended.
    """
    gates = [
        advised(2, "hold", "g-1"),
        advised(3, "proceed", "g-1"),
        advised(4, "proceed", "g-2"),
        advised(5, "hold", "g-3"),
    ]
    so_far = make_situation(make_rollout(), *gates)
    assert list(so_far.advised) == ["proceed", "proceed", "hold"]
    assert so_far.advice_agreement is None
    completed = make_decision("done", revision=6).model_copy(update={"kind": DecisionKind.COMPLETE})
    assert make_situation(make_rollout(), *gates, completed).advice_agreement == (2, 3)
    back = completed.model_copy(update={"kind": DecisionKind.ROLL_BACK})
    assert make_situation(make_rollout(), *gates, back).advice_agreement == (1, 3)
    by_hand = back.model_copy(update={"issuer": "ada"})
    assert make_situation(make_rollout(), *gates, by_hand).advice_agreement is None
    assert make_situation(make_rollout(), completed).advice_agreement is None


def make_situation(
    rollout: Rollout, *decisions: Decision, now: datetime = T0 + MINUTE
) -> Situation:
    """Return where a rollout stands a minute after `T0`."""
    return Situation(rollout, decisions, now)


def make_decision(
    reason: str,
    *,
    revision: int = 1,
    judgement: Judgement | None = None,
    rollout_id: str = "start-1",
    kind: DecisionKind = DecisionKind.HOLD,
) -> Decision:
    """Return a hold."""
    return Decision(
        flag="new-checkout",
        rollout_id=rollout_id,
        revision=revision,
        at=T0,
        kind=kind,
        reason=reason,
        issuer="rolloutd",
        phase=GATING.name,
        stage=0,
        from_percent=10,
        to_percent=10,
        plan=PlanReference(name="three-steps", version="0"),
        gate_id=None,
        command_id=None,
        judgement=None if judgement is None else to_judgement_record(judgement),
        advice=None,
    )


@pytest.mark.parametrize(
    ("has_advisor", "words"),
    [
        (True, ", max_bake 11m and 30m 30s for the model's advice"),
        (False, "evidence; pauses if still undecided at 10:00:00 UTC (in 59m)"),
    ],
)
def test_what_a_model_adds_to_max_bake_is_told(has_advisor: bool, words: str) -> None:
    """Who reads why a gate stays open beyond its limit sees what was added, and why."""
    plan = make_plan(stages=make_stages(10, 50, max_bake=11 * MINUTE), advisor=AdvisorPolicy())
    rollout = make_rollout(plan=plan, phase=GATING, has_advisor=has_advisor)
    assert Situation(rollout, (), T0 + MINUTE).waits_for.endswith(words)


@pytest.mark.parametrize(
    ("phase", "hold", "answer", "words"),
    [
        (Scheduled(T0 + HOUR), None, Safe.NOT_YET, "the start at 10:00:00 UTC (in 59m)"),
        (BAKING, None, Safe.NOT_YET, "the bake to end at 09:11:00 UTC (in 10m)"),
        (GATING, None, Safe.NOT_YET, "being judged"),
        (GATING, HoldReason.INCONCLUSIVE, Safe.NOT_YET, "not enough evidence"),
        (GATING, HoldReason.HEALTH, Safe.NOT_YET, "cannot be judged"),
        (GATING, HoldReason.SIGNAL, Safe.NO, "a signal regressed"),
        (GATING, HoldReason.ADVISOR, Safe.NO, "advises to hold"),
        (
            AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL),
            HoldReason.APPROVAL,
            Safe.YES,
            "approving revision 1",
        ),
        (
            AwaitingApproval(0, "gate-1", T0, HoldReason.ADVISOR),
            HoldReason.ADVISOR,
            Safe.NO,
            "model held",
        ),
        (
            Paused(T0, HoldReason.BREACH, GATING),
            HoldReason.BREACH,
            Safe.NO,
            "a guardrail was breached",
        ),
        (RolledBack(T0, "errors"), None, Safe.ENDED, "rolled back: errors"),
        (Completed(T0), None, Safe.ENDED, "completed"),
    ],
)
def test_one_answer_says_whether_it_is_safe_to_advance(
    phase: Phase, hold: HoldReason | None, answer: Safe, words: str
) -> None:
    """Each phase and hold has one answer and says why.

    Only a passed gate that asks for approval is a yes.
    """
    said, why = make_situation(make_rollout(phase=phase, hold=hold)).safe_to_advance
    assert (said, words in why) == (answer, True), why


@pytest.mark.parametrize("hold", HoldReason)
def test_every_hold_reason_has_words(hold: HoldReason) -> None:
    """No hold is told by its name alone."""
    said = make_situation(make_rollout(phase=GATING, hold=hold)).hold
    assert said is not None
    assert " " in said or said == "frozen"


def test_a_hold_is_told_with_the_numbers_of_its_decision() -> None:
    """The decision of the same revision says why.

    One of another revision would explain another hold.
    """
    rollout = make_rollout(phase=GATING, hold=HoldReason.INCONCLUSIVE, revision=3)
    about_it = make_decision("about 800 more treatment contexts", revision=3)
    assert (
        make_situation(rollout, about_it).hold
        == "not enough evidence yet: about 800 more treatment contexts"
    )
    assert make_situation(rollout, replace_revision(about_it, 2)).hold == "not enough evidence yet"


def test_a_hold_keeps_its_words_while_closed() -> None:
    """That it closed is not why it is held, and neither is that it opened."""
    rollout = make_rollout(phase=GATING, hold=HoldReason.INCONCLUSIVE, revision=5)
    decisions = [
        replace_revision(make_decision("about 800 more treatment contexts"), 3),
        make_decision("closed until Mon 09:00 UTC", revision=4, kind=DecisionKind.CLOSE),
        make_decision("an active window has begun", revision=5, kind=DecisionKind.OPEN),
    ]
    words = "not enough evidence yet: about 800 more treatment contexts"
    assert make_situation(rollout, *decisions).hold == words
    applied = make_decision("the plan was changed: owner", revision=6, kind=DecisionKind.APPLY)
    after = replace(rollout, revision=6)
    assert make_situation(after, *decisions, applied).hold == words
    assert make_situation(rollout, *decisions[1:]).hold == "not enough evidence yet"


def replace_revision(decision: Decision, revision: int) -> Decision:
    """Return the decision as of another revision."""
    return decision.model_copy(update={"revision": revision})


def test_evidence_is_that_of_the_present_stay() -> None:
    """Decisions about an earlier stay or another rollout are no evidence for this one.

    Later ones without do not hide it.
    """
    rollout = make_rollout(phase=Baking(1, T0 + 3 * HOUR))
    here = make_decision("here", judgement=make_judgement(visit=1))
    before = make_decision("before", judgement=make_judgement(visit=0))
    other = make_decision("other", judgement=make_judgement(visit=1), rollout_id="start-0")
    silent = make_decision("a pause by hand")
    assert make_situation(rollout, other, before, here, silent).judged_by is here
    assert make_situation(rollout, other, before, silent).judgement is None


def test_an_operators_freeze_says_who_and_why_and_that_nothing_may_advance() -> None:
    """A freeze is a no whatever the gate says, and names who can be asked."""
    asked = AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL)
    one = make_situation(make_rollout(phase=asked, freeze=Freeze(T0, "ada", "incident 7")))
    answer, why = one.safe_to_advance
    assert answer is Safe.NO
    assert why == "frozen by ada at 09:00:00 UTC (1m ago): incident 7"
    assert one.waits_for == "unfreeze, then approval"


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_freeze_of_a_completed_rollout_is_told_everywhere(is_closed: bool) -> None:
    """It keeps an active window from opening: who looks must learn that, and who did it."""
    freeze = Freeze(T0, "ada", "incident 7")
    one = closed_situation(phase=Completed(T0), freeze=freeze)
    if not is_closed:
        one = make_situation(make_rollout(phase=Completed(T0), freeze=freeze))
    assert one.safe_to_advance[0] is Safe.ENDED
    stream = io.StringIO()
    console = make_console(stream, is_colored=False)
    show_flag(console, one)
    console.print(status_table([one]))
    flag, table = stream.getvalue().split("FLAG ")
    words = [flag, table, headline(one).now, *([] if is_closed else [row(one), brief(one).plain])]
    assert all("by ada" in shown or "unfreeze" in shown for shown in words)
    assert "frozen by ada" in flag
    rolled_back = make_rollout(phase=RolledBack(T0, "a test"), freeze=freeze)
    assert make_situation(rolled_back).frozen is None


def test_a_freeze_window_says_when_it_ends() -> None:
    """The end of the window is told."""
    window = Window(frozenset({1}), 9 * 60, 120, "UTC")
    one = make_situation(make_rollout(plan=make_plan(freeze_windows=(window,)), phase=GATING))
    assert one.safe_to_advance == (
        Safe.NO,
        "in a freeze window that ends at 11:00:00 UTC (in 1h 59m)",
    )


OFFICE = Window(frozenset(range(1, 6)), 9 * 60, 8 * 60, "Europe/Berlin")
#: Monday 18:00 in Berlin; `T0` is Monday 09:00 UTC.
EVENING = T0 + 8 * HOUR


def closed_situation(**overrides: object) -> Situation:
    """Return a rollout that closed on Monday evening, an hour later."""
    plan = make_plan(active=(OFFICE,))
    visit = make_visit().closed(EVENING - HOUR)
    fields = {"plan": plan, "percent": 0.0, "visits": (visit,), "updated_at": EVENING - HOUR}
    rollout = make_rollout(**{**fields, **overrides})
    return make_situation(rollout, now=EVENING)


def test_a_closed_rollout_says_until_when() -> None:
    """By the local clock of its windows, with what is served then."""
    one = closed_situation()
    assert one.closed == "closed until Tue 09:00 CET; then 10 % is served"
    assert one.waits_for == f"an active window: {one.closed}"
    assert one.safe_to_advance == (Safe.NO, one.closed)
    assert one.overdue is None
    paused = Paused(T0, HoldReason.OPERATOR, Baking(0, EVENING))
    assert "until `resume`" in (closed_situation(phase=paused).closed or "")
    assert "until `unfreeze`" in (closed_situation(freeze=Freeze(T0, "ada", "")).closed or "")


def test_a_start_outside_the_windows_waits_for_them() -> None:
    """Not where the plan itself names the moment, or a time inside a window."""
    opening = T0 + 23 * HOUR  # Tuesday 09:00 in Berlin
    scheduled = {"phase": Scheduled(opening), "percent": 0.0, "visits": (), "started_at": EVENING}
    plan = make_plan(active=(OFFICE,))
    one = make_situation(make_rollout(plan=plan, **scheduled), now=EVENING)
    assert one.waits_for == (
        "an active window: closed until Tue 09:00 CET; then the first stage begins"
    )
    assert one.safe_to_advance == (Safe.NOT_YET, f"it waits for {one.waits_for}")
    for other in (make_plan(active=(OFFICE,), start_at=opening), make_plan()):
        one = make_situation(make_rollout(plan=other, **scheduled), now=EVENING)
        assert one.waits_for.startswith("the start at 2026-")


def test_a_completed_rollout_that_is_closed_still_waits() -> None:
    """It has ended, and it opens again."""
    one = closed_situation(phase=Completed(T0))
    assert one.safe_to_advance[0] is Safe.ENDED
    assert one.waits_for == "an active window: closed until Tue 09:00 CET; then 10 % is served"


def test_an_open_rollout_says_until_when() -> None:
    """The end of the window is told, and one that nobody acted on is overdue."""
    visits = (make_visit(left_at=T0),)
    rollout = make_rollout(plan=make_plan(active=(OFFICE,)), phase=Completed(T0), visits=visits)
    assert make_situation(rollout).active == "open until Mon 17:00 CET"
    late = make_situation(rollout, now=T0 + 12 * HOUR)
    assert "should have closed by its windows" in (late.overdue or "")
    assert make_situation(make_rollout()).active is None


def test_a_blind_bake_says_so_first() -> None:
    """During a bake whose evidence cannot be judged, that comes before what it waits for."""
    told = frozenset({HealthGap.STALE})
    rollout = make_rollout(hold=HoldReason.HEALTH, told_gaps=told)
    decision = make_decision("stale for 5 min: nothing was counted")
    answer, why = make_situation(rollout, decision).safe_to_advance
    assert answer is Safe.NOT_YET
    assert why.startswith("the evidence cannot be judged yet: stale for 5 min: nothing was counted")
    assert "the bake to end" in why


def test_what_is_told_of_a_pause_is_not_its_cause() -> None:
    """A gap that was told during an operator's pause came after it."""
    paused = Paused(T0, HoldReason.OPERATOR, BAKING)
    rollout = make_rollout(phase=paused, hold=HoldReason.OPERATOR)
    hold = make_situation(rollout, make_decision("stale for 5 min: nothing was counted")).hold
    assert hold == "an operator paused it; since then: stale for 5 min: nothing was counted"


@pytest.mark.parametrize("phase", [BAKING, GATING])
@pytest.mark.parametrize(
    ("kind", "reason"), [(DecisionKind.HOLD, "frozen: db"), (DecisionKind.RESUME, "unfrozen")]
)
def test_a_freeze_is_no_reason_of_the_gate(kind: DecisionKind, reason: str, phase: Phase) -> None:
    """What holds a stage is told with the numbers of its own decision, whatever people did since.

    The list begins with who froze it.
    """
    freeze = None if kind is DecisionKind.RESUME else Freeze(T0, "ada", "db")
    rollout = make_rollout(phase=phase, hold=HoldReason.HEALTH, freeze=freeze, revision=3)
    held = make_decision("stale for 5 min", revision=2)
    person = make_decision(reason, revision=3, kind=kind).model_copy(update={"issuer": "ada"})
    one = Situation(rollout, (held, person), T0 + MINUTE)
    assert one.hold == "the evidence cannot be judged yet: stale for 5 min"
    out = io.StringIO()
    make_console(out, is_colored=False).print(status_table([one]))
    assert ("frozen by ada at 09:00:00 UTC (1m ago): db; the evid" in out.getvalue()) == (
        freeze is not None
    )


def test_a_bake_goes_on_while_frozen() -> None:
    """What a baking stage waits for first is the end of its bake; then a person has to act."""
    one = make_situation(make_rollout(freeze=Freeze(T0, "ada", "")))
    assert one.waits_for == "the bake to end at 09:11:00 UTC (in 10m), then unfreeze"
    free = make_situation(make_rollout())
    assert free.waits_for == "the bake to end at 09:11:00 UTC (in 10m)"


def test_a_deadline_that_nobody_acted_on_is_overdue() -> None:
    """A bake that ended long ago without a gate says that nobody is at work.

    A paused rollout has no deadline.
    """
    late = T0 + HOUR
    assert "is rolloutd running?" in (make_situation(make_rollout(), now=late).overdue or "")
    assert (
        make_situation(make_rollout(), now=T0 + 11 * MINUTE + timedelta(seconds=5)).overdue is None
    )
    assert (
        make_situation(
            make_rollout(phase=Paused(T0, HoldReason.OPERATOR, BAKING)), now=late
        ).overdue
        is None
    )


def test_a_gate_and_a_start_that_nobody_acted_on_are_overdue() -> None:
    """As a bake is. In a freeze window they wait for its end, and are not."""
    late = T0 + 2 * HOUR
    assert "should have paused" in (
        make_situation(make_rollout(phase=GATING), now=late).overdue or ""
    )
    scheduled = make_rollout(phase=Scheduled(T0 + HOUR))
    assert "should have started" in (make_situation(scheduled, now=late).overdue or "")
    office = Window(frozenset(range(1, 6)), 9 * 60, 8 * 60, "UTC")
    frozen = make_rollout(plan=make_plan(freeze_windows=(office,)), phase=GATING)
    assert make_situation(frozen, now=late).overdue is None


def test_an_end_of_the_plan_that_nobody_acted_on_is_named() -> None:
    """Not the gate, though that is due as well: the plan's own end came first."""
    late = T0 + 2 * HOUR
    ended = make_rollout(plan=make_plan(ends_at=T0 + MINUTE))
    words = make_situation(ended, now=late).overdue or ""
    assert words.startswith("everybody should have got control, by the plan's ends_at, at 09:01")
    expired = make_rollout(plan=make_plan(expires_at=T0 + MINUTE))
    words = make_situation(expired, now=late).overdue or ""
    assert words.startswith("the rollout should have paused, because the plan expires, at 09:01")


def test_a_stage_that_nobody_judges_is_not_called_healthy() -> None:
    """A bake has no deadline for hours. That its evidence grows old is said long before."""
    rollout = make_rollout(phase=Baking(0, T0 + 22 * HOUR))
    newest = to_judgement_record(make_judgement())
    judged_at = newest.at
    soon = Situation(rollout, (), judged_at + 6 * MINUTE, newest)
    late = replace(soon, now=judged_at + 7 * MINUTE)
    assert soon.overdue is None
    assert "nobody has judged its events since" in (late.overdue or "")
    assert "is rolloutd running?" in headline(late).now
    assert replace(late, newest=None).overdue is None
    ended = make_rollout(phase=Completed(T0), visits=rollout.visits)
    assert replace(late, rollout=ended).overdue is None


def test_open_advice_is_waited_for_until_its_deadline() -> None:
    """A gate with an open question waits for the model, and says how long at most."""
    gate = replace(GATING, advice=AdviceRound(1, T0 + 2 * MINUTE))
    assert (
        make_situation(make_rollout(phase=gate)).waits_for
        == "the model's advice, at most until 09:02:00 UTC"
    )


def test_moments_are_told_in_utc_with_their_distance() -> None:
    """Today's moments go without a date, others with it; distances have two units."""
    assert moment(T0 + MINUTE, T0) == "at 09:01:00 UTC (in 1m)"
    assert moment(T0 - 26 * HOUR, T0) == "at 2026-01-04 07:00 UTC (1d 2h ago)"
    assert clock(T0, T0) == "09:00:00 UTC"
    assert about(timedelta(days=1, hours=2, minutes=3)) == "1d 2h"
    assert about(timedelta(seconds=-1)) == "0s"


def test_newer_evidence_takes_the_place_of_a_decision_s_numbers() -> None:
    """Numbers of two moments on one screen contradict each other."""
    report = make_report(safe=Verdict.INCONCLUSIVE)
    newest = to_judgement_record(make_judgement(metrics=(report,)))
    held = make_decision("error_rate: 12 of 312", revision=3)
    rollout = make_rollout(
        phase=GATING, visits=(make_visit(),), hold=HoldReason.INCONCLUSIVE, revision=3
    )
    told = Situation(rollout, (held,), T0 + HOUR)
    assert told.hold == "not enough evidence yet: error_rate: 12 of 312"
    assert replace(told, newest=newest).hold == "not enough evidence yet for error_rate"
