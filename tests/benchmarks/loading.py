"""What contexts cost: memory in the daemon, and the load of a partition that has ten million.

`python -m tests.benchmarks.loading` stores a partition's journal in a Valkey of its own, then lets
the real `Ingest` load it, as after a rebalance. It prints resident memory per (context, flag)
beyond the journal, the seconds until the partition is ready, and for how long the event loop was
held at most meanwhile: a ticker sleeps one millisecond at a time beside it. On a machine with other
load the last is an upper bound, so it is also given in CPU time of the loop's thread.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import redis.asyncio

from controller.adapters.memory import ManualClock, MemoryBroker, MemoryEventLog
from controller.adapters.redis.connection import RedisConnection, chunks
from controller.adapters.redis.totals import RedisTotals
from controller.clock import SystemClock
from controller.counting.folding.context_sets import ENTRIES
from controller.counting.folding.native import ENGINE
from controller.counting.ingest import Ingest
from controller.counting.layout.journal import EntryLog
from controller.counting.owned_partition import PartitionState
from controller.settings import CountingSettings
from controller.telemetry import Metrics
from schemas.totals import MAX_FIELDS_PER_SAVE, PartitionCounts, encode_progress
from schemas.wire import read_evaluations, read_outcomes
from tests.brokers import RedisServer
from tests.process_memory import resident_bytes

TOPICS = ("flag.evaluations", "request.outcomes")
KEY = f"{TOPICS[0]}/0/1"
FLAGS = 20
EXACT_LIMIT = 1_000_000  # of one set: none is sealed


async def store(totals: RedisTotals, contexts: int) -> None:
    """Store the sets of twenty flags, with so many members in all, as many saves would."""
    sets = {
        number: f"flag-{number // 2}|start|0|{'treatment' if number % 2 else 'control'}"
        for number in range(2 * FLAGS)
    }
    chance = np.random.default_rng(1)
    entries = np.empty(contexts, dtype=ENTRIES)
    entries["number"] = chance.integers(0, len(sets), contexts)
    entries["digest"] = chance.integers(0, 2**64, contexts, dtype=np.uint64)
    journal = EntryLog("journal")
    journal.append(entries.tobytes())
    fields = journal.drain() | {"sets/0": json.dumps(sets).encode()}
    fields |= encode_progress(PartitionCounts(counted=contexts))
    expected = None
    for names in chunks(list(fields), MAX_FIELDS_PER_SAVE - 10):
        some = {name: fields[name] for name in names}
        stored = await totals.save(KEY, expected=expected, next_offset=contexts, fields=some)
        assert stored is None, f"another fence: {stored}"
        expected = contexts


class Ticker:
    """How late a sleep of one millisecond ends at most, and in how much CPU time of the loop."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Ticker]:
        """Tick until the end of the block."""
        task = asyncio.create_task(self._tick())
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _tick(self) -> None:
        while True:
            began, cpu = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.001)
            self.seconds = max(self.seconds, time.monotonic() - began - 0.001)
            self.cpu_seconds = max(self.cpu_seconds, time.thread_time() - cpu)


def new_ingest(totals: RedisTotals, contexts: int) -> tuple[Ingest, MemoryEventLog]:
    """Return a counting process on a log in memory that ends where the stored totals do."""
    clock = SystemClock()
    broker = MemoryBroker(ManualClock(clock.now()), dict.fromkeys(TOPICS, 1))
    log = MemoryEventLog(broker, "counting", TOPICS)

    async def quarantine(*_: object) -> None:
        raise AssertionError("nothing is refused")

    broker.bounds = lambda partition: (0, contexts)  # type: ignore[method-assign]
    ingest = Ingest(
        log,
        totals,
        clock=clock,
        metrics=Metrics(version="benchmark"),
        settings=CountingSettings(exact_set_limit=EXACT_LIMIT),
        topics=TOPICS,
        epoch=1,
        quarantine=quarantine,
        on_saved=lambda: None,
        read_evaluations=read_evaluations,
        read_outcomes=read_outcomes,
    )
    return ingest, log


async def load(url: str, contexts: int) -> None:
    """Load the stored partition and print the figures."""
    client = redis.asyncio.Redis.from_url(url)
    connection = RedisConnection(client, prefix="bench:", deadline_seconds=60)
    totals = RedisTotals(connection)
    await store(totals, contexts)
    gc.collect()
    ingest, log = new_ingest(totals, contexts)
    before, began = resident_bytes(os.getpid()), time.monotonic()
    cpu = time.process_time()
    ticker = Ticker()
    async with ticker.running():
        running = asyncio.create_task(ingest.run())
        await log.start()
        while not any(
            each.topic == TOPICS[0] and each.state is PartitionState.READY
            for each in ingest.views()
        ):
            await asyncio.sleep(0.001)
            if running.done():
                await running
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    gc.collect()
    journal = 12 * contexts
    beyond = (resident_bytes(os.getpid()) - before - journal) / contexts
    print(
        f"{ENGINE}: {contexts:,} contexts of {FLAGS} flags ready in {seconds:.1f} s "
        f"({cpu:.1f} s of CPU); {beyond:.1f} bytes each beyond the journal's 12; "
        f"event loop held at most {1000 * ticker.seconds:.1f} ms, "
        f"{1000 * ticker.cpu_seconds:.1f} ms of CPU"
    )
    await ingest.stop()
    await running
    await client.aclose()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--contexts", type=int, default=10_000_000)
    arguments = parser.parse_args()
    with RedisServer(appendonly=False) as server:
        asyncio.run(load(server.url, arguments.contexts))


if __name__ == "__main__":
    main()
