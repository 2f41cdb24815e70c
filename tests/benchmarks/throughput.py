"""Events per second end to end on one core, beside a bare aiokafka consumer in the same run.

`python -m tests.benchmarks.throughput [--events 1200000] [--flags 20] [--known 20] [--poison 0.1]
[--unknown 0]` on a real Kafka. Fills both event topics (4 partitions each, keyed by context, about
250 bytes an event), then reads them twice, pinned to one core: once with bare `getmany` and nothing
else, once with the daemon's own ingest, totals saved in Redis. A round is compared with the bare
readings just before and just after it, and each reading has a process of its own, so that none
inherits another's memory. The totals are compared, field by field, with a recount made while the
events were written. Prints rates, their ratio, what Redis holds and the longest time that folding
kept the loop to itself; exits 1 when a total differs.

`--beside-poison 0.1` compares good events with as many of which a tenth is refused, counted at the
same time on the same core: what a few percent are cannot be seen otherwise on a machine whose speed
changes. Prints CPU time per event of both.

On a machine that others use, too, trust the ratio by CPU time. With `--flags 10000` give it
`--events 2000000` at least: each of 8 partitions meets each flag for the first time once, and a
daemon does so once per start, not every 8 events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import redis.asyncio
import structlog
from confluent_kafka import Producer

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.totals import RedisTotals
from controller.clock import SystemClock
from controller.core.evidence import ArmTotals
from controller.core.rollout import Rollout
from controller.counting.fold import IS_COMPILED
from controller.counting.ingest import Ingest
from controller.settings import CountingSettings, KafkaSettings
from controller.telemetry import Metrics
from schemas import evaluation, outcome
from schemas.quarantine import Refusal
from schemas.terms import Arm
from schemas.wire import read_evaluations, read_outcomes
from tests.brokers import RedisServer, create_topics_at, start_kafka
from tests.builders import make_plan, make_rollout, make_visit

T = TypeVar("T")
PARTITIONS = 4
FIELDS = ("evaluations", "exposures", "outcomes", "errors", "first_errors", "repeated")


@dataclass
class Recount:
    """What the totals must say, by plain counting while writing."""

    totals: dict[tuple[str, Arm], Counter[str]] = field(default_factory=dict)
    exposed: set[tuple[str, int]] = field(default_factory=set)
    failed: set[tuple[str, int]] = field(default_factory=set)
    poison: int = 0
    unknown: int = 0

    def arm(self, flag_key: str, arm: Arm) -> Counter[str]:
        """Return the counters of one arm."""
        return self.totals.setdefault((flag_key, arm), Counter())


def records(options: argparse.Namespace, recount: Recount) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (logical topic, key, value).

    Evaluations and outcomes of random contexts, a tenth of them in treatment.
    """
    chance = random.Random(options.seed)
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for number in range(options.events):
        context = chance.randrange(options.contexts)
        key = f"user-{context:08d}"
        flag_key = f"flag-{chance.randrange(options.flags):05d}"
        if chance.random() < options.unknown:
            flag_key = f"unknown-{number}"
        is_treated = context % 10 == 0
        arm, variant = (Arm.TREATMENT, "on") if is_treated else (Arm.CONTROL, "off")
        is_known = not flag_key.startswith("unknown")
        topic = "evaluations" if number % 2 == 0 else "outcomes"
        if chance.random() < options.poison:
            recount.poison += 1
            yield (
                topic,
                key.encode(),
                b'{"specversion":"1.0","type":"io.rolloutd.%b.v1","id":"%d"'
                % (topic[:-1].encode(), number),
            )
            continue
        head = {
            "specversion": "1.0",
            "source": "/checkout-api",
            "id": f"{number:08x}",
            "time": moment,
        }
        if topic == "evaluations":
            data: dict[str, Any] = {
                "feature_flag.key": flag_key,
                "feature_flag.result.variant": variant,
                "feature_flag.context.id": key,
            }
            yield topic, key.encode(), pack({**head, "type": evaluation.TYPE, "data": data})
            recount.unknown += not is_known
            if is_known:
                counts = recount.arm(flag_key, arm)
                counts["evaluations"] += 1
                if (flag_key, context) not in recount.exposed:
                    recount.exposed.add((flag_key, context))
                    counts["exposures"] += 1
            continue
        data = {
            "feature_flag.context.id": key,
            "http.server.request.duration": round(chance.expovariate(20), 6),
            "rolloutd.flags": [
                {"feature_flag.key": flag_key, "feature_flag.result.variant": variant}
            ],
        }
        is_error = chance.random() < 0.01
        if is_error:
            data["error.type"] = "500"
        yield topic, key.encode(), pack({**head, "type": outcome.TYPE, "data": data})
        recount.unknown += not is_known
        if is_known:
            counts = recount.arm(flag_key, arm)
            counts["outcomes"] += 1
            counts["errors"] += is_error
            if is_error and (flag_key, context) not in recount.failed:
                recount.failed.add((flag_key, context))
                counts["first_errors"] += 1


