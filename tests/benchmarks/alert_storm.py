"""How fast harm is stopped while people are told of a storm of alerts, and while they are not.

`python -m tests.benchmarks.alert_storm [--rounds 8] [--blocks 2] [--per-minute 1000]` runs blocks
of rounds of `tests.benchmarks.breach` on one real daemon, in turn without and with so many alerts
a minute on one route to a Slack, a Teams and a webhook channel. Each block with a storm ends when
every message was taken. Prints the medians, their ratio, and what the channels got.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import tempfile
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

from controller.codec.alerts import alert_event
from controller.core.effects import RaiseAlert
from schemas.envelope import HEADERS
from schemas.terms import AlertKind, Severity
from tests.benchmarks.breach import Ofrep, one_round
from tests.brokers import RedisServer, start_kafka
from tests.builders import make_rollout
from tests.live import Client, DaemonProcess
from tests.notification_services import SECRET, TOKEN, Receiver, Slack, Teams, running


async def _serve(pipe: Connection) -> None:
    """Run the services until the other side says so; then send what each has got."""
    services = (Slack(), Teams(), Receiver())
    async with running(*services):
        pipe.send([one.url for one in services])
        await asyncio.to_thread(pipe.recv)
        pipe.send([(len(one.server.requests), len(one.refused)) for one in services])


def _service_process(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


def _config(directory: Path, slack: str, teams: str, mine: str) -> Path:
    """Return the daemon's settings: one route to all three."""
    rules = directory / "notifications.yaml"
    rules.write_text("version: 1\nroutes: [{name: all, to: [chat, cards, mine]}]\n")
    config = directory / "rolloutd.yaml"
    config.write_text(
        f"notifications:\n"
        f"  rules_file: {rules}\n"
        f"  channels:\n"
        f"    chat: {{type: slack, token: {TOKEN}, place: C1, base_url: '{slack}'}}\n"
        f"    cards: {{type: teams, url: '{teams}/workflows/1'}}\n"
        f"    mine: {{type: webhook, url: '{mine}/x', secret: {SECRET}}}\n"
    )
    return config


async def _alerts(client: Client, per_minute: float) -> None:
    """Publish alerts of a hundred flags until cancelled."""
    name = uuid.uuid4().hex[:6]
    number = 0
    while True:
        flag = f"noisy-{number % 100}"
        rollout = make_rollout(flag_key=flag, revision=number + 1)
        effect = RaiseAlert(
            AlertKind.ROLLED_BACK,
            Severity.CRITICAL,
            f"{flag}: {name} {number}",
            "",
            f"{name}/{number}",
        )
        event = alert_event(effect, rollout, f"{name}/{number}/0", datetime.now(UTC))
        await client.producer.send(
            f"{client.prefix}rollout.alerts", event, flag.encode(), headers=list(HEADERS)
        )
        number += 1
        await asyncio.sleep(60.0 / per_minute)


@contextlib.asynccontextmanager
async def _storm(client: Client, daemon: DaemonProcess, per_minute: float) -> AsyncIterator[None]:
    """Let alerts come; at the end wait until people were told of all of them."""
    task = asyncio.create_task(_alerts(client, per_minute))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    async with asyncio.timeout(600):
        while True:
            await asyncio.sleep(2)
            found = (await daemon.get("/api/v1/notifications")).json()
            if not any(one["waiting"] for one in found["channels"]):
                return


async def _measure(
    client: Client, daemon: DaemonProcess, chosen: argparse.Namespace
) -> dict[str, list[float]]:
    """Alternate blocks of both kinds in one run, so that the machine's noise meets both alike."""
    seconds: dict[str, list[float]] = {"quiet": [], "storm": []}
    seen_by = Ofrep(daemon.url)
    for block in range(chosen.blocks):
        for kind, measured in seconds.items():
            async with contextlib.AsyncExitStack() as stack:
                if kind == "storm":
                    await stack.enter_async_context(_storm(client, daemon, chosen.per_minute))
                    await asyncio.sleep(10)  # the queues are filled
                for number in range(chosen.rounds):
                    flag_key = f"{kind}-{block}-{number}"
                    measured.append(await one_round(client, daemon, seen_by, flag_key, "off"))
                    print(f"{kind} {measured[-1] * 1000:.0f} ms", flush=True)
    await seen_by.close()
    return seconds


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="of each block")
    parser.add_argument("--blocks", type=int, default=2, help="of each kind")
    parser.add_argument("--per-minute", type=float, default=1_000, help="alerts in a storm")
    chosen = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    services = multiprocessing.get_context("spawn").Process(target=_service_process, args=(theirs,))
    services.start()
    urls = await asyncio.to_thread(ours.recv)
    with RedisServer() as redis, tempfile.TemporaryDirectory() as directory:
        kafka = await asyncio.to_thread(start_kafka)
        try:
            print(f"Kafka: {kafka.description}")
            prefix = f"b{uuid.uuid4().hex[:6]}."
            config = _config(Path(directory), *urls)
            daemon = DaemonProcess(
                kafka.bootstrap,
                redis.url,
                Path(directory),
                prefix=prefix,
                ROLLOUTD_CONFIG=str(config),
            )
            async with daemon, Client(kafka.bootstrap, prefix) as client:
                seconds = await _measure(client, daemon, chosen)
                told = (await daemon.get("/api/v1/notifications")).json()
        finally:
            kafka.stop()
    ours.send("done")
    counts = await asyncio.to_thread(ours.recv)
    services.join()
    for channel, (requests, refused) in zip(told["channels"], counts, strict=True):
        print(f"{channel['name']}: {channel['sent']} messages, {requests=}, {refused=}")
    print(f"dead letters: {len(told['dead_letters'])}")
    for kind, measured in seconds.items():
        print(
            f"{kind} n={len(measured)} median {statistics.median(measured) * 1000:.0f} ms, "
            f"min {min(measured) * 1000:.0f}, max {max(measured) * 1000:.0f}"
        )
    storm, quiet = (statistics.median(seconds[kind]) for kind in ("storm", "quiet"))
    print(f"ratio of medians {storm / quiet:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
