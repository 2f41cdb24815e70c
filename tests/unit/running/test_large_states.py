"""A state record always fits into Kafka, and one that does not is told everywhere."""

from __future__ import annotations

from typing import Any

from controller.codec.command_records import MAX_PLAN_BYTES
from controller.codec.plans import from_core_plan
from controller.codec.rollouts import state_event
from controller.core.machine.obstacles import MOST_VISITS
from controller.core.rollout import Rollout
from controller.health import Faults, Scope
from controller.running.flag_faults import MEASURED_AT_ONCE, LargeStates
from controller.settings import KafkaSettings
from tests.builders import T0, make_plan, make_rollout


def with_visits(count: int) -> Rollout:
    """Return a rollout that has entered its first stage so often."""
    rollout = make_rollout()
    return make_rollout(visits=rollout.visits * count)


def test_the_largest_plan_with_all_its_visits_fits_into_the_least_record() -> None:
    """With room for a thousand steps back, reasons and an advice round."""
    rollout = with_visits(MOST_VISITS + 1000)
    plan = len(from_core_plan(rollout.plan).model_dump_json())
    event = len(state_event(rollout, "f" * 128 + "/9007199254740991/0", T0))
    field: Any = KafkaSettings.model_fields["max_record_bytes"]
    (least,) = (one.ge for one in field.metadata if hasattr(one, "ge"))
    assert event - plan + MAX_PLAN_BYTES + 50_000 < least


def test_a_state_that_the_topic_has_is_not_measured() -> None:
    """It was written, and ten thousand of them at a start take seconds to encode."""
    large = with_visits(200)
    topic = {large.flag_key: large.revision}
    states = LargeStates(Faults(lambda: T0), most_bytes=lambda key: 10_000, in_topic=topic.get)
    states.update(large)
    states.measure()
    assert states.reasons == {}
    topic[large.flag_key] -= 1
    states.update(large)
    states.measure()
    assert states.reasons != {}
    topic[large.flag_key] += 1
    states.update(large)
    states.measure()
    assert states.reasons == {}


def test_few_states_are_measured_at_once() -> None:
    """Also where the topic has none of ten thousand: the event loop has other work."""
    measured: list[str] = []

    def most_bytes(flag_key: str) -> int:
        measured.append(flag_key)
        return 10_000

    states = LargeStates(Faults(lambda: T0), most_bytes=most_bytes, in_topic=lambda _: None)
    count = MEASURED_AT_ONCE + 1
    for number in range(count):
        states.update(make_rollout(plan=make_plan(flag_key=f"flag-{number}")))
    states.measure()
    assert len(measured) == MEASURED_AT_ONCE
    states.measure()
    assert measured == [f"flag-{number}" for number in range(count)]


def test_a_state_too_large_is_a_fault_until_a_smaller_one_follows() -> None:
    """Named with both sizes and what to do."""
    faults = Faults(lambda: T0)
    topic: dict[str, int] = {}
    states = LargeStates(faults, most_bytes=lambda key: 10_000, in_topic=topic.get)
    states.update(with_visits(1))
    states.measure()
    assert states.reasons == {}
    large = with_visits(200)
    states.update(large)
    states.measure()
    fault = faults.of(Scope.FLAG, large.flag_key, reporter="state-size")
    assert fault is not None
    assert "at most 10000 are written" in states.reasons[large.flag_key]
    assert "start a new rollout" in fault.fix
    states.update(with_visits(1))
    states.measure()
    assert states.reasons == {}
    assert faults.of(Scope.FLAG, large.flag_key, reporter="state-size") is None
