"""What counting costs per event on one core: decode, fold and encode, without Kafka and Redis.

`python -m tests.benchmarks.ingest` prints microseconds of CPU per event (best of 3) beside a plain
loop that decodes and adds into a dict, which is the least anybody could do. Saves are cut every 100
ms of folding, as at full load. An outcome to be joined counts for every flag its context has
evaluated: 4 on average here.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from controller.counting.counted_flags import Changes
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.partition_totals import PartitionTotals
from controller.ports import Record
from schemas.totals import MAX_FIELDS_PER_SAVE, encode_progress
from schemas.wire import RecordRefused, read_evaluations, read_outcomes
from tests.builders import MINUTE, T0, make_plan, make_rollout
from tests.records import at_ms

EVENTS = 100_000
CONTEXTS = 25_000  # of one partition: 100,000 over four
SLICE = 500
SAVE_SECONDS = 0.1
NOW_MS = at_ms(T0 + 5 * MINUTE)


def envelope(kind: str, data: Mapping[str, object], number: int) -> bytes:
    """Return an event of about 250 bytes."""
    event = {
        "specversion": "1.0",
        "type": f"io.rolloutd.{kind}.v1",
        "source": "/checkout-api",
        "id": f"{number:08x}",
        "time": "2026-01-05T09:05:00Z",
        "data": data,
    }
    return json.dumps(event, separators=(",", ":")).encode()


def evaluations(flags: int, chance: random.Random) -> list[Record]:
    """Return evaluations of random contexts and flags; a tenth is treatment, sticky by context."""
    records = []
    for number in range(EVENTS):
        context = chance.randrange(CONTEXTS)
        data = {
            "feature_flag.key": f"flag-{chance.randrange(flags)}",
            "feature_flag.result.variant": "on" if context % 10 == 0 else "off",
            "feature_flag.context.id": f"user-{context:08d}",
        }
        records.append(
            Record("e", 0, number, NOW_MS, None, envelope("evaluation", data, number), ())
        )
    return records


def outcomes(flags: int, chance: random.Random, *, named: bool) -> list[Record]:
    """Return outcomes of random contexts: one in 100 an error, latencies around 50 ms.

    Without flags unless `named`.
    """
    records = []
    for number in range(EVENTS):
        context = chance.randrange(CONTEXTS)
        data: dict[str, object] = {
            "feature_flag.context.id": f"user-{context:08d}",
            "http.server.request.duration": chance.lognormvariate(-3, 0.5),
        }
        if named:
            flag = {
                "feature_flag.key": f"flag-{chance.randrange(flags)}",
                "feature_flag.result.variant": "on" if context % 10 == 0 else "off",
            }
            data["rolloutd.flags"] = [flag]
        if chance.random() < 0.01:
            data["error.type"] = "500"
        records.append(Record("o", 0, number, NOW_MS, None, envelope("outcome", data, number), ()))
    return records


def directory_of(flags: int) -> FlagsToCount:
    """Return a directory in which every flag has a rollout."""
    directory = FlagsToCount()
    for number in range(flags):
        directory.count_for(make_rollout(plan=make_plan(flag_key=f"flag-{number}")))
    return directory


def plain_evaluations(records: Sequence[Record]) -> None:
    """Decode and add into a dict: the loop to compare with."""
    totals: dict[tuple[str, str], int] = {}
    for _, flag_key, variant, _ in read_evaluations(records, nothing_is_refused):
        totals[flag_key, variant] = totals.get((flag_key, variant), 0) + 1


def plain_outcomes(records: Sequence[Record]) -> None:
    """Decode and add into a dict: the loop to compare with."""
    totals: dict[tuple[str, str], int] = {}
    for _, _, _, flags, *_ in read_outcomes(records, nothing_is_refused):
        for key in flags:
            totals[key] = totals.get(key, 0) + 1


def nothing_is_refused(record: Record, refused: RecordRefused) -> NoReturn:
    """Raise what should not have happened."""
    raise refused


class Counted:
    """One partition's totals with saves in between."""

    def __init__(self, totals: PartitionTotals, partner: PartitionTotals | None = None) -> None:
        self.totals = totals
        self.partner = partner
        self.fields = self.bytes = self.saves = 0
        self.save_seconds = self.longest_save_seconds = 0.0

    def run(self, records: Sequence[Record]) -> float:
        """Fold all records and return the seconds it took, saves' encoding included."""
        began = last_save = time.process_time()
        position = 0
        room = MAX_FIELDS_PER_SAVE - 800
        while position < len(records):
            left = room - self.totals.flags.changed_fields
            if self.totals.counts_exposures:
                batch = records[position : position + min(SLICE, left // 4)]
                self.totals.fold_evaluations(batch, read_evaluations)
                position += len(batch)
            else:
                batch = records[position : position + SLICE]
                position += self.totals.fold_outcomes(
                    batch, read_outcomes, room=left, partner=self.partner
                )
            now = time.process_time()
            if now - last_save >= SAVE_SECONDS or room - self.totals.flags.changed_fields < 200:
                self.save()
                last_save = time.process_time()
        self.save()
        return time.process_time() - began

    def save(self) -> None:
        """Encode what a save would carry."""
        began = time.process_time()
        changes = Changes()
        for _ in self.totals.drain_changes(changes):
            pass
        fields = changes.fields | encode_progress(self.totals.progress)
        took = time.process_time() - began
        self.saves += 1
        self.fields += len(fields)
        self.bytes += sum(map(len, fields.values()))
        self.save_seconds += took
        self.longest_save_seconds = max(self.longest_save_seconds, took)


def totals_of(
    directory: FlagsToCount, *, counts_exposures: bool, exact_limit: int = 100_000
) -> PartitionTotals:
    """Return an empty partition with the window's default."""
    return PartitionTotals(
        directory,
        counts_exposures=counts_exposures,
        exact_limit=exact_limit,
        window_ms=1_800_000 if counts_exposures else None,
    )


def best(*seconds: float) -> float:
    """Return microseconds per event of the fastest round."""
    return min(seconds) / EVENTS * 1e6


def measure(flags: int) -> None:
    """Print the figures for a number of flags."""
    chance = random.Random(7)
    loads = {
        "evaluations": evaluations(flags, chance),
        "outcomes naming a flag": outcomes(flags, chance, named=True),
        "outcomes to be joined": outcomes(flags, chance, named=False),
    }
    directory = directory_of(flags)
    for name, records in loads.items():
        plain = plain_evaluations if name == "evaluations" else plain_outcomes
        plain_seconds, seconds, again = [], [], []
        counted = Counted(totals_of(directory, counts_exposures=True))
        for _ in range(3):
            began = time.process_time()
            plain(records)
            plain_seconds.append(time.process_time() - began)
            partner = None
            if name == "outcomes to be joined":
                partner = totals_of(directory, counts_exposures=True)
                partner.fold_evaluations(loads["evaluations"], read_evaluations)
            counted = Counted(totals_of(directory, counts_exposures=name == "evaluations"), partner)
            seconds.append(counted.run(records))
            second = [
                Record(r.topic, 0, r.offset + EVENTS, r.timestamp, None, r.value, ())
                for r in records
            ]
            again.append(counted.run(second))
        fields, kib = counted.fields / counted.saves, counted.bytes / counted.saves / 1024
        encoding = counted.save_seconds / (2 * EVENTS) * 1e6
        print(
            f"{flags:6} flags  {name:24} plain {best(*plain_seconds):5.2f}  counted "
            f"{best(*seconds):5.2f}  "
            f"contexts known {best(*again):5.2f} us/event   {counted.saves} saves of "
            f"{fields:.0f} fields, {kib:.0f} KiB; "
            f"of it encoding {encoding:.2f} us/event, longest "
            f"{counted.longest_save_seconds * 1e3:.1f} ms"
        )


def main() -> None:
    """Measure with few and with many flags."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    gc.collect()
    gc.freeze()
    gc.disable()
    for flags in (20, 10_000):
        measure(flags)


if __name__ == "__main__":
    main()
