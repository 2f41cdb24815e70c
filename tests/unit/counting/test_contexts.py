"""Sets of contexts: what they hold, what is stored of them, and what a reload gives back."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.counting.contexts import (
    ContextSet,
    EntryLog,
    Filter,
    Memberships,
    RecentExposures,
    digest_of,
)

DIGESTS = st.integers(0, 2**64 - 1)
NAME = "flag|start-1|0|treatment"


class Stored(dict[str, bytes]):
    """A hash that takes what a save writes."""

    def save(self, sets: Memberships | RecentExposures, *, with_garbage: bool = True) -> int:
        """Write what changed and return how many bytes that was."""
        fields, garbage = sets.take_changed()
        self.update(fields)
        for name in garbage if with_garbage else ():
            self.pop(name, None)
        return sum(map(len, fields.values()))

    def reload(self, exact_limit: int) -> Memberships:
        """Return the sets as a new owner has them."""
        again = Memberships(exact_limit)
        again.restore(self)
        return again


def state(sets: Memberships) -> dict[str, tuple[set[int], list[bytes]]]:
    """Return everything a membership can depend on."""
    return {
        name: (
            sets.named(name).exact,
            [layer.words.tobytes() for layer in sets.named(name).filters],
        )
        for name in sets.names()
    }


def test_digests_never_change() -> None:
    """A context's digest is what earlier releases have stored."""
    assert digest_of(b"") == 0x2D06800538D394C2  # XXH3's own test vector
    assert digest_of(b"u-42") == 0x530A4063BEB6ED1C


def test_a_context_is_new_once() -> None:
    """Adding says whether the context was not in the set yet; sets do not see each other's."""
    sets = Memberships(10)
    one, other = sets.named("a|r|0|errors"), sets.named("b|r|0|errors")
    assert [sets.add(one, 1), sets.add(one, 1), sets.add(other, 1)] == [True, False, True]
    assert (1 in one, 2 in one) == (True, False)


@given(
    st.lists(
        st.tuples(st.sampled_from([NAME, "flag|start-1|0|errors"]), DIGESTS | st.integers(0, 20)),
        max_size=200,
    ),
    st.sampled_from([1, 3, 1000]),
    st.randoms(use_true_random=False),
)
def test_a_reload_is_exact(added: list[tuple[str, int]], exact_limit: int, chance: Random) -> None:
    """After any additions, saves and sealing, a reload holds exactly the same.

    And goes on alike.
    """
    sets, stored = Memberships(exact_limit), Stored()
    for name, digest in added:
        sets.add(sets.named(name), digest)
        if chance.random() < 0.2:
            stored.save(
                sets, with_garbage=chance.random() < 0.8
            )  # a crash between the save and the deletion
        if chance.random() < 0.1:
            stored.save(sets)
            sets = stored.reload(exact_limit)
    stored.save(sets)
    assert state(stored.reload(exact_limit)) == state(sets)


def test_a_save_carries_new_members_once() -> None:
    """What was saved in a full chunk is not written again, however many sets share the journal."""
    sets, stored = Memberships(10**6), Stored()
    chance = Random(1)
    total = 0
    for _ in range(100):
        for number in range(500):
            sets.add(sets.named(f"flag-{number}|r|0|errors"), chance.getrandbits(64))
        total += stored.save(sets)
    members = 100 * 500
    assert (
        total < members * 12 + 100 * 256 * 12 + 500 * 40
    )  # entries, at most a chunk again per save, names


def test_a_large_set_becomes_a_filter() -> None:
    """Beyond the limit a set costs a few bytes per context, forgets none and takes at most 0.2 % of others for its own."""
    chance = Random(2)
    sets, stored = Memberships(5_000), Stored()
    contexts = sets.named(NAME)
    members = [chance.getrandbits(64) for _ in range(60_000)]
    for count, digest in enumerate(members):
        sets.add(contexts, digest)
        if count % 1_000 == 0:
            stored.save(sets)
    stored.save(sets)
    assert len(contexts.exact) < 10_000
    assert all(digest in contexts for digest in members)
    strangers = sum(chance.getrandbits(64) in contexts for _ in range(50_000))
    assert strangers / 50_000 < 0.002
    assert state(stored.reload(5_000)) == state(sets)
    assert sum(map(len, stored.values())) < 12 * len(members)


