"""docker-compose.yml, read by those who would read it: Compose's schema, and each real server.

Docker is not needed. Unleash and PostgreSQL: `test_compose_unleash.py`, which `make unleash` runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import local_kafka
import pytest
import redis
import yaml
from local_kafka import free_port

from tests.compose import ROOT, compose, environment_of
from tests.fleet_life import until
from tests.manifest_tools import manifest_tools
from tests.prometheus import program
from tests.redis_server import redis_binary

#: Kafka's own reader of its configuration: it prints the names that it does not know, and raises
#: where a value cannot be used, alone or beside the others.
KAFKA_READER: Final = """
import java.io.FileReader;
import java.util.Properties;

public class ReadConfig {
    public static void main(String[] arguments) throws Exception {
        Properties given = new Properties();
        given.load(new FileReader(arguments[0]));
        for (String name : given.stringPropertyNames())
            if (!kafka.server.KafkaConfig.configNames().contains(name))
                System.out.println("unknown " + name);
        System.out.println("read " + kafka.server.KafkaConfig.fromProps(given).nodeId());
    }
}
"""
#: Variables of the image's start script, not of the broker.
OF_THE_SCRIPT: Final = {"CLUSTER_ID", "KAFKA_HEAP_OPTS"}


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    """Compare a file with the schema of the Compose specification."""
    command = [str(manifest_tools() / "check-jsonschema"), "--builtin-schema"]
    return subprocess.run(
        [*command, "vendor.compose-spec", str(path)], capture_output=True, text=True, check=False
    )


def test_the_compose_specification_allows_it() -> None:
    """Every key and every value's form is one that the official JSON Schema knows."""
    done = check_schema(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("mem_limit: 1536m", "memory_limit: 1536m"), ("pids_limit: 512", "pids_limit: [512]")],
)
def test_the_schema_finds_a_mistake(right: str, wrong: str, tmp_path: Path) -> None:
    """A misspelled key and a value of the wrong type do not pass."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "docker-compose.yml").write_text(text.replace(right, wrong, 1))
    assert check_schema(tmp_path / "docker-compose.yml").returncode == 1


def kafka_properties() -> dict[str, str]:
    """Return what the image's start script makes of the variables: `KAFKA_LOG_DIRS` is log.dirs."""
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment_of("kafka").items()
        if name not in OF_THE_SCRIPT
    }


def read_by_kafka(properties: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Let Kafka read a configuration."""
    if (reason := local_kafka.why_not()) is not None or shutil.which("javac") is None:
        pytest.skip(f"NO REAL KAFKA READS ITS CONFIGURATION: {reason or 'no Java compiler'}")
    source, given = directory / "ReadConfig.java", directory / "server.properties"
    source.write_text(KAFKA_READER)
    given.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    jars = f"{local_kafka.resolve()}/*"
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
    return subprocess.run(
        ["java", *quick, "-cp", jars, str(source), str(given)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_kafka_reads_its_configuration(tmp_path: Path) -> None:
    """Apache Kafka knows each name, and takes the values together."""
    done = read_by_kafka(kafka_properties(), tmp_path)
    assert done.stdout.splitlines()[-1:] == ["read 1"], done.stdout + done.stderr
    assert "unknown" not in done.stdout, done.stdout


def test_kafka_finds_a_mistake(tmp_path: Path) -> None:
    """A misspelled name is said, and a listener without a protocol is refused."""
    misspelled = {"auto.create.topic.enable": "false"}
    done = read_by_kafka(kafka_properties() | misspelled, tmp_path)
    assert "unknown auto.create.topic.enable" in done.stdout, done.stdout + done.stderr
    no_protocol = {"listener.security.protocol.map": "INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT"}
    assert read_by_kafka(kafka_properties() | no_protocol, tmp_path).returncode != 0


@contextmanager
def redis_of_compose(directory: Path) -> Iterator[int]:
    """Run Redis' own start script of the compose file; yield its port.

    The script gets a directory in place of the container's, and the server that this machine has
    under the name that the script uses.
    """
    binary = redis_binary()
    if binary is None:
        pytest.skip("NO REAL REDIS READS ITS CONFIGURATION: no server on this machine")
    (directory / "redis-server").symlink_to(binary)
    command = compose()["services"]["redis"]["command"]
    port = free_port()
    where = f'redis-server --port {port} --bind 127.0.0.1 --dir "{directory}"'
    script = command[-1].replace("$$", "$").replace("/tmp/", f"{directory}/")
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [*command[:-1], script.replace("redis-server", where)],
        env={**os.environ, **environment_of("redis"), "PATH": path},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(port: int, user: str, password: str, *words: str) -> Any:
    """Return the answer to one command. Raises what redis-py raises."""
    with redis.Redis(port=port, username=user, password=password) as client:
        return client.execute_command(*words)


async def test_redis_starts_with_its_users(tmp_path: Path) -> None:
    """The start script makes the users: rolloutd may work, the probe may PING, others nothing."""
    with redis_of_compose(tmp_path) as port:

        async def answers() -> bool:
            try:
                return bool(ask(port, "probe", "none", "PING"))
            except redis.ConnectionError:
                return False

        await until(answers, "a Redis that answers", 60)
        ours = ("rolloutd", environment_of("rolloutd")["ROLLOUTD_REDIS__PASSWORD"])
        assert ask(port, *ours, "HSET", "rolloutd:flags", "f", "1") == 1
        with pytest.raises(redis.exceptions.NoPermissionError):
            ask(port, *ours, "SET", "other", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            ask(port, "probe", "none", "HGETALL", "rolloutd:flags")
        for user, password in (("default", ""), ("rolloutd", "other")):
            with pytest.raises(redis.AuthenticationError):
                ask(port, user, password, "PING")
        memory = ask(port, *ours, "INFO", "memory")
        assert memory["maxmemory"] == 512 * 2**20
        assert memory["maxmemory_policy"] == "noeviction"
        assert ask(port, *ours, "INFO", "persistence")["aof_enabled"] == 1


def test_prometheus_reads_its_configuration() -> None:
    """Promtool takes the file, its rules, and its Alertmanager."""
    command = [program("promtool"), "check", "config", str(ROOT / "ops/prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* rules found", done.stdout), done.stdout


ROUTES: Final = [
    ({"severity": "page", "alertname": "RolloutdUnwatched"}, "page"),
    ({"severity": "ticket", "alertname": "RolloutHolds"}, "ticket"),
]


def test_alertmanager_reads_its_configuration() -> None:
    """Amtool takes the file, and sends each severity of our rules to its receiver."""
    path = str(ROOT / "ops/prometheus/alertmanager.yml")
    done = subprocess.run(
        [program("amtool"), "check-config", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for labels, receiver in ROUTES:
        words = [f"{name}={value}" for name, value in labels.items()]
        command = [program("amtool"), "config", "routes", "test", f"--config.file={path}", *words]
        routed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert routed.stdout.strip() == receiver
    groups = yaml.safe_load((ROOT / "ops/prometheus/rules.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    severities = {rule["labels"]["severity"] for rule in rules}
    assert severities == {labels["severity"] for labels, _ in ROUTES}