def pack(event: dict[str, Any]) -> bytes:
    """Return compact JSON."""
    return json.dumps(event, separators=(",", ":")).encode()


def fill(bootstrap: str, prefix: str, options: argparse.Namespace) -> tuple[Recount, int]:
    """Write all events; return the recount and the bytes written."""
    names = {"evaluations": f"{prefix}flag.evaluations", "outcomes": f"{prefix}request.outcomes"}
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 50,
            "partitioner": "murmur2_random",
            "acks": "all",
        }
    )
    recount, size = Recount(), 0
    for topic, key, value in records(options, recount):
        size += len(value)
        while True:
            try:
                producer.produce(names[topic], value, key)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
    return recount, size


async def ceiling(settings: KafkaSettings, events: int) -> tuple[float, float]:
    """Return (seconds, CPU seconds) of reading everything and decoding nothing."""
    log = KafkaEventLog(settings, settings.event_topics, f"ceiling-{uuid.uuid4().hex[:6]}")
    await log.start()
    consumer = log._member.running_consumer()
    got, began, cpu = 0, 0.0, 0.0
    while got < events:
        batches = await consumer.getmany(timeout_ms=100, max_records=500)
        if not began and batches:
            began, cpu = time.perf_counter(), cpu_seconds()
        got += sum(len(batch) for batch in batches.values())
    spent = time.perf_counter() - began, cpu_seconds() - cpu
    await log.stop()
    return spent


async def count(
    settings: KafkaSettings, url: str, rollouts: list[Rollout], events: int
) -> tuple[float, float, int, float]:
    """Return (seconds, CPU seconds, refusals, longest fold in seconds) of counting everything."""
    store = connect(url, settings)
    refused = 0

    async def quarantine(topic: str, partition: int, refusals: Any) -> None:
        nonlocal refused
        refused += sum(isinstance(one, Refusal) for one in refusals)

    log = KafkaEventLog(
        settings, settings.event_topics, f"count-{uuid.uuid4().hex[:6]}", bare_records=True
    )
    ingest = Ingest(
        log,
        RedisTotals(store),
        clock=SystemClock(),
        metrics=Metrics(version="benchmark"),
        settings=CountingSettings(),
        topics=settings.event_topics,
        epoch=1,
        quarantine=quarantine,
        on_saved=lambda flag_keys: None,
        read_evaluations=read_evaluations,
        read_outcomes=read_outcomes,
    )
    for rollout in rollouts:
        ingest.count_for(rollout)
    await log.start()
    running = asyncio.create_task(ingest.run())
    began, cpu = 0.0, 0.0
    while True:
        await asyncio.sleep(0.01)
        if running.done():
            await running
        views = ingest.views()
        if not began and any(view.next_offset > 0 for view in views):
            began, cpu = time.perf_counter(), cpu_seconds()
        if sum(view.saved_offset or 0 for view in views) >= events:
            break
    spent = time.perf_counter() - began, cpu_seconds() - cpu
    await ingest.stop()
    await running
    await log.stop()
    await store.close()
    return *spent, refused, ingest.longest_fold_seconds


