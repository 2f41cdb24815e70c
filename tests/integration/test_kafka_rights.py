"""The Kafka rights that ops/security.md lists, on a real broker that asks who comes.

Enough, and no more.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka.admin
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from local_kafka import LOOPBACK, LocalKafka, free_port, why_not

from controller.settings import TopicNames
from schemas.terms import CommandStatus, CommandVerb
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.one_worker

admin: Any = confluent_kafka.admin  # its types do not name what the module offers
GUIDE = (Path(__file__).parents[2] / "ops" / "security.md").read_text(encoding="utf-8")
FLAG = "new-checkout"
OPERATIONS = {"Read": admin.AclOperation.READ, "Write": admin.AclOperation.WRITE}


def documented() -> list[Any]:
    """Return what the guide's commands grant."""
    found: list[Any] = []
    for line in re.findall(r"^kafka-acls --add (.*)$", GUIDE, flags=re.MULTILINE):
        words = shlex.split(line)
        given = list(zip(words[::2], words[1::2], strict=True))
        (principal,) = [value for name, value in given if name == "--allow-principal"]
        ((kind, resource),) = [each for each in given if each[0] in ("--topic", "--group")]
        found += [
            admin.AclBinding(
                admin.ResourceType.TOPIC if kind == "--topic" else admin.ResourceType.GROUP,
                resource,
                admin.ResourcePatternType.LITERAL,
                principal,
                "*",
                OPERATIONS[value],
                admin.AclPermissionType.ALLOW,
            )
            for name, value in given
            if name == "--operation"
        ]
    return found


class GuardedKafka:
    """A broker with two doors.

    One for the tests, who may do anything, and one that asks who comes.
    """

    def __init__(self) -> None:
        if (reason := why_not()) is not None:
            pytest.skip(f"no real Kafka: {reason}")
        self.port, guarded = free_port(), free_port()
        self.guarded = f"{LOOPBACK}:{guarded}"
        self.kafka = LocalKafka(ports=[self.port])
        controller = self.kafka._controller_ports[0]
        doors = f"PLAINTEXT://{LOOPBACK}:{self.port},GUARDED://{self.guarded}"
        users = " ".join(f'user_{name}="secret"' for name in ("rolloutd", "apps", "operator"))
        login = "org.apache.kafka.common.security.plain.PlainLoginModule"
        self.kafka._settings.update(
            {
                "listeners": f"{doors},CONTROLLER://{LOOPBACK}:{controller}",
                "advertised.listeners": doors,
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
                ),
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.guarded.plain.sasl.jaas.config": f"{login} required {users};",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "allow.everyone.if.no.acl.found": "false",
                "super.users": "User:ANONYMOUS",
            }
        )

    def prepare(self) -> None:
        """Make the topics and grant the rights, as an operator does."""
        client = admin.AdminClient({"bootstrap.servers": self.kafka.bootstrap})
        topics = [
            admin.NewTopic(str(field.default), 2, 1) for field in TopicNames.model_fields.values()
        ]
        for done in client.create_topics(topics).values():
            done.result(30)
        rights = documented()
        for done in client.create_acls(rights).values():
            done.result(30)
        # The controller has taken them; the broker that judges by them hears of it a moment later.
        kinds = admin.ResourceType.ANY, None, admin.ResourcePatternType.ANY
        everything = admin.AclBindingFilter(
            *kinds, None, None, admin.AclOperation.ANY, admin.AclPermissionType.ANY
        )
        deadline = time.monotonic() + 30
        while not set(rights) <= set(client.describe_acls(everything).result(30)):
            assert time.monotonic() < deadline, "the broker never took the rights over"
            time.sleep(0.1)

    def write(self, user: str, topic: str) -> KafkaError | None:
        """Write one record as a user; return what the broker says against it."""
        producer = Producer(
            {
                "bootstrap.servers": self.guarded,
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": user,
                "sasl.password": "secret",
                "message.timeout.ms": 10_000,
            }
        )
        said: list[KafkaError | None] = []
        try:
            producer.produce(topic, b"{}", on_delivery=lambda error, _: said.append(error))
        except KafkaException as refusal:
            error: KafkaError = refusal.args[0]
            return error
        producer.flush(15)
        return said[0]


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedKafka]:
    """A guarded Kafka with the guide's rights."""
    broker = GuardedKafka()
    with broker.kafka:
        broker.prepare()
        yield broker


async def test_the_daemon_runs_with_the_listed_rights(
    guarded: GuardedKafka, redis_url: str, tmp_path: Path
) -> None:
    """Start, roll back, forward, publish.

    Everything works, and nothing is refused by the broker.
    """
    environ: dict[str, Any] = {
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": guarded.guarded,
        "ROLLOUTD_KAFKA__CREATE_TOPICS": "false",
        "ROLLOUTD_KAFKA__SECURITY__PROTOCOL": "SASL_PLAINTEXT",
        "ROLLOUTD_KAFKA__SECURITY__SASL_MECHANISM": "PLAIN",
        "ROLLOUTD_KAFKA__SECURITY__USERNAME": "rolloutd",
        "ROLLOUTD_KAFKA__SECURITY__PASSWORD": "secret",
        "ROLLOUTD_REDIS__KEY_PREFIX": "guarded:",
    }
    async with (
        DaemonProcess(guarded.guarded, redis_url, tmp_path, prefix="", **environ) as daemon,
        Client(guarded.kafka.bootstrap, "") as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await daemon.until(FLAG, lambda document: document["percent"] > 0)
        # Bad records on both kinds of topics go to the quarantine.
        assert await asyncio.to_thread(guarded.write, "operator", "rollout.commands") is None
        assert await asyncio.to_thread(guarded.write, "apps", "flag.evaluations") is None
        await client.command(CommandVerb.ROLL_BACK, FLAG)
        await daemon.until(FLAG, lambda document: document["percent"] == 0)
        async with asyncio.timeout(60):
            while len(await client.read("rollout.quarantine")) < 2:
                await asyncio.sleep(0.2)
        for topic in ("rollout.decisions", "rollout.alerts", "rollout.state", "rollout.results"):
            assert await client.read(topic), topic
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
