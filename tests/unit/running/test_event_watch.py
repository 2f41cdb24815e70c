"""An alert says when a share of a live flag's events does nothing, or misleads."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.adapters.memory import ManualClock
from controller.core.effects import RaiseAlert
from controller.core.rollout import RolledBack, Rollout
from controller.counting.event_tally import EventTally
from controller.counting.flag_tally import EventSample, FlagTally
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.ports import Record
from controller.running.event_watch import (
    COMPARED_EVERY_SECONDS,
    LEAST_EVENTS,
    OVER_AFTER_SECONDS,
    EventWatch,
    findings,
)
from controller.running.open_alerts import EVENT_FAULTS_REPEATED_SECONDS
from schemas.terms import AlertKind, EventClass, EventRemark, Severity
from schemas.wire import read_evaluations, read_outcomes
from tests.builders import MINUTE, T0, make_rollout
from tests.records import at_ms, evaluation_value, outcome_value

AT = T0 + 10 * MINUTE
FLAG = "new-checkout"


class Bench:
    """A live rollout, its events, and the alerts about them."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.rollout: Rollout | None = make_rollout()
        self.raised: list[RaiseAlert] = []
        self.is_ended = False  # by another replica
        flags = FlagsToCount()
        assert self.rollout is not None
        flags.count_for(self.rollout)
        self.tally = EventTally(flags, read_evaluations, read_outcomes)
        self.watch = EventWatch(self.tally, lambda _: self.rollout, self, self.clock, self)

    def __contains__(self, dedup_key: object) -> bool:
        """Return whether the topic has the alert and no all-clear since."""
        return not self.is_ended

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Note an alert."""
        self.raised.append(alert)

    def evaluate(
        self,
        count: int,
        variant: str = "on",
        *,
        flag: str = FLAG,
        partition: int = 0,
        key: bytes | None = b"u",
        delay_ms: int = 0,
        event_delay_ms: int = 0,
    ) -> None:
        """Read evaluations of one context each."""
        for number in range(count):
            at = at_ms(AT) + event_delay_ms
            value = evaluation_value(f"{variant}-{number}", variant, time_ms=at, flag=flag)
            self.tally.add_evaluations(
                ("flag.evaluations", partition),
                Record("flag.evaluations", partition, number, at_ms(AT) + delay_ms, key, value, ()),
            )

    def end(self, count: int, latency_ms: float, *, status: int | None = None, **more: Any) -> None:
        """Read outcomes; `status` is their status code, `more` are further fields."""
        for number in range(count):
            value = outcome_value(
                f"u{number}", time_ms=at_ms(AT), flags=((FLAG, "on"),), latency_ms=latency_ms
            )
            sent = more if status is None else {**more, "http.response.status_code": status}
            if sent:
                event = json.loads(value)
                event["data"].update(sent)
                value = json.dumps(event).encode()
            record = Record("request.outcomes", 0, number, at_ms(AT), b"u", value, ())
            self.tally.add_outcomes(("request.outcomes", 0), record, flags_of=lambda *_: ())

    def check(self) -> list[str]:
        """Judge, and return the summaries of new alerts."""
        self.raised.clear()
        self.watch.check()
        return [alert.summary for alert in self.raised]


def test_a_variant_that_the_plan_does_not_have_is_alerted_with_all_that_helps() -> None:
    """The share, the variant, what the plan has, an example, what to do, and one key."""
    bench = Bench()
    bench.evaluate(60)
    bench.evaluate(40, "treatment")
    (summary,) = bench.check()
    assert summary == (
        "new-checkout: 40 % of its events are ignored: they name the variant treatment, which the "
        "plan does not have (it has on, off); for example flag.evaluations/0 offset 39, "
        "2026-01-05T09:10:00.000Z"
    )
    (alert,) = bench.raised
    assert (alert.kind, alert.severity) == (AlertKind.EVENT_FAULTS, Severity.WARNING)
    assert "rolloutctl events new-checkout" in alert.action
    assert alert.dedup_key.endswith("/event_faults/unknown_variant")


def test_it_is_repeated_every_hour_while_it_lasts() -> None:
    """And not more often."""
    bench = Bench()
    bench.evaluate(40, "treatment")
    assert len(bench.check()) == 1
    bench.evaluate(40, "treatment")
    assert bench.check() == []
    bench.clock.advance(timedelta(seconds=EVENT_FAULTS_REPEATED_SECONDS + 1))
    bench.evaluate(40, "treatment")
    assert len(bench.check()) == 1


def test_it_is_over_once_the_events_have_been_right_for_five_minutes() -> None:
    """Not while none arrive: then nothing is known. And it is told again if it comes back."""
    bench = Bench()
    bench.evaluate(40, "treatment")
    bench.check()
    key = bench.raised[0].dedup_key
    for _ in range(2):
        bench.clock.advance(timedelta(seconds=OVER_AFTER_SECONDS - 1))
        assert bench.check() == []
    bench.evaluate(40)
    (summary,) = bench.check()
    assert summary.startswith(
        "new-checkout: over, not found for 5 min: events are ignored: they name the variant "
    )
    (over,) = bench.raised
    assert (over.severity, over.dedup_key, over.action) == (Severity.INFO, key, "nothing")
    bench.clock.advance(timedelta(seconds=OVER_AFTER_SECONDS))
    bench.evaluate(40)
    assert bench.check() == []
    bench.evaluate(40, "treatment")
    assert len(bench.check()) == 1


def test_a_fault_that_comes_again_in_time_is_not_over() -> None:
    """Each time that it is found begins the five minutes again."""
    bench, told = Bench(), []
    for variant in ("treatment", "on", "treatment", "on"):
        bench.evaluate(40, variant)
        told += bench.check()
        bench.clock.advance(timedelta(seconds=OVER_AFTER_SECONDS - 1))
    assert len(told) == 1


def test_a_fault_that_another_replica_has_ended_is_told_again_where_it_is_found() -> None:
    """That one counts other partitions. Its all-clear may not be our alert that is on its way."""
    bench = Bench()
    bench.is_ended = True
    bench.evaluate(40, "treatment")
    assert len(bench.check()) == 1
    bench.evaluate(40, "treatment")
    assert bench.check() == []
    bench.clock.advance(timedelta(minutes=2))
    bench.evaluate(40, "treatment")
    assert len(bench.check()) == 1


def test_of_a_rollout_that_ended_nothing_is_told_here() -> None:
    """Whoever runs its flag ends the alert: this replica may be killed before."""
    bench = Bench()
    bench.evaluate(40, "treatment")
    bench.check()
    assert bench.rollout is not None
    bench.rollout = replace(bench.rollout, phase=RolledBack(T0, "why"), percent=0.0)
    bench.clock.advance(timedelta(seconds=OVER_AFTER_SECONDS))
    bench.evaluate(40)
    assert bench.check() == []


def test_too_few_events_and_small_shares_alert_nobody() -> None:
    """One old client among many is no fault of the release."""
    bench = Bench()
    bench.evaluate(LEAST_EVENTS - 1, "treatment")
    assert bench.check() == []
    bench = Bench()
    bench.evaluate(97)
    bench.evaluate(3, "treatment")
    assert bench.check() == []


def test_all_events_is_a_share_too() -> None:
    """`some` is for shares that nobody knows."""
    bench = Bench()
    bench.evaluate(40, "treatment")
    (summary,) = bench.check()
    assert summary.startswith("new-checkout: 100 % of its events are ignored")


def test_events_from_before_the_start_are_alerted_once_the_start_is_past() -> None:
    """A sender whose clock is behind is not counted; the first minutes explain themselves."""
    bench = Bench()
    early = -int(timedelta(hours=1) / timedelta(milliseconds=1))
    bench.evaluate(40, event_delay_ms=early, delay_ms=early)
    assert bench.check() == []
    bench.clock.advance(timedelta(minutes=6))
    bench.evaluate(40, event_delay_ms=early, delay_ms=early)
    (summary,) = bench.check()
    assert "100 % of its events are ignored: they are dated before the start" in summary


@pytest.mark.parametrize("is_ended", [True, False])
def test_only_live_rollouts_are_judged(is_ended: bool) -> None:
    """Without exposed contexts the events decide nothing."""
    bench = Bench()
    bench.evaluate(40, "treatment")
    assert bench.rollout is not None
    bench.rollout = (
        replace(bench.rollout, phase=RolledBack(AT, "a test"), percent=0.0) if is_ended else None
    )
    assert bench.check() == []


def test_records_without_a_key_are_alerted() -> None:
    """Only where the topic has several partitions: with one, keys decide nothing."""
    bench = Bench()
    bench.evaluate(40, key=None)
    assert bench.check() == []
    bench.evaluate(40, "off", key=None, partition=1)
    (summary,) = bench.check()
    assert "without a key" in summary


def test_one_context_in_several_partitions_is_alerted() -> None:
    """Records keyed by something else than their context, such as a session."""
    bench = Bench()
    for partition in (0, 1, 2):
        bench.evaluate(20, partition=partition)
    (summary,) = bench.check()
    assert "in several partitions" in summary


def test_old_times_are_alerted() -> None:
    """A clock that is behind, or events with a time that was copied from a document."""
    bench = Bench()
    bench.evaluate(40, delay_ms=29 * 3_600_000)
    (summary,) = bench.check()
    assert "its time is 29 h older than its record" in summary


def test_durations_in_milliseconds_are_alerted() -> None:
    """When the median is above a minute; one slow request among many is none."""
    bench = Bench()
    bench.end(40, 183_000.0)
    (summary,) = bench.check()
    assert "milliseconds given as seconds" in summary
    bench = Bench()
    bench.end(40, 183.0)
    bench.end(10, 183_000.0)
    assert bench.check() == []


def test_failures_that_no_guardrail_sees_are_alerted() -> None:
    """A status code of 500 without error.type counts as a success; below 1 % nobody is told."""
    bench = Bench()
    bench.evaluate(200)
    bench.end(98, 10.0, status=200)
    bench.end(2, 10.0, status=500)
    (summary,) = bench.check()
    assert summary.startswith(
        "new-checkout: 2 % of its outcomes have a status code of 500 or more and no error.type"
    )
    (alert,) = bench.raised
    assert '"error.type": "500"' in alert.action
    bench = Bench()
    bench.end(199, 10.0, status=404)
    bench.end(1, 10.0, status=500)
    assert bench.check() == []


def test_a_failure_under_another_name_is_alerted() -> None:
    """`error_type` is not read, so its requests count as successes; one in a hundred is told."""
    bench = Bench()
    bench.evaluate(100)
    bench.end(99, 10.0, trace="abc")
    bench.end(1, 10.0, error_type="500")
    (summary,) = bench.check()
    assert summary.startswith(
        "new-checkout: 0.5 % of its events count without a field that was meant to count: nothing "
        "reads its field error_type; did you mean error.type?"
    )
    (alert,) = bench.raised
    assert "without it counts as a success" in alert.action
    assert alert.dedup_key.endswith("/event_faults/misnamed_field")


def test_a_misspelled_flag_is_alerted_for_the_flag_that_is_meant() -> None:
    """Other unknown flags are not: apps evaluate many that rolloutd has nothing to do with."""
    bench = Bench()
    bench.evaluate(40, flag="other-flag")
    bench.evaluate(40, flag="newCheckout")
    (summary,) = bench.check()
    assert summary.startswith(
        "new-checkout: some events name the flag newCheckout, which has no rollout"
    )


def test_a_key_that_nobody_misspells_any_more_is_over() -> None:
    """A few more with the wrong key, too few for an alert, and it is not."""
    bench = Bench()
    bench.evaluate(40, flag="newCheckout")
    assert len(bench.check()) == 1
    bench.clock.advance(timedelta(seconds=OVER_AFTER_SECONDS - 1))
    bench.evaluate(1, flag="newCheckout")
    assert bench.check() == []
    bench.clock.advance(timedelta(seconds=OVER_AFTER_SECONDS - 1))
    assert bench.check() == []
    bench.clock.advance(timedelta(seconds=COMPARED_EVERY_SECONDS))
    (summary,) = bench.check()
    assert "over, not found for 5 min: events name the flag newCheckout" in summary


def test_nothing_wrong_alerts_nobody() -> None:
    """Whatever the traffic."""
    bench = Bench()
    bench.evaluate(200)
    bench.evaluate(200, "off")
    bench.end(200, 183.0)
    assert bench.check() == []


@pytest.mark.parametrize(
    ("found", "words"),
    [(EventClass.COUNTED, "count without a field"), (EventClass.REFUSED, "lack a field")],
)
def test_an_event_that_does_not_count_is_not_said_to(found: EventClass, words: str) -> None:
    """A misnamed field may be why it does not, or one more fault."""
    question = "nothing reads its field variation; did you mean feature_flag.result.variant?"
    tally = FlagTally()
    sample = EventSample(
        found, "evaluation", "t", 0, 0, 0, FLAG, "", "", question, (EventRemark.MISNAMED_FIELD,)
    )
    tally.add(sample, 1.0, is_timed=False)
    (what,) = [one.what for one in findings(tally, tally.window) if "meant to count" in one.what]
    assert what == f"{words} that was meant to count: {question}"


def test_the_reason_of_one_refused_event_is_not_said_of_all() -> None:
    """A share may be refused for many reasons, and only the newest is at hand."""
    tally = FlagTally()
    for why in ("bad_time: time is no time with an offset", "not_json: JSON is malformed"):
        sample = EventSample(EventClass.REFUSED, "evaluation", "t", 0, 0, 0, FLAG, "", "", why, ())
        tally.add(sample, 1.0, is_timed=False)
    (finding,) = findings(tally, tally.window)
    assert finding.what == "are refused, the newest because of not_json: JSON is malformed"
