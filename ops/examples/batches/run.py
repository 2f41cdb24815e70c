"""The whole example: `make example-prefect`, with BAD=1 for a new transform that takes too long.

Prefect agrees with few other packages' versions, so it has an environment of its own, whose Python
PREFECT_PYTHON names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
from staging import EXAMPLES, Example, environ_of, last_json, main, wants_bad_version

from controller.demo.environment import DemoEnvironment, until
from controller.demo.processes import Child, ProcessTree
from controller.demo.store import LOOPBACK, free_port
from controller.errors import ConfigInvalid

#: The first one is the one that is bad with BAD=1.
STEPS = ("transform", "validation", "caching", "notification")


class Nightly:
    """Prefect's server, the bridge and the flow, a process each."""

    def __init__(self) -> None:
        self._flow: Child | None = None
        self._bridge: Child | None = None

    async def start(self, tree: ProcessTree, environment: DemoEnvironment) -> None:
        """Start them and return when batches are processed."""
        python = prefect_python()
        port = free_port()
        api_url = f"http://{LOOPBACK}:{port}/api"
        environ = environ_of(
            ROLLOUTD_URL=environment.http_url,
            KAFKA=environment.bootstrap,
            PREFECT_API_URL=api_url,
            PREFECT_HOME=str(tree.directory / "prefect"),
            PREFECT_LOGGING_LEVEL="CRITICAL",  # a batch that fails is no news here: it is counted
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            # Prefect stores events every 5 s; bakes are as short, because this is an example.
            PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL="0.5",
            BRIDGE_LATENESS="20",
            BRIDGE_TRANSACTIONS="off",  # the demo's broker has none; a real Kafka has
            DO_NOT_TRACK="1",
        )
        serving = ("-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port))
        server = tree.start("prefect", (python, *serving), environ)
        await until(server, lambda: answers(f"{api_url}/health"), "did not answer", seconds=180.0)
        bridge = self._bridge = tree.start("bridge", (python, "-m", "batches.bridge"), environ)
        await until(bridge, lambda: last_json(bridge), "did not begin", seconds=90.0)
        flow = self._flow = tree.start("flow", (python, "-m", "batches.flow"), environ)
        await until(flow, lambda: last_json(flow), "processed nothing", seconds=180.0)

    async def summary(self) -> list[str]:
        """Return what ran, and what became of Prefect's events."""
        assert self._flow is not None
        assert self._bridge is not None
        ran = last_json(self._flow)["ran"]
        published = last_json(self._bridge)["published"]
        ways = []
        for version in ("old", "new"):
            failed = ran.get(f"{version} failed", 0)
            batches = failed + ran.get(f"{version} completed", 0)
            ways.append(
                f"{batches} batches through the {version} transform, {failed} of them failed"
            )
        counts = ", ".join(
            f"{published.get(topic, 0):,} {name}"
            for topic, name in (("flag.evaluations", "evaluations"), ("request.outcomes", "ends"))
        )
        return [f"Prefect ran {'; '.join(ways)}.", f"The bridge published {counts} of steps."]


def answers(url: str) -> bool:
    """Return whether a server answers there."""
    try:
        return httpx.get(url, timeout=1.0).is_success
    except httpx.HTTPError:
        return False


def prefect_python() -> str:
    """Return the Python that has Prefect. Raises ConfigInvalid when there is none."""
    python = str(Path(os.environ.get("PREFECT_PYTHON") or sys.executable).absolute())
    if (
        subprocess.run(
            [python, "-c", "import prefect"], capture_output=True, check=False
        ).returncode
        != 0
    ):
        raise ConfigInvalid(
            "no Prefect here: `make example-prefect` installs it, or PREFECT_PYTHON names "
            "a Python that has it"
        )
    return python


if __name__ == "__main__":
    main(
        Example(
            title="Prefect batches",
            plans=[EXAMPLES / "batches" / "plans" / f"{step}.yaml" for step in STEPS],
            is_bad=wants_bad_version(),
            apps=Nightly(),
            longest_seconds=720.0,
        )
    )
