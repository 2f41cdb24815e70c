"""Forwards the records of rollout.alerts to a webhook: Slack, PagerDuty or a server of yours.

Copy this file. It needs aiokafka and httpx, and nothing of rolloutd. An alert's offset is committed
only after the receiver has taken it, so an alert may arrive twice and is never lost: `dedup_key` is
the same both times. The address and the key come from the environment (FORWARD_URL, FORWARD_KEY),
because a process list shows arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer

SEVERITIES = ("info", "warning", "critical")
PAGERDUTY = "https://events.pagerduty.com/v2/enqueue"
RETRY_SECONDS = (1.0, 5.0, 30.0)  # the last one is repeated until the receiver answers


def slack_body(alert: dict[str, Any]) -> dict[str, Any]:
    """Return a message for Slack's incoming webhooks."""
    marks = {
        "critical": ":red_circle:",
        "warning": ":large_orange_circle:",
        "info": ":white_circle:",
    }
    lines = [f"{marks[alert['severity']]} *{alert['summary']}*", f"To do: {alert['action']}"]
    harm = alert.get("harm")
    if harm:
        lines.append(
            f"Exposed users: {harm['exposed_contexts']:,}; "
            f"failed requests: {harm['failed_requests']:,}"
        )
    return {"text": "\n".join(lines)}


def pagerduty_body(alert: dict[str, Any]) -> dict[str, Any]:
    """Return an event of PagerDuty's Events API v2; an `info` alert resolves its incident."""
    return {
        "routing_key": os.environ.get("FORWARD_KEY", ""),
        "event_action": "resolve" if alert["severity"] == "info" else "trigger",
        "dedup_key": alert["dedup_key"][:255],
        "payload": {
            "summary": alert["summary"][:1024],
            "source": "rolloutd",
            "severity": alert["severity"],
            "component": alert["flag"],
            "custom_details": alert,
        },
    }


BODIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "slack": slack_body,
    "pagerduty": pagerduty_body,
    "json": dict,
}


async def deliver(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
    """Post one message, again and again until the receiver takes or refuses it."""
    pauses = iter(RETRY_SECONDS)
    pause = next(pauses)
    while True:
        try:
            answer = await http.post(url, json=body)
            if answer.status_code < 400:
                return
            if answer.status_code < 500 and answer.status_code != 429:
                print(f"refused with {answer.status_code}: {answer.text[:200]}", file=sys.stderr)
                return  # it would be refused again
            why = f"status {answer.status_code}"
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
        print(f"not delivered, next try in {pause:g} s: {why}", file=sys.stderr)
        await asyncio.sleep(pause)
        pause = next(pauses, pause)


async def forward(options: argparse.Namespace, url: str) -> None:
    """Forward alerts until the process is stopped."""
    least = SEVERITIES.index(options.at_least)
    consumer = AIOKafkaConsumer(
        f"{options.topic_prefix}rollout.alerts",
        bootstrap_servers=options.bootstrap_servers,
        group_id=options.group,
        enable_auto_commit=False,
        auto_offset_reset="latest",  # the first start sends no alerts of the past
    )
    async with consumer, httpx.AsyncClient(timeout=10) as http:
        print("forwarding", flush=True)
        async for record in consumer:
            alert = json.loads(record.value)["data"]
            if SEVERITIES.index(alert["severity"]) >= least:
                await deliver(http, url, BODIES[options.format](alert))
            await consumer.commit()


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap-servers", default="127.0.0.1:9092")
    parser.add_argument("--topic-prefix", default="", help="as kafka.topic_prefix of rolloutd")
    parser.add_argument("--group", default="rollout-alerts-forwarder", help="Kafka consumer group")
    parser.add_argument("--format", choices=sorted(BODIES), default="slack")
    parser.add_argument("--at-least", choices=SEVERITIES, default="warning", help="lowest severity")
    options = parser.parse_args()
    url = os.environ.get("FORWARD_URL", PAGERDUTY if options.format == "pagerduty" else "")
    if not url:
        print("set FORWARD_URL to the address of the webhook", file=sys.stderr)
        return 78
    try:
        asyncio.run(forward(options, url))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
