"""The Go, Java and JavaScript snippets, each by its one command, and the daemon that counts them.

They need the language's tools and its packages; where these cannot be had, a test is skipped and
says what was not tried.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from controller.adapters.kafka.topics import partition_of
from schemas.terms import CommandVerb
from schemas.wire import decode_evaluation, decode_outcome
from tests.conftest import CreateTopics
from tests.live import Client, DaemonProcess, quick_plan

# Rare: the first run compiles and downloads for a minute.
pytestmark = [pytest.mark.real_kafka, pytest.mark.rare]

ROOT = Path(__file__).parents[2]
FLAG = "new-checkout"  # what the snippets say that they served, to everybody
PARTITIONS = 4
LONGEST_SECONDS = 420.0
#: Also bytes above 127, where a murmur2 that takes them as signed and one that does not part.
USERS = [f"user-{number}" for number in range(40)]
USERS += ["ü", "naïve", "日本語", "🦊", "x" * 200, "a", "ab", "abc", "abcd"]
FAILED = ["user-1-failed", "ß-failed"]
EVERYBODY = [*USERS, *FAILED]

TOOLS = {"go": ("go",), "java": ("java", "mvn"), "javascript": ("node", "npm")}
#: What the tools say when packages cannot be fetched: that is no fault of the snippet.
_NOT_FETCHED = re.compile(
    r"dial tcp|no such host|Could not (resolve|transfer)|ENOTFOUND|ECONNREFUSED|ETIMEDOUT|E40[34]"
    r"|SELF_SIGNED_CERT|UNABLE_TO_(GET|VERIFY)"  # of npm, behind a proxy that it does not know
)
#: The same, where the exit code does not tell it from a snippet that finds no Kafka.
_NOT_INSTALLED = re.compile(rf"npm (?:error|ERR!) code .*?(?:{_NOT_FETCHED.pattern})")
#: Of whoever runs the tests: what make hands to a make below it.
_OF_MAKE = re.compile(r"MAKE|MFLAGS|ARGS\Z")


def emit(language: str, kafka: str, prefix: str, users: list[str], *, code: int = 0) -> str:
    """Run the one command of a language and return what it prints, after its code is checked."""
    for tool in TOOLS[language]:
        if shutil.which(tool) is None:
            pytest.skip(f"example in {language} NOT tried: no {tool} on PATH")
    environ = {
        **{name: value for name, value in os.environ.items() if not _OF_MAKE.match(name)},
        "KAFKA": kafka,
        "TOPIC_PREFIX": prefix,
        "LC_ALL": "C.UTF-8",  # Java reads its arguments in it
    }
    with _alone(language):
        done = subprocess.run(
            ["make", "--no-print-directory", f"example-{language}", f"ARGS={' '.join(users)}"],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    said = done.stdout + done.stderr
    if _NOT_INSTALLED.search(said) or (done.returncode != code and _NOT_FETCHED.search(said)):
        pytest.skip(
            f"example in {language} NOT tried: its packages were not fetched: {said[-300:]}"
        )
    assert done.returncode == code, said
    return said


async def records_of(kafka: str, topic: str) -> list[ConsumerRecord]:
    """Return everything in a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed")
    try:
        await consumer.start()
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        records: list[ConsumerRecord] = []
        while any([await consumer.position(one) < ends[one] for one in partitions]):
            for batch in (await consumer.getmany(timeout_ms=1_000)).values():
                records.extend(batch)
        return records
    finally:
        await consumer.stop()


@pytest.mark.parametrize("language", TOOLS)
async def test_what_it_emits_is_read_where_python_would_put_it_and_counted(
    language: str,
    kafka: str,
    redis_url: str,
    topic_prefix: str,
    tmp_path: Path,
    create_topics: CreateTopics,
) -> None:
    """Both events of each user are in our form, in one partition, and count in treatment."""
    names = [f"{topic_prefix}flag.evaluations", f"{topic_prefix}request.outcomes"]
    await create_topics(*names, partitions=PARTITIONS)
    plan = quick_plan(
        FLAG,
        stages=[{"percent": 50, "bake": "1h", "settle": "0.3s"}],
        guardrails=[{"metric": "error_rate", "limit": 0.9}],
    )
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await client.command(CommandVerb.START, FLAG, plan=plan)
        await asyncio.sleep(1.0)  # while settling, nothing is counted
        said = await asyncio.to_thread(emit, language, kafka, topic_prefix, EVERYBODY)
        emitted = 2 * len(EVERYBODY)
        assert f"{emitted} queued, {emitted} sent, 0 dropped, 0 lost" in said

        evaluations = await records_of(kafka, names[0])
        outcomes = await records_of(kafka, names[1])
        _check_places(evaluations)
        _check_places(outcomes)
        served = [
            decode_evaluation(record.value, record.key, record.timestamp, record.headers)
            for record in evaluations
        ]
        ended = [
            decode_outcome(record.value, record.key, record.timestamp, record.headers)
            for record in outcomes
        ]
        assert sorted(one.context_id for one in served) == sorted(EVERYBODY)
        assert {(one.flag_key, one.variant) for one in served} == {(FLAG, "on")}
        assert sorted(one.context_id for one in ended) == sorted(EVERYBODY)
        assert {tuple(one.flags) for one in ended} == {((FLAG, "on"),)}
        assert {one.latency_ms for one in ended} == {183.0}
        assert sorted(one.context_id for one in ended if one.is_error) == sorted(FAILED)
        now_ms = max(record.timestamp for record in outcomes)
        times = [one.time_ms for one in served] + [one.time_ms for one in ended]
        assert all(abs(time_ms - now_ms) < 300_000 for time_ms in times)

        await _until_counted(daemon)


@pytest.mark.parametrize("language", TOOLS)
@pytest.mark.parametrize("kafka_away", ["127.0.0.1:1", "no-address"])
def test_without_a_kafka_it_fails_and_says_what_to_do(language: str, kafka_away: str) -> None:
    """The example of a newcomer whose Kafka is at another port, or not there."""
    said = emit(language, kafka_away, "", ["user-1"], code=2)  # of make
    assert f"not all of them reached Kafka at {kafka_away}" in said
    assert "next: let KAFKA=HOST:PORT name a Kafka that runs" in said
    assert "queued" not in said or "2 queued, 0 sent, 0 dropped, 2 lost" in said


@contextmanager
def _alone(language: str) -> Iterator[None]:
    """Keep other test processes from the same command: each run installs its packages anew."""
    (ROOT / ".cache").mkdir(exist_ok=True)
    with (ROOT / ".cache" / f"example-{language}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_places(records: list[ConsumerRecord]) -> None:
    assert len({record.key for record in records}) == len(EVERYBODY)
    for record in records:
        context_id = record.key.decode()
        assert record.partition == partition_of(context_id, PARTITIONS), context_id


async def _until_counted(daemon: DaemonProcess) -> None:
    """Wait until the daemon has counted every user as treatment, and those that failed."""
    url = f"http://127.0.0.1:{daemon.port}/api/v1/rollouts/{FLAG}/evidence"
    treatment: dict[str, int] = {}
    async with httpx.AsyncClient(timeout=10.0) as http, asyncio.timeout(90):
        while (treatment.get("exposures"), treatment.get("failed_requests")) != (
            len(EVERYBODY),
            len(FAILED),
        ):
            evidence = (await http.get(url)).json()
            treatment = {
                "exposures": evidence["exposures"]["treatment"],
                "failed_requests": evidence["harm"]["failed_requests"],
            }
            await asyncio.sleep(0.2)
