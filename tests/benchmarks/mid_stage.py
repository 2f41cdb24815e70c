"""How long harm lasts that begins in the middle of a stage, end to end.

`python -m tests.benchmarks.mid_stage [--rounds 4] [--flags 2] [--clean 60]` on a Kafka as the tests
find it. Each flag is in a stage of 50 % with 57 treatment requests a second. Its requests fail at
control's rate for a while, then more often. The clock runs from the first request that may fail
more often until rolloutd serves 0 %; the evidence has to arrive before. Flags of one round run side
by side, so that a round takes little more than the clean time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from schemas.terms import CommandVerb
from tests.brokers import RedisServer, start_kafka
from tests.live import Client, DaemonProcess, Traffic, quick_plan

PERCENT = 50
GUARDRAILS = {
    "limit and control": ["error_rate < 5% and < control + 10%", "latency_p99 < 1s"],
    "limit alone": ["error_rate < 2%", "latency_p99 < 1s"],
}
STAGES = [
    {"percent": PERCENT, "bake": "1h", "settle": "0.2s", "min_sample": 20, "max_bake": "2h"},
    {"percent": 100, "bake": "1h", "settle": "0.2s", "min_sample": 20, "max_bake": "2h"},
]


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--flags", type=int, default=2, help="per kind of guardrail, side by side")
    parser.add_argument("--clean", type=float, default=60.0, help="seconds at control's rate")
    parser.add_argument("--per-second", type=int, default=57, help="treatment requests")
    parser.add_argument("--rate", type=float, default=0.01, help="control's error rate")
    parser.add_argument("--harm", type=float, default=0.08, help="treatment's, from then on")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        kafka = await asyncio.to_thread(start_kafka)
        try:
            print(f"Kafka: {kafka.description}")
            await measure(kafka.bootstrap, redis.url, Path(directory), options)
        finally:
            kafka.stop()


async def measure(
    bootstrap: str, redis_url: str, directory: Path, options: argparse.Namespace
) -> None:
    """Run the rounds on one daemon, and print what came of them."""
    prefix = f"m{uuid.uuid4().hex[:6]}."
    daemon = DaemonProcess(bootstrap, redis_url, directory, prefix=prefix)
    found: dict[str, list[Found]] = {kind: [] for kind in GUARDRAILS}
    async with daemon, Client(bootstrap, prefix) as client:
        for number in range(options.rounds):
            begun = [
                (kind, asyncio.create_task(one_flag(client, daemon, kind, which, number, options)))
                for kind in GUARDRAILS
                for which in range(options.flags)
            ]
            for kind, task in begun:
                found[kind].append(await task)
                print(f"{kind:18} round {number + 1}: {found[kind][-1]}", flush=True)
    for kind, measured in found.items():
        seconds = statistics.median(one.seconds for one in measured)
        requests = statistics.median(one.requests for one in measured)
        print(f"{kind:18} n={len(measured)} medians: {Found(seconds, round(requests))}")


class Found(NamedTuple):
    """How long harm lasted that was found."""

    seconds: float  # from its begin to 0 %
    requests: int  # of treatment in that time

    def __str__(self) -> str:
        """Return both in words."""
        return f"{self.seconds:.1f} s, {self.requests} treatment requests"


async def one_flag(
    client: Client,
    daemon: DaemonProcess,
    kind: str,
    which: int,
    number: int,
    options: argparse.Namespace,
) -> Found:
    """Return how long the harm lasted."""
    flag_key = f"flag-{number}-{which}-{kind.rsplit(maxsplit=1)[-1]}"
    plan = quick_plan(flag_key, stages=STAGES, guardrails=GUARDRAILS[kind])
    await client.command(CommandVerb.START, flag_key, plan=plan)
    await daemon.until(flag_key, lambda document: document["percent"] == PERCENT)
    rates = {"on": options.rate, "off": options.rate}
    per_second = round(options.per_second * 100 / PERCENT)
    seed = random.randrange(10**6)
    apps = CountingTraffic(
        client, daemon, flag_key, per_second=per_second, users=200_000, error_rates=rates, seed=seed
    )
    async with apps:
        await asyncio.sleep(options.clean + random.uniform(0, 2))
        began, before = time.perf_counter(), apps.treated
        apps.error_rates["on"] = options.harm
        await daemon.until(flag_key, lambda document: document["percent"] == 0, seconds=300)
        return Found(time.perf_counter() - began, apps.treated - before)


class CountingTraffic(Traffic):
    """Traffic that counts treatment's requests: on a busy machine they come less often."""

    treated = 0

    async def emit_outcome(
        self, user: str, variant: str, at: datetime, *, is_error: bool, seconds: float | None = None
    ) -> None:
        """Report what happened to a request."""
        self.treated += variant == "on"
        await super().emit_outcome(user, variant, at, is_error=is_error, seconds=seconds)


if __name__ == "__main__":
    asyncio.run(main())
