"""The loop around counting: what happens when, on the memory adapters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from controller.counting.dependencies import ReadRecords
from controller.counting.refusals import RefusalBatch
from controller.health import Scope
from controller.settings import CountingSettings
from schemas import quarantine
from schemas.terms import QuarantineReason
from schemas.totals import lately_changed
from tests.records import LINES, arms_in, at_ms, evaluation_value
from tests.unit.counting.ingest_bench import (
    EVALUATIONS,
    NOW,
    ON,
    OUTCOMES,
    Bench,
    make_pacing,
    make_settings,
    until,
)


async def test_events_become_totals_with_the_fence() -> None:
    """Evaluations and outcomes are counted per arm and saved with the next offset."""
    bench = Bench()
    bench.evaluate("a", "on")
    bench.evaluate("a", "on")
    bench.evaluate("b", "off")
    bench.happen("a", ON, error=True)
    async with bench.running():
        await until(bench.is_all_saved)
    arms = arms_in(bench.stored(EVALUATIONS))
    assert arms["new-checkout", 0, "treatment"].evaluations == 2
    assert arms["new-checkout", 0, "treatment"].exposures == 1
    assert arms["new-checkout", 0, "control"].exposures == 1
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].first_errors == 1
    assert bench.times_told > 0
    assert bench.progress(EVALUATIONS).counted == 3
    assert bench.progress(EVALUATIONS).freshest_ms == at_ms(NOW)


async def test_each_save_tells_readers_which_flags_have_changed() -> None:
    """With the fence that it belongs to; a replica that loads the partition begins again."""
    bench = Bench()
    bench.evaluate("a", "on")
    bench.evaluate("b", "on", flag="nobody-knows-it")
    async with bench.running():
        await until(bench.is_all_saved)
        first = lately_changed(bench.stored(EVALUATIONS))
        bench.evaluate("c", "on", flag="nobody-knows-it")
        await until(bench.is_all_saved)
        second = lately_changed(bench.stored(EVALUATIONS))
    assert first is not None
    assert second is not None
    assert (first.next, second.next) == (2, 3)
    assert set(first.flags) == {"new-checkout"}
    assert second.after(first) == frozenset()  # that event changed no totals
    bench.evaluate("d", "on")
    async with bench.running():
        await until(bench.is_all_saved)
    third = lately_changed(bench.stored(EVALUATIONS))
    assert third is not None
    assert third.after(second) is None
    assert lately_changed({**bench.stored(EVALUATIONS), "next": b"99"}) is None  # an older release
    assert lately_changed({**bench.stored(EVALUATIONS), "changed": b"{"}) is None


async def test_position_comes_from_the_fence() -> None:
    """A new owner reads on from the stored fence, whatever the group has committed."""
    bench = Bench()
    for number in range(5):
        bench.evaluate(f"u{number}")
    async with bench.running():
        await until(bench.is_all_saved)
    bench.broker.committed("counting")[EVALUATIONS, 0] = 1
    bench.evaluate("u0")
    async with bench.running():
        await until(bench.is_all_saved)
    bench.broker.committed("counting")[EVALUATIONS, 0] = 6
    bench.evaluate("u9")
    async with bench.running():
        await until(bench.is_all_saved)
    arm = arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"]
    assert (arm.evaluations, arm.exposures) == (7, 6)


async def test_two_members_share_and_hand_over() -> None:
    """When members come and go, each record is counted by exactly one of them."""
    bench = Bench(partitions=4)
    for number in range(100):
        bench.evaluate(f"u{number}")
        bench.happen(f"u{number}", ON)
    async with bench.running():
        await until(lambda: bench.fence(EVALUATIONS) > 0)
        async with bench.running():
            for number in range(100):
                bench.evaluate(f"u{number}")
            await until(bench.is_all_saved)
        for number in range(100):
            bench.evaluate(f"v{number}")
        await until(bench.is_all_saved)
    arms = [
        arms_in(bench.stored(EVALUATIONS, partition))["new-checkout", 0, "treatment"]
        for partition in range(4)
    ]
    assert sum(arm.evaluations for arm in arms) == 300
    assert sum(arm.exposures for arm in arms) == 200


async def test_a_lost_fence_means_counting_again_from_it() -> None:
    """A member whose fence another one moved drops its memory and loads what is stored."""
    bench = Bench()
    bench.evaluate("a")
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        old = {name: dict(stored) for name, stored in bench.totals.hashes.items()}
        bench.evaluate("b")
        await until(bench.is_all_saved)
        bench.totals.hashes.update(old)  # a fail-over lost the last save
        bench.evaluate("c")
        await until(bench.is_all_saved)
        assert ingest.counters.fences_lost >= 1
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 3


async def test_an_emptied_store_is_filled_from_the_log() -> None:
    """After all is lost, counting begins at the earliest record that is left."""
    bench = Bench()
    bench.evaluate("a")
    bench.evaluate("b")
    async with bench.running():
        await until(bench.is_all_saved)
        bench.totals.hashes.clear()
        await until(bench.is_all_saved)
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 2


async def test_a_save_of_unknown_outcome_is_repeated() -> None:
    """A lost reply is asked for again with the same arguments and counts once."""
    bench = Bench()
    bench.evaluate("a")
    bench.totals.outage.lost_replies = 5
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.counters.fences_lost == 0
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].evaluations == 1


async def test_an_outage_of_the_store_stops_fetching_at_a_bound_and_loses_nothing() -> None:
    """While nothing can be saved only a bounded number of records is taken.

    Afterwards all are counted.
    """
    bench = Bench(
        settings=make_settings(max_unsaved_records=50, fetch_max_records=10),
        pacing=make_pacing(pending_records=20),
    )
    async with bench.running() as ingest:
        await until(lambda: bench.fence(EVALUATIONS) == 0)
        bench.totals.outage.is_down = True
        for number in range(500):
            bench.evaluate(f"u{number}")
        await until(lambda: ingest.counters.save_troubles > 0)
        for _ in range(200):
            await asyncio.sleep(0)
        view = next(view for view in ingest.views() if view.topic == EVALUATIONS)
        assert view.next_offset < 100
        bench.totals.outage.is_down = False
        await until(bench.is_all_saved)
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 500


async def test_a_backlog_is_saved_less_often_and_its_end_at_once() -> None:
    """While the log has much more than was folded, catching up comes first.

    What was caught up with is saved as ever.
    """
    bench = Bench(
        settings=make_settings(fetch_max_records=10),
        pacing=make_pacing(pending_records=20, backlog_seconds=1000.0),
    )
    for number in range(500):
        bench.evaluate(f"u{number}")
    fences = set()
    async with bench.running():
        async with asyncio.timeout(60):
            while not bench.is_all_saved():
                fences.add(bench.fence(EVALUATIONS))
                await asyncio.sleep(0)
    assert fences <= {-1, *range(481, 501)}


async def test_a_busy_partition_is_never_paused() -> None:
    """What is at hand is folded before more is fetched.

    A pause would throw away what the client has read ahead.
    """
    bench = Bench(settings=CountingSettings())
    for _ in range(12_000):
        bench.evaluate("a")
    ingest, log = bench.make()
    paused: list[object] = []
    log.pause = paused.append  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(ingest.run())
    await log.start()
    await until(lambda: bench.fence(EVALUATIONS) == 12_000)
    await ingest.stop()
    await task
    await log.stop()
    assert paused == []


async def test_refusals_are_published_before_the_fence_moves() -> None:
    """While the quarantine answers, a refused record is there before the fence moves past it."""
    bench = Bench()
    fences: list[int] = []
    publish = bench.quarantine

    async def quarantine(batches: Sequence[RefusalBatch]) -> None:
        fences.append(bench.fence(EVALUATIONS))
        await publish(batches)

    bench.quarantine = quarantine  # type: ignore[method-assign]
    bench.evaluate("a")
    bench.broker.append(EVALUATIONS, b"{", partition=0, timestamp_ms=at_ms(NOW))
    bench.evaluate("b")
    with capture_logs() as lines:
        async with bench.running():
            await until(bench.is_all_saved)
    assert fences == [-1]
    [logged] = [line for line in lines if line["event"] == "records_refused"]
    assert (logged["topic"], logged["reason"], logged["records"]) == (EVALUATIONS, "not_json", 1)
    [(topic, partition, [refused])] = bench.quarantined
    assert (topic, partition, refused.offset) == (EVALUATIONS, 0, 1)
    assert bench.progress(EVALUATIONS).quarantined == 1
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 2


async def test_what_was_read_and_refused_here_is_known_by_topic() -> None:
    """A topic is judged by it. What another member had counted is no part of it."""
    bench = Bench()
    for _ in range(2):
        bench.evaluate("a")
        bench.evaluate("a", flag="nobody-knows-it")
        for value in (b"{", b"{", b""):
            bench.broker.append(EVALUATIONS, value, partition=0, timestamp_ms=at_ms(NOW))
        bench.happen("a", ON)
        async with bench.running() as ingest:
            await until(bench.is_all_saved)
        assert ingest.counters.records == {
            EVALUATIONS: ReadRecords(
                5, 3, Counter({QuarantineReason.NOT_JSON: 2, QuarantineReason.EMPTY: 1})
            ),
            OUTCOMES: ReadRecords(1, 0),
        }


async def test_a_packed_record_with_good_events_is_not_refused_whole() -> None:
    """An export of a hundred events counts but for one: it is no reason to call people."""
    bench = Bench(readers=LINES)
    good = evaluation_value("a", "on", time_ms=at_ms(NOW))
    ignored = evaluation_value("a", "on", time_ms=at_ms(NOW), flag="nobody-knows-it")
    for lines in ((good, b"{"), (ignored, b"{"), (b"{", b"{"), (good, good)):
        bench.broker.append(EVALUATIONS, b"\n".join(lines), partition=0, timestamp_ms=at_ms(NOW))
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
    records = ingest.counters.records[EVALUATIONS]
    assert (records.read, records.refused) == (4, 1)
    assert bench.progress(EVALUATIONS).quarantined == 3


async def test_refusals_of_a_pair_are_published_together_before_either_fence_moves() -> None:
    """A save waits for its refusals once, and not for those of each partition in turn."""
    bench = Bench()
    published: list[tuple[int, int, list[str]]] = []

    async def quarantine(batches: Sequence[RefusalBatch]) -> None:
        topics = [batch.topic for batch in batches]
        published.append((bench.fence(EVALUATIONS), bench.fence(OUTCOMES), topics))

    bench.quarantine = quarantine  # type: ignore[method-assign]
    for topic in (EVALUATIONS, OUTCOMES):
        bench.broker.append(topic, b"{", partition=0, timestamp_ms=at_ms(NOW))
    async with bench.running():
        await until(bench.is_all_saved)
    assert published == [(-1, -1, [OUTCOMES, EVALUATIONS])]


async def test_a_save_waits_until_there_is_room_for_its_refusals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More is refused at once than may wait, and the quarantine gets all of it."""
    monkeypatch.setattr("controller.counting.refusals.MOST_REFUSALS", 600)
    bench = Bench()
    for topic in (EVALUATIONS, OUTCOMES):
        for _ in range(400):
            bench.broker.append(topic, b"{", partition=0, timestamp_ms=at_ms(NOW))
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.refusals.dropped == 0
    assert sum(len(refusals) for _, _, refusals in bench.quarantined) == 800


