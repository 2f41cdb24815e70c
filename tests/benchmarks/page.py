"""What open pages cost, and how fast they show a decision and a long list.

`python -m tests.benchmarks.page` serves a fleet from one process, opens pages from another over
loopback, changes one flag a second, and prints: CPU of the serving process, the time from a
decision to its arrival in each page, and the time and size of pages of a long list.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection

import httpx

from controller.core.rollout import Baking, RolledBack, Rollout
from controller.web.server import HttpServer
from tests.pages import PageWorld, plan_of, rollout_in

_HTML = {"accept": "text/html"}


def _fleet(flags: int) -> list[Rollout]:
    """Return rollouts of so many flags, all under way."""
    at = datetime.now(UTC)
    plan = plan_of("flag", "team")
    first = rollout_in(lambda _: Baking(1, at + timedelta(minutes=5)), "flag", 1, at, plan=plan)
    return [
        replace(
            first,
            flag_key=f"flag-{number:05}",
            rollout_id=f"start-{number}",
            plan=replace(plan, flag_key=f"flag-{number:05}"),
        )
        for number in range(flags)
    ]


async def _read(address: tuple[str, int], path: str, arrived: list[float]) -> None:
    """Open a page's stream and note when each change comes."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    while chunk := await reader.read(1 << 16):
        if b"hx-partial" in chunk:
            arrived.append(time.time())


async def _open_pages(port: int, paths: Sequence[str], pipe: Connection) -> None:
    """Keep pages open until the other process is done; then send when changes came to each."""
    arrived: list[list[float]] = [[] for _ in paths]
    tasks = [
        asyncio.create_task(_read(("127.0.0.1", port), path, times))
        for path, times in zip(paths, arrived, strict=True)
    ]
    await asyncio.sleep(3)
    pipe.send("open")
    await asyncio.to_thread(pipe.recv)
    for task in tasks:
        task.cancel()
    pipe.send(arrived)


def _reading_process(port: int, paths: Sequence[str], pipe: Connection) -> None:
    asyncio.run(_open_pages(port, paths, pipe))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _changes(world: PageWorld, rollouts: list[Rollout], seconds: int) -> list[float]:
    """Roll one flag back each second; return when."""
    changed = []
    for number in range(seconds):
        one = rollouts[number]
        phase = RolledBack(datetime.now(UTC), "error_rate 4.1 % against 0.93 %")
        world.board.update(
            replace(
                one,
                phase=phase,
                percent=0.0,
                revision=one.revision + 1,
                updated_at=datetime.now(UTC),
            )
        )
        changed.append(time.time())
        await asyncio.sleep(1)
    return changed


async def measure(pages: int, flags: int, seconds: int, *, is_of_one: bool) -> dict[str, object]:
    """Return the figures of `pages` open pages of the list, or of the flags that change."""
    world = PageWorld(page_streams=pages + 10)
    rollouts = _fleet(flags)
    world.show(*rollouts)
    server = HttpServer(world.app, port=0, max_connections=pages + 100)
    await server.start()
    paths = [
        f"/ui/live/rollouts/flag-{number % seconds:05}" if is_of_one else "/ui/live/fleet"
        for number in range(pages)
    ]
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    reading = context.Process(target=_reading_process, args=(server.port, paths, theirs))
    reading.start()
    await asyncio.to_thread(ours.recv)
    await asyncio.sleep(3)  # the first whole screens are sent
    quiet, began = _cpu(), time.time()
    await asyncio.sleep(seconds)
    idle = (_cpu() - quiet) / (time.time() - began)
    before, began = _cpu(), time.time()
    changed = await _changes(world, rollouts, seconds)
    share = (_cpu() - before) / (time.time() - began)
    await asyncio.sleep(1)
    ours.send("done")
    arrived: list[list[float]] = await asyncio.to_thread(ours.recv)
    reading.join()
    delays = [
        next((came for came in times if came >= at), at + 99) - at
        for number, at in enumerate(changed)
        for place, times in enumerate(arrived)
        if not is_of_one or place % seconds == number
    ]
    await server.stop()
    return {
        "pages": pages,
        "of": "the flag that changes" if is_of_one else "the list",
        "flags": flags,
        "cpu_percent_without_changes": round(100 * idle, 1),
        "cpu_percent_at_one_change_a_second": round(100 * share, 1),
        "shown_after_ms_p50": round(1e3 * statistics.median(delays)),
        "shown_after_ms_p95": round(1e3 * statistics.quantiles(delays, n=20)[-1]),
    }


async def long_list(flags: int) -> dict[str, object]:
    """Return times and sizes of pages of a long list, the first one apart."""
    world = PageWorld()
    world.show(*_fleet(flags))
    server = HttpServer(world.app, port=0)
    await server.start()
    times, size = [], 0
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", headers=_HTML) as page:
        for path in ["/", "/ui/flags", *("/?page=7", "/?q=flag-09", "/?state=active&page=3") * 10]:
            began = time.perf_counter()
            answer = await page.get(path, timeout=30)
            times.append(1e3 * (time.perf_counter() - began))
            size = max(size, len(answer.content))
    await server.stop()
    return {
        "flags": flags,
        "first_ms": round(times[0]),
        "first_inventory_ms": round(times[1]),
        "next_ms_median": round(statistics.median(times[2:])),
        "next_ms_max": round(max(times[2:])),
        "largest_bytes": size,
    }


def main() -> None:
    """Print one line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--flags", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=20)
    chosen = parser.parse_args()
    print(json.dumps(asyncio.run(long_list(chosen.flags))))
    for flags, is_of_one in ((200, False), (200, True), (chosen.flags, False)):
        made = measure(chosen.pages, flags, chosen.seconds, is_of_one=is_of_one)
        print(json.dumps(asyncio.run(made)))


if __name__ == "__main__":
    main()
