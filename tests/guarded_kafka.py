"""A real Kafka that asks who comes, with the rights that ops/security.md lists."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import confluent_kafka.admin
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from local_kafka import LOOPBACK, LocalKafka, free_port, why_not

from controller.settings import TopicNames
from tests.certificates import write_certificate

admin: Any = confluent_kafka.admin  # its types do not name what the module offers
GUIDE = (Path(__file__).parents[1] / "ops" / "security.md").read_text(encoding="utf-8")
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
    """A broker with three doors.

    One for the tests, who may do anything, and two that ask who comes: one in the clear, one by
    TLS.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` gets the certificate of the door by TLS."""
        if (reason := why_not()) is not None:
            pytest.skip(f"no real Kafka: {reason}")
        self.port, guarded, encrypted = free_port(), free_port(), free_port()
        self.guarded, self.encrypted = f"{LOOPBACK}:{guarded}", f"{LOOPBACK}:{encrypted}"
        self.certificate, key = directory / "kafka.crt", directory / "kafka.key"
        write_certificate(self.certificate, key)
        store = directory / "kafka.pem"
        store.write_text(key.read_text() + self.certificate.read_text())
        self.kafka = LocalKafka(ports=[self.port])
        controller = self.kafka._controller_ports[0]
        doors = (
            f"PLAINTEXT://{LOOPBACK}:{self.port},GUARDED://{self.guarded},"
            f"ENCRYPTED://{self.encrypted}"
        )
        users = " ".join(f'user_{name}="secret"' for name in ("rolloutd", "apps", "operator"))
        login = "org.apache.kafka.common.security.plain.PlainLoginModule"
        self.kafka._settings.update(
            {
                "listeners": f"{doors},CONTROLLER://{LOOPBACK}:{controller}",
                "advertised.listeners": doors,
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT,ENCRYPTED:SASL_SSL,"
                    "CONTROLLER:PLAINTEXT"
                ),
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(store),
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.guarded.plain.sasl.jaas.config": f"{login} required {users};",
                "listener.name.encrypted.plain.sasl.jaas.config": f"{login} required {users};",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "allow.everyone.if.no.acl.found": "false",
                "super.users": "User:ANONYMOUS",
            }
        )

    def __enter__(self) -> Self:
        """Start, with the topics and the guide's rights."""
        self.kafka.start()
        try:
            self.prepare()
        except BaseException:
            self.kafka.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kafka.stop()

    def prepare(self) -> None:
        """Make the topics and grant the rights, as an operator does."""
        self._client = admin.AdminClient({"bootstrap.servers": self.kafka.bootstrap})
        topics = [
            admin.NewTopic(str(field.default), 2, 1) for field in TopicNames.model_fields.values()
        ]
        for done in self._client.create_topics(topics).values():
            done.result(30)
        self.give(documented())

    def give(self, rights: Sequence[Any]) -> None:
        """Grant rights; return once the broker judges by them."""
        for done in self._client.create_acls(list(rights)).values():
            done.result(30)
        self._wait_until(lambda held: set(rights) <= held)

    def take(self, rights: Sequence[Any]) -> None:
        """Take rights away; return once the broker judges without them."""
        filters = [
            admin.AclBindingFilter(
                one.restype,
                one.name,
                one.resource_pattern_type,
                one.principal,
                one.host,
                one.operation,
                one.permission_type,
            )
            for one in rights
        ]
        for done in self._client.delete_acls(filters).values():
            done.result(30)
        self._wait_until(lambda held: not set(rights) & held)

    def _wait_until(self, is_so: Callable[[set[Any]], bool]) -> None:
        """The controller has taken them; the broker that judges hears of it a moment later."""
        kinds = admin.ResourceType.ANY, None, admin.ResourcePatternType.ANY
        everything = admin.AclBindingFilter(
            *kinds, None, None, admin.AclOperation.ANY, admin.AclPermissionType.ANY
        )
        deadline = time.monotonic() + 30
        while not is_so(set(self._client.describe_acls(everything).result(30))):
            assert time.monotonic() < deadline, "the broker never took the rights over"
            time.sleep(0.1)

    def environment(self, *, is_encrypted: bool = False) -> dict[str, Any]:
        """Return the settings of a daemon that comes by a door that asks who it is."""
        tls = {"ROLLOUTD_KAFKA__SECURITY__CA_FILE": str(self.certificate)} if is_encrypted else {}
        return tls | {
            "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": self.encrypted if is_encrypted else self.guarded,
            "ROLLOUTD_KAFKA__CREATE_TOPICS": "false",
            "ROLLOUTD_KAFKA__SECURITY__PROTOCOL": f"SASL_{'SSL' if is_encrypted else 'PLAINTEXT'}",
            "ROLLOUTD_KAFKA__SECURITY__SASL_MECHANISM": "PLAIN",
            "ROLLOUTD_KAFKA__SECURITY__USERNAME": "rolloutd",
            "ROLLOUTD_KAFKA__SECURITY__PASSWORD": "secret",
        }

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
