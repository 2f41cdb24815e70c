"""A real Prefect's runs whose own events never came, as the bridge of the example reads them.

By command: `make test-prefect` runs it, in the environment that it installs.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from batches.bridge.prefect_api import PrefectApi

from tests.brokers import free_port
from tests.patience import SLACK

pytestmark = pytest.mark.long

VARIABLE = "PREFECT_PYTHON"
START_SECONDS = 180.0


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a Prefect server of the test's own."""
    python = os.environ.get(VARIABLE)
    if python is None:
        pytest.skip(f"no Prefect here: `make test-prefect` installs it, or {VARIABLE} names one")
    port = free_port()
    environ = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [python, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT, env=environ
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/", timeout=30) as made:
            until_healthy(made, server)
            yield made
    finally:
        server.terminate()
        server.wait()


def until_healthy(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers."""
    deadline = time.monotonic() + START_SECONDS * SLACK
    while time.monotonic() < deadline:
        assert server.poll() is None
        try:
            if client.get("health").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    raise AssertionError("Prefect did not answer")


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    """Return what Prefect says to a request."""
    return client.post(path, json=body).raise_for_status().json()


def test_runs_whose_events_are_lost_end_as_prefect_says(client: httpx.Client) -> None:
    """A run that ended, one that its flow run left behind, one that goes on, and one deleted."""

    def flow_run(*states: str) -> str:
        flow = post(client, "flows/", name="batches")
        made = post(client, "flow_runs/", flow_id=flow["id"], state={"type": "PENDING"})
        return moved("flow_runs", made["id"], *states)

    def task_run(parent: str, *states: str) -> str:
        made = post(
            client,
            "task_runs/",
            flow_run_id=parent,
            task_key="step",
            dynamic_key=str(time.monotonic_ns()),
            state={"type": "PENDING"},
        )
        return moved("task_runs", made["id"], *states)

    def moved(path: str, run: str, *states: str) -> str:
        for state in states:
            post(client, f"{path}/{run}/set_state", state={"type": state}, force=True)
        return run

    crashed = flow_run("RUNNING")
    ended = task_run(crashed, "RUNNING", "FAILED")
    left = task_run(crashed, "RUNNING")
    moved("flow_runs", crashed, "CRASHED")
    completed = flow_run("RUNNING")
    forgotten = task_run(completed, "RUNNING")
    moved("flow_runs", completed, "COMPLETED")
    running = flow_run("RUNNING")
    goes_on = task_run(running, "RUNNING")
    gone = "00000000-0000-4000-8000-000000000000"
    unfinished: dict[str, str | None] = {
        f"task-run.{task}": f"flow-run.{flow}"
        for task, flow in (
            (ended, crashed),
            (left, crashed),
            (forgotten, completed),
            (goes_on, running),
            (gone, running),
        )
    }
    unfinished |= {f"flow-run.{crashed}": f"flow-run.{crashed}"}
    api, now = PrefectApi(client), datetime.now(UTC)

    at_once = {one.run: one.state_type for one in api.endings_of(unfinished, now)}
    assert at_once == {f"task-run.{ended}": "FAILED", f"flow-run.{crashed}": "CRASHED"}
    later = api.endings_of(unfinished, now + timedelta(minutes=1))
    assert {one.run: (one.state_type, one.state_name) for one in later} == {
        f"task-run.{ended}": ("FAILED", "Failed"),
        f"flow-run.{crashed}": ("CRASHED", "Crashed"),
        f"task-run.{left}": ("CRASHED", "Crashed"),
        f"task-run.{forgotten}": ("CRASHED", "Unfinished"),
    }
    assert all(one.seconds is not None and one.seconds >= 0 for one in later)
    assert all(abs(now - one.at) < timedelta(minutes=10) for one in later)