def test_a_full_filter_keeps_its_promise() -> None:
    """At its capacity a filter takes at most 0.2 % of strangers for members."""
    chance = Random(3)
    held = Filter.for_keys(2**15)
    held.update([chance.getrandbits(64) for _ in range(held.capacity)], held.capacity)
    assert sum(chance.getrandbits(64) in held for _ in range(100_000)) < 200


@given(st.lists(DIGESTS, max_size=50))
def test_a_filter_forgets_nobody(digests: list[int]) -> None:
    """What numpy puts in, the plain test finds, for every digest."""
    held = Filter.for_keys(64)
    held.update(digests, len(digests))
    assert all(digest in held for digest in digests)


def test_dropped_sets_leave_the_store() -> None:
    """After a rollout's sets are dropped, their names and filters go at once and their journal entries in time."""
    sets, stored = Memberships(2_000), Stored()
    chance = Random(4)
    for _ in range(9_000):
        sets.add(sets.named(NAME), chance.getrandbits(64))
        sets.add(sets.named("kept|start-9|0|errors"), chance.getrandbits(20))
    for _ in range(5):
        stored.save(sets)
    sets.drop("flag", "start-1")
    for _ in range(20):
        stored.save(sets)
    kept = sets.named("kept|start-9|0|errors")
    assert sets.names() == [kept.name]
    assert state(stored.reload(2_000)) == state(sets)
    journal = sum(len(value) for name, value in stored.items() if name.startswith("journal/"))
    assert journal < 3 * 12 * len(kept.exact) + 17 * 3072


def test_a_dropped_sets_number_is_not_given_out_again() -> None:
    """Entries of a dropped set never turn up in a set that comes later, not even after a reload."""
    sets, stored = Memberships(10), Stored()
    sets.add(sets.named(NAME), 7)
    stored.save(sets)
    sets.drop("flag", "start-1")
    stored.save(sets)
    again = stored.reload(10)
    assert 7 not in again.named("other|start-2|0|treatment")


def test_a_torn_chunk_is_noticed() -> None:
    """A chunk that is no whole number of entries is an error, not a shorter set."""
    log = EntryLog("journal")
    log.restore({0: b"123"})
    with pytest.raises(ValueError, match="journal"):
        list(log.entries())


def test_restoring_lets_other_threads_run() -> None:
    """While a thread takes over a large journal, others get turns.

    Compiled code would keep them waiting until it is done.
    """
    fields = {"sets/0": b'{"0":"new-checkout|start-1|0|treatment"}'}
    for chunk in range(2_000):
        fields[f"journal/{chunk}"] = b"".join(
            struct.pack("<IQ", 0, chunk << 8 | each) for each in range(256)
        )
    sets = Memberships(20_000)
    thread = threading.Thread(target=sets.restore, args=(fields,))
    turns = 0
    thread.start()
    while thread.is_alive():
        turns += 1
        time.sleep(0.0001)
    assert len(sets.named("new-checkout|start-1|0|treatment").exact) == 512_000
    assert turns > 10


FLAG_OF = {0: "a", 1: "a", 2: "b", 3: "c"}  # set number -> flag; flag "a" has two lanes


def note(recent: RecentExposures, generation: int, digest: int, exposed: int) -> bool:
    """Note an exposure in a generation as the fold does.

    Return whether the generation still matters.
    """
    found = recent.generation(generation)
    if found is not None:
        found.note(FLAG_OF[exposed], exposed, digest)
    return found is not None


def last_of_each_flag(recent: RecentExposures, digest: int, time_ms: int) -> dict[str, int]:
    """Return the set each flag's last exposure fell into, as a join asks for it."""
    while not recent.catch_up(2):
        pass
    found: dict[str, int] = {}
    for number in recent.last(digest, time_ms):
        found.setdefault(FLAG_OF[number], number)
    return found


