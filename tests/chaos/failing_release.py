"""A release that begins to fail at a chosen moment.

And the question whether anybody is told or the flag goes down.

For tests that take something away from the daemon first. Silence is the only wrong answer: the flag
is rolled back, or people are alerted that nothing watches it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
from aiokafka.errors import KafkaError

from schemas.terms import CommandVerb
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.patience import SLACK

NOTICED_WITHIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Noticed:
    """How the harm came to light, and when."""

    how: str  # rolled_back, or where the word "unwatched" was found first: alert, log
    seconds: float


class FailingRelease:
    """A flag at 50 % under steady, healthy traffic, until `fail`."""

    def __init__(self, client: Client, daemon: DaemonProcess, flag_key: str = "release") -> None:
        self.client, self.daemon, self.flag_key = client, daemon, flag_key
        self.traffic = Traffic(client, daemon, flag_key, per_second=200, users=2_000)
        self._failing_at: float | None = None

    async def __aenter__(self) -> Self:
        stage = {"percent": 50, "bake": "1h", "settle": "0.3s", "min_sample": 50}
        plan = quick_plan(self.flag_key, stages=[stage])
        answer = await self.client.command(CommandVerb.START, self.flag_key, plan=plan)
        assert answer.status == "accepted", answer.reason
        await self.traffic.__aenter__()
        await self.until_watched()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.traffic.__aexit__(kind, error, trace)

    async def until_watched(self, seconds: float = 120.0) -> None:
        """Return once the daemon has seen both arms of the flag."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                answer = await self.daemon.get(f"/api/v1/rollouts/{self.flag_key}/evidence")
                if answer.status_code == 200 and all(
                    count > 50 for count in answer.json()["exposures"].values()
                ):
                    return
            await asyncio.sleep(0.2)
        raise AssertionError(f"never watched:\n{self.daemon.log_tail()}")

    def fail(self) -> None:
        """From now on nine of ten requests of treatment fail."""
        self.traffic.error_rates["on"] = 0.9
        self._failing_at = time.monotonic()

    def fail_again(self) -> None:
        """Count from now how long it takes to be noticed; whatever failed, failed before."""
        self._failing_at = time.monotonic()

    async def fail_in(self, partitions: Sequence[int], requests: int = 400) -> None:
        """Let requests fail whose events all land in these partitions."""
        self._failing_at = time.monotonic()
        await self._happen_in(partitions, requests, "late", error_type="500")

    async def succeed_in(self, partitions: Sequence[int], requests: int) -> None:
        """Let requests of other users succeed whose events all land in these partitions."""
        await self._happen_in(partitions, requests, "later", error_type=None)

    async def _happen_in(
        self, partitions: Sequence[int], requests: int, users: str, *, error_type: str | None
    ) -> None:
        """Send the events of requests, half of them of treatment; `error_type` is treatment's."""
        self.traffic.is_reporting = False
        producer, prefix = self.client.producer, self.client.prefix
        for number in range(requests):
            # The arm changes with each round, so that every partition gets both.
            turn, place = divmod(number, len(partitions))
            user, variant = f"{users}-{number}", "on" if (turn + place) % 2 else "off"
            for topic, value in self._events(user, variant, error_type):
                await producer.send(
                    prefix + topic, value, user.encode(), partition=partitions[place]
                )
        await producer.flush()

    def _events(self, user: str, variant: str, error_type: str | None) -> list[tuple[str, bytes]]:

        named = {"feature_flag.key": self.flag_key, "feature_flag.result.variant": variant}
        head = {
            "specversion": "1.0",
            "source": "/tests",
            "id": user,
            "time": datetime.now(UTC).isoformat(),
        }
        failed: dict[str, Any] = {}
        if variant == "on" and error_type is not None:
            failed["error.type"] = error_type
        served = {
            **head,
            "type": "io.rolloutd.evaluation.v1",
            "data": {**named, "feature_flag.context.id": user},
        }
        outcome = {"feature_flag.context.id": user, "rolloutd.flags": [named], **failed}
        happened = {**head, "type": "io.rolloutd.outcome.v1", "data": outcome}
        return [
            ("flag.evaluations", json.dumps(served).encode()),
            ("request.outcomes", json.dumps(happened).encode()),
        ]

    async def is_noticed(
        self, within_seconds: float = NOTICED_WITHIN_SECONDS, *, reads_kafka: bool = True
    ) -> Noticed:
        """Return how the failure came to light. Raises AssertionError when nobody was told in time.

        `reads_kafka`: False while Kafka itself is away; then the log has to say it.
        """
        assert self._failing_at is not None
        began = self._failing_at
        while (passed := time.monotonic() - began) <= within_seconds * SLACK:
            if await self._is_rolled_back():
                return Noticed("rolled_back", passed)
            if self.daemon.log_lines("rollout_unwatched"):
                if not reads_kafka:
                    return Noticed("log", passed)
                if await self._is_alerted():
                    return Noticed("alert", passed)
            assert self.daemon.process is not None
            assert self.daemon.process.poll() is None, (
                f"the process ended:\n{self.daemon.log_tail()}"
            )
            await asyncio.sleep(0.2)
        raise AssertionError(f"silence for {passed:.0f} s:\n{self.daemon.log_tail(60)}")

    async def _is_rolled_back(self) -> bool:
        with suppress(httpx.HTTPError):
            document = await self.daemon.rollout(self.flag_key)
            return document is not None and document["phase"]["name"] == "rolled_back"
        return False

    async def _is_alerted(self) -> bool:
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(10):
                alerts = await self.client.read("rollout.alerts")
            mine = [alert["data"] for alert in alerts if alert["data"]["flag"] == self.flag_key]
            return any(alert["kind"] == "unwatched" for alert in mine)
        return False

    async def readiness(self) -> dict[str, Any]:
        """Return what /readyz says."""
        body: dict[str, Any] = (await self.daemon.get("/readyz")).json()
        return body
