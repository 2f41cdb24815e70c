"""What a save tells readers about the flags whose totals it and the last ones have changed."""

from __future__ import annotations

import random

from controller.counting.layout.changed_flags import ChangedFlags
from schemas.totals import MOST_CHANGED


def test_a_reader_learns_of_each_change_or_that_it_does_not_know() -> None:
    """Whatever it knew last, it misses none; with few flags it always knows."""
    rng = random.Random(7)
    for most, is_all in ((3, True), (2 * MOST_CHANGED, False)):
        changed, saves, known = ChangedFlags(), [], 0
        told = [changed.at(0)]
        for number in range(1, 60):
            flag_keys = {f"f{rng.randrange(4 * most)}" for _ in range(rng.randrange(most))}
            changed.note(flag_keys)
            saves.append(flag_keys)
            told.append(changed.at(number))
            assert len(told[-1].flags) <= MOST_CHANGED
            for earlier in range(number):
                found = told[-1].after(told[earlier])
                known += found is not None
                assert found is None or found == set().union(*saves[earlier:])
        assert (known == 59 * 60 / 2) == is_all
        assert known > 0


def test_a_save_of_very_many_flags_names_none() -> None:
    """Readers read all, as after a save that they do not know."""
    changed = ChangedFlags()
    changed.note({"a"})
    before = changed.at(1)
    changed.note({f"f{n}" for n in range(MOST_CHANGED + 1)})
    many = changed.at(2)
    assert (many.flags, many.after(before)) == ({}, None)
    changed.note({"a"})
    assert changed.at(3).after(many) == frozenset({"a"})
