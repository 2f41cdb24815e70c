"""Events a second of one partition on one core, by format: `python -m tests.benchmarks.formats`.

Decoding and counting, without Kafka and Redis. OTLP exports hold 500 requests, a flag evaluated in
each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.partition_totals import ReadEvaluations, ReadOutcomes
from controller.ports import Record
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import EventFormat
from tests.builders import MINUTE, T0, make_rollout
from tests.records import Owner, at_ms, evaluation_value, make_record, outcome_value
from tests.telemetry import Request, export_of_logs, export_of_spans

Readers = tuple[ReadEvaluations, ReadOutcomes]

AT_MS = at_ms(T0 + 5 * MINUTE)
FLAG = "new-checkout"
REQUESTS = [
    Request(
        f"u{number}",
        [(FLAG, "on" if number % 2 else "off")],
        AT_MS + number,
        latency_ms=number % 300 + 1,
    )
    for number in range(500)
]
EXPORTS = 40
ROUNDS = 5


def measure(name: str, values: Sequence[bytes], readers: Readers, *, evaluations: bool) -> None:
    """Print how fast these values are counted, each repeated up to 20,000 events."""
    records: list[Record] = [
        make_record(offset, values[offset % len(values)])
        for offset in range(EXPORTS * len(REQUESTS) if len(values) > 1 else EXPORTS)
    ]
    fastest = float("inf")
    for _ in range(ROUNDS):
        directory = FlagsToCount()
        directory.count_for(make_rollout())
        owner = Owner(directory, counts_exposures=evaluations, readers=readers)
        began = time.process_time()
        for begin in range(0, len(records), len(REQUESTS)):
            owner.fold(records[begin : begin + len(REQUESTS)])
        fastest = min(fastest, time.process_time() - began)
        assert owner.totals.progress.counted == len(records)
    kind = "evaluations" if evaluations else "outcomes"
    rate = EXPORTS * len(REQUESTS) / fastest
    print(
        f"{name:<18}{kind:<13}{rate:>10,.0f} a second   "
        f"{sum(map(len, values)) / len(REQUESTS):>5.0f} bytes each"
    )


def main() -> None:
    """Measure every format."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    ours: Readers = (evaluation_reader(EventFormat.ROLLOUTD), outcome_reader(EventFormat.ROLLOUTD))
    evaluated = [
        evaluation_value(one.context, one.flags[0][1], time_ms=one.at_ms) for one in REQUESTS
    ]
    happened = [
        outcome_value(
            one.context, time_ms=one.at_ms, flags=one.flags, latency_ms=float(one.latency_ms)
        )
        for one in REQUESTS
    ]
    measure("rolloutd", evaluated, ours, evaluations=True)
    measure("rolloutd", happened, ours, evaluations=False)
    for each in (EventFormat.OTLP_JSON, EventFormat.OTLP_PROTO):
        spans = export_of_spans(REQUESTS, each)
        of_spans: Readers = (evaluation_reader(each, of_spans=True), outcome_reader(each))
        measure(
            f"{each} logs",
            [export_of_logs(REQUESTS, each)],
            (evaluation_reader(each), outcome_reader(each)),
            evaluations=True,
        )
        measure(f"{each} spans", [spans], of_spans, evaluations=True)
        measure(f"{each} spans", [spans], of_spans, evaluations=False)


if __name__ == "__main__":
    main()
