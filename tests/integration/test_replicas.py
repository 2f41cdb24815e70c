"""Several real daemons share the work; one leaves, one dies.

Nothing is lost, counted twice or left unanswered.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests.chaos.rounds import PARTITIONS, Chaos
from tests.live import DaemonProcess

pytestmark = pytest.mark.real_kafka


async def owned_partitions(daemon: DaemonProcess) -> int:
    """Return how many partitions of the three topics it reads a replica says it owns."""
    text = (await daemon.get("/metrics")).text
    values = [
        line.rpartition(" ")[2]
        for line in text.splitlines()
        if line.startswith("rolloutd_partitions_owned{")
    ]
    return round(sum(map(float, values)))


async def until_shared(daemons: list[DaemonProcess], seconds: float = 180.0) -> list[int]:
    """Return how many partitions each replica owns once all are owned, and each has some."""
    deadline = time.monotonic() + seconds
    counts: list[int] = []
    while time.monotonic() < deadline:
        counts = [await owned_partitions(daemon) for daemon in daemons]
        if sum(counts) == 3 * PARTITIONS and all(counts):
            return counts
        await asyncio.sleep(0.2)
    raise AssertionError(f"partitions owned: {counts}")


@pytest.mark.rare
@pytest.mark.parametrize(
    ("replicas", "is_static"),
    [(2, False), (3, False), (2, True)],
)
async def test_replicas_share_the_work(
    kafka: str, tmp_path: Path, replicas: int, is_static: bool
) -> None:
    """All replicas count, one leaves in order, one is killed, both come back.

    The recount is exact, every command answered.
    """
    async with Chaos(
        kafka,
        tmp_path,
        seed=replicas,
        replicas=replicas,
        is_static=is_static,
        session_seconds=3.0,
        settle=timedelta(seconds=12),
    ) as chaos:
        first, *_, last = chaos.daemons
        shares = await until_shared(chaos.daemons)
        assert max(shares) - min(shares) <= 3, shares
        await asyncio.sleep(1.5)
        assert await last.stop() == 0
        await asyncio.sleep(1.5)
        last.spawn()
        await last.ready(60)
        await until_shared(chaos.daemons)
        first.kill9()
        await asyncio.sleep(1.5)
        first.spawn()
        await first.ready(60)
        await until_shared(chaos.daemons)
        findings = await chaos.finish()
        answered = [len(daemon.log_lines("command_answered")) for daemon in chaos.daemons]
    assert not findings.faults, "\n".join([findings.summary(), *findings.faults[:30]])
    assert findings.commands > 10
    assert sum(map(bool, answered)) > 1, f"one replica alone has answered: {answered}"
