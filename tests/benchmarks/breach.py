"""How fast harm is stopped.

From producing the events that cross a guardrail's boundary to 0 % being served.

`python -m tests.benchmarks.breach [--rounds 20] [--plane unleash]` on a Kafka as the tests find it.
Each round starts a rollout of its own, lets healthy traffic in, then sends a burst of failed
treatment requests; the clock runs from before the burst's first record is sent until a user who was
in treatment is served control over OFREP, or until a real Unleash (`make unleash` installs it) says
by its Admin API that the flag lets in nobody. Half the rounds do it while a model that never
answers is being asked. Prints the medians of both, and their ratio.
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
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx

from controller.web.bucketing import Generation, bucketer
from schemas.terms import CommandVerb
from tests.brokers import RedisServer, free_port, start_kafka
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.unleash.server import ADMIN_TOKEN, ENVIRONMENT, Console, UnleashServer, installed

PERCENT = 50


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=20, help="per kind: with a hanging model, and without"
    )
    parser.add_argument(
        "--plane", choices=("ofrep", "unleash"), default="ofrep", help="where 0 %% is to be seen"
    )
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        redis, directory = (
            stack.enter_context(RedisServer()),
            stack.enter_context(tempfile.TemporaryDirectory()),
        )
        unleash = (
            stack.enter_context(UnleashServer(installed())) if asked.plane == "unleash" else None
        )
        kafka = await asyncio.to_thread(start_kafka)
        try:
            print(f"Kafka: {kafka.description}")
            await measure(kafka.bootstrap, redis.url, Path(directory), asked.rounds, unleash)
        finally:
            kafka.stop()


class Ofrep:
    """Sees the flag as an OpenFeature client does."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url)

    async def serves_treatment(self, flag_key: str, user: str) -> bool:
        """Evaluate for one user."""
        answer = await self._http.post(
            f"/ofrep/v1/evaluate/flags/{flag_key}", json={"context": {"targetingKey": user}}
        )
        value: bool = answer.json()["value"]
        return value

    async def close(self) -> None:
        """Close what is open."""
        await self._http.aclose()


class Unleash(Console):
    """Sees the flag as Unleash's Admin API tells it."""

    async def serves_treatment(self, flag_key: str, user: str) -> bool:
        """Tell whether the flag lets in anybody."""
        strategies = await self.here("GET", flag_key, "/strategies")
        return any(each["parameters"]["rollout"] != "0" for each in strategies)


async def measure(
    bootstrap: str, redis_url: str, directory: Path, rounds: int, unleash: UnleashServer | None
) -> None:
    """Alternate both kinds in one run, so that the machine's noise meets both alike."""
    prefix = f"b{uuid.uuid4().hex[:6]}."
    port = free_port()
    hanging = await asyncio.start_server(hang, "127.0.0.1", port)
    daemon = DaemonProcess(
        bootstrap,
        redis_url,
        directory,
        prefix=prefix,
        ROLLOUTD_ADVISOR__URL=f"http://127.0.0.1:{port}",
        ROLLOUTD_ADVISOR__CONCURRENCY="64",
        ROLLOUTD_ADVISOR__BREAKER_FAILURES="1000",
        **({} if unleash is None else settings_of(unleash)),
    )
    seen_by = Ofrep(daemon.url) if unleash is None else Unleash(unleash.url)
    seconds: dict[str, list[float]] = {"no model": [], "hanging model": []}
    async with hanging, daemon, Client(bootstrap, prefix) as client:
        for number in range(rounds):
            for kind, mode in (("no model", "off"), ("hanging model", "can_hold")):
                took = await one_round(client, daemon, seen_by, f"flag-{number}-{mode}", mode)
                print(f"{kind:14} round {number + 1}: {took * 1000:.0f} ms", flush=True)
                seconds[kind].append(took)
    for kind, measured in seconds.items():
        ordered = sorted(measured)
        print(
            f"{kind:14} n={len(ordered)} median {statistics.median(ordered) * 1000:.0f} ms, "
            f"min {ordered[0] * 1000:.0f}, max {ordered[-1] * 1000:.0f}"
        )
    hung_median, usual_median = (
        statistics.median(seconds[kind]) for kind in ("hanging model", "no model")
    )
    print(f"ratio of medians {hung_median / usual_median:.2f}")

    await seen_by.close()


def settings_of(unleash: UnleashServer) -> dict[str, str]:
    """Return the variables that make a daemon drive it."""
    fields = {
        "URL": unleash.url,
        "TOKEN": ADMIN_TOKEN,
        "ENVIRONMENT": ENVIRONMENT,
        "CREATE_FLAGS": "true",
    }
    return {f"ROLLOUTD_PLANES__UNLEASH__{name}": value for name, value in fields.items()}


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept, read, never answer."""
    with suppress(asyncio.CancelledError):  # the end of the benchmark
        while await reader.read(65_536):
            pass
    writer.close()


async def one_round(
    client: Client, daemon: DaemonProcess, seen_by: Ofrep | Unleash, flag_key: str, mode: str
) -> float:
    """Return the seconds from the burst's first record to control being served."""
    bake = "0.6s" if mode == "can_hold" else "300s"
    stages = [
        {"percent": PERCENT, "bake": bake, "settle": "0.2s", "min_sample": 20, "max_bake": "400s"},
        {"percent": 100, "bake": "300s", "settle": "0.2s", "min_sample": 20, "max_bake": "400s"},
    ]
    guardrails = [{"metric": "error_rate", "limit": 0.2}]
    plan = quick_plan(
        flag_key, stages=stages, guardrails=guardrails, advisor={"mode": mode, "deadline": "120s"}
    )
    await client.command(CommandVerb.START, flag_key, plan=plan)
    await daemon.until(flag_key, lambda document: document["percent"] == PERCENT)
    bucket = bucketer(flag_key, Generation.V3)
    variants = {
        f"user-{number}": "on" if bucket(f"user-{number}") < PERCENT * 100 else "off"
        for number in range(800)
    }
    users = list(variants)
    async with Traffic(client, daemon, flag_key, per_second=0) as apps:
        await asyncio.sleep(0.4)
        now = datetime.now(UTC)
        for user in users[
            :400
        ]:  # healthy, in both arms, so that the gate is reached and asks the model
            await apps.emit_evaluation(user, variants[user], now)
            await apps.emit_outcome(user, variants[user], now, is_error=False)
        if mode == "can_hold":
            await daemon.until(
                flag_key,
                lambda document: (
                    bool(document["phase"].get("advice")) or is_asked(daemon, flag_key)
                ),
            )
        # Not in step with anything that happens once a second.
        await asyncio.sleep(random.uniform(1.0, 2.0))
        treated = [user for user in users[400:] if variants[user] == "on"]
        assert await seen_by.serves_treatment(flag_key, treated[0])
        began, now = time.perf_counter(), datetime.now(UTC)
        for user in treated:
            await apps.emit_outcome(user, "on", now, is_error=True)
        while await seen_by.serves_treatment(flag_key, treated[0]):
            await asyncio.sleep(0.002)
        return time.perf_counter() - began


def is_asked(daemon: DaemonProcess, flag_key: str) -> bool:
    """Tell whether the model has been asked about this flag."""
    return any(line["flag_key"] == flag_key for line in daemon.log_lines("advice_asked"))


if __name__ == "__main__":
    asyncio.run(main())
