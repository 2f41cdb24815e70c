"""One daemon with a proxy before each thing that it depends on.

Kafka and Redis are real; the model and the plane are stand-ins behind real sockets.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from tests.brokers import LocalKafka, RedisServer, free_port
from tests.fault_server import Exchange, FaultServer, advising, fault_server
from tests.live import DaemonProcess
from tests.tcp_proxy import LOOPBACK, TcpProxy

T = TypeVar("T")

TOKEN = "0123456789abcdef0123456789abcdef"
DEPENDENCIES = ("kafka", "redis", "model", "plane")
#: Deadlines a tenth to a thirtieth of the defaults, so that half a minute away is, for each of
#: them, what ten minutes are in production: every deadline, lease and rebuild comes several times.
COMPRESSED = {
    "ROLLOUTD_KAFKA__SESSION_TIMEOUT_SECONDS": "2",
    "ROLLOUTD_KAFKA__HEARTBEAT_INTERVAL_SECONDS": "0.5",
    "ROLLOUTD_KAFKA__REQUEST_TIMEOUT_SECONDS": "3",
    "ROLLOUTD_KAFKA__CALL_SECONDS": "2",
    "ROLLOUTD_KAFKA__REVOKE_SECONDS": "1",
    "ROLLOUTD_WATCHDOG__STUCK_AFTER_SECONDS": "3",
    "ROLLOUTD_HTTP__LEASE_SECONDS": "5",
    "ROLLOUTD_ADVISOR__BREAKER_SECONDS": "2",
}
PLANE_TEMPLATE = {
    "values": {"base": None},
    "read": [{"url": "{base}/{flag}", "extract": {"there": "/percent", "all": ""}}],
    "percent": [{"is": "{there}"}],
    "write": {
        "method": "PUT",
        "url": "{base}/{flag}",
        "body": {"$edit": "{all}", "$set": {"/percent": "{percent}"}},
    },
}


class Plane:
    """A flag service that keeps one percentage by flag."""

    def __init__(self) -> None:
        self.percents: dict[str, Any] = {}

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        method, address, _ = exchange.request.line.split(" ")
        flag = address.rpartition("/")[2]
        if method == "PUT":
            self.percents[flag] = json.loads(exchange.request.body)["percent"]
        await exchange.answer(json.dumps({"percent": self.percents.get(flag, 0)}))


class Background:
    """An event loop in a thread, for stand-ins that outlive one test's loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class OutageStand:
    """Kafka, Redis, a model and a plane, each behind a proxy, and a daemon's settings for them."""

    def __init__(self, directory: Path, *, is_compressed: bool = False) -> None:
        self.directory = directory
        self.prefix = f"t{uuid.uuid4().hex[:10]}."
        self.plane = Plane()
        self.proxies: dict[str, TcpProxy] = {}
        self._is_compressed = is_compressed
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.kafka, kafka_proxy = _proxied_kafka(stack)
            self.redis = stack.enter_context(RedisServer())
            background = Background()
            stack.callback(background.stop)
            model = self._stand_in(stack, background, advising())
            plane = self._stand_in(stack, background, self.plane)
            self.proxies["kafka"] = kafka_proxy
            for name, port in (("redis", self.redis.port), ("model", model), ("plane", plane)):
                self.proxies[name] = stack.enter_context(TcpProxy(port))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _stand_in(self, stack: ExitStack, background: Background, script: Any) -> int:
        """Start an HTTP server in the background; return its port."""
        server = fault_server(script)
        running: FaultServer = background.run(server.__aenter__())

        def end() -> None:
            background.run(server.__aexit__(None, None, None))

        stack.callback(end)
        return int(running.url.rpartition(":")[2])

    def daemon(self, **environ: str) -> DaemonProcess:
        """Return a daemon behind the proxies."""
        return DaemonProcess(
            f"{LOOPBACK}:{self.proxies['kafka'].port}",
            f"redis://{LOOPBACK}:{self.proxies['redis'].port}/0",
            self.directory,
            prefix=self.prefix,
            **{**self.environ(), **environ},
        )

    def environ(self) -> dict[str, str]:
        """Return the settings of a daemon besides its addresses."""
        template = self.directory / "own.yaml"
        template.write_text(yaml.safe_dump(PLANE_TEMPLATE))
        plane_url = f"http://{LOOPBACK}:{self.proxies['plane'].port}"
        return {
            "ROLLOUTD_PLANES__HTTP__OWN__TEMPLATE": str(template),
            "ROLLOUTD_PLANES__HTTP__OWN__VALUES": json.dumps({"base": plane_url}),
            "ROLLOUTD_PLANES__HTTP__OWN__CHECK_INTERVAL_SECONDS": "1",
            "ROLLOUTD_ADVISOR__URL": f"http://{LOOPBACK}:{self.proxies['model'].port}",
            "ROLLOUTD_ADVISOR__DEADLINE_SECONDS": "2",
            "ROLLOUTD_HTTP__COMMAND_TOKEN": TOKEN,
            **(COMPRESSED if self._is_compressed else {}),
        }

    def rolloutctl(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the operator's command against Kafka behind the proxy."""
        program = str(Path(sys.executable).with_name("rolloutctl"))
        return subprocess.run(
            [program, *arguments],
            env={
                "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": f"{LOOPBACK}:{self.proxies['kafka'].port}",
                "ROLLOUTD_KAFKA__TOPIC_PREFIX": self.prefix,
                "COLUMNS": "200",
                **environ,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def _proxied_kafka(stack: ExitStack) -> tuple[LocalKafka, TcpProxy]:
    """Start a broker with two listeners: the tests' own, and one behind a proxy."""
    inside, behind, outside, controller = (free_port() for _ in range(4))
    listeners = f"PLAINTEXT://{LOOPBACK}:{inside},PROXIED://{LOOPBACK}:{behind}"
    settings = {
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "listeners": f"{listeners},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{inside},PROXIED://{LOOPBACK}:{outside}",
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
    }
    kafka = stack.enter_context(LocalKafka(ports=[inside], settings=settings))
    proxy = stack.enter_context(TcpProxy(behind, outside))
    return kafka, proxy
