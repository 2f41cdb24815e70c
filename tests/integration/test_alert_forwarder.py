"""The example that forwards alerts to chat and pager, as a process, from a real Kafka.

The receivers are local servers that answer as the services' documents say.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from alerts.forward import pagerduty_body, slack_body

from tests import fault_server as faults
from tests.fault_server import Exchange

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "ops" / "examples" / "alerts" / "forward.py"

CreateTopics = Callable[..., Awaitable[Any]]


def alert(number: int, severity: str = "critical") -> dict[str, Any]:
    """Return an alert's document as rolloutd writes it."""
    document: dict[str, Any] = json.loads(
        (ROOT / "schemas" / "examples" / "alert.json").read_text(encoding="utf-8")
    )
    document["data"] |= {"severity": severity, "dedup_key": f"key-{number}"}
    return document


@asynccontextmanager
async def forwarder(kafka: str, prefix: str, url: str, *options: str) -> AsyncIterator[None]:
    """Run the example until the block ends; it has joined its group when the block begins."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        *("--bootstrap-servers", kafka, "--topic-prefix", prefix, "--group", f"{prefix}chat"),
        *options,
        env={**os.environ, "FORWARD_URL": url, "FORWARD_KEY": "routing-key"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"forwarding\n"
        yield
    finally:
        process.terminate()
        await process.wait()


async def publish(kafka: str, topic: str, *alerts: dict[str, Any]) -> None:
    """Write alerts as rolloutd does."""
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for one in alerts:
            await producer.send_and_wait(topic, json.dumps(one).encode(), b"new-checkout")


@pytest.mark.real_kafka
async def test_alerts_reach_the_receiver_in_order_although_it_fails_first(
    kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """A receiver that fails gets the alert again; one below the chosen severity is not sent.

    What arrived is not sent again after a restart, what came meanwhile is.
    """
    topic = f"{topic_prefix}rollout.alerts"
    await create_topics(topic)
    bodies: list[dict[str, Any]] = []
    arrived = asyncio.Event()
    answers = iter(["503 Service Unavailable"])

    async def receive(exchange: Exchange) -> None:
        status = next(answers, "202 Accepted")
        if status.startswith("202"):
            bodies.append(json.loads(exchange.request.body))
            arrived.set()
        await exchange.answer("{}", status=status)

    async def until_received(count: int) -> None:
        async with asyncio.timeout(60):
            while len(bodies) < count:
                arrived.clear()
                await arrived.wait()

    pager = ("--format", "pagerduty", "--at-least", "warning")
    async with faults.fault_server(receive) as server:
        url = f"{server.url}/v2/enqueue"
        # The group has no offset before its first commit, and then begins at the end.
        async with forwarder(kafka, topic_prefix, url, *pager):
            async with asyncio.timeout(60):
                while not bodies:
                    await publish(kafka, topic, alert(0))
                    await asyncio.sleep(0.5)
            await publish(kafka, topic, alert(1, "info"), alert(2, "warning"))
            await until_received(2)
        await publish(kafka, topic, alert(3))
        async with forwarder(kafka, topic_prefix, url, *pager):
            async with asyncio.timeout(60):
                while bodies[-1]["dedup_key"] != "key-3":
                    arrived.clear()
                    await arrived.wait()
    keys = list(dict.fromkeys(body["dedup_key"] for body in bodies))
    assert keys == ["key-0", "key-2", "key-3"]
    assert bodies[-1]["routing_key"] == "routing-key"
    assert bodies[-1]["payload"]["severity"] == "critical"
    assert bodies[-1]["payload"]["component"] == "new-checkout"


def test_a_message_for_chat_has_what_happened_its_cost_and_what_to_do() -> None:
    """Three lines; without anybody harmed, two."""
    data = alert(1)["data"]
    lines = slack_body(data)["text"].splitlines()
    assert len(lines) == 3
    assert data["summary"] in lines[0]
    assert lines[1] == f"To do: {data['action']}"
    assert lines[2] == "Exposed users: 812; failed requests: 31"
    assert len(slack_body({**data, "harm": None})["text"].splitlines()) == 2


def test_the_end_of_a_trouble_resolves_the_incident() -> None:
    """An `info` alert with the same dedup key says that it is over."""
    assert pagerduty_body(alert(1)["data"])["event_action"] == "trigger"
    assert pagerduty_body(alert(1, "info")["data"])["event_action"] == "resolve"
