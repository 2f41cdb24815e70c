"""Partitions that stand still at a record that cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controller.adapters.kafka.unreadable_records import UnreadableRecords
from controller.health import Faults, Scope

PARTITION = ("events", 0)


@pytest.fixture
def faults() -> Faults:
    """What reports the faults."""
    return Faults(lambda: datetime(2026, 1, 1, tzinfo=UTC))


def stop_at(records: UnreadableRecords, offset: int, *, now: float) -> None:
    """Let the partition stand still at an offset."""
    records.add(PARTITION, offset, next_offset=offset + 3, why="wrong checksum", now=now)


def test_only_the_second_try_of_a_record_is_a_fault(faults: Faults) -> None:
    """A bit flipped on the wire is right at the next try; one on the disk is reported."""
    records = UnreadableRecords(faults)
    stop_at(records, 7, now=0.0)
    assert faults.current == ()
    stop_at(records, 9, now=5.0)
    assert faults.current == ()
    stop_at(records, 9, now=10.0)
    fault = faults.of(Scope.PARTITION, "events/0")
    assert fault is not None
    assert "offset 9" in fault.why
    assert "before offset 12" in fault.fix
    assert records.remove(PARTITION)
    assert not records.remove(PARTITION)
    assert faults.current == ()


def test_tries_become_rarer_up_to_a_minute(faults: Faults) -> None:
    """The first try comes after 5 s, each later one after twice as long, at most 60 s."""
    records = UnreadableRecords(faults)
    now = 0.0
    for seconds in (5.0, 10.0, 20.0, 40.0, 60.0, 60.0):
        stop_at(records, 7, now=now)
        assert not records.begin_try(PARTITION, now + seconds - 0.1)
        now += seconds
        assert records.begin_try(PARTITION, now)
        assert not records.begin_try(PARTITION, now + 0.1)
