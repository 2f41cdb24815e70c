"""The memory of the Prefect bridge: late, repeated, unordered and missing events.

Whatever comes in which order, in how many polls, with restarts between them: the same records come
out, once each, and rolloutd can read them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from batches.bridge import ledger as ledger_module
from batches.bridge.events import Ending, Evaluation
from batches.bridge.ledger import Ledger, Record
from hypothesis import given
from hypothesis import strategies as st

from schemas.wire import decode_evaluation, decode_outcome

T0 = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
AT_MS = round(T0.timestamp() * 1000)
LATENESS = timedelta(minutes=5)


def evaluation(
    run: str = "1", flag: str = "transform-v2", variant: str = "on", second: float = 1.0
) -> Evaluation:
    """Return an evaluation in a task run, some seconds after the beginning."""
    return Evaluation(
        event_id=f"{run}-{flag}-{variant}-{second}",
        run=f"task-run.{run}",
        flow_run="flow-run.f",
        context_id=f"batch-{run}",
        flag=flag,
        variant=variant,
        at=T0 + timedelta(seconds=second),
    )


def ending(
    run: str = "1",
    state: str = "COMPLETED",
    *,
    name: str = "",
    count: int = 1,
    second: float = 2.0,
    seconds: float | None = 0.5,
) -> Ending:
    """Return the end of a task run."""
    at = T0 + timedelta(seconds=second)
    return Ending(f"task-run.{run}", count, state, name or state.title(), seconds, at)


def ids(records: Iterable[Record]) -> list[str]:
    """Return the records' CloudEvents ids."""
    return [json.loads(record.value)["id"] for record in records]


def outcomes(records: Iterable[Record]) -> list[dict[str, object]]:
    """Return the data of the outcomes."""
    return [
        json.loads(record.value)["data"]
        for record in records
        if record.topic == ledger_module.OUTCOMES
    ]


def new_ledger() -> Ledger:
    """Return an empty one."""
    return Ledger("/prefect/test", LATENESS)


def restarted(ledger: Ledger) -> Ledger:
    """Return what a new process knows."""
    after = new_ledger()
    after.load(ledger.to_json())
    return after


def test_a_run_that_completes_says_what_it_was_served_and_how_long_it_took() -> None:
    """Both records are in the form that rolloutd reads, keyed by the context."""
    served, ended = new_ledger().take([ending(), evaluation()])
    assert served.key == ended.key == "batch-1"
    read = decode_evaluation(served.value, served.key.encode(), AT_MS, ())
    assert (read.context_id, read.flag_key, read.variant) == ("batch-1", "transform-v2", "on")
    assert read.time_ms == round((T0 + timedelta(seconds=1)).timestamp() * 1000)
    came = decode_outcome(ended.value, ended.key.encode(), AT_MS, ())
    assert list(came.flags) == [("transform-v2", "on")]
    assert (came.is_error, came.latency_ms) == (False, 500.0)


@pytest.mark.parametrize(
    ("state", "name", "failure"),
    [
        ("COMPLETED", "Completed", None),
        ("COMPLETED", "Anything", None),
        ("FAILED", "Failed", "Failed"),
        ("FAILED", "TimedOut", "TimedOut"),
        ("CRASHED", "Crashed", "Crashed"),
        ("FAILED", "Completed", "Completed"),  # a state's name may be anybody's
    ],
)
def test_the_type_of_the_state_says_whether_it_failed(
    state: str, name: str, failure: str | None
) -> None:
    """Failed, TimedOut and Crashed are failures, and keep their name."""
    (data,) = outcomes(new_ledger().take([evaluation(), ending(state=state, name=name)]))
    assert data.get("error.type") == failure


@pytest.mark.parametrize(("state", "name"), [("CANCELLED", "Cancelled"), ("COMPLETED", "Cached")])
def test_what_says_nothing_of_the_version_is_no_outcome(state: str, name: str) -> None:
    """A person stopped it, or a cache answered."""
    assert outcomes(new_ledger().take([evaluation(), ending(state=state, name=name)])) == []


def test_a_run_that_asked_for_nothing_says_nothing() -> None:
    """Other flows of the same Prefect are none of our business."""
    assert new_ledger().take([ending("another")]) == []


def test_a_run_of_four_flags_has_an_outcome_for_each() -> None:
    """So one evaluation that comes late gets its outcome late, and the others at once."""
    ledger = new_ledger()
    flags = ["a", "b", "c"]
    at_once: list[Evaluation | Ending] = [evaluation(flag=flag) for flag in flags]
    first = ledger.take([*at_once, ending()])
    assert len(outcomes(first)) == 3
    late = ledger.take([evaluation(flag="d", second=1.5)])
    assert [data["rolloutd.flags"] for data in outcomes(late)] == [
        [{"feature_flag.key": "d", "feature_flag.result.variant": "on"}]
    ]


def test_a_retry_is_judged_by_its_last_attempt() -> None:
    """What it was served last counts: the percentage may have risen between the attempts."""
    news: list[Evaluation | Ending] = [
        evaluation(variant="off", second=1),
        evaluation(variant="on", second=3),
        ending(count=2, second=4),
    ]
    (data,) = outcomes(new_ledger().take(news))
    assert data["rolloutd.flags"] == [
        {"feature_flag.key": "transform-v2", "feature_flag.result.variant": "on"}
    ]


