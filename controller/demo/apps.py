"""Synthetic apps: they evaluate the flag that the daemon serves, and write events to Kafka.

A few instances of one service poll the flagd document and decide per user by its weights. Each
request emits an evaluation and, when it is over, an outcome, in the contract's form. What is wrong
with a release stands in its scenario's `InjectedFault`, which only the apps know: the daemon sees
events. `python -m controller.demo.apps OPTIONS` serves until SIGTERM and writes a report as a JSON
line to standard output every 200 ms.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx

from controller.cancellation import task_group
from controller.codec.flagd import WEIGHT_TOTAL
from controller.demo.scenarios import FLAG_KEY, SCENARIOS, InjectedFault, Service
from controller.settings import TopicNames
from controller.web.bucketing import Generation, bucketer
from schemas import evaluation, outcome
from schemas.envelope import HEADERS

if TYPE_CHECKING:
    from confluent_kafka import Producer

INSTANCES = 4
USERS = 200_000
POLL_SECONDS = 0.15
#: An instance whose definition was confirmed longer ago serves nobody, as an app behind a load
#: balancer that has lost touch: it might serve what was decided before. Below the plans' `settle`.
CURRENT_SECONDS = 0.4
REQUEST_SECONDS = 1.0  # a poll that takes longer is given up; the last definition stays
NICENESS = 5
TICK_SECONDS = 0.01
REPORT_SECONDS = 0.2
#: After a pause of the machine at most this much traffic is made up for, so that no burst follows.
MAX_BACKLOG_SECONDS = 0.2
FLUSH_SECONDS = 1.0
DEFAULT_VARIANT = "off"  # the default in the app's code, for a flag that is not served

_EVALUATION = (
    '{"specversion":"1.0","type":"'
    + evaluation.TYPE
    + '","source":"/checkout-api/%d","id":"%x","time":"%s","data":{'
    '"feature_flag.key":"'
    + FLAG_KEY
    + '","feature_flag.result.variant":"%s","feature_flag.context.id":"%s"}}'
)
_OUTCOME = (
    '{"specversion":"1.0","type":"'
    + outcome.TYPE
    + '","source":"/checkout-api/%d","id":"%x","time":"%s","data":{'
    '"feature_flag.context.id":"%s","http.server.request.duration":%.6f,%s"rolloutd.flags":[{'
    '"feature_flag.key":"' + FLAG_KEY + '","feature_flag.result.variant":"%s"}]}}'
)
_FAILED = '"error.type":"500",'
_HEADERS: list[tuple[str, str | bytes | None]] = [*HEADERS]  # as the client takes them


@dataclass(frozen=True, slots=True)
class Definition:
    """The flag as the flagd document defines it."""

    treatment: str
    control: str
    weight: int  # buckets below this are in treatment, of WEIGHT_TOTAL

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Definition | None:
        """Return the flag of a flagd document, None when it is not in it.

        Raises ValueError for rules that these apps cannot evaluate.
        """
        flag = document["flags"].get(FLAG_KEY)
        if flag is None:
            return None
        (treatment, weight), (control, rest) = flag["targeting"]["fractional"]
        if weight + rest != WEIGHT_TOTAL:
            raise ValueError(f"weights add up to {weight + rest}, not to {WEIGHT_TOTAL}")
        return cls(treatment, control, weight)

    @property
    def percent(self) -> float:
        """The share of users that get treatment."""
        return 100 * self.weight / WEIGHT_TOTAL

    def variant(self, bucket: int) -> str:
        """Return the variant that a user of that bucket is served."""
        return self.treatment if bucket < self.weight else self.control


class Instance:
    """One running copy of the service, with its own definition of the flag."""

    def __init__(self, number: int, flags_url: str) -> None:
        self.number = number
        self.definition: Definition | None = None
        #: When the newest answer was asked for, in seconds since 1970; None: none has come yet.
        self.heard_at: float | None = None
        self._flags_url = flags_url
        self._tag = ""

    @property
    def percent(self) -> float:
        """The percentage that this instance follows."""
        return 0.0 if self.definition is None else self.definition.percent

    def is_current(self, now: float) -> bool:
        """Return whether it serves: before the first answer it serves the default of its code."""
        return self.heard_at is None or now - self.heard_at <= CURRENT_SECONDS

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Poll the document without end. Without an answer the last definition stays in force."""
        await asyncio.sleep(self.number * POLL_SECONDS / INSTANCES)
        while True:
            asked_at = time.time()
            try:
                answer = await client.get(
                    self._flags_url, headers={"if-none-match": self._tag} if self._tag else {}
                )
                if answer.status_code == httpx.codes.OK:
                    self.definition, self._tag = (
                        Definition.read(answer.json()),
                        answer.headers.get("etag", ""),
                    )
                if answer.status_code in (httpx.codes.OK, httpx.codes.NOT_MODIFIED):
                    self.heard_at = asked_at
            except httpx.HTTPError:
                pass  # the daemon is not there or not ready: the app keeps its definition
            await asyncio.sleep(POLL_SECONDS)


