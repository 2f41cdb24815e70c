"""External metrics of counters: looks, breaches, gates, gaps, and how often they alarm falsely.

Over many rollouts, with figures, by command (4 min):
`pytest -m long tests/unit/core/judging/test_counters.py -s`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from controller.core.analysis.counter_marks import CounterMarks
from controller.core.analysis.sequential_tests import SequentialTests, decode_tests, encode_tests
from controller.core.evidence import Reading
from controller.core.judging.carried_tests import carried_tests
from controller.core.judging.counters import statistic_words
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.judging.questions import alpha_shares
from controller.core.plan import CounterQueries, ExternalMetric
from controller.core.rollout import Rollout
from controller.core.visits import Closing
from schemas.terms import Arm, HealthGap, MeasurementGap, MetricRole, OnBreach, Verdict
from tests.builders import (
    T0,
    make_evidence,
    make_external,
    make_guardrail,
    make_plan,
    make_progress,
    make_rollout,
    make_visit,
)

BEGIN = T0 + timedelta(minutes=1)  # the first stage counts from here
EVERY = timedelta(seconds=30)
NAME = "counters:errors"


def make_counters(**overrides: Any) -> ExternalMetric:
    """Return a share of bad events that must stay below 5 %, and within 10 % of control's."""
    fields: dict[str, Any] = {
        "name": "errors",
        "treatment": CounterQueries(bad="bt", total="t"),
        "control": CounterQueries(bad="bc", total="c"),
        "limit": 0.05,
        "margin": 0.1,
    }
    return make_external(**{**fields, **overrides})


class Counted:
    """One rollout, and the processes whose counters are looked at."""

    def __init__(self, metric: ExternalMetric | None = None, **fields: Any) -> None:
        plan = make_plan(external=(metric or make_counters(),), **{"guardrails": (), **fields})
        self.rollout: Rollout = make_rollout(plan=plan)
        self.tests = SequentialTests()
        self.at = BEGIN
        #: By arm and process: total and bad.
        self.processes = {arm: {"a": [0, 0], "b": [0, 0]} for arm in Arm}
        self.reading: Reading | None = None
        self.arms = tuple(Arm)  # that are asked for

    def work(self, arm: Arm, events: int, bad: int, process: str = "a") -> None:
        """Count events of an arm."""
        self.processes[arm][process][0] += events
        self.processes[arm][process][1] += bad

    def answer(self) -> Reading:
        """Return what Prometheus says now."""
        counters = {
            arm: {
                "total": {name: float(total) for name, (total, _) in processes.items()},
                "bad": {name: float(bad) for name, (_, bad) in processes.items() if bad},
            }
            for arm, processes in self.processes.items()
            if arm in self.arms
        }
        return Reading(self.at, self.at, counters=counters)

    def evidence(self) -> Any:
        """Return what is known, the newest answer with it."""
        return make_evidence(
            at=self.at,
            partitions=(make_progress(freshest=self.at, reported_at=self.at),),
            readings={} if self.reading is None else {"errors": self.reading},
        )

    def judge(self) -> Judgement:
        """Return what is concluded now."""
        judgement, self.tests = judge(self.rollout, self.evidence(), self.tests, self.at)
        return judgement

    def look(self, treatment: tuple[int, int] = (0, 0), control: tuple[int, int] = (0, 0)) -> Any:
        """Return the report after 30 s in which both arms had so many events and bad ones."""
        self.at += EVERY
        self.work(Arm.TREATMENT, *treatment)
        self.work(Arm.CONTROL, *control)
        self.reading = self.answer()
        return report_of(self.judge())


def report_of(judgement: Judgement) -> MetricReport:
    """Return the report of the counters."""
    return next(one for one in judgement.metrics if one.metric == NAME)


def counts(report: MetricReport) -> list[tuple[int, int]]:
    """Return events and bad ones of treatment and control."""
    return [(report.arms[arm].trials, report.arms[arm].events) for arm in Arm]


def gaps(judgement: Judgement) -> dict[HealthGap, str]:
    """Return the gaps of external metrics, with their words."""
    return {one.kind: one.detail for one in judgement.gaps if one.kind.value.startswith("metric_")}


