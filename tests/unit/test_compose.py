"""docker-compose.yml: what starts, who reaches whom, and that it agrees with the code."""

from __future__ import annotations

import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest
import yaml

from controller.settings import load_settings
from tests.compose import GIVEN, compose, environment_of, variables_of

ROOT: Final = Path(__file__).parents[2]
#: Every service, and the profiles that start it; none: it always starts.
PROFILES: Final[dict[str, set[str]]] = {
    "kafka": set(),
    "redis": set(),
    "localai": set(),
    "rolloutd": set(),
    "ollama": {"ollama"},
    "prometheus": {"grafana"},
    "alertmanager": {"grafana"},
    "grafana": {"grafana"},
    "checkout": {"example", "load"},
    "load": {"load"},
    "flagd": {"flagd"},
    "unleash": {"unleash"},
    "postgres": {"unleash"},
}
#: Who may reach whom, and nobody else.
_REACHED: Final = {
    "rolloutd": "kafka redis localai ollama prometheus checkout flagd unleash",
    "checkout": "kafka load",
    "prometheus": "grafana alertmanager",
    "unleash": "postgres",
    "localai": "ollama",  # one runs in place of the other
}
PAIRS: Final = {
    frozenset((name, other)) for name, others in _REACHED.items() for other in others.split()
}
#: Services that nothing can ask how they are; the compose file says why.
WITHOUT_CHECK: Final = {"load", "flagd"}


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_services_have_versions_profiles_and_checks() -> None:
    """Images have versions, volumes and dependencies exist, each service a health check."""
    services, volumes = compose()["services"], compose()["volumes"]
    assert {name: set(each.get("profiles", ())) for name, each in services.items()} == PROFILES
    for name, service in services.items():
        if not service["image"].endswith(":local"):
            tag = service["image"].partition(":")[2]
            assert re.search(r"\d+\.\d+", tag), f"{name} has no version"
        if name in WITHOUT_CHECK:
            assert service["healthcheck"] == {"disable": True}, name
        else:
            needed = {"test", "interval", "timeout", "start_period"}
            assert needed <= service["healthcheck"].keys(), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in volumes, volume
        for dependency in service.get("depends_on", {}):
            # what a profile starts is there for each of the profiles that start this one
            assert PROFILES[name] <= PROFILES[dependency] or not PROFILES[dependency], name
            assert dependency not in WITHOUT_CHECK
    for name in ("rolloutd", "checkout"):
        build = services[name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def test_it_is_closed_to_the_network() -> None:
    """Ports are offered to this machine only, once each; no service may gain privileges."""
    published = []
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        published += [port.split(":")[1] for port in service.get("ports", [])]
    assert len(published) == len(set(published))


@pytest.mark.parametrize(
    ("name", "dockerfile"),
    [("rolloutd", "ops/Dockerfile"), ("checkout", "ops/examples/checkout/Dockerfile")],
)
def test_our_images_run_unprivileged_on_a_read_only_root(name: str, dockerfile: str) -> None:
    """What is written goes to memory, and to volumes."""
    service = compose()["services"][name]
    assert service["user"] == "10001:10001"
    assert "USER 10001:10001" in _text(dockerfile)
    assert service["read_only"] is True
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])


def test_rolloutd_waits_for_kafka_and_redis_only() -> None:
    """Neither a model nor a flag plane can keep it from starting."""
    assert compose()["services"]["rolloutd"]["depends_on"].keys() == {"kafka", "redis"}


def test_nobody_reaches_more_than_they_need() -> None:
    """Two services share a network only if one talks to the other.

    So the model and Unleash, which come from the internet, reach neither Kafka nor Redis.
    """
    services, networks = compose()["services"], compose()["networks"]
    inside = {name: set(service["networks"]) for name, service in services.items()}
    assert set().union(*inside.values()) == networks.keys()
    joined = {
        frozenset(pair) for pair in combinations(inside, 2) if inside[pair[0]] & inside[pair[1]]
    }
    assert joined == PAIRS
    is_internal = {
        name: bool(network and network.get("internal")) for name, network in networks.items()
    }
    for name, service in services.items():
        leads_out = any(not is_internal[network] for network in inside[name])
        assert leads_out == (bool(service.get("ports")) or "downloads" in inside[name]), name
        for network in inside[name] - {"downloads"}:
            members = [each for each in inside if network in inside[each]]
            assert is_internal[network] or members == [name]


