r"""Where the sets of contexts of one partition are stored: all of them share one journal.

| field | content |
|---|---|
| `sets/<chunk>` | names of 64 sets as JSON: number -> `flag\|rollout\|visit\|kind` |
| `journal/<chunk>` | entries of the journal (`journal.py`) |
| `filter/<number>/<layer>` | `words keys`: the size of one filter, and how many are in it |
| `filter/<number>/<layer>/<part>` | 64 KiB of its bits |

Only the last chunk of the journal is written often, and a filter whole, when contexts move into
it. A reload gives back exactly what was there. Chunks whose entries are mostly dead are cleaned, a
few per save.

Does not belong here: what is in a set (`folding/context_sets.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from controller.counting.folding.bloom import WORDS_PER_KEY
from controller.counting.folding.difference import Difference, SealedSet
from controller.counting.folding.engine import Fold
from controller.counting.layout.journal import ENTRIES_PER_CHUNK, EntryLog

PART_BYTES = 64 * 1024  # of a filter in a field
_WORD = 8  # bytes
_CLEANED_PER_SAVE = 8  # chunks; more would make a save long, fewer could not keep up with new ones
_INSPECTED_PER_SAVE = 200  # chunks; one without a live entry costs some 10 µs
_CLEAN_FROM = 16  # chunks: with fewer the garbage is not worth a write
# Names in a field: 3 KB. At a start flags come by the thousand, and a save has few fields.
_SETS_PER_CHUNK = 64


class StoredSets:
    """The fields of all sets of one partition."""

    def __init__(self) -> None:
        """Start with nothing stored."""
        self.journal = EntryLog("journal")
        self._names: dict[int, str] = {}
        self._numbers: dict[tuple[str, str], list[int]] = {}  # by flag key and rollout id
        self._filters: dict[int, list[int]] = {}  # number -> bytes of each of its filters
        self._dropped: set[int] = set()  # numbers whose stored names are to be removed
        self._garbage: list[str] = []  # fields to delete after the save that replaces them

    def restore(self, fields: Mapping[str, bytes], fold: Fold) -> None:
        """Give a fold its stored sets.

        Raises ValueError when we cannot have written them.
        """
        chunks: dict[int, bytes] = {}
        layers: list[tuple[int, int]] = []
        for field, value in fields.items():
            match field.split("/"):
                case "sets", _:
                    for number, name in msgspec.json.decode(value, type=dict[int, str]).items():
                        fold.restore_set(number, name)
                        self._add_name(number, name)
                case "journal", chunk:
                    chunks[int(chunk)] = value
                case "filter", owner, layer_number:
                    layers.append((int(owner), int(layer_number)))
        for number, layer in sorted(layers):
            if number in self._names:
                words, keys = _stored_filter(f"filter/{number}/{layer}", fields)
                fold.restore_filter(number, words, keys)
                self._filters.setdefault(number, []).append(len(words))
        self.journal.restore(chunks)
        for entries in self.journal.pieces():
            fold.restore_members(entries)

    def _add_name(self, number: int, name: str) -> None:
        self._names[number] = name
        flag_key, rollout_id, _, _ = name.split("|")
        self._numbers.setdefault((flag_key, rollout_id), []).append(number)

    def rollouts(self) -> Iterable[tuple[str, str]]:
        """Return flag key and rollout id of each rollout that has a stored set."""
        return self._numbers.keys()

    def changed_fields(self, fold: Fold, added: int) -> int:
        """Return about how many fields the next save will carry; `added` members are new."""
        capacity, sealing = fold.sealing_capacity, 0
        if capacity:
            sealing = 2 + int(2 * capacity * WORDS_PER_KEY) * _WORD // PART_BYTES
        # Numbers of new sets are consecutive.
        names = 2 + fold.new_sets // _SETS_PER_CHUNK + len(self._dropped)
        return self.journal.changed(added) + names + _CLEANED_PER_SAVE + sealing

    def write(self, difference: Difference, fold: Fold) -> tuple[dict[str, bytes], list[str]]:
        """Return the fields to write and the fields to delete after that.

        Both count as done from now on.
        """
        self.journal.append(difference.members)
        self._clean(fold)
        fields = self.journal.drain()
        for number, name in difference.names:
            self._add_name(number, name)
        fields |= self._changed_names(difference)
        sealed = fold.seal_next()
        if sealed is not None:
            fields |= self._filter(sealed)
        garbage, self._garbage = self._garbage, []
        self._dropped = set()
        return fields, garbage

    def _changed_names(self, difference: Difference) -> dict[str, bytes]:
        """Return the chunks of names that have changed.

        An empty chunk is kept, because its numbers may be given to new sets.
        """
        changed = self._dropped.union(number for number, _ in difference.names)
        fields = {}
        for chunk in sorted({number // _SETS_PER_CHUNK for number in changed}):
            numbers = range(chunk * _SETS_PER_CHUNK, (chunk + 1) * _SETS_PER_CHUNK)
            fields[f"sets/{chunk}"] = msgspec.json.encode(
                {number: self._names[number] for number in numbers if number in self._names}
            )
        return fields

    def _filter(self, sealed: SealedSet) -> dict[str, bytes]:
        """Return the fields of a filter."""
        sizes = self._filters.setdefault(sealed.number, [])
        if sealed.layer == len(sizes):
            sizes.append(len(sealed.words))
        prefix = f"filter/{sealed.number}/{sealed.layer}"
        fields = {prefix: b"%d %d" % (len(sealed.words) // _WORD, sealed.keys)}
        for part, begin in enumerate(range(0, len(sealed.words), PART_BYTES)):
            fields[f"{prefix}/{part}"] = sealed.words[begin : begin + PART_BYTES]
        return fields

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget every set of a rollout that is over; its entries become garbage."""
        for number in self._numbers.pop((flag_key, rollout_id), ()):
            del self._names[number]
            self._dropped.add(number)
            for layer, size in enumerate(self._filters.pop(number, ())):
                self._garbage += _filter_fields(f"filter/{number}/{layer}", size)

    def _clean(self, fold: Fold) -> None:
        """Rewrite the oldest chunks when less than half of all entries are alive."""
        chunks, live = self.journal.chunks, fold.exact_members
        if (chunks < _CLEAN_FROM and live) or 2 * live >= chunks * ENTRIES_PER_CHUNK:
            return
        cleaned = 0
        for chunk, content in self.journal.remove_oldest(_INSPECTED_PER_SAVE):
            self._garbage.append(self.journal.field(chunk))
            alive = fold.live(content)
            if not alive:
                continue
            self.journal.append(alive)
            cleaned += 1
            if cleaned == _CLEANED_PER_SAVE:
                break


def _filter_fields(prefix: str, size: int) -> Sequence[str]:
    """Return the names of all fields of a filter of so many bytes."""
    return [prefix, *(f"{prefix}/{part}" for part in range(-(-size // PART_BYTES)))]


def _stored_filter(prefix: str, fields: Mapping[str, bytes]) -> tuple[bytes, int]:
    """Return words and keys of the filter stored under `prefix`.

    Raises ValueError when a part is missing or of the wrong size.
    """
    words, keys = (int(number) for number in fields[prefix].split())
    if words.bit_count() != 1 or words * _WORD > len(fields) * PART_BYTES or keys < 0:
        raise ValueError(f"filter {prefix!r} cannot have {words} words and {keys} keys")
    _, *parts = _filter_fields(prefix, words * _WORD)
    bits = b"".join([fields.get(part, b"") for part in parts])
    if len(bits) != words * _WORD:
        raise ValueError(f"filter {prefix!r} has {len(bits) / _WORD:g} of {words} words")
    return bits, keys
