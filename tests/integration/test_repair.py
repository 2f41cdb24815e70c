"""`rolloutd repair`: on a real Redis, as an operator runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.totals import RedisTotals
from controller.cli.daemon import app
from controller.clock import SystemClock
from controller.health import Faults, Scope
from schemas.totals import PartitionCounts, encode_progress


@pytest.fixture
def environ(redis_url: str, topic_prefix: str) -> dict[str, str]:
    """Settings of the daemon whose Redis it is."""
    return {
        "ROLLOUTD_REDIS__URL": redis_url,
        "ROLLOUTD_REDIS__KEY_PREFIX": topic_prefix,
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "localhost:1",
    }


@pytest.fixture
async def totals(redis_url: str, topic_prefix: str):  # type: ignore[no-untyped-def]
    """The same totals as the command's."""
    store = RedisConnection.connect(redis_url, prefix=topic_prefix)
    yield RedisTotals(store, Faults(SystemClock().now))
    await store.close()


async def test_a_partition_is_discarded_by_name(
    totals: RedisTotals, environ: dict[str, str], tmp_path: Path
) -> None:
    """The command says what it does and deletes one hash; without consent it deletes nothing."""
    topic = "flag.evaluations"
    fields = encode_progress(PartitionCounts(counted=5))
    for number in (3, 4):
        await totals.save(f"{topic}/{number}/1", expected=None, next_offset=5, fields=fields)

    def invoke(*words: str, answer: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(app, ["repair", "partition", *words], env=environ, input=answer)
        return result.exit_code, result.output

    code, output = await asyncio.to_thread(invoke, f"{topic}/3", answer="n\n")
    assert code == 1
    assert "counts again what Kafka still has" in output
    assert (await totals.load(f"{topic}/3/1")).next_offset == 5

    code, output = await asyncio.to_thread(invoke, f"{topic}/3", "--yes")
    assert (code, "is discarded" in output) == (0, True), output
    assert (await totals.load(f"{topic}/3/1")).next_offset is None
    assert (await totals.load(f"{topic}/4/1")).next_offset == 5

    code, output = await asyncio.to_thread(invoke, f"{topic}/3", "--yes")
    assert (code, "nothing is stored" in output) == (0, True)


@pytest.mark.parametrize("name", ["nowhere/3", "flag.evaluations", "flag.evaluations/x", "/3"])
def test_what_names_no_partition_is_refused(name: str, environ: dict[str, str]) -> None:
    """Another topic, or no number, deletes nothing and exits 78."""
    result = CliRunner().invoke(app, ["repair", "partition", name, "--yes"], env=environ)
    assert result.exit_code == 78


async def test_a_key_of_another_kind_costs_its_partition_alone(
    totals: RedisTotals, topic_prefix: str
) -> None:
    """A string where a hash belongs is one partition's fault, with a command for it."""
    fields = encode_progress(PartitionCounts(counted=5))
    await totals.save("e/0/1", expected=None, next_offset=5, fields=fields)
    client = totals._connection.client
    await client.set(f"{topic_prefix}agg:{{e/1/1}}", b"x")
    _, progress = await totals.read(["e/0/1", "e/1/1"], {"f": ("r", [0])})
    assert [one.topic_partition for one in progress] == ["e/0"]
    faults = totals._faults._faults
    assert faults is not None
    fault = faults.of(Scope.PARTITION, "e/1")
    assert fault is not None
    assert fault.fix == "rolloutd repair partition e/1"
    await totals.discard("e/1/1")
    _, progress = await totals.read(["e/0/1", "e/1/1"], {"f": ("r", [0])})
    assert faults.current == ()
