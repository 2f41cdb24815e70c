"""What counting costs the whole daemon, beside a bare aiokafka consumer on the same core.

`python -m tests.benchmarks.daemon [--events 1500000] [--flags 20] [--contexts 100000] [--rounds 3]
[--taken-over] [--beside 0.1] [--share 0.1] [--unusual refused]`
on a real Kafka and Redis. Starts a rollout for each flag on the real `rolloutd run`, stops it, and
writes all events. Then in each round `rolloutd run` starts as a process on one core, without
totals, and catches up, while it judges the rollouts, saves and serves as always. Before and after
each round bare `getmany` reads the same events with the same fetch settings, in a process of its
own on the same core. Compared is the CPU time of an event: of the daemon from its first save on, so
that its start does not count. Totals and refusals are compared with a recount made while writing;
the benchmark exits 1 when one differs.

With thousands of flags, starting goes on for a minute after the first save: every rollout is judged
for the first time. With `--taken-over` the measure begins once each flag has its worker, with the
events that are left then; with 10,000 flags four million are counted before, so give twelve.

`--beside 0.1` compares two daemons on one core at the same time, one with events of which this
share is refused, or unusual in another way (`--unusual`): what a few percent are cannot be seen
otherwise where the speed changes. Its measure begins as with `--taken-over`, because what starting
costs differs by as much; give four million events.

On a machine that others use, CPU time stays comparable; events per second do not. The daemon runs
what is installed, and the line of each round says which (`counting native` or `counting python`):
`make native` and `make reference` change it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import sched_setaffinity
from pathlib import Path
from typing import NamedTuple

import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.totals import RedisTotals
from controller.core.evidence import ArmTotals
from controller.settings import KafkaSettings
from schemas.terms import Arm, CommandVerb
from tests.benchmarks.event_load import (
    FIELDS,
    PARTITIONS,
    LoadOptions,
    Recount,
    Spent,
    Unusual,
    alone,
    cpu_seconds_of,
    fill,
    measured_core,
    read_bare,
)
from tests.benchmarks.real_servers import run_on_real_servers
from tests.brokers import create_topics_at
from tests.live import Client, DaemonProcess, make_command, quick_plan
from tests.process_memory import resident_bytes

#: Between two checks of how far the daemon has saved.
_CHECK_SECONDS = 0.02
_LIMIT_SECONDS = 1_800.0
_SENT_AGAIN_SECONDS = 600.0
_LEAST_LEFT = 1_000_000  # events: some seconds, so many saves
#: All stay in the first stage, whatever the events show.
_STAGES = [
    {"percent": 10, "bake": "24h", "settle": "0.2s", "min_sample": 500, "max_bake": "48h"},
    {"percent": 100, "bake": "24h", "settle": "0.2s", "min_sample": 500, "max_bake": "48h"},
]
_GUARDRAILS = ["error_rate < 5% and < control + 50%", "latency_p99 < 2s"]


class Round(NamedTuple):
    """What one daemon did in one round."""

    counted: Spent
    start_cpu_seconds: float
    refused: int
    memory_bytes: tuple[int, int]  # at the first save, at the end
    redis_bytes: int
    counting: str  # native or python, as it says of itself


@dataclass
class Load:
    """Events in Kafka, the rollouts that they are about, and a daemon that counts them."""

    options: LoadOptions
    settings: KafkaSettings
    redis_url: str
    daemon: DaemonProcess
    recount: Recount
    rollout_ids: dict[str, str]
    begins_taken_over: bool = False  # the measure begins once each flag has its worker

    @classmethod
    async def prepare(
        cls,
        options: LoadOptions,
        bootstrap: str,
        redis_url: str,
        directory: Path,
        *,
        begins_taken_over: bool = False,
    ) -> Load:
        """Start the rollouts, then write the events, which are later than all of them."""
        prefix = f"d{uuid.uuid4().hex[:6]}."
        settings = KafkaSettings(
            bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS
        )
        await create_topics_at(bootstrap, *settings.event_topics, partitions=PARTITIONS)
        # Each event opens one context at most: with more than twelve million over 10,000 flags a
        # partition would give some up.
        most = {
            "ROLLOUTD_COUNTING__MAX_CONTEXTS_PER_PARTITION": str(max(options.events, 2_000_000))
        }
        daemon = DaemonProcess(bootstrap, redis_url, directory, prefix=prefix, **most)
        rollout_ids = await _start_rollouts(daemon, options)
        recount = await asyncio.to_thread(fill, settings, options)
        return cls(options, settings, redis_url, daemon, recount, rollout_ids, begins_taken_over)

    @property
    def partition_keys(self) -> list[str]:
        """The keys of all partitions' totals."""
        return [f"{topic}/{n}/1" for topic in self.settings.event_topics for n in range(PARTITIONS)]

    @property
    def redis_keys(self) -> list[str]:
        """The names of all partitions' totals in Redis."""
        prefix = self.settings.topic_prefix
        return [f"{prefix}agg:{{{key}}}" for key in self.partition_keys]

    @property
    def live_keys(self) -> list[str]:
        """The names of what is shown of each rollout, written first when its worker runs."""
        return [f"{self.settings.topic_prefix}live:{{{key}}}" for key in self.rollout_ids]

    async def read_bare(self) -> Spent:
        """Return what reading alone costs."""
        return await asyncio.to_thread(alone, read_bare, self.settings, self.options.events)

    async def count(self) -> Round:
        """Let the daemon count all events, from the first. Raises AssertionError when it cannot."""
        async with redis.asyncio.Redis.from_url(self.redis_url) as client:
            await client.unlink(*self.redis_keys, *self.live_keys)
            self.daemon.spawn()
            process = self.daemon.process
            assert process is not None
            sched_setaffinity(process.pid, measured_core())
            first = await self._saved(client, 1)
            if self.begins_taken_over:
                await self._taken_over(client)
                first = await self._saved(client, 1)
                print(f"process {process.pid} has taken over all flags", flush=True)
                left = self.options.events - first
                assert left > _LEAST_LEFT, f"{left} are left: give more --events"
            began, cpu = time.perf_counter(), cpu_seconds_of(process.pid)
            memory = resident_bytes(process.pid)
            await self._saved(client, self.options.events)
            seconds, end_cpu = time.perf_counter() - began, cpu_seconds_of(process.pid)
            held = [await client.memory_usage(key, samples=0) or 0 for key in self.redis_keys]
        counted = Spent(self.options.events - first, seconds, end_cpu - cpu)
        memory_bytes = memory, resident_bytes(process.pid)
        await self.daemon.ready()
        refused, counting = await self._told()
        code = await self.daemon.stop()
        assert code == 0, f"exited with {code}:\n{self.daemon.log_tail()}"
        return Round(counted, cpu, refused, memory_bytes, sum(held), counting)

    async def _taken_over(self, client: redis.asyncio.Redis) -> None:
        """Wait until each flag has its worker."""
        async with asyncio.timeout(_LIMIT_SECONDS):
            while await client.exists(*self.live_keys) < len(self.live_keys):
                await asyncio.sleep(1)

    async def _saved(self, client: redis.asyncio.Redis, at_least: int) -> int:
        """Wait until so many events are saved; return how many are."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while time.monotonic() < deadline:
            fences = [await client.hget(key, "next") for key in self.redis_keys]
            saved = sum(int(fence) for fence in fences if fence is not None)
            if saved >= at_least:
                return saved
            process = self.daemon.process
            assert process is not None
            assert process.poll() is None, f"the daemon ended:\n{self.daemon.log_tail()}"
            await asyncio.sleep(_CHECK_SECONDS)
        raise AssertionError(f"too few events saved in time:\n{self.daemon.log_tail()}")

    async def _told(self) -> tuple[int, str]:
        """Return what the daemon's metrics say: how many records it refused, and how it counts."""
        refused, counting = 0.0, ""
        text = (await self.daemon.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "rolloutd_quarantined_total":
                    refused += sample.value
                elif sample.name == "rolloutd_build_info":
                    counting = sample.labels["counting"]
        return int(refused), counting

    async def differences(self, done: Round) -> list[str]:
        """Return every total, and the number of refusals, that is not as recounted."""
        store = RedisConnection.connect(
            self.redis_url,
            prefix=self.settings.topic_prefix,
            deadline_seconds=10,
            try_seconds=5,
        )
        wanted = {flag_key: (its_id, [0]) for flag_key, its_id in self.rollout_ids.items()}
        found, _ = await RedisTotals(store).read(self.partition_keys, wanted)
        await store.close()
        wrong = []
        if done.refused != self.recount.refused:
            wrong.append(f"{done.refused} refused, {self.recount.refused} to be refused written")
        for flag_key in self.rollout_ids:
            visits = found.get(flag_key, {})
            for arm in Arm:
                totals = visits[0].arm(arm) if 0 in visits else ArmTotals()
                expected = self.recount.arm(flag_key, arm)
                wrong += [
                    f"{flag_key} {arm} {name}: {getattr(totals, name)}, recount {expected[name]}"
                    for name in FIELDS
                    if getattr(totals, name) != expected[name]
                ]
        return wrong


async def _start_rollouts(daemon: DaemonProcess, options: LoadOptions) -> dict[str, str]:
    """Start a rollout for each flag; return their ids. The daemon is stopped again after that."""
    prefix = daemon.environ["ROLLOUTD_KAFKA__TOPIC_PREFIX"]
    bootstrap = daemon.environ["ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS"]
    await daemon.start()
    async with Client(bootstrap, prefix) as client:
        flag_keys = [options.flag_key(number) for number in range(options.flags)]
        rollout_ids: dict[str, str] = {}
        sent_at = float("-inf")
        async with asyncio.timeout(_LIMIT_SECONDS):
            while len(rollout_ids) < len(flag_keys):
                # Again, where one was refused: thousands at once may wait for too long.
                if time.monotonic() - sent_at > _SENT_AGAIN_SECONDS:
                    for flag_key in flag_keys:
                        if flag_key not in rollout_ids:
                            plan = quick_plan(flag_key, stages=_STAGES, guardrails=_GUARDRAILS)
                            await client.publish(
                                make_command(CommandVerb.START, flag_key, plan=plan)
                            )
                    sent_at = time.monotonic()
                await asyncio.sleep(1)
                states = [value for _, _, value in await client.records("rollout.state") if value]
                rollout_ids = {
                    data["flag"]: data["rollout_id"]
                    for data in (json.loads(state)["data"] for state in states)
                    if data["percent"] > 0
                }
    # The events have whole seconds, and are to be later than the settle time of the last rollout.
    await asyncio.sleep(2)
    code = await daemon.stop()
    assert code == 0, f"exited with {code}:\n{daemon.log_tail()}"
    return rollout_ids


async def against_bare(load: Load, rounds: int) -> bool:
    """Compare the daemon with bare reading; print it and return whether every total was right."""
    ratios, microseconds = [], []
    after = await load.read_bare()
    for number in range(rounds):
        before = after
        done = await load.count()
        after = await load.read_bare()
        bare = (before.microseconds + after.microseconds) / 2
        ratios.append(bare / done.counted.microseconds)
        microseconds.append(done.counted.microseconds)
        first, last = done.memory_bytes
        print(
            f"round {number + 1}: counting {done.counting}, {done.counted.microseconds:.2f} µs of "
            f"CPU an event over {done.counted.events:,} events, getmany {before.microseconds:.2f} "
            f"and {after.microseconds:.2f}: ratio {ratios[-1]:.2f}; "
            f"{done.counted.per_second:,.0f} events/s, getmany "
            f"{before.per_second:,.0f} and {after.per_second:,.0f}; start "
            f"{done.start_cpu_seconds:.1f} s of CPU; memory {first / 1e6:.0f} MB, then "
            f"{last / 1e6:.0f}; Redis holds {done.redis_bytes / 1e6:.1f} MB",
            flush=True,
        )
        if not _is_right(await load.differences(done)):
            return False
    print(
        f"every total equals the recount; µs of CPU an event: {_spread(microseconds)}; ratio to "
        f"getmany by CPU time: {_spread(ratios)}"
    )
    return True


async def beside_unusual(usual: Load, unusual: Load, rounds: int) -> bool:
    """Compare two loads counted at the same time; return whether every total was right."""
    slower = []
    for number in range(rounds):
        done = await asyncio.gather(usual.count(), unusual.count())
        plain, other = (one.counted.microseconds for one in done)
        slower.append(other / plain)
        print(
            f"round {number + 1}: counting {done[0].counting}, {plain:.2f} µs of CPU an event, "
            f"{other:.2f} with {unusual.options.share:.0%} {unusual.options.unusual}: "
            f"{slower[-1]:.3f}; refused {done[1].refused}",
            flush=True,
        )
        for load, its in zip((usual, unusual), done, strict=True):
            if not _is_right(await load.differences(its)):
                return False
    print(f"every total equals the recount; time with them to without: {_spread(slower, 3)}")
    return True


def _is_right(wrong: Sequence[str]) -> bool:
    for line in wrong[:10]:
        print(f"differs: {line}")
    if wrong:
        print(f"{len(wrong)} differ")
    return not wrong


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Return median, least and most."""
    least, middle, most = (
        f"{one:.{digits}f}" for one in (min(values), statistics.median(values), max(values))
    )
    return f"median {middle}, min {least}, max {most} (n={len(values)})"


async def measure(
    chosen: argparse.Namespace, bootstrap: str, redis_url: str, directory: Path
) -> bool:
    """Write the events, measure, and return whether every total was right."""
    options = LoadOptions(
        chosen.events, chosen.flags, chosen.contexts, chosen.share, chosen.unusual, chosen.seed
    )
    begins_taken_over = chosen.taken_over or chosen.beside is not None
    prepare = partial(
        Load.prepare,
        bootstrap=bootstrap,
        redis_url=redis_url,
        directory=directory,
        begins_taken_over=begins_taken_over,
    )
    load = await prepare(options)
    print(
        f"{options.events} events of {load.recount.bytes / options.events:.0f} bytes, "
        f"{options.flags} flags, {options.contexts} users, {len(load.recount.exposed)} pairs of "
        f"flag and user, {load.recount.refused} to be refused",
        flush=True,
    )
    if chosen.beside is None:
        return await against_bare(load, chosen.rounds)
    unusual = await prepare(replace(options, share=chosen.beside))
    return await beside_unusual(load, unusual, chosen.rounds)


def main() -> int:
    """Read the options, start the servers, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--events", type=int, default=1_500_000)
    add("--flags", type=int, default=20, help="each with a rollout under way")
    add("--contexts", type=int, default=100_000, help="users; each flag meets all of them")
    add(
        "--unusual",
        type=Unusual,
        default=Unusual.REFUSED,
        choices=list(Unusual),
        help="in what way",
    )
    add("--share", type=float, default=0.0, help="of events that are unusual")
    add("--beside", type=float, help="compare with events of which this share is unusual")
    add("--rounds", type=int, default=3)
    add("--taken-over", action="store_true", help="measure once each flag has its worker")
    add("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if min(chosen.events, chosen.flags, chosen.contexts, chosen.rounds) < 1:
        parser.error("--events, --flags, --contexts and --rounds are 1 or more")
    if not all(0 <= share <= 1 for share in (chosen.share, chosen.beside or 0.0)):
        parser.error("--share and --beside are shares, from 0 to 1, such as 0.1")
    if chosen.share and chosen.beside is not None:
        parser.error("--beside compares with plain events: leave --share out")
    return run_on_real_servers(partial(measure, chosen))


if __name__ == "__main__":
    sys.exit(main())
