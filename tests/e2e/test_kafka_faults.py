"""The daemon as a process, while Kafka hangs, grows, and holds what was made to break it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from controller.adapters.kafka.topics import partition_of
from schemas.terms import CommandStatus, CommandVerb
from tests.brokers import LocalKafka
from tests.integration.test_kafka_faults import BOMBS, batch_of, bomb, produce, sealed
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
STAGES = [{"percent": 50, "bake": "1h", "settle": "0.3s", "min_sample": 50}]
#: What a bomb of each codec unpacks to: beyond our cap, or for snappy as much as a broker's limit
#: of 1 MB lets through.
SIZES = {"gzip": 300_000_000, "zstd": 300_000_000, "lz4": 80_000_000, "snappy": 20_000_000}


def most_megabytes(pid: int) -> float:
    """Return the most memory that a process has had so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.rare
async def test_bombs_cost_neither_memory_nor_time(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Bombs of every codec in every topic we read.

    A harmful release among them is rolled back, by the same process.
    """
    bombs = [await asyncio.to_thread(bomb, codec, SIZES[codec]) for codec in BOMBS]
    bombs += [await asyncio.to_thread(bomb, codec, 60_000_000) for codec in ("gzip", "zstd")]
    odd = sealed(batch_of([b"one", b"two"], header="name").replace(b"name", b"n\xffme", 1))
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        assert daemon.process is not None
        async with Traffic(client, daemon, FLAG) as traffic:
            await asyncio.sleep(2)
            before = most_megabytes(daemon.process.pid)
            for topic in ("flag.evaluations", "request.outcomes", "rollout.commands"):
                for number, each in enumerate([*bombs, odd]):
                    await produce(kafka, topic_prefix + topic, each, partition=number % 4)
            traffic.error_rates["on"] = 0.6
            document = await daemon.until(FLAG, lambda doc: doc["phase"]["name"] == "rolled_back")
        assert document["percent"] == 0
        assert (await client.command(CommandVerb.ABORT, FLAG)).command_id
        assert most_megabytes(daemon.process.pid) - before < 150
        stalls = [line["duration_ms"] for line in daemon.log_lines("loop_stalled")]
        assert max(stalls, default=0) < 250 * SLACK
        assert daemon.log_lines("batch_refused")
        assert await daemon.stop() == 0


@pytest.mark.rare
async def test_a_broker_that_hangs_ends_nothing(
    own_kafka: LocalKafka, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Frozen for half a minute, longer than the watchdog waits.

    Apps are served throughout, and then harm is seen again.
    """
    bootstrap = own_kafka.bootstrap
    async with (
        DaemonProcess(bootstrap, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(bootstrap, topic_prefix) as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await daemon.until(FLAG, lambda doc: doc["percent"] == 50)
        own_kafka.pause()
        try:
            frozen_at = time.monotonic()
            async with httpx.AsyncClient() as http:
                while time.monotonic() - frozen_at < 32:
                    asked = {"context": {"targetingKey": "ann"}}
                    served = await http.post(
                        f"{daemon.url}/ofrep/v1/evaluate/flags/{FLAG}", json=asked, timeout=10
                    )
                    assert served.status_code == 200
                    assert daemon.process is not None
                    assert daemon.process.poll() is None, daemon.log_tail()
                    await asyncio.sleep(0.5)
        finally:
            own_kafka.resume()
        async with Traffic(client, daemon, FLAG, error_rates={"on": 0.6, "off": 0.05}):
            document = await daemon.until(
                FLAG, lambda doc: doc["phase"]["name"] == "rolled_back", 60
            )
        assert document["percent"] == 0
        assert await daemon.stop() == 0


class NewPartitionsOnly(Traffic):
    """Apps whose users all are in partitions that were added."""

    async def request(self, user: str) -> None:
        """Serve one request, of a user whose events go to the partitions from 4 on."""
        number = 0
        while partition_of(f"{user}-{number}", 8) < 4:
            number += 1
        await super().request(f"{user}-{number}")


@pytest.mark.rare
async def test_a_broker_that_was_away_is_counted_from_as_soon_as_it_is_heard(
    own_kafka: LocalKafka, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Away for longer than the watchdog waits, and `/readyz` says of counting what is so.

    The member of the group is the same as before: the group need not wait for its session to end.
    """
    patience = {"ROLLOUTD_WATCHDOG__STUCK_AFTER_SECONDS": "15"}
    async with DaemonProcess(
        own_kafka.bootstrap, redis_url, tmp_path, prefix=topic_prefix, **patience
    ) as daemon:

        async def until(*, is_ready: bool) -> None:
            async with asyncio.timeout(30 * SLACK):
                while True:
                    components = (await daemon.standing())["components"]
                    if all(components[name]["ready"] is is_ready for name in ("state", "counting")):
                        return
                    await asyncio.sleep(0.1)

        await until(is_ready=True)
        own_kafka.kill9()
        await until(is_ready=False)
        await asyncio.sleep(20)
        await asyncio.to_thread(own_kafka.start)
        await until(is_ready=True)
        assert not daemon.log_lines("consumer_stuck")
        assert len(daemon.log_lines("consumer_started")) == 2  # of the events, of the commands


async def test_partitions_added_to_every_topic_are_judged_and_obeyed(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Harm in new partitions alone rolls the release back, and commands work, with no restart."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        for flag in (FLAG, "other"):
            answer = await client.command(
                CommandVerb.START, flag, plan=quick_plan(flag, stages=STAGES)
            )
            assert answer.status is CommandStatus.ACCEPTED, answer.reason
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        topics = ("flag.evaluations", "request.outcomes", "rollout.commands")
        await admin.create_partitions({topic_prefix + topic: NewPartitions(8) for topic in topics})
        await admin.close()
        await asyncio.sleep(12)  # producers notice new partitions as late as we do
        await client.producer.client.force_metadata_update()
        async with NewPartitionsOnly(client, daemon, FLAG, error_rates={"on": 0.6, "off": 0.05}):
            document = await daemon.until(
                FLAG, lambda doc: doc["phase"]["name"] == "rolled_back", 30
            )
        assert document["percent"] == 0
        answer = await client.command(CommandVerb.ROLL_BACK, "other")
        assert answer.status is CommandStatus.ACCEPTED
        assert (await daemon.until("other", lambda doc: doc["percent"] == 0))["percent"] == 0


async def test_a_transaction_alone_blinds_and_ends_nothing(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Behind one transaction nothing more comes: no lag, no rebuild, and nobody is alerted."""
    async with (
        DaemonProcess(
            kafka,
            redis_url,
            tmp_path,
            prefix=topic_prefix,
            ROLLOUTD_WATCHDOG__STUCK_AFTER_SECONDS="7",
        ) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topic_prefix}tx")
        try:
            await producer.start()
            async with producer.transaction():
                for topic in ("flag.evaluations", "request.outcomes", "rollout.commands"):
                    await producer.send(topic_prefix + topic, b"no event", key=b"", partition=0)
            await producer.begin_transaction()
            await (await producer.send(f"{topic_prefix}flag.evaluations", b"aborted", partition=1))
            await producer.abort_transaction()
        finally:
            await producer.stop()
        await asyncio.sleep(12)
        metrics = (await daemon.get("/metrics")).text
        lags = [line for line in metrics.splitlines() if line.startswith("rolloutd_lag_records{")]
        assert lags
        assert all(line.endswith((" 0.0", " 0")) for line in lags), lags
        kinds = [alert["data"]["kind"] for alert in await client.read("rollout.alerts")]
        assert "unwatched" not in kinds
        assert daemon.log_lines("consumer_stuck") == []
        assert await daemon.stop() == 0


async def test_a_state_topic_made_again_is_filled_again(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Deleted and made again, it soon ends with what was decided, and its plane serves that."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        before = await daemon.until(FLAG, lambda document: document["percent"] == 50)
        await asyncio.sleep(2)
        state = f"{topic_prefix}rollout.state"
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        try:
            await admin.start()
            await admin.delete_topics([state])
            await asyncio.sleep(2)
            compact = {"cleanup.policy": "compact"}
            await admin.create_topics([NewTopic(state, 4, 1, topic_configs=compact)])
        finally:
            await admin.close()
        written: list[dict[str, object]] = []
        async with asyncio.timeout(60):
            while not written:
                await asyncio.sleep(1)
                written = [each["data"] for each in await client.read("rollout.state")]
        assert (written[-1]["flag"], written[-1]["revision"]) == (FLAG, before["revision"])
        await asyncio.sleep(5)
        written = [each["data"] for each in await client.read("rollout.state")]
        assert len(written) < 10, "it is written again only as long as it is missing"
        standings = (await daemon.get(f"/api/v1/rollouts/{FLAG}/planes")).json()
        plane = next(each for each in standings["planes"] if each["plane"] == "state_topic")
        assert plane["percent"] == 50, plane
        assert await daemon.stop() == 0


async def test_a_state_record_of_no_use_is_shown_until_a_good_one_comes(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The flag is named as a fault; of keys that somebody made up a bounded number is."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, stages=STAGES))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        state = f"{topic_prefix}rollout.state"
        for number in range(150):
            await client.producer.send(state, b"{", b"made-up-%d" % number)
        await client.producer.send_and_wait(state, b"{", FLAG.encode())

        async def shown() -> list[str]:
            faults = (await daemon.standing())["faults"]
            return [one["name"] for one in faults if "is of no use" in one["reason"]]

        async with asyncio.timeout(60):
            while FLAG not in await shown():
                await asyncio.sleep(0.5)
        assert len(await shown()) <= 20
        await client.command(CommandVerb.FREEZE, FLAG)
        async with asyncio.timeout(60):
            while FLAG in await shown():
                await asyncio.sleep(0.5)
        assert await daemon.stop() == 0
