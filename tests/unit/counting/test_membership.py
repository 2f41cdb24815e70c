"""Sets of contexts: what they hold, what is stored of them, and what a reload gives back."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.counting.folding.bloom import BloomFilter
from controller.counting.folding.context_sets import ContextSet, ContextSets, digest_of
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.folding.partition_fold import PartitionFold
from controller.counting.layout.journal import EntryLog
from controller.counting.layout.stored_sets import StoredSets

DIGESTS = st.integers(0, 2**64 - 1)
NAME = "flag|start-1|0|treatment"


class Memberships:
    """Sets of contexts with what is stored of them."""

    def __init__(self, exact_limit: int) -> None:
        """Start empty."""
        self.fold = PartitionFold(
            FlagsToCount(),
            counts_exposures=True,
            exact_limit=exact_limit,
            window_ms=None,
            bundle_of=lambda flag_key, name: None,
        )
        self.layout = StoredSets()
        sets: ContextSets = self.fold._arms.sets
        self.set_of, self.add, self.names = sets.set_of, sets.add, sets.names

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget a rollout."""
        self.fold.drop(flag_key, rollout_id)
        self.layout.drop(flag_key, rollout_id)

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """Continue from what is stored."""
        self.layout.restore(fields, self.fold)
        self.fold.end_restore(0)


class Stored(dict[str, bytes]):
    """A hash that takes what a save writes."""

    def save(self, sets: Memberships, *, with_garbage: bool = True) -> int:
        """Write what changed and return how many bytes that was."""
        fields, garbage = sets.layout.write(sets.fold.drain(), sets.fold)
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
            sets.set_of(name).exact,
            [layer.words.tobytes() for layer in sets.set_of(name).filters],
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
    one, other = sets.set_of("a|r|0|errors"), sets.set_of("b|r|0|errors")
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
        sets.add(sets.set_of(name), digest)
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
            sets.add(sets.set_of(f"flag-{number}|r|0|errors"), chance.getrandbits(64))
        total += stored.save(sets)
    members = 100 * 500
    assert (
        total < members * 12 + 100 * 256 * 12 + 500 * 40
    )  # entries, at most a chunk again per save, names


def test_a_large_set_becomes_a_filter() -> None:
    """Beyond the limit a set costs few bytes per context and errs for at most 0.2 %."""
    chance = Random(2)
    sets, stored = Memberships(5_000), Stored()
    contexts = sets.set_of(NAME)
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
    held = BloomFilter.for_keys(2**15)
    held.update([chance.getrandbits(64) for _ in range(held.capacity)], held.capacity)
    assert sum(chance.getrandbits(64) in held for _ in range(100_000)) < 200


@given(st.lists(DIGESTS, max_size=50))
def test_a_filter_forgets_nobody(digests: list[int]) -> None:
    """What numpy puts in, the plain test finds, for every digest."""
    held = BloomFilter.for_keys(64)
    held.update(digests, len(digests))
    assert all(digest in held for digest in digests)


def test_dropped_sets_leave_the_store() -> None:
    """Dropped sets lose names and filters at once, their journal entries in time."""
    sets, stored = Memberships(2_000), Stored()
    chance = Random(4)
    for _ in range(9_000):
        sets.add(sets.set_of(NAME), chance.getrandbits(64))
        sets.add(sets.set_of("kept|start-9|0|errors"), chance.getrandbits(20))
    for _ in range(5):
        stored.save(sets)
    sets.drop("flag", "start-1")
    for _ in range(20):
        stored.save(sets)
    kept = sets.set_of("kept|start-9|0|errors")
    assert sets.names() == [kept.name]
    assert state(stored.reload(2_000)) == state(sets)
    journal = sum(len(value) for name, value in stored.items() if name.startswith("journal/"))
    assert journal < 3 * 12 * len(kept.exact) + 17 * 3072


def test_a_dropped_sets_number_is_not_given_out_again() -> None:
    """Entries of a dropped set never turn up in a set that comes later, not even after a reload."""
    sets, stored = Memberships(10), Stored()
    sets.add(sets.set_of(NAME), 7)
    stored.save(sets)
    sets.drop("flag", "start-1")
    stored.save(sets)
    again = stored.reload(10)
    assert 7 not in again.set_of("other|start-2|0|treatment")


def test_a_torn_chunk_is_noticed() -> None:
    """A chunk that is no whole number of entries is an error, not a shorter set."""
    log = EntryLog("journal")
    with pytest.raises(ValueError, match="journal"):
        log.restore({0: b"123"})


def test_restoring_lets_other_threads_run() -> None:
    """While a thread takes over a large journal, others get turns.

    Otherwise the event loop would wait until it is done.
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
    assert len(sets.set_of("new-checkout|start-1|0|treatment").exact) == 512_000
    assert turns > 10


def test_an_empty_set_holds_nobody() -> None:
    """A set begins empty."""
    assert 0 not in ContextSet(NAME, 0, 10)