async def test_what_many_partitions_have_for_a_save_may_wait_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a flood in all of them none drops the details of others for want of room."""
    most = 40_000
    monkeypatch.setattr("controller.counting.refusals.MOST_BYTES", most)
    monkeypatch.setattr("controller.counting.pair_order.MOST_BYTES", most)
    bench = Bench(
        partitions=8, settings=make_settings(fetch_max_records=1, flush_interval_seconds=1.0)
    )
    for topic in (EVALUATIONS, OUTCOMES):
        for partition in range(8):
            for _ in range(40):
                bench.broker.append(topic, b"{", partition=partition, timestamp_ms=at_ms(NOW))
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.refusals.dropped == 0
    written = [
        some for _, _, refusals in bench.quarantined for some in quarantine.written(refusals)
    ]
    assert sum(some.count for some in written) == 640
    assert max(some.size for some in written) <= most / 16


async def test_counting_does_not_wait_for_a_quarantine_that_is_away() -> None:
    """One bad record and no quarantine.

    Everything is counted, the fault is shown, and details come later.
    """
    bench = Bench(pacing=make_pacing(quarantine_seconds=0.01, retry_seconds=0.001))
    bench.is_quarantine_down = True
    bench.broker.append(OUTCOMES, b"{", partition=0, timestamp_ms=at_ms(NOW))
    for number in range(300):
        bench.happen(f"u{number}", ON, error=True)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert bench.quarantined == []
        fault = bench.faults.of(Scope.DEPENDENCY, "quarantine")
        assert fault is not None
        assert "1 refusals wait" in fault.why
        bench.is_quarantine_down = False
        await until(lambda: ingest.refusals.waiting == 0)
        await until(lambda: bench.faults.of(Scope.DEPENDENCY, "quarantine") is None)
    assert [one.offset for _, _, refusals in bench.quarantined for one in refusals] == [0]
    arm = arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"]
    assert arm.first_errors == 300


async def test_more_poison_than_one_quarantine_record_holds() -> None:
    """A partition full of poison is quarantined whole, and in batches."""
    bench = Bench()
    for _ in range(1234):
        bench.broker.append(OUTCOMES, b"?", partition=0, timestamp_ms=at_ms(NOW))
    async with bench.running():
        await until(bench.is_all_saved)
    assert [refusal.offset for _, _, refusals in bench.quarantined for refusal in refusals] == list(
        range(1234)
    )
    refusal_reason = bench.quarantined[0][2][0].reason.value
    assert bench.progress(OUTCOMES).quarantined == 1234
    label = {"reason": refusal_reason}
    found = bench.metrics.registry.get_sample_value("rolloutd_quarantined_total", label)
    assert found == 1234


async def test_refused_records_are_counted_by_each_of_their_reasons() -> None:
    """Also where one record of the quarantine has several."""
    bench = Bench()
    for value in (b"?", b"", b"?", b'{"specversion":"1.0"}', b"?"):
        bench.broker.append(OUTCOMES, value, partition=0, timestamp_ms=at_ms(NOW))
    async with bench.running():
        await until(bench.is_all_saved)
    reasons = ("not_json", "empty", "not_cloudevent")
    assert [
        bench.metrics.registry.get_sample_value("rolloutd_quarantined_total", {"reason": one})
        for one in reasons
    ] == [3, 1, 1]