@dataclass(slots=True)
class Report:
    """What only the apps know: the truth that the daemon has to infer from events."""

    requests: int = 0
    treated_users: int = 0
    #: Users of treatment with a failure or a delay that control would not have caused.
    harmed_users: int = 0
    harmed_requests: int = 0
    first_harm_at: float | None = None  # seconds since the epoch
    last_harm_at: float | None = None
    undelivered: int = 0  # events that the broker did not take
    percents: tuple[float, ...] = ()  # what each instance follows
    is_silent: bool = False


class Traffic:
    """Users' requests, one after the other, on whichever instance they reach."""

    def __init__(
        self,
        fault: InjectedFault,
        service: Service,
        instances: list[Instance],
        producer: Producer,
        seed: int,
    ) -> None:
        self.report = Report()
        self._fault, self._service, self._instances, self._producer = (
            fault,
            service,
            instances,
            producer,
        )
        self._random = random.Random(seed)
        self._topics = TopicNames()
        bucket = bucketer(FLAG_KEY, Generation.V2)
        self._users = [(key := f"user-{number:06}", bucket(key)) for number in range(USERS)]
        self._treated: set[str] = set()
        self._harmed: set[str] = set()
        #: Outcomes by the tick in which their request is over.
        self._due: deque[list[tuple[str, bytes]]] = deque([[]])
        self._event_number = 0
        self._silent_from: float | None = None

    def tick(self, requests: int, now: float) -> None:
        """Begin this many requests, and end those that are due. `now` is in seconds since 1970."""
        if self._falls_silent(now):
            self.report.is_silent = True
            return
        time_text = _time_text(now)
        current = [one for one in self._instances if one.is_current(now)]
        for _ in range(requests if current else 0):
            self._serve(current, now, time_text)
        for key, event in self._due.popleft():
            self._send(self._topics.outcomes, key, event)
        if not self._due:
            self._due.append([])
        self._producer.poll(0)

    def _falls_silent(self, now: float) -> bool:
        fault = self._fault
        if fault.silent_from_percent is None:
            return False
        if self._silent_from is None and all(
            one.percent >= fault.silent_from_percent for one in self._instances
        ):
            self._silent_from = now + fault.silent_after_seconds
        return self._silent_from is not None and now >= self._silent_from

    def _serve(self, instances: Sequence[Instance], now: float, time_text: str) -> None:
        draw, fault, report = self._random, self._fault, self.report
        key, bucket = self._users[int(draw.random() * USERS)]
        instance = instances[int(draw.random() * len(instances))]
        definition = instance.definition
        variant = DEFAULT_VARIANT if definition is None else definition.variant(bucket)
        is_treated = definition is not None and variant == definition.treatment

        latency_ms = draw.lognormvariate(0.0, self._service.spread) * self._service.median_ms
        luck, limit = draw.random(), self._service.error_rate
        is_failed = luck < limit
        is_lost = False
        if is_treated:
            self._treated.add(key)
            is_lost = draw.random() < fault.lost_exposures
            is_slow = draw.random() < fault.slow_share
            latency_ms += fault.slow_ms if is_slow else 0.0
            factor = fault.error_factor if instance.percent >= fault.errors_from_percent else 1.0
            is_harmed = is_slow or (not is_failed and luck < limit * factor)
            is_failed = luck < limit * factor
            if is_harmed:
                self._harmed.add(key)
                report.harmed_requests += 1
                report.first_harm_at, report.last_harm_at = report.first_harm_at or now, now
        report.requests += 1
        self._event_number += 2
        number = self._event_number
        if not is_lost:
            self._send(
                self._topics.evaluations,
                key,
                (_EVALUATION % (instance.number, number, time_text, variant, key)).encode(),
            )
        ends_at = _time_text(now + latency_ms / 1000)
        error = _FAILED if is_failed else ""
        event = _OUTCOME % (
            instance.number,
            number + 1,
            ends_at,
            key,
            latency_ms / 1000,
            error,
            variant,
        )
        ticks = int(latency_ms / 1000 / TICK_SECONDS)
        while len(self._due) <= ticks:
            self._due.append([])
        self._due[ticks].append((key, event.encode()))

    def _send(self, topic: str, key: str, event: bytes) -> None:
        try:
            self._producer.produce(topic, event, key, headers=_HEADERS, on_delivery=self._delivered)
        except BufferError:  # the broker is behind; the report counts what is lost
            self.report.undelivered += 1

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self.report.undelivered += 1

    def current_report(self) -> Report:
        """Return the report as of now."""
        report = self.report
        report.treated_users, report.harmed_users = len(self._treated), len(self._harmed)
        report.percents = tuple(one.percent for one in self._instances)
        return report


