"""The client of tests with a real daemon: what it waits for, it waits for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live import Client


class Told(Client):
    """A client whose topics have one more event at each reading."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.readings = 0

    async def read(self, topic: str) -> list[dict[str, Any]]:
        """Return the events that are published by now."""
        self.readings += 1
        return [{"data": one} for one in self.events[: self.readings - 1]]


async def test_a_topic_is_read_until_it_holds() -> None:
    """Nothing, one of another kind, the first: the second is what is waited for."""
    kinds = ["start", "pause", "pause", "resume"]
    client = Told([{"kind": kind} for kind in kinds])
    assert await client.decisions("pause", 2) == [{"kind": "pause"}, {"kind": "pause"}]
    assert client.readings == 4


async def test_refused_records_are_counted_not_their_events() -> None:
    """One event of the quarantine has many of them."""
    client = Told([{"refusals": ["a"]}, {"refusals": ["b", "c"]}, {"refusals": ["d"]}])
    refusals: list[Any] = await client.refusals(3)
    assert refusals == ["a", "b", "c"]
    assert client.readings == 3


async def test_what_never_comes_is_said_with_what_there_is() -> None:
    """So that a test that fails shows why."""
    client = Told([{"kind": "start"}])
    with pytest.raises(AssertionError, match=r"rollout\.decisions has only .*start"):
        await client.until_read("rollout.decisions", lambda events: len(events) > 1, seconds=0.2)
