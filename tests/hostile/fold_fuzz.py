"""The native fold and the reference read the same hostile records: they must agree on everything.

    python -m tests.hostile.fold_fuzz --records 10000000

Batches come plain, compressed with each codec, cut, with wrong checksums, and broken with right
ones. The native side reads what it takes where it lies in the batch. The reference gets the records
as aiokafka reads them. After each batch classes, refusals and all counts must be equal, and at each
save every stored byte. Now and then both go on with what the other has stored. Ends with the
figures, or at the first difference with the seed of its round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any

from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from controller.adapters.kafka.batch_codecs import UnpackBudget, unpacked
from controller.adapters.kafka.batch_format import (
    CODEC_MASK,
    CRC_FROM,
    HEADER,
    Unpackable,
    new_batch,
)
from controller.counting.folding.native import NATIVE, native_fold
from controller.counting.folding.partition_fold import PartitionFold
from controller.ports import Record
from tests.both_folds import FLAGS, Side, swap
from tests.hostile.fold_material import BROKEN, PLAIN, Material

RECORDS_PER_ROUND = 20_000
_CHECKSUM, _ATTRIBUTES, _DELTA, _COUNT = 4, 5, 6, 12  # of a header's fields
_MOST = 1 << 20  # bytes that a batch of ours unpacks to at most, far more than it does
_NAMES = {BROKEN: "broken", PLAIN: "plain", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}


class Different(Exception):
    """Both sides do not agree; the message says on what."""


def expect(what: str, native: object, reference: object) -> None:
    """Raise Different unless both are equal; of lists of one length it shows the first two."""
    if native != reference:
        if isinstance(native, list) and isinstance(reference, list):
            pairs = zip(native, reference, strict=False)
            native, reference = next(
                (each for each in pairs if each[0] != each[1]), (native, reference)
            )
        raise Different(f"{what}:\n native    {native!r}\n reference {reference!r}")


# --- reading ---


def read_by_aiokafka(content: bytes, offset: int) -> list[Record] | None:
    """Return the records of a batch from `offset` on, None for one that cannot be read."""
    records = []
    try:
        batches = MemoryRecords(content)
        if not batches.has_next():
            return None
        batch = batches.next_batch()
        if not batch.validate_crc():
            return None
        for one in batch:
            if one.offset >= offset:
                headers = tuple(one.headers)
                records.append(
                    Record("t", 0, one.offset, one.timestamp, one.key, one.value, headers)
                )
    except Exception:  # of whatever codec or library
        return None
    return records


def read_natively(content: bytes, offset: int) -> Any | None:
    """Return the records of a batch where they lie, None for one that is left to aiokafka."""
    assert NATIVE is not None
    records, behind, _ = NATIVE.read_batches(content, 0, offset)
    return records if behind else None


def unpacked_batch(content: bytes) -> bytes:
    """Return a batch without its codec; itself when it has none, or cannot be unpacked."""
    if len(content) < HEADER.size:
        return content
    header = HEADER.unpack_from(content)
    codec = header[_ATTRIBUTES] & CODEC_MASK
    if codec and calc_crc32c(content[CRC_FROM:]) == header[_CHECKSUM] & 0xFFFFFFFF:
        with suppress(Unpackable):
            payload = memoryview(content)[HEADER.size :]
            records = bytes(unpacked(codec, payload, _MOST, UnpackBudget()))
            return new_batch(header, header[_DELTA], header[_COUNT], records)
    return content


def parts_of(record: Any) -> tuple[object, ...]:
    """Return everything that a record is made of."""
    return record.offset, record.timestamp, record.key, record.value, tuple(record.headers)


# --- one round ---


class Round:
    """Both sides over one random history; the seed repeats it."""

    def __init__(self, seed: int) -> None:
        assert NATIVE is not None
        self.chance = Random(seed)
        exact_limit = self.chance.choice((1, 50, 1_000, 100_000))
        own_fields = self.chance.choice((1, 1_000))  # with more flags than that, bundles
        self.reference = Side(PartitionFold, exact_limit, own_fields)
        self.native = Side(native_fold(NATIVE), exact_limit, own_fields)
        self.material = Material(self.chance, self.chance.choice((3, 100, 5_000)))
        self.figures: Counter[str] = Counter()

    def run(self, records: int) -> Counter[str]:
        """Fold at least so many records on both sides; return what came. Raises Different."""
        figures, chance = self.figures, self.chance
        while figures["records"] < records:
            self.fold_batch(of_evaluations=chance.random() < 0.5)
            if chance.random() < 0.5:
                self.reference.begin_batch()
                self.native.begin_batch()
            kind = chance.random()
            if kind < 0.1:
                self.save(of_evaluations=chance.random() < 0.5)
            elif kind < 0.103:
                self.save(of_evaluations=True)
                self.save(of_evaluations=False)
                swap(self.reference, self.native)
                figures["swaps"] += 1
            elif kind < 0.105:
                self.give_up_some()
        for of_evaluations in (True, False):
            self.save(of_evaluations=of_evaluations)
        return figures

    def fold_batch(self, *, of_evaluations: bool) -> None:
        """Fold one batch on both sides, or find that neither can read it."""
        position = self.reference.totals[of_evaluations].position
        sent, content, codec = self.material.batch(position, of_evaluations=of_evaluations)
        reference = read_by_aiokafka(content, position)
        native = read_natively(unpacked_batch(content), position)
        self.figures[f"{_NAMES[codec]} batches"] += 1
        if codec != BROKEN:
            assert reference is not None
            expect("what was sent", list(map(parts_of, reference)), list(map(parts_of, sent)))
            if native is None:
                raise Different(f"a whole {_NAMES[codec]} batch is not read natively")
        if native is not None:
            if reference is None and read_natively(content, position) is None:
                # Our codecs take a little more of what is broken than aiokafka's do.
                self.figures["batches unpacked by us alone"] += 1
                reference = list(native)
            if reference is None:
                raise Different(f"aiokafka cannot read the batch {content!r}")
            self.figures["read natively"] += len(native)
            expect("records", list(map(parts_of, native)), list(map(parts_of, reference)))
        if not reference:
            self.figures["unreadable batches"] += 1
            return
        self.figures["records"] += len(reference)
        self.fold(of_evaluations, reference, reference if native is None else native)

    def fold(self, of_evaluations: bool, reference: Sequence[Any], native: Any) -> None:
        """Fold the same records on both sides, in as many pieces as there is room for."""
        has_saved = False
        while len(reference):
            room = self.chance.choice((1, 3, 1_000, 1_000))
            folded = self.reference.fold(of_evaluations, reference, room)
            expect("folded", self.native.fold(of_evaluations, native, room), folded)
            self.compare()
            if folded == 0 and room > 1:
                if has_saved:
                    # An outcome that must wait for evaluations that never come: its record is from
                    # the near future. The next batch takes its offsets.
                    self.figures["waiting"] += len(reference)
                    return
                self.save(of_evaluations=of_evaluations)
                has_saved = True
            reference, native = reference[folded:], native[folded:]

    def compare(self) -> None:
        """Compare what is counted in memory, and what was refused."""
        for of_evaluations in (True, False):
            native, reference = (
                one.totals[of_evaluations].progress for one in (self.native, self.reference)
            )
            expect("classes", native, reference)
        expect("noticed", self.native.noticed(), self.reference.noticed())
        self.figures["refused"] += sum(some.count for some in self.reference.refused)
        self.native.refused, self.reference.refused = [], []

    def save(self, *, of_evaluations: bool) -> None:
        """Save on both sides; compare all that is stored."""
        self.figures["saves"] += 1
        native, reference = self.native.save(of_evaluations), self.reference.save(of_evaluations)
        if native != reference:
            names = sorted(native.keys() | reference.keys())
            first = next(one for one in names if native.get(one) != reference.get(one))
            expect(f"stored {first}", native.get(first), reference.get(first))

    def give_up_some(self) -> None:
        """Drop a rollout, or keep a small budget."""
        flag_key, most = self.chance.choice(FLAGS[:2]), self.chance.choice((0, 100, 10_000))
        does_drop = self.chance.random() < 0.3
        for side in (self.native, self.reference):
            for totals in side.totals.values():
                if does_drop:
                    totals.flags.drop(flag_key, f"start-{flag_key}")
                else:
                    totals.flags.keep_budget(most)


def run_round(seed: int) -> Counter[str]:
    """Run one round. Raises Different, with the seed in its message."""
    try:
        return Round(seed).run(RECORDS_PER_ROUND)
    except Exception as difference:
        raise Different(f"seed {seed}: {type(difference).__name__}: {difference}") from difference


# --- the command ---


def fuzz(records: int, seed: int, processes: int) -> Counter[str]:
    """Fold so many records or some more on both sides; return what came. Raises Different."""
    figures: Counter[str] = Counter()
    began = time.monotonic()
    with multiprocessing.Pool(processes) as pool:
        seeds = range(seed, seed + -(-records // RECORDS_PER_ROUND))
        for number, some in enumerate(pool.imap_unordered(run_round, seeds), 1):
            figures += some
            if number % 25 == 0:
                seconds = time.monotonic() - began
                print(f"{seconds:6.0f} s: {figures['records']:,} records", flush=True)
    return figures


def main() -> None:
    """Fuzz both folds; exits with 1 where they differ."""
    parser = argparse.ArgumentParser(description="Hold the native fold against the reference.")
    parser.add_argument("--records", type=int, default=10_000_000, help="how many at least")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if NATIVE is None:
        sys.exit("no native fold: `make native` builds it")
    try:
        figures = fuzz(arguments.records, arguments.seed, arguments.processes)
    except Different as difference:
        sys.exit(f"DIFFERENT, {difference}")
    print(", ".join(f"{count:,} {what}" for what, count in sorted(figures.items())))
    print(f"{figures['records']:,} records folded by both, 0 differences")


if __name__ == "__main__":
    main()
