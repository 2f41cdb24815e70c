"""How evidence with a gap reads: what passed, and what keeps it from counting."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from controller.cli import event_view, rendering, status_view
from controller.cli.rollout_tree import rollout_tree
from controller.codec.decisions import to_judgement_record
from controller.core.judging.judgement import Gap
from controller.core.plan import Guardrail
from controller.core.rollout import Baking, RolledBack
from controller.reporting.evidence_words import GAP_WORDS, evidence_line, legend, verdict_words
from controller.reporting.headline import headline
from controller.reporting.situation import Situation
from schemas.decision import Decision, JudgementRecord, PlanReference
from schemas.terms import Arm, DecisionKind, HealthGap, PhaseName, Verdict
from tests.builders import (
    MINUTE,
    T0,
    make_breach,
    make_judgement,
    make_plan,
    make_report,
    make_rollout,
    make_stages,
    make_visit,
)
from tests.streams import Watched

NOT_COUNTED = "every guardrail passes, but this does not count: the evidence is stale"
STALE = Gap(HealthGap.STALE, "partition 3 is 40 s behind")


def pipe() -> tuple[Console, io.StringIO]:
    """Return a console that writes whole lines, and what it writes."""
    stream = io.StringIO()
    return rendering.make_console(stream, is_colored=False), stream


def evidence(*gaps: Gap, breached: bool = False) -> JudgementRecord:
    """Return a published judgement of one guardrail with these gaps."""
    metric = make_breach() if breached else make_report(safe=Verdict.PASS)
    return to_judgement_record(make_judgement(metrics=(metric,), gaps=gaps))


def test_figures_of_a_recount_say_that_they_are() -> None:
    """0 users beside 81 user actions is no truth about either, wherever it is shown."""
    nobody = {Arm.TREATMENT: 0, Arm.CONTROL: 0}
    why = "2 of 8 event partitions report"
    judgement = make_judgement(exposures=nobody, incomplete=why)
    record = to_judgement_record(judgement)
    said = f"figures are of what is counted so far: {why}"
    assert evidence_line(record).startswith(f"{said}; users 0 against 0; ")
    rollout = make_rollout(phase=Baking(0, T0 + MINUTE), visits=(make_visit(),))
    situation = Situation(rollout, (decision(record),), T0 + MINUTE)
    for show in (status_view.show_flag, lambda console, one: console.print(rollout_tree(one, []))):
        console, stream = pipe()
        show(console, situation)
        assert said in stream.getvalue()
    assert f"is counted again so far: {why}" in headline(situation).now
    assert "so far" not in evidence_line(to_judgement_record(make_judgement(exposures=nobody)))


def decision(judgement: JudgementRecord) -> Decision:
    """Return a hold on this evidence."""
    return Decision(
        flag="new-checkout",
        rollout_id=make_rollout().rollout_id,
        revision=2,
        at=T0,
        kind=DecisionKind.HOLD,
        reason="not judged yet",
        issuer="rolloutd",
        phase=PhaseName.GATING,
        stage=0,
        from_percent=10.0,
        to_percent=10.0,
        plan=PlanReference(name="p", version="0123456789abcdef"),
        gate_id=None,
        command_id=None,
        judgement=judgement,
        advice=None,
    )


def test_a_verdict_beside_a_gap_says_that_it_does_not_count() -> None:
    """A breach acts whatever the gaps are, and a verdict without gaps is the verdict."""
    assert verdict_words(evidence()) == "verdict pass"
    assert verdict_words(evidence(STALE)) == NOT_COUNTED
    assert verdict_words(evidence(STALE, breached=True)) == "verdict fail"
    tainted = Gap(HealthGap.TAINTED, "records 5 to 7 were lost")
    assert verdict_words(evidence(STALE, tainted)).endswith("stale, records of the stage are lost")


def test_a_metric_without_data_is_said_in_words() -> None:
    """And not as the name of a value."""
    metric = make_report(harm=Verdict.NO_DATA, safe=Verdict.NO_DATA)
    console, stream = pipe()
    judgement = to_judgement_record(make_judgement(metrics=(metric,)))
    event_view.show_decision(console, decision(judgement), T0)
    assert "worse? no data; proven safe? no data" in stream.getvalue()


def test_every_gap_has_words() -> None:
    """Names such as `srm` and `stale` are no sentence."""
    assert set(GAP_WORDS) == set(HealthGap)


def test_who_has_asked_a_daemon_is_not_told_to_ask_one() -> None:
    """Its address was given, and what came of it is said apart."""
    situation = Situation(make_rollout(), (decision(evidence(STALE)),), T0 + MINUTE)
    for has_daemon in (False, True):
        console, stream = pipe()
        status_view.show_flag(console, situation, has_daemon=has_daemon)
        assert ("shows the newest" in stream.getvalue()) is not has_daemon


def test_status_decisions_and_watch_say_so_alike() -> None:
    """Each shows the gap itself beside it."""
    judgement = evidence(STALE)
    console, stream = pipe()
    situation = Situation(make_rollout(), (decision(judgement),), T0 + MINUTE)
    status_view.show_flag(console, situation)
    event_view.show_decision(console, decision(judgement), T0)
    shown = stream.getvalue()
    assert shown.count(NOT_COUNTED) == 2
    assert "verdict pass" not in shown
    assert shown.count("gap stale: partition 3 is 40 s behind") == 2
    assert f"{NOT_COUNTED}; stale: partition 3 is 40 s behind" in evidence_line(judgement)


def test_one_screen_has_one_error_rate() -> None:
    """Users with several requests each: table and sentence agree, and say what they count."""
    guardrail = Guardrail("error_rate", limit=0.05, margin=0.005, in_points=True)
    plan = make_plan(guardrails=(guardrail,), stages=make_stages(4, 100))
    visits = (make_visit(percent=4.0),)
    phase = Baking(stage=0, until=T0 + MINUTE)
    watched = Watched(make_rollout(plan=plan, phase=phase, visits=visits, percent=4.0))
    watched.treatment.add(1000, 10, errors=300)
    watched.control.add(24_000, 240, errors=7_000)
    judgement = to_judgement_record(watched.look())
    console, stream = pipe()
    situation = Situation(watched.rollout, (decision(judgement),), T0 + MINUTE, judgement)
    status_view.show_flag(console, situation)
    screen = stream.getvalue()
    row = next(line for line in screen.splitlines() if "guardrail " in line)
    assert row.split()[:6] == ["error_rate", "guardrail", "1", "%", "1", "%"]
    assert "1 % of treatment's user actions failed (10 of 1,000), limit 5 %" in screen
    assert "A user action is one user's requests within about 100 ms." in screen
    assert "300 of their requests failed" in screen
    assert "of each user that failed 30 requests failed in treatment, 29 in control" in screen
    assert "error_rate, the gate's margin: control + 1.4 pp; 2.8 times the plan's 0.5 pp" in screen
    # The comparison's test waits for a whole batch, and what it says has the newest counts too.
    watched.treatment.add(3, 3)
    reason = watched.look().metrics[0].reason
    assert "(13 of 1,003), limit 5 %" in reason
    assert "user actions (13 of 1,003) against" in reason
    assert "23." not in screen  # 300 of 1,290 requests, and 7,000 of 30,760


def test_a_gates_margin_is_explained_after_the_end_too() -> None:
    """Evidence keeps its margins after the end, so what they come from is said there as well."""
    guardrail = Guardrail("error_rate", margin=0.005, in_points=True)
    plan = make_plan(guardrails=(guardrail,), stages=make_stages(4, 100))
    visits = (make_visit(percent=4.0),)
    phase = Baking(stage=0, until=T0 + MINUTE)
    watched = Watched(make_rollout(plan=plan, phase=phase, visits=visits, percent=4.0))
    watched.treatment.add(1000, 10)
    watched.control.add(24_000, 240)
    judgement = to_judgement_record(watched.look())
    during = legend(judgement, watched.rollout)
    assert "2.8 times the plan's 0.5 pp" in " ".join(during)
    ended = replace(watched.rollout, phase=RolledBack(T0, "a test"), percent=0.0)
    assert legend(judgement, ended) == during


def test_a_ratio_is_explained_where_it_is_shown() -> None:
    """`get` shows one, and `status` none."""
    rollout = make_rollout()
    judgement = to_judgement_record(make_judgement(metrics=(make_report(gate_margin=1.0),)))
    situation = Situation(rollout, (decision(judgement),), T0 + MINUTE, judgement)
    console, stream = pipe()
    status_view.show_flag(console, situation)
    assert "×" not in stream.getvalue()
    console, stream = pipe()
    console.print(rollout_tree(situation, (), ""))
    assert "× 1" in stream.getvalue()
    assert "×: treatment's rate divided by control's, as shown." in stream.getvalue()