def _time_text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def serve(options: Mapping[str, Any]) -> None:
    """Run the apps until SIGTERM.

    `options`: bootstrap, flags_url, scenario, seed, requests_per_second.
    """
    from confluent_kafka import Producer

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    producer = Producer(
        {
            "bootstrap.servers": options["bootstrap"],
            "linger.ms": 10,
            "partitioner": "murmur2_random",
        }
    )
    instances = [Instance(number, options["flags_url"]) for number in range(INSTANCES)]
    fault = SCENARIOS[options["scenario"]].fault
    traffic = Traffic(fault, Service(), instances, producer, options["seed"])
    async with task_group() as tasks, httpx.AsyncClient(timeout=REQUEST_SECONDS) as client:
        work = [
            tasks.create_task(one.follow(client), name=f"poll:{one.number}") for one in instances
        ]
        work.append(
            tasks.create_task(
                _keep_serving(traffic, options["requests_per_second"]), name="traffic"
            )
        )
        work.append(tasks.create_task(_keep_reporting(traffic), name="report"))
        await stopped.wait()
        for task in work:
            task.cancel()
    producer.flush(FLUSH_SECONDS)
    _print(traffic.current_report())


async def _keep_serving(traffic: Traffic, requests_per_second: float) -> None:
    backlog, ticked_at = 0.0, time.monotonic()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = time.monotonic()
        backlog += (now - ticked_at) * requests_per_second
        backlog = min(backlog, MAX_BACKLOG_SECONDS * requests_per_second)
        ticked_at = now
        traffic.tick(int(backlog), time.time())
        backlog -= int(backlog)


async def _keep_reporting(traffic: Traffic) -> None:
    while True:
        _print(traffic.current_report())
        await asyncio.sleep(REPORT_SECONDS)


def _print(report: Report) -> None:
    values = {name: getattr(report, name) for name in Report.__slots__}
    print(json.dumps(values), flush=True)  # noqa: T201


if __name__ == "__main__":
    # On a busy machine there is less traffic rather than a daemon that cannot follow it.
    os.nice(NICENESS)
    asyncio.run(serve(json.loads(sys.argv[1])))
