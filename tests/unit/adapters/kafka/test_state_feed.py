from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import pytest

from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.codec.tombstones import tombstone_headers
from controller.core.rollout import Rollout
from controller.settings import KafkaSettings
from schemas.state import LARGEST_REVISION
from tests.builders import make_rollout


class FakeRecord(NamedTuple):
    """What is used of aiokafka's records."""

    key: bytes | None
    value: bytes | None
    partition: int = 0
    offset: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


def written(flag_key: str, revision: int, *, is_good: bool = True) -> FakeRecord:
    """Return a record with a document; a bad one has a revision and is of no use all the same."""
    return FakeRecord(
        flag_key.encode(), json.dumps({"data": {"revision": revision, "is_good": is_good}}).encode()
    )


class Reader:
    """A feed before it has caught up, and what it read whole."""

    def __init__(self) -> None:
        self.decoded = 0
        self.overtaken: list[str] = []
        self.feed = KafkaStateFeed(KafkaSettings(), self.decode, overtaken=self.overtaken.append)
        self.flag_key = "f"

    def decode(self, value: bytes) -> Rollout:
        """Return the document."""
        self.decoded += 1
        data = json.loads(value)["data"]
        if not data["is_good"]:
            raise ValueError("of no use")
        return replace(make_rollout(), flag_key=self.flag_key, revision=data["revision"])

    def given(self, *records: FakeRecord) -> list[int]:
        """Return the revisions given of one batch."""
        return [rollout.revision for rollout in self.feed._newer(records)]


def test_of_a_long_history_only_the_newest_is_read() -> None:
    """A flag's thousand old documents cost their revisions alone."""
    reader = Reader()
    assert reader.given(*(written("f", revision) for revision in range(1, 1001))) == [1000]
    assert reader.decoded == 1


def test_an_older_document_written_last_does_not_hide_the_newest() -> None:
    """The highest revision is given wherever it stands.

    And the last record's is known as the last.
    """
    reader = Reader()
    assert reader.given(written("f", 1), written("f", 7), written("f", 3), written("f", 5)) == [7]
    assert reader.feed._last == {"f": 5}


@pytest.mark.parametrize(
    "useless",
    [
        written("f", 9, is_good=False),
        FakeRecord(b"f", None),
        FakeRecord(b"f", b"no JSON"),
        FakeRecord(b"f", b'{"data":' + b"[" * 100_000),
    ],
)
def test_a_document_of_no_use_hides_nothing(useless: FakeRecord) -> None:
    """Behind a document that cannot be read, the best one that can is given.

    And the flag is named as corrupt.
    """
    reader = Reader()
    assert reader.given(written("f", 1), written("f", 2), useless)[-1] == 2
    assert list(reader.feed.corrupt) == ["f"]
    assert reader.given(written("f", 10)) == [10]
    assert not reader.feed.corrupt


def test_what_the_topic_lost_is_reported_and_given_again_when_it_is_back() -> None:
    """A flag that a topic created again does not have is to be published.

    And then stands there again.
    """
    reader = Reader()
    assert reader.given(written("f", 3)) == [3]
    reader.feed._report_overtaken()
    assert reader.overtaken == []
    reader.feed._last.clear()  # as a reading from the beginning does
    reader.feed._report_overtaken()
    assert reader.overtaken == ["f"]
    assert reader.given(written("f", 2)) == []
    assert reader.given(written("f", 3)) == [3]
    assert reader.given(written("f", 3)) == []
    reader.feed._report_overtaken()
    assert reader.overtaken == ["f"]


def retired(flag_key: str, revision: int) -> FakeRecord:
    """Return the tombstone of a flag."""
    return FakeRecord(flag_key.encode(), None, headers=tuple(tombstone_headers(revision)))


def test_a_tombstone_retires_its_flag_and_an_older_document_behind_it_is_late() -> None:
    """Whoever reads the topic later must not get the flag back, so it is reported."""
    reader = Reader()
    assert reader.given(written("f", 3), retired("f", 4), written("f", 2)) == [3, 4]
    reader.feed._report_overtaken()
    assert reader.overtaken == ["f"]
    assert reader.given(retired("f", 4)) == [4]
    assert reader.given(written("f", 5)) == [5]


def test_a_record_without_a_value_by_somebody_else_retires_nothing() -> None:
    """Only our header says that a flag was retired: a mistake with Kafka's tools ends nothing."""
    reader = Reader()
    assert reader.given(written("f", 3), FakeRecord(b"f", None)) == [3]
    assert "deleted" in reader.feed.corrupt["f"]
    assert reader.given(FakeRecord(b"f", None, headers=(("rolloutd-retired", b"four"),))) == []


@pytest.mark.parametrize("revision", [LARGEST_REVISION + 1, 10**16 - 1])
def test_a_tombstone_that_no_document_can_follow_retires_nothing(revision: int) -> None:
    """Somebody else wrote it: the flag would be gone, and no start could bring it back."""
    reader = Reader()
    assert reader.given(written("f", 3), retired("f", revision), written("f", 4)) == [4]


def test_an_old_tombstone_ends_no_newer_rollout() -> None:
    """One that is written late is reported as an old document is."""
    reader = Reader()
    assert reader.given(written("f", 5), retired("f", 4)) == [5]
    reader.feed._report_overtaken()
    assert reader.overtaken == ["f"]
