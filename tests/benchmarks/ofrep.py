"""How many single OFREP evaluations one core answers.

`python -m tests.benchmarks.ofrep [--seconds 5] [--connections 16] [--paced 7500]`.

The server runs in this process, on one core and a real socket; the client is a process of its own
on another core, which keeps its connections. Two rounds: flat out, for the rate, where each
connection sends its next request when the last is answered; then at half of that rate (or at
`--paced`), for the latency an app sees, counted from when each request was due. Percentages change
20 times a second all the while. What the machine gives to others is not the server's: the rate per
CPU second tells how fast it is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import select
import socket
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
SERVER_CORE, CLIENT_CORE = 0, 1


@dataclass(frozen=True)
class Round:
    """What one round gave."""

    answers_per_second: float
    latency_ms_p50: float
    latency_ms_p99: float
    server_cpu_share: float
    client_cpu_share: float


def main() -> None:
    """Run both rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--paced", type=float, help="evaluations/s of the second round")
    options = parser.parse_args()
    flat_out, paced = asyncio.run(_measure(options.seconds, options.connections, options.paced))
    print(
        f"flat out: {flat_out.answers_per_second:,.0f} evaluations/s at "
        f"{flat_out.server_cpu_share:.0%} of one core; the client took "
        f"{flat_out.client_cpu_share:.0%} of another"
    )
    print(f"  per CPU second: {flat_out.answers_per_second / flat_out.server_cpu_share:,.0f}")
    print(
        f"paced: {paced.answers_per_second:,.0f} evaluations/s, "
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


async def _measure(seconds: float, connections: int, rate: float | None) -> tuple[Round, Round]:
    _pin(SERVER_CORE)
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
    server = HttpServer(app, port=0, at_once=app.state.at_once)
    await server.start()
    changes = asyncio.create_task(_change(board, rollouts), name="change_percentages")
    try:
        flat_out = await _round(server.port, seconds, connections, rate=None)
        paced = await _round(
            server.port, seconds, connections, rate=rate or flat_out.answers_per_second / 2
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
    # The start of its interpreter is idle time on our side, and not in what it measured.
    elapsed, latencies, client_share = await asyncio.to_thread(ours.recv)
    busy = _cpu() - cpu
    client.join()
    latencies.sort()
    return Round(
        answers_per_second=len(latencies) / elapsed,
        latency_ms_p50=latencies[len(latencies) // 2] * 1e3,
        latency_ms_p99=latencies[int(len(latencies) * 0.99)] * 1e3,
        server_cpu_share=busy / elapsed,
        client_cpu_share=client_share,
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _client(
    pipe: Connection, port: int, seconds: float, connections: int, rate: float | None
) -> None:
    """Send requests and report what came of them, with the client's own share of a core."""
    _pin(CLIENT_CORE)
    began, cpu = time.perf_counter(), _cpu()
    latencies = _Load(port, connections, rate).run(seconds)
    elapsed = time.perf_counter() - began
    pipe.send((elapsed, latencies, (_cpu() - cpu) / elapsed))


class _Load:
    """Connections on one epoll: far cheaper per request than the server, so never what limits."""

    def __init__(self, port: int, connections: int, rate: float | None) -> None:
        """`rate` None: each connection sends its next request when the last is answered."""
        self._rate = rate
        self._epoll = select.epoll()
        self._by_number: dict[int, socket.socket] = {}
        self._sent_at: dict[int, float] = {}
        self._count = 0
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._by_number[connection.fileno()] = connection
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def run(self, seconds: float) -> list[float]:
        """Return the latency of each answer in seconds, counted from when it was due."""
        latencies: list[float] = []
        idle = list(self._by_number)
        began = time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            while idle and (self._rate is None or began + self._count / self._rate <= now):
                due = now if self._rate is None else began + self._count / self._rate
                self._send(idle.pop(), due)
            # Paced, it must not sleep for a whole millisecond, the least that epoll can.
            for number, _ in self._epoll.poll(0.1 if self._rate is None else 0):
                self._receive(number)
                latencies.append(time.perf_counter() - self._sent_at[number])
                idle.append(number)
        return latencies

    def _send(self, number: int, due: float) -> None:
        body = b'{"context":{"targetingKey":"user-%d","plan":"pro"}}' % self._count
        self._by_number[number].sendall(
            b"POST /ofrep/v1/evaluate/flags/flag-%d HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (self._count % FLAGS, len(body), body)
        )
        self._sent_at[number] = due
        self._count += 1

    def _receive(self, number: int) -> None:
        """Read one whole answer, which must be a success."""
        answer = b""
        while True:
            piece = self._by_number[number].recv(65_536)
            assert piece, "the server closed a connection"
            answer += piece
            head, end, body = answer.partition(b"\r\n\r\n")
            if end and len(body) >= int(head.partition(b"content-length: ")[2].split(b"\r")[0]):
                assert head.startswith(b"HTTP/1.1 200"), head
                return


def _pin(core: int) -> None:
    """Stay on one core, where there are several."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


if __name__ == "__main__":
    main()
