"""The programs of the local stack: their commands, addresses, and how to know that they work.

Does not belong here: where they listen (`local_addresses.py`), and processes
(`local_processes.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import local_kafka
import yaml
from local_addresses import Addresses
from local_processes import LOOPBACK, Program, StackError

from controller.counting.native_place import native_place
from controller.demo import store
from controller.errors import ConfigInvalid

ROOT: Final = Path(__file__).resolve().parents[2]
_FETCHED: Final = ROOT / ".cache" / "prometheus" / "usr" / "bin"  # by `make prometheus`
_VISITS_PER_SECOND: Final = "50"
_PROBE_SECONDS: Final = 2.0
#: Whatever proxy the machine has for the internet: loopback is asked directly.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Service:
    """A program, and what a person reads about it."""

    program: Program
    where: str
    what: str
    is_optional: bool = False  # the rest works without it


def services(at: Addresses, directory: Path, environ: Mapping[str, str]) -> Iterator[list[Service]]:
    """Yield the programs in the order of their start; those of one list start together.

    Raises StackError when a program that the stack needs cannot be had.
    """
    reason = local_kafka.why_not()
    if reason is not None:
        raise StackError(
            f"no Kafka: {reason}. Install Java 17 and Maven (Debian: apt-get install "
            f"default-jre-headless maven), or use Docker: docker compose up --build --detach"
        )
    yield [_kafka(at, directory, environ), _store(at, directory, environ)]
    yield [_daemon(at, directory, environ)]
    yield [_shop(at, environ), *_monitoring(at, directory, environ)]
    yield [_visitors(at, environ)]


def _kafka(at: Addresses, directory: Path, environ: Mapping[str, str]) -> Service:
    command = (
        sys.executable,
        str(ROOT / "ops" / "kafka" / "local-kafka"),
        *("--port", str(at.kafka), "--directory", str(directory / "kafka")),
    )
    program = Program(
        "kafka",
        command,
        lambda: local_kafka.known_brokers(at.kafka) == 1,
        environ,
        {at.kafka: "Kafka"},
    )
    version = local_kafka.kafka_version()
    return Service(program, f"{LOOPBACK}:{at.kafka}", f"Apache Kafka {version}, one broker")


def _store(at: Addresses, directory: Path, environ: Mapping[str, str]) -> Service:
    try:
        server = store.server_program()
    except ConfigInvalid as error:
        raise StackError(str(error)) from error
    kept = directory / "store"
    kept.mkdir(parents=True, exist_ok=True)
    options = {
        "--bind": LOOPBACK,
        "--port": str(at.redis),
        "--dir": str(kept),
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--set-proc-title": "no",  # a title is written over the mark of the process
    }
    command = (str(server), *(word for option in options.items() for word in option))
    program = Program(
        "store", command, lambda: store.answers(at.redis), environ, {at.redis: "the store (Redis)"}
    )
    where = f"redis://{LOOPBACK}:{at.redis}"
    return Service(program, where, f"{server.name}, append-only file")


def _daemon(at: Addresses, directory: Path, environ: Mapping[str, str]) -> Service:
    kept = {"ROLLOUTD_LAST_KNOWN__DIRECTORY": str(directory / "last-known")}
    program = Program(
        "rolloutd",
        (sys.executable, "-m", "controller.cli.daemon", "run"),
        lambda: _answers(f"http://{LOOPBACK}:{at.ops}/readyz"),
        {**kept, **environ},
        {at.http: "rolloutd's page and API", at.ops: "rolloutd's probes and metrics"},
        _build(),
    )
    return Service(program, f"http://{LOOPBACK}:{at.http}", f"the page; probes: port {at.ops}")


def _build() -> str:
    """Return what stands for the code of the daemon as it is now, the native fold included."""
    digest = hashlib.sha256()
    native = native_place().module
    found = None if native is None else find_spec(native)
    paths = [] if found is None or found.origin is None else [Path(found.origin)]
    for folder in ("controller", "schemas"):
        paths += [one for one in sorted((ROOT / folder).rglob("*.py")) if one.is_file()]
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def counting_of(at: Addresses) -> str:
    """Return what counts in the daemon that runs: native or python; empty where it says nothing."""
    try:
        with _DIRECT.open(f"http://{LOOPBACK}:{at.ops}/readyz", timeout=_PROBE_SECONDS) as answer:
            return str(json.load(answer).get("counting", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _shop(at: Addresses, environ: Mapping[str, str]) -> Service:
    command = (
        *(sys.executable, "-m", "uvicorn", "--factory", "checkout.app:make_app"),
        *("--host", LOOPBACK, "--port", str(at.shop), "--log-level", "warning"),
    )
    url = f"http://{LOOPBACK}:{at.shop}"
    program = Program(
        "shop",
        command,
        lambda: _answers(f"{url}/telemetry"),
        {
            **_with_examples(environ),
            "ROLLOUTD_URL": f"http://{LOOPBACK}:{at.http}",
            "KAFKA": f"{LOOPBACK}:{at.kafka}",
        },
        {at.shop: "the example app"},
    )
    return Service(program, url, "an app with the flag checkout-v2")


def _visitors(at: Addresses, environ: Mapping[str, str]) -> Service:
    url = f"http://{LOOPBACK}:{at.shop}"
    command = (sys.executable, "-m", "checkout.visitors", url, _VISITS_PER_SECOND)
    program = Program("visitors", command, lambda: True, _with_examples(environ), {})
    return Service(program, "", f"{_VISITS_PER_SECOND} requests a second to the shop")


def _with_examples(environ: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(
        filter(None, (str(ROOT / "ops" / "examples"), environ.get("PYTHONPATH")))
    )
    return {**environ, "PYTHONPATH": path}


def _monitoring(at: Addresses, directory: Path, environ: Mapping[str, str]) -> Iterator[Service]:
    installed = environ.get("PATH", os.defpath)
    prometheus = shutil.which("prometheus", path=f"{installed}{os.pathsep}{_FETCHED}")
    # Debian's needs its templates in place: what `make prometheus` has unpacked does not start.
    alertmanager = shutil.which("prometheus-alertmanager", path=installed) or shutil.which(
        "alertmanager", path=installed
    )
    if alertmanager is not None:
        quiet = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}
        command = (
            alertmanager,
            f"--config.file={_write(directory / 'alertmanager.yml', quiet)}",
            f"--storage.path={directory / 'alertmanager'}",
            f"--web.listen-address={LOOPBACK}:{at.alertmanager}",
            "--cluster.listen-address=",
        )
        url = f"http://{LOOPBACK}:{at.alertmanager}"
        yield Service(
            _monitor("alertmanager", command, url, environ, {at.alertmanager: "Alertmanager"}),
            url,
            "keeps alerts; tells nobody",
            is_optional=True,
        )
    if prometheus is not None:
        managers = [] if alertmanager is None else [f"{LOOPBACK}:{at.alertmanager}"]
        scrape = (
            prometheus,
            f"--config.file={_write(directory / 'prometheus.yml', _scraping(at, managers))}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address={LOOPBACK}:{at.prometheus}",
        )
        url = f"http://{LOOPBACK}:{at.prometheus}"
        yield Service(
            _monitor("prometheus", scrape, url, environ, {at.prometheus: "Prometheus"}),
            url,
            "scrapes rolloutd, with its alert rules",
            is_optional=True,
        )


def _monitor(
    name: str,
    command: tuple[str, ...],
    url: str,
    environ: Mapping[str, str],
    ports: Mapping[int, str],
) -> Program:
    return Program(name, command, lambda: _answers(f"{url}/-/ready"), environ, ports)


def _scraping(at: Addresses, managers: list[str]) -> dict[str, Any]:
    """Return the configuration of compose's Prometheus, with the addresses of this stack."""
    source = ROOT / "ops" / "prometheus" / "prometheus.yml"
    document: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    document["rule_files"] = [str(source.parent / name) for name in document["rule_files"]]
    document["scrape_configs"][0]["static_configs"] = [{"targets": [f"{LOOPBACK}:{at.ops}"]}]
    document["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": managers}]}]}
    return document


def _write(path: Path, document: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(document)), encoding="utf-8")
    return path


def _answers(url: str) -> bool:
    """Return whether an address answers with 200."""
    try:  # what urllib raises of its own are kinds of OSError
        with _DIRECT.open(url, timeout=_PROBE_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