@pytest.mark.parametrize("step", [2**53, 10**18, int(1.6e308)])
def test_absurd_counters_are_a_gap_and_the_guardrails_go_on(step: int) -> None:
    """A query that gives no counts of events stops nothing else of the flag's judgement."""
    world = Counted()
    world.look()
    for _ in range(4):
        for process in ("a", "b"):
            world.work(Arm.TREATMENT, step, step, process)
            world.work(Arm.CONTROL, step, 0, process)
        report = world.look()
        world.processes = {arm: {"a": [0, 0], "b": [0, 0]} for arm in Arm}  # all restart
        world.look()
        assert math.isfinite(report.e_value)
    for process in ("a", "b"):
        world.work(Arm.TREATMENT, step, 0, process)
    world.look()
    assert HealthGap.METRIC_REFUSED in gaps(world.judge())


def test_twice_as_many_bad_events_as_control_are_a_breach() -> None:
    """By the sequential test, and the sentence says so."""
    world = Counted(make_counters(limit=None))
    report = world.look()
    assert (report.harm, report.safe) == (Verdict.NO_DATA, Verdict.NO_DATA)
    looks = 1
    while report.harm is not Verdict.FAIL:
        report, looks = world.look((300, 12), (2700, 54)), looks + 1
        assert looks < 40
    assert looks > 3
    assert report.e_value >= report.threshold
    assert report.is_breach
    assert report.ratio is not None
    assert 1.8 < report.ratio < 2.2
    assert "4 % of treatment's counted events" in report.reason
    statistic = (
        f"sequential test of proportions on the increments of counters between {looks} looks"
    )
    assert statistic in report.reason


def test_a_bad_counter_that_nobody_has_ever_seen_is_doubted() -> None:
    """A wrong name looks the same as no bad event, and would pass every gate without a word."""
    doubt = "no `bad` counter has ever counted: is its query right?"
    world = Counted(make_counters(control=None, margin=None))
    assert doubt not in report_of(world.judge()).reason  # nothing was asked yet
    world.look()
    assert doubt in world.look((300, 0), (300, 0)).reason
    assert doubt not in world.look((300, 1), (300, 0)).reason
    world.processes = {arm: {"a": [0, 0]} for arm in Arm}
    assert doubt not in world.look().reason  # after a restart, too
    good = CounterQueries(good="g", total="t")
    marks = CounterMarks(looks=1, series={Arm.TREATMENT: {"a": (7.0, 0.0)}})
    assert doubt in statistic_words(make_counters(), marks)
    assert doubt not in statistic_words(make_counters(treatment=good), marks)


def test_a_limit_is_tested_on_treatment_alone() -> None:
    """Also where no control is asked for."""
    world = Counted(make_counters(control=None, margin=None))
    world.arms = (Arm.TREATMENT,)
    report = world.look()
    for _ in range(20):
        report = world.look((100, 10))
    assert report.harm is Verdict.FAIL
    assert "over the limit" in report.reason


def test_a_gate_passes_once_it_is_shown_that_treatment_is_not_worse() -> None:
    """As for a guardrail on events: with enough of them."""
    world = Counted()
    world.look()
    report = world.look((100, 1), (900, 9))
    assert (report.harm, report.safe) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    for _ in range(20):
        report = world.look((1000, 10), (9000, 90))
    assert (report.harm, report.safe) == (Verdict.INCONCLUSIVE, Verdict.PASS)
    assert report.e_value_safe is not None


def test_one_answer_is_one_look_however_often_it_is_judged() -> None:
    """A judgement each second adds nothing to an answer every 30 s."""
    world = Counted()
    world.look()
    report = world.look((100, 1), (900, 9))
    for _ in range(5):
        world.at += timedelta(seconds=1)
        assert counts(report_of(world.judge())) == counts(report) == [(100, 1), (900, 9)]


