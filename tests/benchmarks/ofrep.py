"""How many single OFREP evaluations one core answers.

`python -m tests.benchmarks.ofrep [--seconds 5] [--connections 16]`.

The server runs in this process, on a real socket; the clients are processes of their own that keep
their connections and send the next request when the last is answered. Two rounds: flat out, for the
rate; then at half of that rate, paced, for the latency an app sees. Percentages change 20 times a
second all the while. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import resource
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from controller.core.rollout import Rollout
from controller.health import Health
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer
from tests.builders import make_plan, make_rollout
from tests.reports import no_reports

FLAGS = 20
CHANGES_PER_SECOND = 20


@dataclass(frozen=True)
class Round:
    """What one round gave."""

    answers_per_second: float
    latency_ms_p50: float
    latency_ms_p99: float
    server_cpu_share: float


def main() -> None:
    """Run both rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    flat_out, paced = asyncio.run(_measure(options.seconds, options.connections))
    print(
        f"flat out: {flat_out.answers_per_second:,.0f} evaluations/s at "
        f"{flat_out.server_cpu_share:.0%} of one core"
    )
    print(f"  per CPU second: {flat_out.answers_per_second / flat_out.server_cpu_share:,.0f}")
    print(
        f"half of it: {paced.answers_per_second:,.0f} evaluations/s, "
        f"p50 {paced.latency_ms_p50:.2f} ms, p99 {paced.latency_ms_p99:.2f} ms"
    )
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(
        json.dumps(
            {
                "benchmark": "ofrep",
                "machine": machine,
                "flat_out": vars(flat_out),
                "half_rate": vars(paced),
            }
        )
    )


async def _measure(seconds: float, connections: int) -> tuple[Round, Round]:
    board = FlagBoard(generation=Generation.V3)
    rollouts = [
        make_rollout(flag_key=f"flag-{n}", plan=make_plan(flag_key=f"flag-{n}"))
        for n in range(FLAGS)
    ]
    for rollout in rollouts:
        board.update(rollout)
    board.trust()
    app = make_app(
        board,
        Health(()),
        Metrics(version="0"),
        describe=lambda rollout: b"{}",
        reports=no_reports(),
    )
    server = HttpServer(app, port=0)
    await server.start()
    changes = asyncio.create_task(_change(board, rollouts), name="change_percentages")
    try:
        flat_out = await _round(server.port, seconds, connections, rate=None)
        paced = await _round(
            server.port, seconds, connections, rate=flat_out.answers_per_second / 2
        )
    finally:
        changes.cancel()
        await server.stop()
    return flat_out, paced


async def _change(board: FlagBoard, rollouts: list[Rollout]) -> None:
    """Raise and lower one flag after the other."""
    revision = 1
    while True:
        for rollout in rollouts:
            revision += 1
            percent = float(revision % 101)
            board.update(
                make_rollout(
                    flag_key=rollout.flag_key, plan=rollout.plan, revision=revision, percent=percent
                )
            )
            board.beat()
            await asyncio.sleep(1 / CHANGES_PER_SECOND)


async def _round(port: int, seconds: float, connections: int, rate: float | None) -> Round:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    client = context.Process(target=_client, args=(theirs, port, seconds, connections, rate))
    client.start()
    theirs.close()  # so that a client that dies ends the wait
    cpu = _cpu()
    elapsed, latencies = await asyncio.to_thread(
        ours.recv
    )  # the start of its interpreter is idle time on our side
    busy = _cpu() - cpu
    client.join()
    latencies.sort()
    return Round(
        answers_per_second=len(latencies) / elapsed,
        latency_ms_p50=latencies[len(latencies) // 2] * 1e3,
        latency_ms_p99=latencies[int(len(latencies) * 0.99)] * 1e3,
        server_cpu_share=busy / elapsed,
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _client(
    pipe: Connection, port: int, seconds: float, connections: int, rate: float | None
) -> None:
    """Send requests and report what came of them."""
    pipe.send(asyncio.run(_clients(port, seconds, connections, rate)))


async def _clients(
    port: int, seconds: float, n: int, rate: float | None
) -> tuple[float, list[float]]:
    latencies: list[float] = []
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(n):
            tasks.create_task(
                _one_client(port, started + seconds, number, n / rate if rate else 0.0, latencies)
            )
    return time.perf_counter() - started, latencies


async def _one_client(
    port: int, until: float, number: int, interval: float, latencies: list[float]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    due = time.perf_counter() + number * interval / 16
    while (now := time.perf_counter()) < until:
        if interval:
            if due > now:
                await asyncio.sleep(due - now)
            due += interval
        count += 1
        body = b'{"context":{"targetingKey":"user-%d-%d","plan":"pro"}}' % (number, count)
        begun = time.perf_counter()
        writer.write(
            b"POST /ofrep/v1/evaluate/flags/flag-%d HTTP/1.1\r\nhost: "
            b"127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (count % FLAGS, len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - begun)
    writer.close()


if __name__ == "__main__":
    main()