def test_recent_exposures_keep_the_last_of_each_flag() -> None:
    """Within a slice of time the newest exposure of each flag is known, flags apart.

    And each is stored when it changes.
    """
    recent = RecentExposures(30_000)
    for exposed, expected in (
        (0, {"a": 0}),
        (2, {"a": 0, "b": 2}),
        (1, {"a": 1, "b": 2}),
        (0, {"a": 0, "b": 2}),
    ):
        assert note(recent, 0, 5, exposed)
        assert note(recent, 0, 5, exposed)
        assert last_of_each_flag(recent, 5, 9_999) == expected
    assert last_of_each_flag(recent, 6, 9_999) == {}
    generation = recent.generation(0)
    assert generation is not None
    assert generation.log.added == 4


def test_recent_exposures_end_with_the_window() -> None:
    """An exposure is found through the window and at most a third longer.

    What is too old is deleted from the store.
    """
    recent, stored = RecentExposures(30_000), Stored()
    for number in range(8):
        assert note(recent, number, number, 1)
        stored.save(recent)
    assert recent.catch_up(99)
    assert recent.last(4, 74_999) == [1]
    assert recent.last(4, 79_999) == [1]
    assert recent.last(3, 79_999) == []
    assert recent.generation(1) is None
    assert sorted(stored) == [f"recent/{number}/0" for number in range(3, 8)]


def test_recent_exposures_are_indexed_by_the_slice() -> None:
    """However many there are when the first join comes, a call indexes a bounded number of them."""
    recent, stored = RecentExposures(30_000), Stored()
    for digest in range(2_000):
        note(recent, digest % 2, digest, digest % 4)
        if digest % 700 == 0:
            stored.save(recent)
    calls = 1
    while not recent.catch_up(300):
        calls += 1
    assert 2_000 / (300 + 256) < calls <= 2_000 / 256
    assert all(recent.last(digest, 19_999) == [digest % 4] for digest in range(2_000))
    stored.save(recent)
    found = [
        recent.generation(number) for number in (0, 1)
    ]  # what moves into chunks is not indexed again
    assert [generation.index(1) for generation in found if generation] == [0, 0]


noted = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.integers(0, 5),
        st.sampled_from(sorted(FLAG_OF)),
        st.sampled_from(["", "save", "ask"]),
    ),
    max_size=60,
)


@given(noted, st.integers(1, 400))
def test_recent_exposures_are_the_last_ones_noted(
    noted: list[tuple[int, int, int, str]], repeated: int
) -> None:
    """Whenever it is saved, asked or loaded again.

    Of each flag the last exposure in the newest slice of time is known.
    """
    recent, stored = RecentExposures(30_000), Stored()
    expected: dict[tuple[int, int], dict[str, int]] = {}
    for generation, digest, exposed, then in noted:
        if not note(recent, generation, digest, exposed):
            continue
        expected.setdefault((generation, digest), {})[FLAG_OF[exposed]] = exposed
        for other in range(
            repeated if then == "save" else 0
        ):  # enough for several chunks, now and then
            note(recent, generation, 1_000 + other, 3)
        if then == "save":
            stored.save(recent)
        elif then == "ask":
            last_of_each_flag(recent, digest, 99_999)
    stored.save(recent)
    again = RecentExposures(30_000)
    assert again.restore(stored) == max(numbers_stored(stored), default=-1) + 1
    oldest = (
        max((generation for generation, _ in expected), default=0) - RecentExposures.PER_WINDOW - 1
    )
    for digest in range(6):
        for newest in range(10):
            wanted: dict[str, int] = {}
            for generation in range(newest, max(oldest, newest - 3) - 1, -1):
                wanted = {**expected.get((generation, digest), {}), **wanted}
            for each in (recent, again):
                assert last_of_each_flag(each, digest, newest * 10_000) == wanted


def numbers_stored(stored: Mapping[str, bytes]) -> Iterator[int]:
    """Yield the set numbers of all recent exposures that are stored."""
    for value in stored.values():
        for number, _ in struct.iter_unpack("<IQ", value):
            yield number


def test_an_empty_set_holds_nobody() -> None:
    """A set begins empty."""
    assert 0 not in ContextSet(NAME, 0, 10)
