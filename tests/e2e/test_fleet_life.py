"""Many flags are rolled out and retired: nothing grows but what is kept on purpose."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller.running.decision_relay import RECENT
from schemas.terms import CommandVerb
from tests.fleet_life import Fleet, counting_objects, until
from tests.live import Client, DaemonProcess

FLAGS = 150
#: Blocks of memory that stay of each retired flag: its name and revision in several lists of 10,000
#: at most, and the evaluations of 24 hours. Some 50; a worker that is not let go has 400.
BLOCKS_KEPT = 100
#: Bytes of its tombstone's answers, for a day, and of the set of keys around it.
REDIS_BYTES_KEPT = 3_000


@pytest.mark.rare
async def test_retiring_gives_back_redis_series_and_memory(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A second fleet as large as the first leaves nothing that the first had not."""
    environ = counting_objects(tmp_path)
    daemon = DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix, **environ)
    async with daemon, Client(kafka, topic_prefix) as client:
        fleet = Fleet(daemon, client, redis_url, Path(environ["COUNTED_OBJECTS"]))
        async with fleet.open():
            await whole_life(fleet, "a")
            before = await fleet.footprint(names=r"fleet-[ab]-\d+")
            await whole_life(fleet, "b")
            after = await fleet.footprint(names=r"fleet-[ab]-\d+")
    assert after.redis_keys - before.redis_keys == {"ro:{FLAG}:retired": FLAGS}
    assert after.redis_bytes - before.redis_bytes < FLAGS * REDIS_BYTES_KEPT
    assert after.series == before.series
    grown = (after.kinds - before.kinds).most_common(10)
    assert after.blocks - before.blocks < FLAGS * BLOCKS_KEPT, grown
    assert not [kind for kind, count in grown if kind.startswith("controller.") and count >= FLAGS]


async def whole_life(fleet: Fleet, name: str) -> None:
    """Roll out flags, look at them, end and retire them; return once all is let go."""
    flags = [f"fleet-{name}-{number:05}" for number in range(FLAGS)]
    await fleet.each(CommandVerb.START, flags)
    await fleet.report_uses(flags, 4)
    await fleet.each(CommandVerb.ABORT, flags)
    for path in ("/api/v1/rollouts", "/api/v1/flags"):
        assert (await fleet.daemon.get(path)).status_code == 200
    await fleet.each(CommandVerb.RETIRE, flags)
    await fleet.let_go(flags)

    async def has_no_series() -> bool:
        return f"fleet-{name}-" not in (await fleet.daemon.get("/metrics")).text

    await until(has_no_series, "series of retired flags gone", 75)
    # A decision is remembered for so long, in case Kafka goes.
    await asyncio.sleep(RECENT.total_seconds() + 5)