def test_a_missing_look_loses_nothing_and_a_restart_only_what_nobody_saw() -> None:
    """The next look has the increments of both; the sentence names the restarts."""
    world = Counted()
    world.look((40, 4), (40, 4))
    world.look((100, 1), (900, 9))
    world.at += EVERY
    world.work(Arm.TREATMENT, 100, 2)
    world.reading = Reading(world.at, world.at, gap=MeasurementGap.NO_ANSWER, words="it hangs")
    judgement = world.judge()
    assert gaps(judgement) == {HealthGap.METRIC_NO_ANSWER: "errors: it hangs"}
    assert counts(report_of(judgement))[0] == (100, 1)
    assert counts(world.look((100, 2), (900, 9)))[0] == (300, 5)
    world.processes[Arm.TREATMENT]["a"] = [0, 0]
    report = world.look((50, 1), (900, 9))
    assert counts(report) == [(350, 6), (2700, 27)]
    assert "1 of them across a restart" in report.reason


def test_another_replica_goes_on_where_the_first_was() -> None:
    """What the counters were is stored with the tests, so no increment is lost or counted twice."""
    stays, moves = Counted(), Counted()
    reports: list[MetricReport] = []
    for _ in range(6):
        reports = [world.look((100, 3), (900, 9)) for world in (stays, moves)]
        assert reports[0] == reports[1]
        moves.tests = decode_tests(encode_tests(moves.tests))
    assert counts(reports[0]) == [(500, 15), (4500, 45)]


def test_what_was_stored_before_there_were_counters_is_read() -> None:
    """By this release, from an older one's bytes."""
    tests = decode_tests(encode_tests(SequentialTests(identity="r/1")))
    assert tests.counters == {}


def test_a_stage_begins_with_what_the_counters_are_then() -> None:
    """A batch never spans two stages: their share of users is another."""
    world = Counted(make_counters())
    world.look()
    world.look((100, 3), (900, 9))
    entered = world.at
    since = entered + timedelta(minutes=1)
    second = make_visit(stage=1, percent=50.0, entered_at=entered, counts_from=since)
    world.rollout = replace(world.rollout, visits=(*world.rollout.visits, second))
    world.work(Arm.TREATMENT, 5000, 500)  # while the new share settles
    early = replace(world.answer(), at=entered, since=entered)
    world.reading = early
    assert counts(report_of(world.judge())) == [(0, 0), (0, 0)]
    assert world.tests.counters == {}
    world.at = since
    assert counts(world.look((100, 1), (100, 1))) == [(0, 0), (0, 0)]
    assert counts(world.look((100, 1), (100, 1))) == [(100, 1), (100, 1)]


def test_what_rose_while_the_flag_was_closed_is_not_looked_at() -> None:
    """Everybody had control then, so the arms had another share of the users."""
    world = Counted()
    world.look()
    assert counts(world.look((100, 3), (900, 9))) == [(100, 3), (900, 9)]
    (visit,) = world.rollout.visits

    def closed(*, opens: bool) -> None:
        closing = Closing(since, world.at if opens else None)
        visits = (replace(visit, closings=(closing,)),)
        world.rollout = replace(world.rollout, visits=visits)

    since = world.at
    closed(opens=False)
    assert counts(world.look((0, 0), (1000, 500))) == [(100, 3), (900, 9)]
    closed(opens=True)
    assert counts(world.look((0, 0), (1000, 500))) == [(100, 3), (900, 9)]
    assert counts(world.look((10, 1), (90, 1))) == [(110, 4), (990, 10)]


def test_a_look_whose_one_arm_is_unusable_is_no_look_at_the_other() -> None:
    """Both are compared as of the same time."""
    world = Counted()
    world.look()
    world.look((100, 1), (900, 9))
    assert counts(world.look((5, 9), (900, 300))) == [(100, 1), (900, 9)]
    assert counts(world.look((100, 1), (900, 9))) == [(200, 2), (1800, 18)]


