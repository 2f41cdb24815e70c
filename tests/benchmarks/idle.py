"""What a daemon costs while nothing happens: CPU with many rollouts that bake, and memory at start.

`python -m tests.benchmarks.idle [--rollouts 1000] [--seconds 60] [--trickle 100]` on a real Kafka
and Redis. It starts the real `rolloutd run`, measures its memory when it is ready, starts the
rollouts by commands, and restarts it. Measured is the CPU time until it is ready, and until it has
taken over all flags. All rollouts bake then, no event comes, and the CPU time of the process is
measured for that time. Before, the same is measured without a rollout. With
`--trickle` so many events a second come for ten of the flags, and the same is measured once more.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from functools import partial
from pathlib import Path

import redis.asyncio

from controller.settings import KafkaSettings
from schemas.terms import CommandVerb
from tests.benchmarks.event_load import LoadOptions, Recount, cpu_seconds_of, records, write
from tests.benchmarks.real_servers import run_on_real_servers
from tests.brokers import create_topics_at
from tests.live import Client, DaemonProcess, make_command, quick_plan
from tests.process_memory import private_bytes, resident_bytes

#: After the daemon is ready: leases, first reports and first looks are work of the start. Those of
#: a thousand rollouts took a minute on a busy machine.
_SETTLE_SECONDS = 20.0
_SETTLE_SECONDS_EACH = 0.1
_START_SECONDS = 1_800.0
_PARTITIONS = 4
_STAGES = [
    {"percent": 10, "bake": "24h", "settle": "0.2s", "min_sample": 500, "max_bake": "48h"},
    {"percent": 100, "bake": "24h", "settle": "0.2s", "min_sample": 500, "max_bake": "48h"},
]
_TRICKLE_FLAGS = 10
_GUARDRAILS = ["error_rate < 5% and < control + 50%", "latency_p99 < 2s"]
#: People are told soon that nothing is counted, so that this is over when it is measured.
_HEALTH = {"health_grace": "5s"}


async def share_of_a_core(daemon: DaemonProcess, seconds: float, rollouts: int = 0) -> float:
    """Return the CPU time that the daemon takes for each second, after so many have started."""
    assert daemon.process is not None
    await asyncio.sleep(_SETTLE_SECONDS + rollouts * _SETTLE_SECONDS_EACH)
    began, cpu = time.perf_counter(), cpu_seconds_of(daemon.process.pid)
    await asyncio.sleep(seconds)
    return (cpu_seconds_of(daemon.process.pid) - cpu) / (time.perf_counter() - began)


async def start_rollouts(bootstrap: str, prefix: str, number: int) -> None:
    """Start so many rollouts, and wait until each serves its first stage."""
    started: set[str] = set()
    async with Client(bootstrap, prefix) as client:
        for n in range(number):
            flag_key = LoadOptions.flag_key(n)
            plan = quick_plan(flag_key, stages=_STAGES, guardrails=_GUARDRAILS, **_HEALTH)
            await client.publish(make_command(CommandVerb.START, flag_key, plan=plan))
        async with asyncio.timeout(_START_SECONDS):
            while len(started) < number:
                await asyncio.sleep(1)
                states = [value for _, _, value in await client.records("rollout.state") if value]
                documents = (json.loads(state)["data"] for state in states)
                started |= {data["flag"] for data in documents if data["percent"] > 0}


async def start_again(
    daemon: DaemonProcess, url: str, prefix: str, number: int
) -> tuple[float, float]:
    """Start a daemon that finds so many rollouts.

    Return its CPU seconds until it was ready, and until it had written a report on each.
    """
    reports = [f"{prefix}live:{{{LoadOptions.flag_key(n)}}}" for n in range(number)]
    async with redis.asyncio.Redis.from_url(url) as client, asyncio.timeout(_START_SECONDS):
        await client.unlink(*reports)
        await daemon.start()
        assert daemon.process is not None
        ready = cpu_seconds_of(daemon.process.pid)
        while await client.exists(*reports) < number:
            await asyncio.sleep(0.5)
        return ready, cpu_seconds_of(daemon.process.pid)


async def trickle(settings: KafkaSettings, per_second: int, seconds: float) -> None:
    """Write so many events a second for a few flags, some each tenth of a second."""
    began = time.perf_counter()
    for tenth in range(round(seconds * 10)):
        options = LoadOptions(per_second // 10, _TRICKLE_FLAGS, contexts=1_000, seed=tenth)
        await asyncio.to_thread(write, settings, records(options, Recount()))  # of this moment
        await asyncio.sleep(began + tenth / 10 - time.perf_counter())


async def measure(chosen: argparse.Namespace, bootstrap: str, url: str, directory: Path) -> bool:
    """Measure, and print the figures; return that all went well."""
    prefix = f"i{uuid.uuid4().hex[:6]}."
    settings = KafkaSettings(
        bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=_PARTITIONS
    )
    await create_topics_at(bootstrap, *settings.event_topics, partitions=_PARTITIONS)
    daemon = DaemonProcess(bootstrap, url, directory, prefix=prefix)
    try:
        await daemon.start()
        assert daemon.process is not None
        pid = daemon.process.pid
        resident, own = resident_bytes(pid) / 1e6, private_bytes(pid) / 1e6
        print(f"at start: {resident:.0f} MB resident, {own:.0f} MB of it its own", flush=True)
        none = await share_of_a_core(daemon, chosen.seconds)
        print(f"no rollout: {none:.1%} of a core", flush=True)
        await start_rollouts(bootstrap, prefix, chosen.rollouts)
        await daemon.stop()
        ready, taken_over = await start_again(daemon, url, prefix, chosen.rollouts)
        print(f"started again: {ready:.1f} s of CPU until ready, {taken_over:.1f} until all run")
        print(f"pid {daemon.process.pid}", flush=True)
        many = await share_of_a_core(daemon, chosen.seconds, chosen.rollouts)
        later = resident_bytes(daemon.process.pid) / 1e6
        print(f"{chosen.rollouts} rollouts bake: {many:.1%} of a core, {later:.0f} MB resident")
        with_events: float | None = None  # not measured
        if chosen.trickle:
            seconds = chosen.seconds + 1.5 * _SETTLE_SECONDS
            writing = asyncio.create_task(trickle(settings, chosen.trickle, seconds))
            with_events = await share_of_a_core(daemon, chosen.seconds)
            await writing
            print(f"{chosen.trickle} events a second for a few: {with_events:.1%} of a core")
        figures = {
            "cpu_trickle": with_events,
            "rss_mb": resident,
            "own_mb": own,
            "cpu_none": none,
            "cpu_baking": many,
            "start_cpu_seconds": ready,
            "takeover_cpu_seconds": taken_over,
        }
        print(json.dumps({"benchmark": "idle", "rollouts": chosen.rollouts, **figures}))
    finally:
        code = await daemon.stop()
    assert code == 0, f"exited with {code}:\n{daemon.log_tail()}"
    return True


def main() -> int:
    """Read the options, start the servers, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--trickle", type=int, default=0, help="events a second")
    chosen = parser.parse_args()
    return run_on_real_servers(partial(measure, chosen))


if __name__ == "__main__":
    sys.exit(main())