def connect(url: str, settings: KafkaSettings) -> RedisConnection:
    """Return a store of the totals of what these topics hold."""
    return RedisConnection.connect(
        url, prefix=settings.topic_prefix, deadline_seconds=10, try_seconds=5
    )


def alone(work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Return `work(*arguments)`, run in a fresh process on the first of our cores."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), be_alone) as process:
        return process.submit(run_to_end, work, *arguments).result()


def be_alone() -> None:
    """Keep to one core, and quiet: what runs before `work` in its process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    be_quiet()


def be_quiet() -> None:
    """Log what is wrong alone."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def run_to_end(work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Return what `work` of `arguments` returns."""
    return asyncio.run(work(*arguments))


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_rollouts(options: argparse.Namespace) -> list[Rollout]:
    """Return a rollout under way for every known flag."""
    entered = datetime.now(UTC) - timedelta(hours=1)
    visit = make_visit(entered_at=entered, counts_from=entered)
    return [
        make_rollout(
            plan=make_plan(flag_key=f"flag-{number:05d}"),
            flag_key=f"flag-{number:05d}",
            rollout_id=f"r{number}",
            visits=(visit,),
        )
        for number in range(options.known)
    ]


async def differences(
    store: RedisConnection, settings: KafkaSettings, rollouts: list[Rollout], recount: Recount
) -> int:
    """Return how many totals differ from the recount, printing the first ones."""
    keys = [
        f"{topic}/{number}/1" for topic in settings.event_topics for number in range(PARTITIONS)
    ]
    wanted = {rollout.flag_key: (rollout.rollout_id, [0]) for rollout in rollouts}
    found, _ = await RedisTotals(store).read(keys, wanted)
    wrong = 0
    for rollout in rollouts:
        for arm in Arm:
            totals = (
                found[rollout.flag_key][0].arm(arm)
                if 0 in found.get(rollout.flag_key, {})
                else ArmTotals()
            )
            expected = recount.arm(rollout.flag_key, arm)
            for name in FIELDS:
                if getattr(totals, name) != expected[name]:
                    wrong += 1
                    if wrong <= 10:
                        print(
                            f"differs: {rollout.flag_key} {arm} {name}: "
                            f"{getattr(totals, name)}, recount {expected[name]}"
                        )
    return wrong


async def prepare(
    options: argparse.Namespace, bootstrap: str
) -> tuple[KafkaSettings, Recount, int]:
    """Make topics of their own and write all events.

    Return how to reach them, the recount and the bytes written.
    """
    prefix = f"t{uuid.uuid4().hex[:6]}."
    settings = KafkaSettings(
        bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics_at(bootstrap, *settings.event_topics, partitions=PARTITIONS)
    recount, size = await asyncio.to_thread(fill, bootstrap, prefix, options)
    return settings, recount, size


async def is_exact(
    url: str, settings: KafkaSettings, rollouts: list[Rollout], recount: Recount, refused: int
) -> bool:
    """Return whether totals and refusals equal the recount; print each difference."""
    if refused != recount.poison:
        print(f"differs: {refused} quarantined, {recount.poison} poison records written")
        return False
    store = connect(url, settings)
    wrong = await differences(store, settings, rollouts, recount)
    await store.close()
    if wrong:
        print(f"{wrong} totals differ")
    return not wrong


async def run(options: argparse.Namespace, bootstrap: str, server: RedisServer) -> int:
    """Measure and print; return the exit code."""
    settings, recount, size = await prepare(options, bootstrap)
    print(f"{options.events} events, {size / options.events:.0f} bytes each, {options.known} "
        f"known flags, "
          f"{recount.poison} poison, {recount.unknown} of unknown flags")  # fmt: skip
    rollouts = make_rollouts(options)
    client = redis.asyncio.Redis.from_url(server.url)
    ratios = []
    after = await asyncio.to_thread(alone, ceiling, settings, options.events)
    for number in range(options.rounds):
        await client.flushall()
        before = after
        counted, counted_cpu, refused, longest = await asyncio.to_thread(
            alone, count, settings, server.url, rollouts, options.events
        )
        after = await asyncio.to_thread(alone, ceiling, settings, options.events)
        seconds, cpu = ((one + other) / 2 for one, other in zip(before, after, strict=True))
        held = sum(
            [await client.memory_usage(key, samples=0) or 0 async for key in client.scan_iter()]
        )
        ratios.append(seconds / counted)
        print(
            f"round {number + 1}: getmany alone {options.events / seconds:,.0f}/s "
            f"({options.events / cpu:,.0f} per CPU s), "
            f"counted {options.events / counted:,.0f}/s "
            f"({options.events / counted_cpu:,.0f} per CPU s), "
            f"ratio {seconds / counted:.2f} ({cpu / counted_cpu:.2f} by CPU); quarantined "
            f"{refused}, "
            f"Redis holds {held / 1024:,.0f} KiB, longest fold {longest * 1000:.1f} ms"
        )
        if not await is_exact(server.url, settings, rollouts, recount, refused):
            return 1
    print(
        f"every total equals the recount; ratio, median of {options.rounds}: "
        f"{statistics.median(ratios):.2f}"
    )
    await client.aclose()
    return 0


async def compare(options: argparse.Namespace, bootstrap: str, server: RedisServer) -> int:
    """Count events with and without poison at the same time; return the exit code."""
    rollouts = make_rollouts(options)
    good = await prepare(options, bootstrap)
    bad = await prepare(
        argparse.Namespace(**{**vars(options), "poison": options.beside_poison}), bootstrap
    )
    client = redis.asyncio.Redis.from_url(server.url)
    slower = []
    for number in range(options.rounds):
        await client.flushall()
        counted = await asyncio.gather(
            *(
                asyncio.to_thread(alone, count, settings, server.url, rollouts, options.events)
                for settings, _, _ in (good, bad)
            )
        )
        each = [1e6 * cpu / options.events for _, cpu, _, _ in counted]
        slower.append(each[1] / each[0] - 1)
        print(
            f"round {number + 1}: {each[0]:.2f} µs of CPU an event, {each[1]:.2f} with "
            f"{options.beside_poison:.0%} poison, "
            f"{slower[-1]:+.1%}; quarantined {counted[1][2]} of {bad[1].poison}"
        )
        for (settings, recount, _), (_, _, refused, _) in zip((good, bad), counted, strict=True):
            if not await is_exact(server.url, settings, rollouts, recount, refused):
                return 1
    await client.aclose()
    print(
        f"every total equals the recount; slower with poison, median of {options.rounds}: "
        f"{statistics.median(slower):+.1%}"
    )
    return 0


def main() -> int:
    """Read the options, start the servers, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--events",
        type=int,
        default=1_200_000,
        help="enough that the wait for the last save does not show",
    )
    parser.add_argument("--flags", type=int, default=20, help="flags that events are about")
    parser.add_argument(
        "--contexts",
        type=int,
        default=40_000,
        help="users; each flag sees all of them sooner or later",
    )
    parser.add_argument(
        "--known", type=int, default=None, help="flags with a rollout; default: those of --flags"
    )
    parser.add_argument(
        "--poison", type=float, default=0.0, help="share of records that are refused"
    )
    parser.add_argument(
        "--unknown",
        type=float,
        default=0.0,
        help="share of records about flags nobody knows, each another one",
    )
    parser.add_argument(
        "--beside-poison",
        type=float,
        help="compare good events with as many of which this share is refused",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.known = options.flags if options.known is None else options.known
    kafka = start_kafka()
    be_quiet()
    try:
        print(
            f"Kafka: {kafka.description}; counting: "
            f"{'compiled' if IS_COMPILED else 'interpreted, see make compiled'}"
        )
        with RedisServer() as server:
            return asyncio.run(
                (run if options.beside_poison is None else compare)(
                    options, kafka.bootstrap, server
                )
            )
    finally:
        kafka.stop()


if __name__ == "__main__":
    sys.exit(main())
