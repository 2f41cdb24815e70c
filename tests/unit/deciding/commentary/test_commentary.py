"""Explanations that come after alerts, and looks over all rollouts.

What people are told, and that nothing waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from controller.core.anomaly import find_anomalies
from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Explanation, Judgement
from controller.core.rollout import Rollout
from controller.deciding.commentary.anomaly_watch import AnomalyWatch
from controller.deciding.commentary.explanations import (
    EXPLAINED,
    WAITING_LIMIT,
    Explainer,
    ExplanationQueue,
)
from controller.errors import AdviceUnavailableError
from controller.telemetry import Metrics
from schemas.terms import AdvisorMode, AlertKind, Arm, Severity, Verdict
from tests.builders import (
    make_arm_summary,
    make_judgement,
    make_plan,
    make_report,
    make_rollout,
    make_visit,
)
from tests.histories import CAN_HOLD

ROLLOUT = make_rollout(plan=CAN_HOLD)
ALERT = RaiseAlert(
    AlertKind.ROLLED_BACK,
    Severity.CRITICAL,
    "rolled back",
    "find the cause",
    "new-checkout/start-1/1/rolled_back",
    make_judgement(),
)


class Scripted:
    """A commentator that says what a test wants."""

    def __init__(
        self, *, trouble: Exception | None = None, found: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.trouble = trouble
        self.found = found
        self.asked: list[str] = []

    async def explain(self, rollout: Rollout, alert: RaiseAlert) -> Explanation:
        self.asked.append(rollout.flag_key)
        if self.trouble is not None:
            raise self.trouble
        return Explanation(
            "the new provider refuses cards",
            ("look at its log.",),
            "tiny",
            "http://m",
            "explain-v1",
            "0" * 64,
            5,
        )

    async def review(
        self, seen: Mapping[str, tuple[Rollout, Judgement]]
    ) -> Sequence[tuple[str, str]]:
        self.asked += sorted(seen)
        if self.trouble is not None:
            raise self.trouble
        return self.found


class Alerts:
    """What was raised, and the evidence of rollouts."""

    def __init__(
        self,
        judgements: Mapping[str, tuple[Rollout, Judgement]] | None = None,
        *,
        failures: int = 0,
    ) -> None:
        self.raised: list[RaiseAlert] = []
        self.judgements = judgements or {}
        self._failures = failures

    def alert_about(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Note an alert; the first ones fail as a test says."""
        self.raised.append(alert)
        if len(self.raised) <= self._failures:
            raise KeyError("no worker")


async def explained(model: Scripted, *wanted: tuple[Rollout, RaiseAlert]) -> list[RaiseAlert]:
    """Return what is raised after these alerts wanted explaining."""
    alerts = Alerts()
    metrics = Metrics(version="0")
    queue = ExplanationQueue(metrics)
    explainer = Explainer(queue, model, metrics, alerts, after_seconds=0)
    for rollout, alert in wanted:
        queue.request(rollout, alert)
    running = asyncio.create_task(explainer.run())
    for _ in range(5 * len(wanted) + 5):
        await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    return alerts.raised


async def test_an_alert_is_explained_later() -> None:
    """The explanation is an alert of its own.

    Same kind and dedup key, for information, with model and prompt.
    """
    (told,) = await explained(Scripted(), (ROLLOUT, ALERT))
    assert (told.kind, told.dedup_key, told.severity) == (
        ALERT.kind,
        ALERT.dedup_key,
        Severity.INFO,
    )
    assert told.summary == "a guess by the model tiny: the new provider refuses cards"
    assert told.action == "look at its log"
    assert told.explanation is not None
    assert told.explanation.prompt == "explain-v1"


@pytest.mark.parametrize(
    "trouble", [AdviceUnavailableError("it hangs"), RuntimeError("our own mistake")]
)
async def test_no_explanation_is_no_loss(trouble: Exception) -> None:
    """Whatever goes wrong, the next alert is explained all the same, and the daemon goes on."""
    model = Scripted(trouble=trouble)
    assert await explained(model, (ROLLOUT, ALERT), (ROLLOUT, ALERT)) == []
    assert len(model.asked) == 2