def test_a_run_that_is_run_again_after_its_end_has_a_second_outcome() -> None:
    """And the second evaluation does not belong to the first end."""
    ledger = new_ledger()
    first = outcomes(ledger.take([evaluation(), ending(state="FAILED")]))
    between = outcomes(ledger.take([evaluation(second=60, variant="off")]))
    second = outcomes(ledger.take([ending(count=2, second=61)]))
    assert [data.get("error.type") for data in first] == ["Failed"]
    assert between == []
    assert [data.get("error.type") for data in second] == [None]


def test_of_two_ends_of_one_attempt_the_first_counts() -> None:
    """A run that is reported crashed, and completes after all, has failed once."""
    ledger = new_ledger()
    first = outcomes(ledger.take([evaluation(), ending(state="CRASHED")]))
    assert [data["error.type"] for data in first] == ["Crashed"]
    assert ledger.take([ending(second=9)]) == []
    assert restarted(ledger).take([evaluation(), ending(second=9)]) == []


def test_an_unfinished_run_is_asked_for_also_after_a_restart() -> None:
    """Its end may have no event: the process died, or Prefect lost it."""
    ledger = new_ledger()
    ledger.take([evaluation("1"), evaluation("2"), ending("2")])
    for one in (ledger, restarted(ledger)):
        assert one.unfinished(T0 + timedelta(minutes=1)) == {"task-run.1": "flow-run.f"}
        assert one.unfinished(T0) == {}
    found = restarted(ledger).take([ending("1", second=90_000, state="CRASHED")])
    assert [data["error.type"] for data in outcomes(found)] == ["Crashed"]


def test_a_long_run_ends_hours_after_its_evaluation() -> None:
    """The outcome names its flags, so rolloutd need not remember the exposure."""
    ledger = new_ledger()
    ledger.take([evaluation()])
    for hour in range(1, 9):
        ledger.take([evaluation(run=f"other-{hour}", second=3600 * hour)])
    (data,) = outcomes(restarted(ledger).take([ending(second=9 * 3600, seconds=32_000)]))
    assert data["http.server.request.duration"] == 32_000


def test_its_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood raises the time from which on events are read again; none is published twice."""
    monkeypatch.setattr(ledger_module, "_MOST_PUBLISHED", 100)
    monkeypatch.setattr(ledger_module, "_MOST_OPEN_RUNS", 50)
    ledger = new_ledger()
    news = [evaluation(str(number), second=number / 10) for number in range(1_000)]
    seen: Counter[str] = Counter()
    for first in range(0, 1_000, 40):
        seen.update(ids(ledger.take(news[first : first + 40])))
        since = ledger.since(LATENESS)
        assert since is not None
        again = [one for one in news[: first + 40] if one.at >= since]
        assert again, "nothing is read again"
        seen.update(ids(ledger.take(again)))
        seen.update(ids(restarted(ledger).take(again)))
        assert len(ledger.to_json()) < 60_000
    assert set(seen.values()) == {1}
    assert len(seen) == 1_000
    assert ledger.dropped_runs >= 950


def test_the_memory_of_a_full_ledger_fits_into_one_record_of_kafka() -> None:
    """A record has 1 MB by default."""
    ledger = new_ledger()
    for number in range(40_000):
        at = T0 + timedelta(seconds=number / 200)
        ledger._published[f"{number:018x}"] = at
    long_names = [
        Evaluation(
            event_id="e" * 36,
            run=f"task-run.{number:036}",
            flow_run=f"flow-run.{'f' * 36}",
            context_id="c" * 40,
            flag="f" * 40,
            variant="on",
            at=T0 + timedelta(seconds=200 + number / 1000),
        )
        for number in range(2_000)
    ]
    ledger.take(long_names)
    assert len(ledger.to_json()) < 1_000_000


@st.composite
def histories(draw: st.DrawFn) -> list[Evaluation | Ending]:
    """Draw what happened to some runs within the time for which late events are waited for."""
    events: list[Evaluation | Ending] = []
    for run in map(str, range(draw(st.integers(1, 5)))):
        begin = draw(st.integers(0, 60))
        for flag in draw(st.sets(st.sampled_from("abcd"))):
            variant = draw(st.sampled_from(["on", "off"]))
            events.append(evaluation(run, flag, variant, begin + draw(st.integers(1, 9))))
        if draw(st.booleans()):
            state = draw(st.sampled_from(["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]))
            events.append(ending(run, state, second=begin + 10))
    return events


@given(histories(), st.data())
def test_the_order_of_events_changes_nothing(
    history: Sequence[Evaluation | Ending], data: st.DataObject
) -> None:
    """Repeated, late and unordered events, and restarts at any moment: the same records, once."""
    expected = Counter(ids(new_ledger().take(history)))
    assert set(expected.values()) <= {1}
    deliveries = data.draw(st.permutations([*history, *history]))
    ledger, seen = new_ledger(), Counter[str]()
    delivered: list[Evaluation | Ending] = []
    while deliveries:
        size = data.draw(st.integers(1, len(deliveries)))
        now, deliveries = deliveries[:size], deliveries[size:]
        delivered += now
        seen.update(ids(ledger.take(now)))
        if data.draw(st.booleans()):
            ledger = restarted(ledger)
            # A new process reads again what is not too old, and nothing here is.
            seen.update(ids(ledger.take(delivered)))
    assert seen == expected
