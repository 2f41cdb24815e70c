"""The synthetic apps.

That what they emit is the contract's, and that they evaluate as the daemon's own endpoint does.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from controller.demo.apps import INSTANCES, USERS, Definition, Instance, Traffic
from controller.demo.scenarios import FLAG_KEY, InjectedFault, Service
from schemas import evaluation, outcome
from schemas.wire import decode_evaluation, decode_outcome

NOW = 1_795_230_000.0
TEN_PERCENT = Definition("on", "off", 1_000)


@dataclass
class Sent:
    """A producer that keeps what it is given."""

    events: list[tuple[str, bytes, str]] = field(default_factory=list)

    def produce(self, topic: str, value: bytes, key: str, **_: Any) -> None:
        self.events.append((topic, value, key))

    def poll(self, _seconds: float) -> int:
        return 0

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(value)["data"] for sent_to, value, _ in self.events if sent_to == topic]


def make_traffic(
    fault: InjectedFault | None = None, definition: Definition | None = TEN_PERCENT
) -> tuple[Traffic, Sent]:
    """Return apps that all know `definition`, and where what they emit is kept."""
    instances = [Instance(number, "") for number in range(INSTANCES)]
    for instance in instances:
        instance.definition = definition
    sent = Sent()
    return Traffic(fault or InjectedFault(), Service(), instances, cast(Any, sent), seed=1), sent


def play(traffic: Traffic, requests: int = 5_000) -> None:
    """Let requests begin at once, and wait until the slowest is over."""
    traffic.tick(requests, NOW)
    for tick in range(200):
        traffic.tick(0, NOW + tick / 100)


def test_every_event_is_in_the_contracts_form() -> None:
    """What the apps emit is read by the contract's models and by the daemon's decoder.

    With the record's key as its context.
    """
    traffic, sent = make_traffic(InjectedFault(error_factor=3.0, slow_share=0.05))
    play(traffic, 500)
    assert len(sent.events) == 1_000
    for topic, value, key in sent.events:
        arrived = round(NOW * 1000) + 5_000
        if topic == "flag.evaluations":
            assert decode_evaluation(value, key.encode(), arrived, ()).context_id == key
            evaluation.Evaluation.model_validate(json.loads(value)["data"])
        else:
            event = decode_outcome(value, key.encode(), arrived, ())
            assert (event.context_id, event.flags[0][0]) == (key, FLAG_KEY)
            outcome.Outcome.model_validate(json.loads(value)["data"])


def test_an_instance_that_lost_touch_serves_nobody() -> None:
    """It might serve what was decided before, which is a wrong share; the others go on."""
    traffic, sent = make_traffic()
    for instance in traffic._instances:
        instance.heard_at = NOW if instance.number else NOW - 1.0
    traffic.tick(1_000, NOW + 0.1)
    instances = {json.loads(value)["source"] for _, value, _ in sent.events}
    assert instances == {f"/checkout-api/{number}" for number in range(1, INSTANCES)}
    before = len(sent.events)
    traffic.tick(1_000, NOW + 2.0)
    assert len(sent.of("flag.evaluations")) == before
    assert traffic.report.requests == before


def test_variants_are_served_by_the_documents_weights() -> None:
    """At 10 % about a tenth of the users get treatment.

    And each of them always the same variant.
    """
    traffic, sent = make_traffic()
    play(traffic, 20_000)
    served: dict[str, set[str]] = {}
    for data in sent.of("flag.evaluations"):
        served.setdefault(data["feature_flag.context.id"], set()).add(
            data["feature_flag.result.variant"]
        )
    assert all(len(variants) == 1 for variants in served.values())
    counts = Counter(variant for variants in served.values() for variant in variants)
    assert counts["on"] / len(served) == pytest.approx(0.1, abs=0.01)
    assert traffic.current_report().treated_users == counts["on"]


def test_without_a_flag_everybody_gets_the_old_version() -> None:
    """An app that knows no definition serves the default in its code."""
    traffic, sent = make_traffic(definition=None)
    play(traffic, 500)
    assert {data["feature_flag.result.variant"] for data in sent.of("flag.evaluations")} == {"off"}


def test_a_definition_is_read_from_the_flagd_document() -> None:
    """Weights and variants come from the document; a flag that is not in it is no definition."""
    targeting = {"fractional": [["new", 250], ["old", 9_750]]}
    assert Definition.read({"flags": {FLAG_KEY: {"targeting": targeting}}}) == Definition(
        "new", "old", 250
    )
    assert Definition.read({"flags": {}}) is None


def test_failures_hit_treatment_alone() -> None:
    """Three times the errors show in treatment; control keeps the service's own rate."""
    traffic, sent = make_traffic(InjectedFault(error_factor=3.0), Definition("on", "off", 5_000))
    play(traffic, 20_000)
    failed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for data in sent.of("request.outcomes"):
        variant = data["rolloutd.flags"][0]["feature_flag.result.variant"]
        total[variant] += 1
        failed[variant] += "error.type" in data
    rate = Service().error_rate
    assert failed["off"] / total["off"] == pytest.approx(rate, abs=0.01)
    assert failed["on"] / total["on"] == pytest.approx(3 * rate, abs=0.015)
    assert traffic.current_report().harmed_requests == pytest.approx(
        2 * rate * total["on"], rel=0.15
    )


def test_a_late_fault_waits_for_its_percentage() -> None:
    """Below the percentage at which it begins nobody is harmed."""
    traffic, _ = make_traffic(InjectedFault(error_factor=3.0, errors_from_percent=25.0))
    play(traffic)
    assert traffic.current_report().harmed_users == 0


def test_the_slow_path_leaves_the_median_alone() -> None:
    """One treatment request in 20 is far slower; the median hardly moves."""
    traffic, sent = make_traffic(InjectedFault(slow_share=0.05), Definition("on", "off", 10_000))
    play(traffic)
    seconds = sorted(data["http.server.request.duration"] for data in sent.of("request.outcomes"))
    assert seconds[len(seconds) // 2] * 1000 == pytest.approx(Service().median_ms, rel=0.1)
    assert seconds[round(0.98 * len(seconds))] * 1000 > InjectedFault().slow_ms


def test_lost_exposures_are_treatments_evaluations_only() -> None:
    """Outcomes and control's evaluations are complete, treatment's evaluations are not."""
    traffic, sent = make_traffic(InjectedFault(lost_exposures=0.5), Definition("on", "off", 5_000))
    play(traffic)
    evaluated = Counter(data["feature_flag.result.variant"] for data in sent.of("flag.evaluations"))
    ended = Counter(
        data["rolloutd.flags"][0]["feature_flag.result.variant"]
        for data in sent.of("request.outcomes")
    )
    assert evaluated["off"] == ended["off"]
    assert evaluated["on"] / ended["on"] == pytest.approx(0.5, abs=0.05)


def test_silence_is_complete() -> None:
    """Some time after the percentage is served nothing more is emitted."""
    traffic, sent = make_traffic(InjectedFault(silent_from_percent=10.0, silent_after_seconds=0.5))
    traffic.tick(100, NOW)
    traffic.tick(100, NOW + 0.4)
    before = len(sent.events)
    traffic.tick(100, NOW + 0.5)
    assert before > 0
    assert len(sent.events) == before
    assert traffic.current_report().is_silent


def test_users_are_many() -> None:
    """There are enough users for one of them rarely to ask twice within a stage."""
    assert USERS >= 100_000
