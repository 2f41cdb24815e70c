"""What helps where a rollout is unwatched, as alert and as fault."""

from __future__ import annotations

from controller.health import KAFKA, Scope
from tests.unit.running.test_visibility import Bench, _missing


def test_a_fault_names_its_cause_and_not_the_report_that_shows_it() -> None:
    """`doctor` shows the fault with its fix: a fix that names `doctor` leads in a circle."""
    for cause in ("", "its totals cannot be read"):
        bench = Bench()
        bench.passes(30)
        if cause:
            bench.faults.report(Scope.PARTITION, "flag.evaluations/0", cause, "restart it")
        _missing(bench)
        bench.seconds_to_alert()
        fault = bench.faults.of(Scope.FLAG, "new-checkout", reporter="visibility")
        assert fault is not None
        assert "doctor" not in fault.fix
        assert (cause or "see whether all replicas have the same redis.url") in fault.fix
        assert "`rolloutctl rollback new-checkout`" in fault.fix
        assert "rolloutctl doctor" in bench.raised[0].action


def test_while_kafka_is_away_no_command_by_kafka_is_named() -> None:
    """`rolloutctl rollback` ends with "no broker answers" then: the flag is lowered elsewhere."""
    bench = Bench()
    bench.passes(30)
    bench.faults.report(Scope.DEPENDENCY, KAFKA, "no broker at k:9092 answers", "start Kafka")
    _missing(bench)
    bench.seconds_to_alert()
    (alert,) = bench.raised
    fault = bench.faults.of(Scope.FLAG, "new-checkout", reporter="visibility")
    assert fault is not None
    for words in (alert.action, fault.fix):
        assert words.startswith("start Kafka")
        assert "lower the flag over HTTP (ops/operating.md) and in its flag plane" in words
        assert "rolloutctl rollback" not in words


def test_a_topic_with_refused_records_is_not_named_as_the_cause() -> None:
    """Whoever can send records could hide the cause from people."""
    bench = Bench()
    bench.passes(30)
    bench.faults.report(Scope.TOPIC, "request.outcomes", "all are refused", "see why")
    bench.faults.report(Scope.PARTITION, "flag.evaluations/0", "it is stopped", "repair it")
    _missing(bench)
    bench.seconds_to_alert()
    fault = bench.faults.of(Scope.FLAG, "new-checkout", reporter="visibility")
    assert fault is not None
    assert "flag.evaluations/0: it is stopped" in fault.fix
    assert "request.outcomes" not in fault.fix
