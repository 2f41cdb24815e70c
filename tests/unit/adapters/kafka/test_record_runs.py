"""Runs of native records are, record for record, what aiokafka would have given out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.kafka.consumer_records import leave_bare, name_faults
from controller.counting.folding.native import NATIVE
from tests.unit.adapters.kafka.test_consumer_records import PARTITION, batch, fetched

pytestmark = pytest.mark.skipif(
    NATIVE is None, reason="NO NATIVE FOLD: `make native` builds it, with Rust 1.85"
)


def as_runs(content: bytes, aborted: list[tuple[int, int]] | None, at: int) -> FetchResult:
    """Return a fetch as a consumer with the native reader has it."""
    assert NATIVE is not None
    result = fetched(content, bare=False, aborted=aborted, at=at)
    guard: Any = SimpleNamespace(contents={(PARTITION, at): content})
    fetcher = SimpleNamespace(_records={})
    leave_bare(SimpleNamespace(_fetcher=fetcher), guard, NATIVE.read_batches)
    fetcher._records[PARTITION] = result
    assert guard.contents == {}
    return result


def taken(result: FetchResult, counts: Sequence[int | None]) -> tuple[list[Any], int, bool]:
    """Return all records that calls with these limits give, the position, and what was raised."""
    records: list[Any] = []
    limits = [*counts, *[None] * 30]
    position = result._assignment.state_value(PARTITION)
    try:
        while result.has_more():
            limit = limits.pop(0)
            some = result.getall(limit)
            assert limit is None or len(some) <= limit
            records += some
    except CorruptRecordException:
        return _parts(records), position.position, True
    return _parts(records), position.position, False


def _parts(records: Sequence[Any]) -> list[Any]:
    return [
        (each.offset, each.timestamp, each.key, each.value, tuple(each.headers)) for each in records
    ]


def compressed(base: int, left: Sequence[int]) -> bytes:
    """Return a batch that is compressed, which stays to aiokafka."""
    builder = DefaultRecordBatchBuilder(2, 1, False, -1, 0, 0, 1 << 16)
    for number in left:
        builder.append(number, timestamp=5, key=b"k", value=b"v" * 50, headers=[])
    return base.to_bytes(8, "big") + bytes(builder.build())[8:]


def made(kind: str, base: int, left: Sequence[int]) -> bytes:
    """Return a batch of some kind."""
    if kind == "compressed":
        return compressed(base, left)
    is_transactional = kind in ("aborted", "committed")
    producer_id = {"aborted": 7, "committed": 8, "idempotent": 9}.get(kind, -1)
    content = batch(
        base=base, left=left, producer_id=producer_id, is_transactional=is_transactional
    )
    if kind == "broken":
        return content[:-1] + bytes([content[-1] ^ 1])
    return content


KINDS = ["plain", "plain", "plain", "idempotent", "compressed", "aborted", "committed"]
sets = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sets(st.integers(0, 6), min_size=1).map(sorted)),
    min_size=1,
    max_size=6,
)


@given(
    sets,
    st.integers(0, 6),
    st.lists(st.none() | st.integers(1, 9), max_size=12),
    st.sampled_from(["", "broken", "cut", "tail"]),
)
def test_runs_are_what_aiokafka_gives(
    batches: list[tuple[str, list[int]]], at: int, counts: list[int | None], end: str
) -> None:
    """All records in order, the same position, and the same fault: whatever surrounds them."""
    at = min(at, batches[0][1][-1])  # brokers answer from the batch on that holds it
    content = b"".join(made(kind, 10 * index, left) for index, (kind, left) in enumerate(batches))
    following = made("broken" if end == "broken" else "plain", 10 * len(batches), [0, 3])
    content += {"": b"", "broken": following, "cut": following[:-3], "tail": following[:9]}[end]
    aborted = [(7, 0)]
    wrapped, position, is_broken = taken(fetched(content, bare=False, aborted=aborted, at=at), [])
    runs, run_position, is_run_broken = taken(as_runs(content, aborted, at), counts)
    assert (runs, is_run_broken) == (wrapped if not is_broken else runs, is_broken)
    if is_broken:
        # aiokafka loses what it has read in the same call; a run was handed out before it.
        assert run_position >= position
    else:
        assert run_position == position


def test_a_run_is_not_made_of_objects() -> None:
    """Plain batches come as one native sequence, as many as are asked for, in slices."""
    result = as_runs(b"".join(batch(base=2 * index) for index in range(5)), None, 0)
    first = result.getall(4)
    assert not isinstance(first, list)
    assert [each.offset for each in first] == [0, 1, 2, 3]
    assert [each.offset for each in result.getall(100)] == [4, 5, 6, 7, 8, 9]
    assert not result.has_more()


def test_a_fetch_ends_with_its_last_run() -> None:
    """Nothing is left for another call: the fetcher asks for more only then."""
    result = as_runs(batch(base=0), None, 0)
    assert len(result.getall(100)) == 2
    assert not result.has_more()


@pytest.mark.parametrize("end", ["given out", "paused", "another position"])
@pytest.mark.parametrize("kind", ["runs", "bare", "named"])
def test_what_was_fetched_is_freed_at_once(kind: str, end: str) -> None:
    """It waits for no collection: those come rarely, and what is fetched is large."""
    content = batch(base=0) + batch(base=2)
    if kind == "runs":
        result = as_runs(content, None, 0)
    else:
        result = fetched(content, bare=kind == "bare")
        if kind == "named":
            name_faults(SimpleNamespace(_fetcher=SimpleNamespace(_records={PARTITION: result})))
    gone = weakref.ref(result._partition_records), weakref.ref(result)
    position = result._assignment.state_value(PARTITION)
    gc.disable()
    try:
        assert len(result.getall(1)) == 1
        if end == "paused":
            position.paused = True
        elif end == "another position":
            position.position = 0
        while result.has_more():
            result.getall()
        del result
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


def test_without_what_was_fetched_records_are_aiokafkas() -> None:
    """A guard that does not know the answer costs speed, and no record."""
    assert NATIVE is not None
    result = fetched(batch(base=0), bare=False)
    fetcher = SimpleNamespace(_records={})
    guard: Any = SimpleNamespace(contents={})
    leave_bare(SimpleNamespace(_fetcher=fetcher), guard, NATIVE.read_batches)
    fetcher._records[PARTITION] = result
    assert isinstance(result.getall(), list)
