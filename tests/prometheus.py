"""A real Prometheus and its promtool, for tests of rules and dashboards.

The programs are those on PATH, or what `make prometheus` has fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
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
    """Return the path of `prometheus` or `promtool`; skip the test loudly when there is none."""
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
    port = free_port()
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "ops" / "prometheus" / "rules.yml")],
        "scrape_configs": [
            {"job_name": "rolloutd", "static_configs": [{"targets": list(targets)}]}
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx.get(f"{server.url}/-/ready", timeout=1).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, (directory / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus is not ready"
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()
