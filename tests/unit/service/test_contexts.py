"""Sets of contexts: what they hold, what is stored of them, and what a reload gives back."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.service.contexts import ContextSet, EntryLog, Filter, Memberships, RecentExposures, digest_of, last_of_each

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
        name: (sets.named(name).exact, [layer.words.tobytes() for layer in sets.named(name).filters]) for name in sets.names()
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
    st.lists(st.tuples(st.sampled_from([NAME, "flag|start-1|0|errors"]), DIGESTS | st.integers(0, 20)), max_size=200),
    st.sampled_from([1, 3, 1000]),
    st.randoms(use_true_random=False),
)
def test_a_reload_is_exact(added: list[tuple[str, int]], exact_limit: int, chance: Random) -> None:
    """After any additions, saves and sealing, a reload holds exactly the same, and goes on alike."""
    sets, stored = Memberships(exact_limit), Stored()
    for name, digest in added:
        sets.add(sets.named(name), digest)
        if chance.random() < 0.2:
            stored.save(sets, with_garbage=chance.random() < 0.8)  # a crash between the save and the deletion
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
    assert total < members * 12 + 100 * 256 * 12 + 500 * 40  # entries, at most a chunk again per save, names


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


def note(recent: RecentExposures, number: int, digest: int, exposed: int, same_flag: tuple[int, ...]) -> bool:
    """Note an exposure in a generation as the fold does; return whether the generation still matters."""
    generation = recent.generation(number)
    if generation is not None:
        generation.exposed[digest] = last_of_each(generation.exposed.get(digest, ()), (exposed,), same_flag)
        generation.log.tail += (exposed, digest)
    return generation is not None


def test_recent_exposures_keep_the_last_of_each_flag() -> None:
    """Within a slice of time the newest exposure of each flag is known, flags apart."""
    recent = RecentExposures(30_000)
    assert note(recent, 0, 5, 1, (1, 2))
    assert note(recent, 0, 5, 3, (3,))
    assert note(recent, 0, 5, 2, (1, 2))
    assert recent.last(5, 9_999) == [2, 3]
    assert recent.last(6, 9_999) == []


def test_recent_exposures_end_with_the_window() -> None:
    """An exposure is found through the window and at most a third longer; what is too old is deleted from the store."""
    recent, stored = RecentExposures(30_000), Stored()
    for number in range(8):
        assert note(recent, number, number, 1, (1,))
        stored.save(recent)
    assert recent.last(4, 74_999) == [1]
    assert recent.last(4, 79_999) == [1]
    assert recent.last(3, 79_999) == []
    assert recent.generation(1) is None
    assert sorted(stored) == [f"recent/{number}/0" for number in range(3, 8)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 3)), max_size=60))
def test_recent_exposures_survive_a_reload(noted: list[tuple[int, int, int]]) -> None:
    """A reload gives back who was exposed to what, in the same order."""
    flag_of = {0: "a", 1: "a", 2: "b", 3: "c"}
    numbers = {flag: tuple(number for number, other in flag_of.items() if other == flag) for flag in "abc"}
    recent, stored = RecentExposures(30_000), Stored()
    for generation, digest, exposed in noted:
        if note(recent, generation, digest, exposed, numbers[flag_of[exposed]]):
            stored.save(recent)
    again = RecentExposures(30_000)
    again.restore(stored, flag_of)
    for digest in range(6):
        for time_ms in range(0, 100_000, 10_000):
            assert again.last(digest, time_ms) == recent.last(digest, time_ms)


def test_an_empty_set_holds_nobody() -> None:
    """A set begins empty."""
    assert 0 not in ContextSet(NAME, 0, 10)