@pytest.mark.parametrize(
    ("change", "gap", "words"),
    [
        ("silent", HealthGap.METRIC_LATE, "treatment's counters have not risen for 180 s"),
        ("labels", HealthGap.METRIC_REFUSED, "have no series of `total` with the same labels"),
        ("more", HealthGap.METRIC_REFUSED, "9 bad of 5 events"),
    ],
)
def test_counters_that_say_nothing_are_a_gap(change: str, gap: HealthGap, words: str) -> None:
    """A dead target, other labels, and bad events that are no part of all."""
    world = Counted()
    for _ in range(3):
        world.look((1000, 1), (9000, 9))
    match change:
        case "silent":
            for _ in range(6):
                world.look((0, 0), (900, 1))
        case "labels":
            world.processes[Arm.TREATMENT]["a"][1] = 0
            world.at += EVERY
            world.reading = world.answer()
            assert world.reading.counters is not None
            counters = {**world.reading.counters}
            counters[Arm.TREATMENT] = {**counters[Arm.TREATMENT], "bad": {"a,500": 3.0}}
            world.reading = replace(world.reading, counters=counters)
        case _:
            world.look((5, 9), (900, 1))
    found = gaps(world.judge())
    assert list(found) == [gap]
    assert words in found[gap]


def test_no_series_and_each_other_trouble_hold_the_gate_by_their_names() -> None:
    """Also once the counters were shown to be good."""
    world = Counted()
    for _ in range(20):
        world.look((1000, 10), (9000, 90))
    assert report_of(world.judge()).safe is Verdict.PASS
    for kind in MeasurementGap:
        world.at += EVERY
        world.reading = Reading(world.at, world.at, gap=kind, words=f"it is {kind.value}")
        judgement = world.judge()
        assert [*gaps(judgement).values()] == [f"errors: it is {kind.value}"]


def test_the_plan_s_alpha_is_divided_among_guardrails_and_counters() -> None:
    """A second question about the same release costs the first one its part."""
    plan = make_plan(guardrails=(make_guardrail(),), external=(make_counters(), make_external()))
    assert alpha_shares(plan.tested) == (0.5, 0.5)
    observed = replace(plan, external=(make_counters(role=MetricRole.OBSERVE),))
    assert alpha_shares(observed.tested) == (1.0, 1.0)
    assert make_plan(external=(make_external(),)).tested == make_plan().guardrails
    assert replace(plan, blind=True).tested == plan.guardrails


def test_events_that_fail_together_count_as_one() -> None:
    """Rates stay as they are, evidence is divided: in logarithms by that number."""
    alone, together = Counted(make_counters()), Counted(make_counters(repeats=5))
    for world, size in ((alone, 1), (together, 5)):
        for _ in range(4):
            world.look((300 * size, 15 * size), (2700 * size, 54 * size))
    one, five = (report_of(world.judge()) for world in (alone, together))
    assert counts(one) == counts(five) == [(900, 45), (8100, 162)]
    assert one.e_value == pytest.approx(five.e_value)
    assert five.reason.endswith("5 events count as one")
    changed(together, make_counters(repeats=4))
    assert counts(together.look((10, 1), (10, 1))) == [(0, 0), (0, 0)]


def test_a_breach_does_what_the_metric_says() -> None:
    """As one of a guardrail does, and the quick check finds it too."""
    world = Counted(make_counters(on_breach=OnBreach.PAUSE))
    world.look()
    for _ in range(6):
        world.look((300, 90), (2700, 27))
    report = report_of(world.judge())
    assert (report.harm, report.on_breach) == (Verdict.FAIL, OnBreach.PAUSE)
    (signal,), _ = check_harm(world.rollout, world.evidence(), world.tests, world.at)
    assert (signal.metric, signal.is_possible) == (NAME, True)
    assert math.isclose(signal.e_value, report.e_value, rel_tol=1e-9)


def changed(world: Counted, metric: ExternalMetric) -> None:
    """Let a rollout go on with another metric, in the same visit."""
    before = world.rollout
    plan = replace(before.plan, external=(metric,), version="another")
    world.rollout = replace(before, plan=plan)
    world.tests = carried_tests(world.tests, before, world.rollout)


