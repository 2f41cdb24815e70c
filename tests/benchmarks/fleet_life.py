"""What 10,000 flags cost, and whether retiring them gives it all back.

`python -m tests.benchmarks.fleet_life` starts a daemon on a real Kafka and a real Redis, rolls out
a first small fleet (what is loaded once is loaded then), then the large one, some hundred flags at
a time: starts, evaluations of each flag, aborts. It times pages and the inventory, retires every
flag, and prints Redis, series and memory before, at the full fleet and after.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import httpx

from schemas.terms import CommandVerb
from tests.brokers import RedisServer, start_kafka
from tests.fleet_life import Fleet, counting_objects
from tests.live import Client, DaemonProcess

_NAMES = r"fleet-[a-z]-\d+"
_HTML = {"accept": "text/html"}
_LIVE_AT_ONCE = 600
#: The cleaning up that is done once a minute has been done twice.
_SETTLING_SECONDS = 65


def _say(what: str, **figures: object) -> None:
    print(json.dumps({"what": what, "at": time.strftime("%H:%M:%S"), **figures}), flush=True)


async def _ended(fleet: Fleet, name: str, count: int, users: int) -> list[str]:
    """Roll out flags, some hundred at a time: start, uses of each, abort; return their names."""
    flags = [f"fleet-{name}-{number:05}" for number in range(count)]
    began = time.monotonic()
    for first in range(0, count, _LIVE_AT_ONCE):
        wave = flags[first : first + _LIVE_AT_ONCE]
        await fleet.each(CommandVerb.START, wave)
        await fleet.report_uses(wave, users)
        await fleet.each(CommandVerb.ABORT, wave)
    seconds = round(time.monotonic() - began)
    _say(f"{count} flags rolled out and ended, {users} uses of each counted", seconds=seconds)
    return flags


async def _time_pages(daemon: DaemonProcess, fleet: str) -> None:
    """Print how long the fleet page and the inventory take."""
    async with httpx.AsyncClient(base_url=daemon.url, headers=_HTML, timeout=60) as http:
        for path in ("/", "/?page=7", "/?q=fleet-b-09", "/ui/flags", "/ui/flags?page=50"):
            times, size, status = [], 0, 0
            for _ in range(10):
                began = time.perf_counter()
                answer = await http.get(path)
                times.append(1e3 * (time.perf_counter() - began))
                size, status = len(answer.content), answer.status_code
            _say(
                f"page {path} of the {fleet} fleet",
                status=status,
                first_ms=round(times[0]),
                median_ms=round(statistics.median(times)),
                max_ms=round(max(times)),
                bytes=size,
            )
        seen, pages, began = 0, 0, time.perf_counter()
        while True:
            body = (await http.get("/api/v1/flags", params={"limit": 200, "offset": seen})).json()
            if not body["flags"]:
                break
            seen, pages = seen + len(body["flags"]), pages + 1
        took = time.perf_counter() - began
        _say(
            f"inventory of the {fleet} fleet paged through",
            flags=seen,
            pages=pages,
            seconds=round(took, 1),
        )


async def measure(count: int, users: int, bootstrap: str, redis_url: str, directory: Path) -> None:
    """Print every figure."""
    prefix = f"b{uuid.uuid4().hex[:6]}."
    environ = counting_objects(directory)
    daemon = DaemonProcess(bootstrap, redis_url, directory, prefix=prefix, **environ)
    async with daemon, Client(bootstrap, prefix) as client:
        fleet = Fleet(daemon, client, redis_url, Path(environ["COUNTED_OBJECTS"]))
        async with fleet.open():
            first = await _ended(fleet, "a", 50, users)
            await _time_pages(daemon, "small")
            await fleet.each(CommandVerb.RETIRE, first)
            await fleet.let_go(first)
            await asyncio.sleep(_SETTLING_SECONDS)
            before = await fleet.footprint(names=_NAMES)
            _say("before", **before.line())
            flags = await _ended(fleet, "b", count, users)
            await _time_pages(daemon, "whole")
            _say("all ended", **(await fleet.footprint(names=_NAMES)).line())
            began = time.monotonic()
            await fleet.each(CommandVerb.RETIRE, flags)
            retired = time.monotonic()
            await fleet.let_go(flags)
            gone = time.monotonic()
            _say("all retired", retire_s=round(retired - began), let_go_s=round(gone - retired))
            _say("just after", **(await fleet.footprint(names=_NAMES)).line())
            await asyncio.sleep(_SETTLING_SECONDS)
            after = await fleet.footprint(names=_NAMES)
            _say("after", **after.line())
            _say("kinds that grew", kinds=dict((after.kinds - before.kinds).most_common(25)))


def main() -> None:
    """Start the servers and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flags", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=6, help="evaluations of each flag")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        kafka = start_kafka()
        stack.callback(kafka.stop)
        _say(f"{kafka.description}; {redis.description}")
        asyncio.run(
            measure(chosen.flags, chosen.users, kafka.bootstrap, redis.url, Path(directory))
        )


if __name__ == "__main__":
    main()
