"""The Kafka rights that ops/security.md lists, on a real broker that asks who comes.

Enough, and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError
from pydantic import SecretStr

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.errors import EventLogUnavailable
from controller.settings import KafkaSettings, TopicNames
from controller.settings.kafka import KafkaSecurity
from schemas.terms import CommandStatus, CommandVerb
from tests.certificates import write_certificate
from tests.guarded_kafka import GuardedKafka
from tests.integration.event_logs import MakeLog, produce, read
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.one_worker

FLAG = "new-checkout"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    """A guarded Kafka with the guide's rights."""
    with GuardedKafka(tmp_path_factory.mktemp("guarded")) as broker:
        yield broker


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["in the clear", "by TLS"])
async def test_the_daemon_runs_with_the_listed_rights(
    guarded: GuardedKafka, redis_url: str, tmp_path: Path, is_encrypted: bool
) -> None:
    """Start, roll back, forward, publish.

    Everything works, and nothing is refused by the broker.
    """
    environ = guarded.environment(is_encrypted=is_encrypted)
    environ["ROLLOUTD_REDIS__KEY_PREFIX"] = f"guarded-{is_encrypted}:"
    door, flag = environ["ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS"], f"{FLAG}-{is_encrypted}".lower()
    async with (
        DaemonProcess(door, redis_url, tmp_path, prefix="", **environ) as daemon,
        Client(guarded.kafka.bootstrap, "") as client,
    ):
        refused_before = len(await client.read("rollout.quarantine"))
        answer = await client.command(CommandVerb.START, flag, plan=quick_plan(flag))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await daemon.until(flag, lambda document: document["percent"] > 0)
        # Bad records on both kinds of topics go to the quarantine.
        assert await asyncio.to_thread(guarded.write, "operator", "rollout.commands") is None
        assert await asyncio.to_thread(guarded.write, "apps", "flag.evaluations") is None
        await client.command(CommandVerb.ROLL_BACK, flag)
        await daemon.until(flag, lambda document: document["percent"] == 0)
        async with asyncio.timeout(60):
            while len(await client.read("rollout.quarantine")) < refused_before + 2:
                await asyncio.sleep(0.2)
        for topic in ("rollout.decisions", "rollout.alerts", "rollout.state", "rollout.results"):
            assert await client.until_read(topic, bool), topic
        refused = [
            line for line in daemon.log_path.read_text().splitlines() if "Authorization" in line
        ]
        # Looking at the topics' clean-up policies is what it can do without.
        assert [line for line in refused if "topic_policies_unknown" not in line] == []
        assert await daemon.stop() == 0


@pytest.mark.parametrize(
    ("user", "topics"),
    [
        ("apps", {"flag.evaluations", "request.outcomes"}),
        ("operator", {"rollout.commands"}),
    ],
)
def test_others_write_what_is_theirs(guarded: GuardedKafka, user: str, topics: set[str]) -> None:
    """Apps cannot promote a flag, operators cannot invent events or state."""
    for field in TopicNames.model_fields.values():
        error = guarded.write(user, str(field.default))
        if field.default in topics:
            assert error is None, field.default
        else:
            assert error is not None, field.default
            assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_the_daemon_cannot_invent_events(guarded: GuardedKafka) -> None:
    """What it counts it cannot write."""
    for topic in ("flag.evaluations", "request.outcomes"):
        error = guarded.write("rolloutd", topic)
        assert error is not None
        assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


async def test_a_backlog_by_tls_is_read_whole(guarded: GuardedKafka, make_log: MakeLog) -> None:
    """Answers of megabytes, which come in TLS records of 16 kB."""
    settings = KafkaSettings(
        bootstrap_servers=guarded.encrypted,
        security=KafkaSecurity(
            protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            username="rolloutd",
            password=SecretStr("secret"),
            ca_file=guarded.certificate,
        ),
    )
    topic = settings.topic("evaluations")
    values = [f"{number:06}".encode() * 100 for number in range(20_000)]  # 12 MB
    member = make_log(settings)
    await member.start()
    for partition in member.assignment:
        member.seek(partition, (await member.bounds(partition))[1])
    await produce(guarded.kafka.bootstrap, topic, values)
    assert await read(member, len(values)) == values


async def trouble_of(address: str, **security: Any) -> str:
    """Return what a reader says that cannot come in."""
    settings = KafkaSettings(
        bootstrap_servers=address,
        security=KafkaSecurity(sasl_mechanism="PLAIN", **security),
        start_seconds=5.0,
    )
    with pytest.raises(EventLogUnavailable) as refused:
        await KafkaReader(settings, ["state"]).__aenter__()
    return str(refused.value)


async def test_a_user_without_rights_is_told_of_them(guarded: GuardedKafka) -> None:
    """The brokers hide a topic from it, which is there."""
    apps: dict[str, Any] = {
        "protocol": "SASL_PLAINTEXT",
        "username": "apps",
        "password": SecretStr("secret"),
    }
    said = await trouble_of(guarded.guarded, **apps)
    assert "has no topic rollout.state: " in said
    assert "ops/security.md" in said


async def test_what_keeps_us_out_is_told_with_its_fix(
    guarded: GuardedKafka, tmp_path: Path
) -> None:
    """As a real broker refuses: it ends the connection, and the client's errors differ."""
    write_certificate(other := tmp_path / "other.crt", tmp_path / "other.key")
    us: dict[str, Any] = {"username": "rolloutd", "password": SecretStr("secret")}
    tls = us | {"protocol": "SASL_SSL", "ca_file": guarded.certificate}
    clear = us | {"protocol": "SASL_PLAINTEXT"}
    wrong = {"password": SecretStr("wrong")}
    for address, security, advice in (
        (guarded.encrypted, tls | {"ca_file": other}, "next: let kafka.security.ca_file name"),
        (guarded.encrypted, tls | wrong, "next: correct kafka.security.username"),
        (guarded.encrypted, clear, "next: see whether it wants TLS"),
        (guarded.guarded, tls, "next: see whether it wants TLS"),
        (guarded.kafka.bootstrap, clear, "the broker takes no user and password at this port"),
    ):
        assert advice in await trouble_of(address, **security)