def test_it_bounds_what_each_service_takes() -> None:
    """One service out of hand takes neither the machine's memory nor its process numbers."""
    for name, service in compose()["services"].items():
        assert service["mem_limit"], name
        assert service["pids_limit"] > 0, name


def test_redis_has_a_password_and_a_user_with_the_documented_rights() -> None:
    """No default password stands in the file, `default` is off.

    And rolloutd's rights are ops/security.md's.
    """
    services = compose()["services"]
    asked = r"^\$\{REDIS_PASSWORD:\?.+\}$"
    assert re.match(asked, services["redis"]["environment"]["REDIS_PASSWORD"])
    assert re.match(asked, services["rolloutd"]["environment"]["ROLLOUTD_REDIS__PASSWORD"])
    assert services["rolloutd"]["environment"]["ROLLOUTD_REDIS__USERNAME"] == "rolloutd"
    script = services["redis"]["command"][-1]
    assert "user default off" in script
    lines = re.findall(r"^ACL SETUSER rolloutd (.*)$", _text("ops/security.md"), re.MULTILINE)
    documented = " ".join(lines).partition(" -@all ")[2]
    granted = re.findall(r"^ *'([~+][^']*)'", script, re.MULTILINE)
    assert documented.split() == " ".join(granted).split()
    assert "ports" not in services["redis"]
    assert ".env" in _text(".gitignore").splitlines()


def test_redis_is_durable() -> None:
    """Redis keeps a synced append-only file in a volume and never evicts a total."""
    service = compose()["services"]["redis"]
    options = " ".join(service["command"])
    assert "--appendonly yes" in options
    assert "--appendfsync everysec" in options
    assert "--maxmemory-policy noeviction" in options
    assert service["volumes"] == ["redis-data:/data"]


def test_compose_and_image_give_settings_that_exist() -> None:
    """The variables of the compose file and of the image are settings of the daemon.

    And it knows its name there.
    """
    environment = dict(re.findall(r"\b(ROLLOUTD_\w+)=(\S+)", _text("ops/Dockerfile")))
    services = compose()["services"]
    settings = load_settings(None, environment | environment_of("rolloutd"))
    assert settings.kafka.bootstrap_servers == environment_of("checkout")["KAFKA"] == "kafka:9092"
    assert settings.advisor.model in services["localai"]["command"]
    assert (settings.http.port, settings.http.ops_port) == (8080, 8081)
    assert settings.planes.unleash.url is None
    prometheus = yaml.safe_load(_text("ops/prometheus/prometheus.yml"))
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    (flags,) = json.loads(services["flagd"]["command"][-1].removeprefix("--sources="))
    for address, port in (
        (f"http://{target}", settings.http.ops_port),
        (environment_of("checkout")["ROLLOUTD_URL"], settings.http.port),
        (flags["uri"].removesuffix("/flagd/flags.json"), settings.http.port),
    ):
        assert address == f"http://rolloutd:{port}"
    assert "rolloutd" in settings.http.allowed_hosts
    (probe,) = [word for word in services["rolloutd"]["healthcheck"]["test"] if "://" in word]
    assert f":{settings.http.ops_port}/livez" in probe


