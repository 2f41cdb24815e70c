"""Settings: what is accepted, what is refused and how the refusal reads."""

from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from controller.cli.daemon import app as daemon
from controller.errors import ConfigInvalid
from controller.settings import (
    MASK,
    Settings,
    insecure_connections,
    load_settings,
    show,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A place for a settings file."""
    return tmp_path / "rolloutd.yaml"


def faults(path: Path | None, environ: dict[str, str]) -> list[str]:
    """Return the lines of the refusal."""
    with pytest.raises(ConfigInvalid) as refused:
        load_settings(path, environ)
    return str(refused.value).splitlines()


def test_without_file_and_variables_everything_has_its_default() -> None:
    """A daemon on a developer's machine needs no settings at all."""
    settings = load_settings(None, {"PATH": "/bin"})
    assert settings == Settings()
    assert settings.kafka.event_topics == ("flag.evaluations", "request.outcomes")
    assert settings.kafka.commands_group == "rolloutd.commands"


def test_a_variable_beats_the_file_and_the_file_beats_the_default(config: Path) -> None:
    """Of three places, the environment wins, then the file."""
    config.write_text("environment: staging\nkafka: {partitions: 3, group_id: from-file}\nhttp:\n")
    environ = {
        "ROLLOUTD_KAFKA__PARTITIONS": "5",
        "ROLLOUTD_HTTP__ALLOWED_HOSTS": '["rolloutd.example.org"]',
    }
    settings = load_settings(config, environ)
    assert (settings.environment, settings.kafka.partitions, settings.kafka.group_id) == (
        "staging",
        5,
        "from-file",
    )
    assert settings.http.allowed_hosts == ("rolloutd.example.org",)
    assert load_settings(None, {**environ, "ROLLOUTD_CONFIG": str(config)}) == settings


def test_text_in_variables_stays_text() -> None:
    """A password of digits, or one that looks like a list, is taken as it is written."""
    for password in ("0123", "[1]", "null", "true", " x "):
        settings = load_settings(None, {"ROLLOUTD_REDIS__PASSWORD": password})
        assert settings.redis.password is not None
        assert settings.redis.password.get_secret_value() == password


def test_null_in_a_variable_is_none(config: Path) -> None:
    """A variable can set what may be None to None, over the file and the default."""
    config.write_text("redis: {key_prefix: 'x:'}\nkafka: {security: {ca_file: null}}\n")
    environ = {
        "ROLLOUTD_HTTP__OPS_PORT": "null",
        "ROLLOUTD_REDIS__KEY_PREFIX": "null",
        "ROLLOUTD_ADVISOR__ANOMALY_CHECK_INTERVAL_SECONDS": "null",
    }
    settings = load_settings(config, environ)
    assert settings.http.ops_port is None
    assert settings.redis.key_prefix is None
    assert settings.advisor.anomaly_check_interval_seconds is None
    [line] = faults(None, {"ROLLOUTD_HTTP__PORT": "null"})
    assert line.startswith("ROLLOUTD_HTTP__PORT: http.port: write a whole number")


def test_every_fault_is_named_at_once_with_its_place_and_fix(config: Path) -> None:
    """One start shows all mistakes of file and environment, each with its place."""
    config.write_text(
        "environment: staging\n"
        "kafka:\n"
        "  bootstrp_servers: a:1\n"
        "  partitions: 0\n"
        "  security: {protocol: SASL_SSL}\n"
        "redis:\n"
        "  url: redis://user:hunter2@host\n"
        "http: {allowed_hosts: [a, 7]}\n"
    )
    lines = faults(
        config, {"ROLLOUTD_KAFKA__PARTIONS": "3", "ROLLOUTD_HTTP__PORT": "x", "ROLLOUTD_LOG": "{}"}
    )
    expected = [
        "ROLLOUTD_KAFKA__PARTIONS: no such setting; did you mean ROLLOUTD_KAFKA__PARTITIONS?",
        "ROLLOUTD_LOG: no such setting",
        f"{config}:3:3: kafka.bootstrp_servers: no such setting; did you mean bootstrap_servers?",
        f"{config}:4:3: kafka.partitions: must be greater than or equal to 1",
        f"{config}:5:3: kafka.security: SASL_SSL needs username and password (or password_file)",
        (
            f"{config}:7:3: redis.url: keep the secret out of the address: use username and "
            f"password or password_file"
        ),
        f"{config}:8:27: http.allowed_hosts.1: write text, in quotes",
        "ROLLOUTD_HTTP__PORT: http.port: write a whole number",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in lines), (start, lines)
    assert len(lines) == len(expected)
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kafka: [\n", ":2:1: not YAML: "),
        ("a: &x [*x]\nkafka: *y\n", ":2:8: not YAML: found undefined alias"),
        ("- kafka\n", ":1:1: expected a mapping"),
        ("just words\n", ":1:1: expected a mapping"),
        ("environment: a\nenvironment: b\n", ":2:1: environment is given twice: keep one"),
        (
            "kafka:\n  topics: {state: a}\n  topics: {state: b}\n",
            ":3:3: kafka.topics is given twice: keep one",
        ),
        ("? [1, 2]\n: x\n", ":1:3: not YAML: a key is a word"),
        ("kafka: {create_topics: !!bool maybe}\n", "not YAML"),
        ("kafka: {partitions: !!int ''}\n", "not YAML"),
        ("a: &a [*a]\n", "nested deeper than 20"),
        ("kafka: 7\n", ":1:1: kafka: write a mapping"),
        ("environment: 'has space'\n", ":1:1: environment: String should match pattern"),
        (
            "!!python/object/apply:os.system ['true']\n",
            "not YAML: could not determine a constructor",
        ),
        (
            "kafka: {topics: {state: x, alerts: x}}\n",
            ":1:9: kafka.topics: two topics are both called 'x'",
        ),
        (
            "shutdown: {drain_seconds: 3, close_seconds: 2}\n",
            ":1:12: shutdown: drain_seconds and close_seconds together",
        ),
        ("kafka: {heartbeat_interval_seconds: 5}\n", "a third of session_timeout_seconds or less"),
        (
            "kafka: {request_timeout_seconds: 10}\n",
            "request_timeout_seconds must exceed session_timeout_seconds",
        ),
        ("kafka: {call_seconds: .nan}\n", "kafka.call_seconds: "),
        ("kafka: {call_seconds: .inf}\n", "kafka.call_seconds: "),
        ("kafka: {formats: {outcomes: go_feature_flag}}\n", "GO Feature Flag exports no outcomes"),
        (
            "kafka: {formats: {evaluations: avro}}\n",
            "kafka.formats.evaluations: write 'rolloutd', 'otlp_json'",
        ),
        (
            "kafka: {topics: {evaluations: t, outcomes: t}}\n",
            "may be one only if both formats are the same OTLP one",
        ),
        (
            "kafka: {topics: {evaluations: t, outcomes: t, state: t}}\n",
            "two topics are both called 't'",
        ),
        (
            "kafka: {security: {username: u, password: p}}\n",
            "PLAINTEXT sends no username and password",
        ),
        ("kafka: {security: {ca_file: /x}}\n", "PLAINTEXT uses no certificates"),
        ("advisor: {url: 'localhost:8081'}\n", "advisor.url: give an address like http://"),
        (
            "planes: {unleash: {url: 'http://h'}}\n",
            "planes.unleash: url needs token (or token_file)",
        ),
        (
            "planes: {unleash: {url: 'http://h', token: \"a\\nb\"}}\n",
            "token is not one line of ASCII",
        ),
        (
            "planes: {unleash: {url: 'http://u:p@h', token: t}}\n",
            "keep the secret out of the address",
        ),
        ("planes: {unleash: {key_file: /x}}\n", "planes.unleash: key_file needs certificate_file"),
        ("kafka: {bootstrap_servers: 'k:x'}\n", "kafka.bootstrap_servers: 'k:x' is not host:port"),
        ("kafka: {bootstrap_servers: 'http://k:1'}\n", "'http://k:1' is not host:port"),
        ("kafka: {bootstrap_servers: 'k:1, :2'}\n", "':2' is not host:port"),
        ("kafka: {bootstrap_servers: ' , '}\n", "'' is not host:port"),
        ("kafka: {bootstrap_servers: 'k:70000'}\n", "'k:70000' is not host:port"),
        ("redis: {url: 'http://h'}\n", "redis.url: give an address like redis://"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_place(
    config: Path, text: str, fault: str
) -> None:
    """Not YAML, not a mapping, twice the same key, contradictions.

    Each is refused where it stands.
    """
    config.write_text(text)
    lines = faults(config, {})
    assert any(fault in line for line in lines), lines
    assert all(line.startswith(str(config)) for line in lines)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    """A path that leads nowhere, to a directory or to bytes is named."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere.yaml", "", "bytes"):
        [line] = faults(tmp_path / name, {})
        assert line.startswith(f"{tmp_path / name}: cannot be read: ")


def test_an_empty_file_is_no_fault(config: Path) -> None:
    """A file of comments leaves the defaults."""
    config.write_text("# nothing yet\n")
    assert load_settings(config, {}) == Settings()


def test_a_section_of_the_wrong_kind_is_named_also_beside_variables(config: Path) -> None:
    """A variable below a section that the file spoiled hides nothing."""
    config.write_text("kafka: 7\n")
    [line] = faults(config, {"ROLLOUTD_KAFKA__PARTITIONS": "3"})
    assert line.startswith(f"{config}:1:1: kafka: ")


def test_secrets_come_from_files_too(tmp_path: Path, config: Path) -> None:
    """A secret's file is read without its last line break.

    A variable with the other form replaces what the file says.
    """
    secret = tmp_path / "redis-password"
    secret.write_text("s3cret \n")
    config.write_text(f"redis: {{password_file: {secret}}}\n")
    password = load_settings(config, {}).redis.password
    assert password is not None
    assert password.get_secret_value() == "s3cret "
    settings = load_settings(config, {"ROLLOUTD_REDIS__PASSWORD": "other"})
    assert settings.redis.password is not None
    assert settings.redis.password.get_secret_value() == "other"
    assert settings.redis.password_file is None


def test_two_forms_of_one_secret_are_refused(tmp_path: Path, config: Path) -> None:
    """Given twice in one place, nobody can tell which is meant.

    A file that cannot be read is named.
    """
    config.write_text("redis: {password: a, password_file: b}\n")
    assert "password and password_file are both given: keep one" in faults(config, {})[0]
    environ = {"ROLLOUTD_REDIS__PASSWORD": "a", "ROLLOUTD_REDIS__PASSWORD_FILE": "b"}
    assert "both given" in faults(None, environ)[0]
    missing = {"ROLLOUTD_ADVISOR__API_KEY_FILE": str(tmp_path / "none")}
    assert "api_key_file cannot be read" in faults(None, missing)[0]


def test_what_is_shown_has_no_secret_and_can_be_read_back(tmp_path: Path, config: Path) -> None:
    """The masked YAML holds every setting.

    Without secrets, or with them in files, reading it gives the same settings.
    """
    secret = tmp_path / "key"
    secret.write_text("canary-1")
    environ = {
        "ROLLOUTD_ADVISOR__API_KEY_FILE": str(secret),
        "ROLLOUTD_KAFKA__TOPIC_PREFIX": "staging.",
        "ROLLOUTD_HTTP__ALLOWED_HOSTS": '["a", "b"]',
    }
    settings = load_settings(None, environ)
    shown = show(settings)
    assert "canary" not in shown
    config.write_text(shown)
    assert load_settings(config, {}) == settings
    shown = show(load_settings(None, {**environ, "ROLLOUTD_REDIS__PASSWORD": "canary-2"}))
    assert "canary" not in shown
    assert yaml.safe_load(shown)["redis"]["password"] == MASK


def test_no_secret_shows_in_repr() -> None:
    """Settings that end up in a log or a traceback do not give a secret away."""
    settings = load_settings(
        None, {"ROLLOUTD_REDIS__PASSWORD": "canary", "ROLLOUTD_ADVISOR__API_KEY": "canary"}
    )
    assert "canary" not in repr(settings) + str(settings.redis) + repr(
        settings.advisor.model_dump()
    )


def test_settings_cannot_be_changed() -> None:
    """What was read at start stays."""
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.environment = "other"  # type: ignore[misc]


def test_topic_names_carry_the_prefix() -> None:
    """A prefix stands before every topic and group, so that environments can share a cluster."""
    kafka = load_settings(None, {"ROLLOUTD_KAFKA__TOPIC_PREFIX": "eu."}).kafka
    assert kafka.topic("state") == "eu.rollout.state"
    assert (kafka.events_group, kafka.commands_group) == ("eu.rolloutd", "eu.rolloutd.commands")
    with pytest.raises(KeyError):
        kafka.topic("model_config")


def test_certificates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """A certificate file that is missing is found when the connection is prepared.

    As a fault of the settings.
    """
    kafka = load_settings(
        None,
        {
            "ROLLOUTD_KAFKA__SECURITY__PROTOCOL": "SSL",
            "ROLLOUTD_KAFKA__SECURITY__CA_FILE": str(tmp_path / "ca.pem"),
        },
    ).kafka
    with pytest.raises(ConfigInvalid, match=r"kafka\.security\.ca_file: .*/ca\.pem cannot be read"):
        kafka.security.ssl_context()
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigInvalid, match=r"kafka\.security\.ca_file: .*/ca\.pem cannot be used"):
        kafka.security.ssl_context()
    assert Settings().kafka.security.ssl_context() is None


def test_sections_by_name_are_settings_like_others(config: Path) -> None:
    """Planes with names of the operator's are read from file and variables, checked.

    And shown without their secrets.
    """
    config.write_text(
        "planes:\n  files:\n    edge: {path: flags/edge.json}\n"
        "  http:\n    ld: {template: launchdarkly, values: {project: shop}}\n"
    )
    environ = {
        "ROLLOUTD_PLANES__HTTP__LD__SECRET": "hunter2",
        "ROLLOUTD_PLANES__FILES__RELAY__PATH": "relay.json",
    }
    settings = load_settings(config, environ)
    assert settings.planes.http["ld"].secret == SecretStr("hunter2")
    assert {name: str(file.path) for name, file in settings.planes.files.items()} == {
        "edge": "flags/edge.json",
        "relay": "relay.json",
    }
    shown = yaml.safe_load(show(settings))["planes"]["http"]["ld"]
    assert (shown["secret"], shown["values"]) == (MASK, {"project": "shop"})


def test_faults_in_sections_by_name_are_named_with_their_place(config: Path) -> None:
    """A mistyped key, a bad name and a file its readers would not understand are told apart."""
    config.write_text(
        "planes:\n  http:\n    ld: {templat: x}\n    BAD: {template: x}\n  files: {a: "
        "{path: flags.yaml}}\n"
    )
    lines = faults(
        config, {"ROLLOUTD_PLANES__HTTP__LD__SECRT": "x", "ROLLOUTD_PLANES__HTTP__LD": "x"}
    )
    for expected in (
        "ROLLOUTD_PLANES__HTTP__LD: no such setting",
        "ROLLOUTD_PLANES__HTTP__LD__SECRT: no such setting",
        f"{config}:3:10: planes.http.ld.templat: no such setting; did you mean template?",
        f"{config}:5:11: planes.files.a: a flagd file ends in .json: its readers go by that",
    ):
        assert any(line.startswith(expected) for line in lines), (
            f"{expected} not in:\n" + "\n".join(lines)
        )
    assert any("planes.http.BAD" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "planes: {http: {ld: {template: launchdarkly, secret: x}}}",
            "planes.http.ld: template launchdarkly: values: it needs",
        ),
        (
            "planes: {files: {edge: {path: /nonexistent/flags.json}}}",
            "planes.files.edge.path: /nonexistent is no directory",
        ),
        (
            "flagd_sync: {port: 0, certificate_file: /nonexistent}",
            "flagd_sync: certificate_file or key_file cannot be read",
        ),
    ],
)
def test_config_check_finds_what_only_making_a_part_shows(
    config: Path, text: str, why: str
) -> None:
    """`config check` refuses templates, directories and certificates that `run` would refuse."""
    config.write_text(text)
    result = CliRunner().invoke(
        daemon, ["config", "check", "--config", str(config)], env={"ROLLOUTD_CONFIG": None}
    )
    assert result.exit_code == 78
    assert why in result.stderr


@pytest.mark.parametrize(
    ("environment", "topic_prefix", "made"),
    [
        ("production", "", "rolloutd:"),
        ("staging", "", "rolloutd:staging:"),
        ("production", "shop.", "rolloutd:shop.:production:"),
        ("staging", "staging.", "rolloutd:staging.:staging:"),
    ],
)
def test_a_redis_prefix_is_made_of_the_environment(
    environment: str, topic_prefix: str, made: str
) -> None:
    """Two environments never share a key unless somebody says so; the default stays what it was."""
    kafka = {"topic_prefix": topic_prefix}
    settings = Settings.model_validate({"environment": environment, "kafka": kafka})
    assert settings.redis_key_prefix == made
    said = Settings.model_validate({"environment": environment, "redis": {"key_prefix": "x:"}})
    assert said.redis_key_prefix == "x:"


def test_a_long_name_makes_a_prefix_of_its_own() -> None:
    """A prefix that would be too long is cut and told from others by a digest."""
    long = [f"{'e' * 120}{number}" for number in range(2)]
    made = {Settings(environment=name).redis_key_prefix for name in long}
    assert len(made) == 2
    assert all(len(prefix) <= 64 for prefix in made)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, []),
        ({"kafka": {"bootstrap_servers": "[::1]:9092,localhost:9093"}}, []),
        ({"kafka": {"bootstrap_servers": "127.0.0.1:9092, kafka:9092"}}, ["rollout.commands may"]),
        (
            {"kafka": {"bootstrap_servers": "kafka:9092", "security": {"protocol": "SSL"}}},
            ["encrypted, but does not authenticate"],
        ),
        (
            {
                "kafka": {
                    "bootstrap_servers": "kafka:9092",
                    "security": {"protocol": "SASL_SSL", "username": "u", "password": "p"},
                }
            },
            [],
        ),
        ({"redis": {"url": "redis://10.0.0.7:6379/0"}}, ["without a password"]),
        ({"redis": {"url": "redis://cache:6379/0", "password": "p"}}, ["unencrypted"]),
        ({"redis": {"url": "rediss://cache:6379/0", "password": "p"}}, []),
        ({"redis": {"url": "unix:///run/redis.sock"}}, []),
        ({"planes": {"redis": {"url": "redis://cache:6379/1"}}}, ["planes.redis.username"]),
    ],
)
def test_insecure_connections_are_named(values: dict[str, object], words: list[str]) -> None:
    """Off loopback, Kafka without authentication and Redis without a password are named."""
    found = insecure_connections(Settings.model_validate(values))
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_config_check_names_insecure_connections() -> None:
    """An operator hears of them before the daemon runs.

    The configuration can be used all the same.
    """
    environ = {"ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"}
    result = CliRunner().invoke(daemon, ["config", "check"], env=environ)
    assert result.exit_code == 0
    assert "warning: Kafka at kafka:9092 is PLAINTEXT" in result.output
    assert "valid (of no file: ROLLOUTD_ variables over the defaults)" in result.output


def test_config_check_says_which_file_it_has_read(tmp_path: Path) -> None:
    """A file that was given without --config is not taken for one that was checked."""
    file = tmp_path / "rolloutd.yaml"
    file.write_text("environment: staging\n")
    for arguments, environ in (
        (["--config", str(file)], {}),
        ([], {"ROLLOUTD_CONFIG": str(file)}),
    ):
        result = CliRunner().invoke(daemon, ["config", "check", *arguments], env=environ)
        assert (result.exit_code, f"valid (of {file})" in result.output) == (0, True)
    result = CliRunner().invoke(daemon, ["config", "check", str(file)], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert f"check takes options alone. Did you mean --config {file}? " in result.output


@pytest.mark.parametrize("servers", ["k:1", "k-1:9092, k-2:9092,", "[::1]:9092", "kafka_1", "K:1"])
def test_addresses_of_brokers_are_taken(servers: str, config: Path) -> None:
    """A list, also with a comma at its end, IPv6, and a host alone at Kafka's usual port."""
    config.write_text(f"kafka: {{bootstrap_servers: '{servers}'}}\n")
    assert load_settings(config, {}).kafka.bootstrap_servers == servers
