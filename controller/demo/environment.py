"""Everything a rollout needs on one machine: broker, store, daemon and apps, each a process.

The daemon is `rolloutd run`, as in production. Only its addresses differ.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeVar

import httpx

from controller.demo import store
from controller.demo.apps import Report
from controller.demo.processes import Child, ProcessTree, environ_without_settings
from controller.demo.scenarios import Scenario
from controller.demo.store import LOOPBACK
from controller.errors import ConfigInvalid

REQUESTS_PER_SECOND = 3_000
START_SECONDS = 90.0  # a start takes 3 s; a busy machine needs many times that
_POLL_SECONDS = 0.05
_ADDRESS = re.compile(r"^(127\.0\.0\.1:\d+)$", re.MULTILINE)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdvisorAddress:
    """Where the daemon asks for advice."""

    url: str
    model: str
    protocol: str = "openai"


class DemoEnvironment:
    """Starts everything in `tree`, which also ends it."""

    def __init__(self, tree: ProcessTree, settings: Mapping[str, str] | None = None) -> None:
        """Start nothing yet. `settings` of the daemon come on top, named without ROLLOUTD_."""
        self._tree = tree
        self._settings = dict(settings or {})
        self._apps_read = 0
        self.bootstrap = ""
        self.redis_url = ""
        self.http_url = ""
        self.apps: Child | None = None
        self.report = Report()

    async def start(self, scenario: Scenario, seed: int, advisor: AdvisorAddress | None) -> None:
        """Return when the daemon is ready and the apps have traffic.

        Raises ChildFailed and ConfigInvalid.
        """
        daemon = await self._start_servers(advisor)
        options = {
            "bootstrap": self.bootstrap,
            "flags_url": f"{self.http_url}/flagd/flags.json",
            "scenario": scenario.name,
            "seed": seed,
            "requests_per_second": REQUESTS_PER_SECOND,
        }
        self.apps = self._tree.start_python(
            "apps", "-m", "controller.demo.apps", json.dumps(options)
        )
        await self._until_ready(daemon)
        await until(self.apps, lambda: self.read_report().requests, "made no requests")

    async def start_without_apps(self) -> None:
        """Return when the daemon is ready; the caller brings its own apps.

        Raises ChildFailed and ConfigInvalid.
        """
        await self._until_ready(await self._start_servers(None))

    async def _start_servers(self, advisor: AdvisorAddress | None) -> Child:
        """Start broker, store and daemon, and return the daemon, which is not ready yet."""
        if find_spec("confluent_kafka") is None:
            raise ConfigInvalid(
                "the demo's broker is missing: install the extra `demo`, as in pip install "
                "'rolloutd[demo]'"
            )
        port = store.free_port()
        broker = self._tree.start_python("broker", "-m", "controller.demo.broker")
        redis = self._tree.start("store", store.command(port))
        self.bootstrap = (
            await until(broker, lambda: _ADDRESS.search(broker.output()), "gave no address")
        )[1]
        await until(redis, lambda: store.answers(port), "did not answer")
        self.redis_url = f"redis://{LOOPBACK}:{port}/0"
        http_port = store.free_port()
        self.http_url = f"http://{LOOPBACK}:{http_port}"
        return self._start_daemon(http_port, advisor)

    async def _until_ready(self, daemon: Child) -> None:
        async with httpx.AsyncClient(timeout=1.0) as client:
            deadline = _Deadline(daemon, "was not ready")
            while not await _is_ready(client, self.http_url):
                await deadline.wait()

    def _start_daemon(self, http_port: int, advisor: AdvisorAddress | None) -> Child:
        settings = {
            "ENVIRONMENT": "demo",
            "KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "REDIS__URL": self.redis_url,
            "HTTP__PORT": str(http_port),
            "HTTP__OPS_PORT": "0",  # a free one: the demo does not use it
            "LAST_KNOWN__DIRECTORY": str(self._tree.directory / "last-known"),
        }
        if advisor is not None:
            settings |= {
                "ADVISOR__URL": advisor.url,
                "ADVISOR__MODEL": advisor.model,
                "ADVISOR__PROTOCOL": advisor.protocol,
            }
        settings |= self._settings
        environ = environ_without_settings() | {
            f"ROLLOUTD_{name}": value for name, value in settings.items()
        }
        return self._tree.start_python(
            "rolloutd", "-m", "controller.cli.daemon", "run", environ=environ
        )

    def check(self) -> None:
        """Raise ChildFailed when a process has ended too early."""
        for child in self._tree.children:
            child.check()

    def read_report(self) -> Report:
        """Return the newest report of the apps."""
        assert self.apps is not None
        with self.apps.log_path.open("rb") as log:
            log.seek(self._apps_read)
            lines = log.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._apps_read += len(whole)
        for line in whole.splitlines():
            if line.startswith(b"{"):
                values = json.loads(line)
                self.report = Report(**{**values, "percents": tuple(values["percents"])})
        return self.report


async def _is_ready(client: httpx.AsyncClient, http_url: str) -> bool:
    try:
        answer = await client.get(f"{http_url}/readyz")
        return answer.status_code == httpx.codes.OK and not answer.json()["starting"]
    except httpx.HTTPError:
        return False


class _Deadline:
    """Waits for one child to come up, up to a deadline."""

    def __init__(self, child: Child, complaint: str, seconds: float = START_SECONDS) -> None:
        self._child, self._complaint, self._seconds = child, complaint, seconds
        self._until = time.monotonic() + seconds

    async def wait(self) -> None:
        """Wait a moment. Raises ChildFailed when the child has ended or took too long."""
        self._child.check()
        if time.monotonic() > self._until:
            raise self._child.failed(f"{self._complaint} within {self._seconds:g} s")
        await asyncio.sleep(_POLL_SECONDS)


async def until(
    child: Child, probe: Callable[[], T | None], complaint: str, seconds: float = START_SECONDS
) -> T:
    """Return the first true value of `probe`, which is called until the child is up.

    Raises ChildFailed.
    """
    deadline = _Deadline(child, complaint, seconds)
    while not (answer := probe()):
        await deadline.wait()
    return answer