def test_addresses_are_those_of_services_that_listen_there() -> None:
    """Prometheus finds Alertmanager, Grafana finds Prometheus, visitors find the shop."""
    services = compose()["services"]
    prometheus = yaml.safe_load(_text("ops/prometheus/prometheus.yml"))
    (managers,) = prometheus["alerting"]["alertmanagers"]
    grafana = yaml.safe_load(_text("ops/grafana/provisioning/datasources/rolloutd.yml"))
    for address in (
        *managers["static_configs"][0]["targets"],
        grafana["datasources"][0]["url"].removeprefix("http://"),
        services["load"]["command"][3].removeprefix("http://"),
    ):
        name, _, port = address.partition(":")
        assert f"127.0.0.1:{port}:{port}" in services[name]["ports"]
    boards = yaml.safe_load(_text("ops/grafana/provisioning/dashboards/rolloutd.yml"))
    path = boards["providers"][0]["options"]["path"]
    assert f"./ops/grafana/dashboards:{path}:ro" in services["grafana"]["volumes"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "ops/grafana/dashboards" / Path(home).relative_to(path)).is_file()


def test_it_brings_up_either_model_server() -> None:
    """With `ops/ollama.env` rolloutd asks the server of that profile for its model."""
    variables = variables_of("ops/ollama.env")
    ollama = compose()["services"]["ollama"]
    settings = load_settings(None, environment_of("rolloutd", variables)).advisor
    assert ollama["profiles"] == [variables["COMPOSE_PROFILES"]] == [settings.protocol]
    port = ollama["environment"]["OLLAMA_HOST"].partition(":")[2]
    assert settings.url == f"http://ollama:{port}"
    assert f"ollama pull {settings.model})" in ollama["command"][0]
    built = re.search(r"github.com/ollama/ollama v(\S+)", _text("tests/ollama/go.mod"))
    assert built is not None
    assert ollama["image"] == f"ollama/ollama:{built[1]}", "it is the one that `make ollama` tries"
    assert load_settings(None, environment_of("rolloutd", {})).advisor.protocol == "localai"


def test_it_brings_up_unleash_with_one_token() -> None:
    """With `ops/unleash.env` rolloutd drives that Unleash, which knows its database's password."""
    variables = variables_of("ops/unleash.env")
    settings = load_settings(None, environment_of("rolloutd", variables)).planes.unleash
    unleash = environment_of("unleash", variables)
    assert compose()["services"]["unleash"]["profiles"] == [variables["COMPOSE_PROFILES"]]
    assert settings.url == "http://unleash:4242"
    assert settings.token is not None
    assert settings.token.get_secret_value() == unleash["INIT_ADMIN_API_TOKENS"]
    assert unleash["INIT_ADMIN_API_TOKENS"] == GIVEN["UNLEASH_TOKEN"]
    postgres = environment_of("postgres", variables)
    for ours, theirs in (("NAME", "DB"), ("USERNAME", "USER"), ("PASSWORD", "PASSWORD")):
        assert unleash[f"DATABASE_{ours}"] == postgres[f"POSTGRES_{theirs}"]
    required = {"POSTGRES_PASSWORD", "UNLEASH_TOKEN"}
    assert required == set(re.findall(r"\$\{(\w+):\?", _text("ops/unleash.env")))
    tested = json.loads(_text("tests/unleash/package.json"))["dependencies"]["unleash-server"]
    assert compose()["services"]["unleash"]["image"].endswith(f":{tested}")


def test_the_example_s_image_has_what_the_app_imports() -> None:
    """Each package that a file of the app imports is locked for the image."""
    folder = ROOT / "ops/examples/checkout"
    locked = set(re.findall(r"^([a-z0-9-]+)==", _text(f"{folder}/requirements.lock"), re.MULTILINE))
    package_of = {
        "openfeature": "openfeature-sdk",
        "openfeature.contrib.provider.flagd": "openfeature-provider-flagd",
        "openfeature.contrib.provider.ofrep": "openfeature-provider-ofrep",
    }
    ours = {"checkout", "last_known_provider", "by_hand"}
    files = [folder / name for name in ("app.py", "telemetry.py", "visitors.py")]
    for file in [*files, folder.parent / "last_known_provider.py"]:
        for module in re.findall(r"^(?:from|import) ([\w.]+)", file.read_text(), re.MULTILINE):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in ours:
                continue
            wanted = max((key for key in package_of if module.startswith(key)), key=len, default="")
            assert package_of.get(wanted, top) in locked, f"{file.name}: {module}"