def test_a_changed_plan_keeps_the_evidence_of_the_same_counters_only() -> None:
    """A stricter limit goes on; other queries begin again."""
    world = Counted(make_counters(margin=None))
    world.look()
    report = world.look((300, 12), (2700, 27))
    changed(world, make_counters(margin=None, limit=0.02))
    assert counts(world.look((300, 12), (2700, 27)))[0] == (600, 24)
    changed(
        world, make_counters(margin=None, limit=0.02, treatment=CounterQueries(bad="x", total="t"))
    )
    report = world.look((300, 12), (2700, 27))
    assert counts(report)[0] == (0, 0)
    assert report.e_value == pytest.approx(1.0)


# --- how often it alarms, and how soon


def tell(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Print a figure, also where the test passes."""
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")


class Rates:
    """Two arms whose common rate wanders, with restarts and looks that fail."""

    def __init__(
        self, seed: int, ratio: float = 1.0, *, repeats: int = 1, is_said: bool = True
    ) -> None:
        """`repeats`: how many bad events each failure is; `is_said`: and whether the plan says."""
        self._dice = np.random.default_rng(seed)
        self._repeats = repeats
        self._metric = make_counters(limit=None, repeats=repeats if is_said else 1)
        self._ratio = ratio
        self.world = Counted(self._metric)

    def alarms_after(self, looks: int) -> int | None:
        """Return after how many looks harm is found; None: not at all."""
        dice, world = self._dice, self.world
        rate = 0.02
        world.look()
        for number in range(looks):
            rate = min(max(rate * math.exp(dice.normal(0, 0.1)), 0.002), 0.2)
            for arm, mean in ((Arm.TREATMENT, 150), (Arm.CONTROL, 1_350)):
                bad = rate * (self._ratio if arm is Arm.TREATMENT else 1.0)
                for process in ("a", "b"):
                    events = int(dice.poisson(mean))
                    failures = int(dice.binomial(events, bad / self._repeats))
                    world.work(arm, events, min(failures * self._repeats, events), process)
            if dice.random() < 0.05:  # a process serves both arms
                process = dice.choice(["a", "b"])
                for arm in Arm:
                    world.processes[arm][process] = [0, 0]
            world.at += EVERY
            if dice.random() < 0.1:
                continue  # nobody answered
            world.reading = world.answer()
            signals, world.tests = check_harm(
                world.rollout, world.evidence(), world.tests, world.at
            )
            if signals[0].is_possible and report_of(world.judge()).harm is Verdict.FAIL:
                return number + 1
        return None


@pytest.mark.parametrize("runs", [20, pytest.param(1_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("repeats", [1, 5])
def test_looking_again_and_again_keeps_alpha(
    repeats: int, runs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 looks at releases exactly at the margin, with a wandering rate: alpha is 1 %."""
    alarms = sum(
        Rates(seed, 1.1, repeats=repeats).alarms_after(200) is not None for seed in range(runs)
    )
    if runs >= 200:
        tell(capsys, f"{alarms} of {runs} at the margin alarmed ({repeats} events a failure)")
    # More by chance than once in a thousand runs of this test, if alpha is kept.
    assert alarms <= {20: 2, 1_000: 21}[runs]


@pytest.mark.long
@pytest.mark.parametrize("repeats", [2, 5, 10])
def test_bad_events_of_one_failure_alarm_more_often(
    repeats: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `ops/plan.md` says: the test takes each for a failure of its own."""
    runs = 200
    alarms = sum(
        Rates(seed, 1.1, repeats=repeats, is_said=False).alarms_after(200) is not None
        for seed in range(runs)
    )
    tell(capsys, f"{repeats} bad events each: {alarms} of {runs} alarmed falsely")
    assert alarms > 0.01 * runs or repeats == 2


@pytest.mark.parametrize("runs", [5, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.0])
def test_harm_is_found(ratio: float, runs: int, capsys: pytest.CaptureFixture[str]) -> None:
    """In 200 looks of 300 events in treatment each, at about 2 %."""
    found = [Rates(seed, ratio).alarms_after(200) for seed in range(runs)]
    after = sorted(one for one in found if one is not None)
    if runs >= 200:
        median = after[len(after) // 2]
        tell(capsys, f"x{ratio}: found in {len(after)} of {runs}, median after {median} looks")
    assert len(after) >= 0.9 * runs
