"""Runs the bridge until SIGTERM: `python -m batches.bridge`.

Reads PREFECT_API_URL with Prefect's own credentials, and KAFKA (bootstrap servers). TOPIC_PREFIX is
rolloutd's kafka.topic_prefix. BRIDGE_NAME (default `prefect`) tells bridges of one Kafka apart,
BRIDGE_TOPIC (default `prefect.bridge`) holds their memory, BRIDGE_LATENESS (default 300) is for how
many seconds an event may come late. BRIDGE_TRANSACTIONS=off is for a broker without transactions. A
JSON line says what was published so far.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import httpx
from confluent_kafka import KafkaException

from batches.bridge.events import Ending, Evaluation, EventUnreadable, read_event
from batches.bridge.ledger import Ledger
from batches.bridge.prefect_api import PrefectApi, credentials
from batches.bridge.publisher import Publisher, TopicMissing

_POLL_SECONDS = 0.5
_OVERLAP = timedelta(seconds=3)  # what is stored together need not be in order
_SWEEP_SECONDS = 15.0  # how often late events and lost endings are looked for
_ANSWER_SECONDS = 30.0
_RETRY_SECONDS = 1.0
_AT_MOST = timedelta(minutes=10)  # what is read at once after a time away
_LOST_AFTER = timedelta(seconds=20)


class Bridge:
    """From one Prefect to one Kafka."""

    def __init__(
        self, prefect: PrefectApi, publisher: Publisher, ledger: Ledger, lateness: timedelta
    ) -> None:
        """Go on where the last bridge of this name was."""
        self._prefect = prefect
        self._publisher = publisher
        self._ledger = ledger
        self._lateness = lateness
        self._sweep_at = 0.0
        stored = publisher.stored()
        if stored is not None:
            ledger.load(stored)

    def poll(self) -> Counter[str]:
        """Publish what is new, and return how much of what.

        Raises httpx.HTTPError: read again later. Raises KafkaException: start again.
        """
        now = datetime.now(UTC)
        is_sweep = time.monotonic() >= self._sweep_at
        since = self._ledger.since(self._lateness if is_sweep else _OVERLAP)
        since = now - self._lateness if since is None else since
        until = min(now, since + self._lateness + _AT_MOST)
        # Everything is read before the ledger takes any of it: it takes all or nothing.
        news, unreadable = self._read(since, until)
        if is_sweep:
            ended = {one.run for one in news if isinstance(one, Ending)}
            lost = self._ledger.unfinished(now - _LOST_AFTER)
            asked = {name: flow_run for name, flow_run in lost.items() if name not in ended}
            news += self._prefect.endings_of(asked, now)
        records = self._ledger.take(news)
        if until < now:
            self._ledger.read_until(until)  # there is more: a bridge that was away catches up
        elif is_sweep:
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
        if records:
            self._publisher.publish(records, self._ledger.to_json())
        counts = Counter(record.topic for record in records)
        counts["unreadable"] = unreadable
        return counts

    def _read(self, since: datetime, until: datetime) -> tuple[list[Evaluation | Ending], int]:
        evaluations: list[Evaluation] = []
        endings: list[Ending] = []
        unreadable = 0
        for event in self._prefect.events(since, until):
            try:
                one = read_event(event)
            except EventUnreadable as fault:
                unreadable += 1
                print(f"left out: {fault}", file=sys.stderr, flush=True)
                continue
            if isinstance(one, Evaluation):
                evaluations.append(one)
            elif one is not None:
                endings.append(one)
        return [*evaluations, *self._prefect.with_durations(endings)], unreadable


def main() -> None:
    """Run until SIGTERM, through failures of Prefect and Kafka."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    lateness = timedelta(seconds=float(os.environ.get("BRIDGE_LATENESS", "300")))
    name = os.environ.get("BRIDGE_NAME", "prefect")
    has_transactions = os.environ.get("BRIDGE_TRANSACTIONS", "on") != "off"
    base = os.environ["PREFECT_API_URL"].rstrip("/") + "/"
    published: Counter[str] = Counter()
    with httpx.Client(
        base_url=base, headers=credentials(os.environ), timeout=_ANSWER_SECONDS
    ) as client:
        bridge: Bridge | None = None
        while not stopped.is_set():
            began = time.monotonic()
            try:
                if bridge is None:
                    prefix = os.environ.get("TOPIC_PREFIX", "")
                    topic = os.environ.get("BRIDGE_TOPIC", f"{prefix}prefect.bridge")
                    publisher = Publisher(
                        os.environ["KAFKA"], name, topic, prefix, has_transactions=has_transactions
                    )
                    ledger = Ledger(f"/prefect/{name}", lateness)
                    bridge = Bridge(PrefectApi(client), publisher, ledger, lateness)
                    print(json.dumps({"published": published}), flush=True)
                if news := +bridge.poll():
                    published += news
                    print(json.dumps({"published": published}), flush=True)
            except TopicMissing as fault:
                sys.exit(f"Kafka: {fault}")
            except httpx.HTTPError as fault:
                print(f"Prefect: {fault!r}; again in a moment", file=sys.stderr, flush=True)
                stopped.wait(_RETRY_SECONDS)
            except KafkaException as fault:
                print(f"Kafka: {fault}; starting again", file=sys.stderr, flush=True)
                if _is_replaced(fault):
                    sys.exit(f"another bridge named {name} has taken over: give each its own name")
                bridge = None
                stopped.wait(_RETRY_SECONDS)
            # A server that answers slowly has no time to spare: half of it at most is for us.
            stopped.wait(max(_POLL_SECONDS, time.monotonic() - began))


def _is_replaced(fault: KafkaException) -> bool:
    error = fault.args[0]
    return hasattr(error, "name") and error.name() in ("_FENCED", "PRODUCER_FENCED")


if __name__ == "__main__":
    main()