async def test_an_explanation_that_cannot_be_raised_ends_nothing() -> None:
    """The next alert is explained all the same."""
    alerts, metrics = Alerts(failures=1), Metrics(version="0")
    queue = ExplanationQueue(metrics)
    explainer = Explainer(queue, Scripted(), metrics, alerts, after_seconds=0)
    for _ in range(2):
        queue.request(ROLLOUT, ALERT)
    running = asyncio.create_task(explainer.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    assert len(alerts.raised) == 2


async def test_only_alerts_with_evidence_are_explained() -> None:
    """Not asked about: what people did themselves, good news, and plans without a model."""
    model = Scripted()
    off = make_rollout(plan=make_plan())
    assert off.plan.advisor.mode is AdvisorMode.OFF
    silent = [(ROLLOUT, replace(ALERT, judgement=None)), (off, ALERT)]
    silent += [(ROLLOUT, replace(ALERT, kind=kind)) for kind in AlertKind if kind not in EXPLAINED]
    assert await explained(model, *silent) == []
    assert model.asked == []


async def test_a_flood_of_alerts_is_not_waited_for() -> None:
    """Beyond a few waiting alerts, more are dropped at once, and counted."""
    metrics = Metrics(version="0")
    queue = ExplanationQueue(metrics)
    for _ in range(WAITING_LIMIT + 7):
        queue.request(ROLLOUT, ALERT)
    assert (
        metrics.registry.get_sample_value("rolloutd_explanations_total", {"outcome": "dropped"})
        == 7
    )


# --- movement ---


def judgement_of(control_events: int, control_trials: int, **overrides: object) -> Judgement:
    """Return a judgement of one error rate with so many errors in control."""
    arms = {
        Arm.TREATMENT: make_arm_summary(),
        Arm.CONTROL: make_arm_summary(events=control_events, trials=control_trials),
    }
    return make_judgement(metrics=(make_report(arms=arms, **overrides),))


def test_control_that_changes_is_movement() -> None:
    """Control doubling between two looks is told with both rates.

    The same again is not movement.
    """
    before = {"f": judgement_of(100, 10_000)}
    (found,) = find_anomalies(before, {"f": judgement_of(400, 20_000)})
    assert found.metric == "error_rate"
    assert "of control rose from 1 % to 3 %" in found.what
    (fell,) = find_anomalies({"f": judgement_of(1_000, 10_000)}, {"f": judgement_of(1_050, 20_000)})
    assert "fell from 10 % to 0.5 %" in fell.what


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (judgement_of(100, 10_000), judgement_of(210, 20_000)),  # as it was
        (judgement_of(100, 10_000), judgement_of(104, 10_100)),  # too little that is new
        (judgement_of(1, 150), judgement_of(400, 10_000)),  # too little to compare with
        (judgement_of(2, 1_000), judgement_of(6, 2_000)),  # doubled, but not surely
        (judgement_of(100, 10_000), judgement_of(50, 5_000)),  # counted from zero
        (judgement_of(100, 10_000), replace(judgement_of(900, 20_000), visit=1)),  # another stay
    ],
)
def test_weather_is_no_movement(before: Judgement, now: Judgement) -> None:
    """What chance brings, what is counted from zero and another stage are not told."""
    assert find_anomalies({"f": before}, {"f": now}) == ()


def test_metrics_that_lean_together_are_movement() -> None:
    """Two flags near an alarm on the same metric have perhaps one cause.

    One alone, or a breach, is the tests' business.
    """
    leaning = judgement_of(100, 10_000, e_value=40.0)
    assert {
        found.flag_key
        for found in find_anomalies({}, {"a": leaning, "b": leaning, "c": judgement_of(1, 1_000)})
    } == {"a", "b"}
    assert find_anomalies({}, {"a": leaning}) == ()
    broken = judgement_of(100, 10_000, e_value=400.0, harm=Verdict.FAIL)
    assert find_anomalies({}, {"a": broken, "b": broken}) == ()


async def test_an_anomaly_is_told_once_per_stay() -> None:
    """Seen again it is not told again; in the next stay it is."""
    leaning = judgement_of(100, 10_000, e_value=40.0)
    seen = {key: (make_rollout(plan=make_plan(flag_key=key)), leaning) for key in ("a", "b")}
    alerts = Alerts(seen)
    watch = AnomalyWatch(alerts, None, every_seconds=900)
    await watch.examine()
    await watch.examine()
    assert [alert.kind for alert in alerts.raised] == [AlertKind.ANOMALY, AlertKind.ANOMALY]
    assert {alert.dedup_key for alert in alerts.raised} == {
        f"{key}/start-1/1/anomaly/error_rate" for key in ("a", "b")
    }
    again, _ = seen["a"]
    seen["a"] = (replace(again, visits=(*again.visits, make_visit(stage=1))), leaning)
    await watch.examine()
    assert len(alerts.raised) == 3


async def test_what_a_model_finds_is_marked_as_its_own() -> None:
    """A model's finding is for information, once per stay whatever its words.

    And flags without advice are not shown to it.
    """
    model = Scripted(found=[("new-checkout", "error_rate is 1 % in both arms")])
    seen = {
        "new-checkout": (ROLLOUT, make_judgement()),
        "silent": (make_rollout(plan=make_plan(flag_key="silent")), make_judgement()),
    }
    alerts = Alerts(seen)
    watch = AnomalyWatch(alerts, model, every_seconds=900)
    await watch.examine()
    model.found = [("new-checkout", "in other words")]
    await watch.examine()
    assert model.asked == ["new-checkout", "new-checkout"]
    (told,) = alerts.raised
    assert told.severity is Severity.INFO
    assert "the model finds unusual: error_rate" in told.summary


async def test_a_model_that_fails_does_not_end_the_looks() -> None:
    """By rule it is told all the same."""
    leaning = judgement_of(100, 10_000, e_value=40.0)
    seen = {
        key: (make_rollout(plan=replace(CAN_HOLD, flag_key=key)), leaning) for key in ("a", "b")
    }
    alerts = Alerts(seen)
    model = Scripted(trouble=AdviceUnavailableError("no"))
    await AnomalyWatch(alerts, model, every_seconds=900).examine()
    assert len(alerts.raised) == 2
