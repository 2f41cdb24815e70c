"""Refused records on their way to Kafka: one record a batch, which a repeat is known by."""

from __future__ import annotations

import json
from collections.abc import Sequence

from controller.counting.refusals import RefusalBatch
from controller.ports import OutboxEntry
from controller.running.quarantine import QuarantineTopic
from schemas.quarantine import refusal, written
from schemas.record_refused import RecordRefused
from schemas.terms import QuarantineReason

WHY = RecordRefused(QuarantineReason.NOT_JSON, "no", "send JSON")


class Published:
    """A publisher that keeps what it gets."""

    def __init__(self) -> None:
        """Start with none."""
        self.entries: list[OutboxEntry] = []

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Keep them."""
        self.entries += entries

    def partition_of(self, key: str, partitions: int) -> int:
        """Return the first: it does not matter here."""
        return 0


def make_batch(topic: str, partition: int, begin: int, count: int) -> RefusalBatch:
    """Return refusals of offsets from `begin` on."""
    [some] = written([refusal(begin + number, 1, b"{", WHY) for number in range(count)])
    return RefusalBatch(topic, partition, some)


async def test_each_batch_has_a_record_that_is_known_by_its_offsets() -> None:
    """Its effect has the id of its event, and its key is the topic partition."""
    publisher = Published()
    batches = [
        make_batch("flag.evaluations", 3, 100, 2),
        make_batch("flag.evaluations", 3, 100, 1),
        make_batch("spans#outcomes", 0, 7, 1),
    ]
    await QuarantineTopic(publisher, "/rolloutd/a").publish(batches)
    assert [(one.topic, one.key, one.effect_id) for one in publisher.entries] == [
        ("quarantine", "flag.evaluations/3", "flag.evaluations/3/100-101"),
        ("quarantine", "flag.evaluations/3", "flag.evaluations/3/100-100"),
        ("quarantine", "spans/0", "spans/0/7-7"),
    ]
    events = [json.loads(one.value) for one in publisher.entries]
    assert [one["id"] for one in events] == [one.effect_id for one in publisher.entries]
    assert [one["subject"] for one in events] == [one.key for one in publisher.entries]
    assert {one["source"] for one in events} == {"/rolloutd/a"}
