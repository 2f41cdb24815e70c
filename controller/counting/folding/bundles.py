"""Arms that are stored together: the entries of each bundle, and which bundles are to be written.

A bundle is written whole. Entries of arms that have not changed are kept as they were last written,
so that a save encodes what has changed alone. Does not belong here: which arm goes into which
bundle (`layout/stored_arms.py`).
"""

from __future__ import annotations

from controller.counting.folding.arm_counters import ArmCounter
from schemas.totals import bundle_entry, encode_arm, encode_bundle


class Bundles:
    """The bundles of one partition."""

    def __init__(self) -> None:
        """Start with none."""
        # By their number: arm's name -> entry, as it was last written.
        self._entries: dict[int, dict[str, bytes]] = {}
        self._unordered: set[int] = set()  # those whose names are perhaps not sorted
        # Those to be written: the arms in them that have changed.
        self._changed: dict[int, list[ArmCounter]] = {}

    def open(self, number: int) -> dict[str, bytes]:
        """Return the entries of a bundle, which is begun if needed."""
        return self._entries.setdefault(number, {})

    def put(self, number: int, name: str, value: bytes) -> None:
        """Put an arm's totals into its bundle, as they are stored."""
        self.open(number)[name] = bundle_entry(name, value)
        self._unordered.add(number)

    def remove(self, number: int, name: str) -> None:
        """Remove an arm; the bundle is to be written without it if it was written with it."""
        if self.open(number).pop(name, None) is not None:
            self._changed.setdefault(number, [])

    def names(self, number: int) -> list[str]:
        """Return the names of the arms in a bundle, sorted."""
        return sorted(self.open(number))

    def note(self, changed: ArmCounter) -> None:
        """Note that an arm has changed: its bundle is to be written."""
        assert changed.bundle is not None
        self._changed.setdefault(changed.bundle, []).append(changed)

    def __len__(self) -> int:
        """Return how many bundles there are."""
        return len(self._entries)

    def to_write(self) -> list[int]:
        """Return the numbers of the bundles to be written, sorted."""
        return sorted(self._changed)

    def take(self, number: int) -> bytes:
        """Return the bytes of a bundle; it counts as written from now on.

        Arms that were dropped or have got a field of their own since they were noted are left out.
        """
        entries = self.open(number)
        for counter in self._changed.pop(number, ()):
            if counter.is_counting and counter.bundle == number:
                if counter.field not in entries:
                    self._unordered.add(number)
                entries[counter.field] = counter.bundle_head + encode_arm(counter.take())
        if number in self._unordered:
            entries = self._entries[number] = dict(sorted(entries.items()))
            self._unordered.discard(number)
        return encode_bundle(entries.values())
