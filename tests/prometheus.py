"""A real Prometheus with its promtool, Alertmanager and blackbox exporter.

The programs are those on PATH, or what `make prometheus` has fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from tests.brokers import free_port

ROOT: Final = Path(__file__).parents[1]
FETCHED: Final = ROOT / ".cache" / "prometheus" / "usr" / "bin"
MISSING: Final = "NO REAL PROMETHEUS: `make prometheus` fetches one (Debian's package)"
START_SECONDS: Final = 60.0


def program(name: str) -> str:
    """Return the path of a program of theirs; skip the test loudly when there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(FETCHED))
    if found is None:
        pytest.skip(MISSING)
    return found


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression. Raises AssertionError when it is wrong."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10)
        document = answer.json()
        assert document["status"] == "success", f"{expression}: {document.get('error')}"
        series: list[dict[str, Any]] = document["data"]["result"]
        return series

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its health."""
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=10).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def scraping(targets: Sequence[str], directory: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes `host:port` addresses every second, with our rules."""
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "ops" / "prometheus" / "rules.yml")],
        "scrape_configs": [
            {"job_name": "rolloutd", "static_configs": [{"targets": list(targets)}]}
        ],
    }
    with _prometheus(configuration, directory) as server:
        yield server


@contextmanager
def watching(url: str, webhook: str, token: str, directory: Path) -> Iterator[Prometheus]:
    """Probe an address every second, and send to a webhook while it does not answer with 2xx."""
    pager, blackbox = free_port(), free_port()
    secret = directory / "token"
    secret.write_text(token)
    route = {"receiver": "rolloutd", "group_wait": "0s", "group_interval": "1s"}
    authorization = {"credentials_file": str(secret)}
    sent = {"url": webhook, "http_config": {"authorization": authorization}}
    receivers = [{"name": "rolloutd", "webhook_configs": [sent]}]
    _write(directory / "alertmanager.yml", {"route": route, "receivers": receivers})
    module = {"prober": "http", "timeout": "1s", "http": {"preferred_ip_protocol": "ip4"}}
    _write(directory / "blackbox.yml", {"modules": {"http_2xx": module}})
    rule = {
        "alert": "Down",
        "expr": "probe_success == 0",
        "labels": {"severity": "critical", "service": "checkout"},
        "annotations": {"summary": "checkout does not answer"},
    }
    _write(directory / "alerts.yml", {"groups": [{"name": "probes", "rules": [rule]}]})
    probes = {
        "job_name": "probes",
        "metrics_path": "/probe",
        "params": {"module": ["http_2xx"], "target": [url]},
        "static_configs": [{"targets": [f"127.0.0.1:{blackbox}"]}],
    }
    managers = [{"static_configs": [{"targets": [f"127.0.0.1:{pager}"]}]}]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "alerts.yml")],
        "alerting": {"alertmanagers": managers},
        "scrape_configs": [probes],
    }
    with (
        _alertmanager(pager, directory),
        _running(
            [
                program("prometheus-blackbox-exporter"),
                f"--config.file={directory / 'blackbox.yml'}",
                f"--web.listen-address=127.0.0.1:{blackbox}",
            ],
            f"http://127.0.0.1:{blackbox}/-/healthy",
            directory / "blackbox.log",
        ),
        _prometheus(configuration, directory) as server,
    ):
        yield server


@contextmanager
def alertmanager(directory: Path) -> Iterator[str]:
    """Run an Alertmanager that tells nobody; yield its address."""
    port = free_port()
    receivers = [{"name": "nobody"}]
    configuration = {"route": {"receiver": "nobody"}, "receivers": receivers}
    _write(directory / "alertmanager.yml", configuration)
    with _alertmanager(port, directory):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _alertmanager(port: int, directory: Path) -> Iterator[None]:
    command = [
        program("prometheus-alertmanager"),
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    ready = f"http://127.0.0.1:{port}/-/ready"
    with _running(command, ready, directory / "alertmanager.log"):
        yield


@contextmanager
def _prometheus(configuration: Mapping[str, Any], directory: Path) -> Iterator[Prometheus]:
    port = free_port()
    _write(directory / "prometheus.yml", configuration)
    command = [
        program("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    server = Prometheus(f"http://127.0.0.1:{port}")
    with _running(command, f"{server.url}/-/ready", directory / "prometheus.log"):
        yield server


@contextmanager
def _running(command: Sequence[str], ready: str, log_path: Path) -> Iterator[None]:
    """Run a server, from when it answers `ready` with 200. Raises AssertionError before."""
    with log_path.open("wb") as log:
        # What was fetched finds its files from where it was unpacked, see `make prometheus`.
        at = FETCHED.parents[1] if command[0].startswith(str(FETCHED)) else None
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=at)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(ready):
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, f"{command[0]} is not ready"
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(address, timeout=1).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(document))
