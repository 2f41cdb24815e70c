"""Every metric moves in one run of the installed daemon.

A rollout that a model advises and its evidence ends, refused and scattered events, and Kafka,
Redis and a flag plane that are away for some seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import redis.asyncio
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from controller.counting.refusals import MOST_REFUSALS
from controller.telemetry import Metrics
from schemas.plan import PlanDocument
from schemas.terms import CommandVerb
from tests import fault_server as faults
from tests.brokers import LocalKafka, RedisServer
from tests.certificates import write_certificate
from tests.fault_server import Exchange
from tests.live import Client, DaemonProcess, Traffic, quick_plan

pytestmark = [pytest.mark.real_kafka, pytest.mark.rare]

FLAG = "new-checkout"
GUESS = {"likely_cause": "This is a guess.", "next_steps": ["look at the log"]}
#: The same for as long as a process runs; and contexts in two partitions, which are noticed in
#: packed formats alone: see tests/unit/counting/test_partition_totals.py.
CONSTANT = {"rolloutd_build_info", "rolloutd_scattered_contexts"}
#: 1 while the rollout is in that phase, or is held for that reason; then the series is gone.
CONSTANT |= {"rolloutd_rollout_phase", "rolloutd_rollout_hold"}
#: No input is known on which the native fold fails: see tests/unit/counting/test_native_faults.py.
CONSTANT |= {"rolloutd_native_faults"}


SETTINGS = {
    "ROLLOUTD_HTTP__MAX_EVENT_STREAMS": "1",
    "ROLLOUTD_HTTP__MAX_PAGE_STREAMS": "1",
    "ROLLOUTD_FLAGS__NAME_PATTERN": "other-keys",
    "ROLLOUTD_HOOKS__ENDPOINTS__PROD__SOURCE": "alertmanager",
    "ROLLOUTD_HOOKS__ENDPOINTS__PROD__TOKEN": "a token of sixteen",
    "ROLLOUTD_NOTIFICATIONS__CHANNELS__NOBODY__TYPE": "teams",
    "ROLLOUTD_NOTIFICATIONS__CHANNELS__NOBODY__URL": "http://127.0.0.1:9/nobody",
}


async def advise(exchange: Exchange) -> None:
    """Advise to proceed, and explain alerts."""
    is_explanation = b"likely_cause" in exchange.request.body
    await exchange.answer(faults.completion(GUESS if is_explanation else None))


class Observer:
    """Reads the metrics several times a second, and remembers which have moved."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon = daemon
        self._values: dict[tuple[str, str], set[float]] = defaultdict(set)
        self._families: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self.read(generate_latest(Metrics(version="0").registry).decode())  # as a process begins

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            with suppress(httpx.HTTPError):
                self.read((await self._daemon.get("/metrics")).text)
            await asyncio.sleep(0.1)

    def read(self, text: str) -> None:
        """Note every value."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series = (sample.name, json.dumps(sample.labels, sort_keys=True))
                self._values[series].add(sample.value)
                self._families[family.name].add(series)

    @property
    def unmoved(self) -> set[str]:
        """The metrics of which every series had one value."""
        names = {
            family.name
            for family in Metrics(version="0").registry.collect()
            if family.name.startswith("rolloutd_")
        }
        moved = {
            name
            for name, series in self._families.items()
            if any(len(self._values[one]) > 1 for one in series)
        }
        return names - moved - CONSTANT

    async def until_moved(self, *names: str, seconds: float = 90.0) -> None:
        """Return once these metrics have moved."""
        wanted = {f"rolloutd_{name}" for name in names}
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.unmoved & wanted:
                    await asyncio.sleep(0.1)
        assert self.unmoved & wanted == set()

    async def until_seen(self, name: str, value: float) -> None:
        """Return once any series of this metric has had this value."""
        async with asyncio.timeout(30):
            while not any(value in self._values[one] for one in self._families[f"rolloutd_{name}"]):
                await asyncio.sleep(0.1)


def plan_with_bake(bake: str) -> PlanDocument:
    """Return a plan of one stage."""
    stage = {"percent": 10, "bake": bake, "settle": "1s", "max_bake": "3h"}
    return quick_plan(FLAG, stages=[stage])


async def close_a_flag(client: Client, observer: Observer) -> None:
    """Start a rollout, apply a plan that opens in two days, and roll back what is closed."""
    opens = (datetime.now(UTC).date() + timedelta(days=2)).isoformat()
    stages = [{"percent": 10, "bake": "1h"}]
    active = [{"dates": opens, "timezone": "UTC"}]
    await client.command(CommandVerb.START, "sale", plan=quick_plan("sale", stages=stages))
    narrower = quick_plan("sale", stages=stages, active=active)
    await client.command(CommandVerb.APPLY, "sale", plan=narrower)
    await observer.until_seen("rollout_closed", 1.0)
    await client.command(CommandVerb.ROLL_BACK, "sale")
    await observer.until_moved("rollout_closed")


async def ask_for_flags(daemon: DaemonProcess) -> None:
    """Evaluate a flag, and open more event streams and more pages than there may be."""
    async with httpx.AsyncClient(base_url=daemon.url, timeout=5) as http:
        body = {"context": {"targetingKey": "ann"}}
        await http.post(f"/ofrep/v1/evaluate/flags/{FLAG}", json=body)
        async with http.stream("GET", "/ofrep/v1/sse"), http.stream("GET", "/ofrep/v1/sse"):
            await asyncio.sleep(1)
        async with http.stream("GET", "/ui/live/fleet"), http.stream("GET", "/ui/live/fleet"):
            await asyncio.sleep(2)


async def refuse_many(kafka: LocalKafka, client: Client) -> None:
    """Send more unusable records than may wait, while the quarantine topic does not exist."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        await admin.start()
        await admin.delete_topics([f"{client.prefix}rollout.quarantine"])
    finally:
        await admin.close()
    for number in range(MOST_REFUSALS + 2_000):
        await client.producer.send(f"{client.prefix}request.outcomes", b"%d" % number)
    await client.producer.flush()


async def forge_state(client: Client) -> int:
    """Write a document to the state topic that no worker decided; return its revision."""
    document = (await client.read("rollout.state"))[-1]
    revision: int = document["data"]["revision"] + 5
    document["data"]["revision"] = revision
    document["id"] += "-forged"
    await client.producer.send_and_wait(
        f"{client.prefix}rollout.state", json.dumps(document).encode(), FLAG.encode()
    )
    return revision


async def discard_totals(store: redis.asyncio.Redis) -> None:
    """Delete what is stored of every event partition, as `rolloutd repair partition` does."""
    for key in [key async for key in store.scan_iter("*flag.evaluations/*")]:
        await store.delete(key)


async def lose_redis_for_a_while(store: RedisServer, observer: Observer) -> None:
    """Pause Redis until everything that says so has moved."""
    store.pause()
    # The plane of Redis keys is away, too: it converges no more, and its errors count.
    await observer.until_moved(
        "unwatched_rollouts",
        "save_age_seconds",
        "dependency_up",
        "dependency_errors",
        "plane_converged",
        "actuation_gap_seconds",
    )
    store.resume()


async def break_off_a_handshake(observer: Observer, directory: Path) -> None:
    """Ask a daemon that speaks TLS without it. It waits for Kafka, so it takes nothing over."""
    certificate, key = directory / "tls.crt", directory / "tls.key"
    write_certificate(certificate, key)
    other = DaemonProcess(
        "127.0.0.1:1",
        "redis://127.0.0.1:1",
        directory,
        prefix="tls.",
        ROLLOUTD_HTTP__CERTIFICATE_FILE=str(certificate),
        ROLLOUTD_HTTP__KEY_FILE=str(key),
    )
    other.spawn()
    name = "rolloutd_tls_handshakes_failed"
    try:
        async with asyncio.timeout(60):
            while name in observer.unmoved:
                with suppress(httpx.HTTPError):
                    observer.read((await other.get("/metrics")).text)
                    await other.get("/healthz")
    finally:
        other.kill9()


async def deliver_without_a_proof(daemon: DaemonProcess, observer: Observer) -> None:
    """Send what a monitoring system sends, without its token."""
    async with httpx.AsyncClient() as monitor:
        answer = await monitor.post(f"{daemon.url}/hooks/alertmanager/prod", json={"alerts": []})
    assert answer.status_code == 401
    await observer.until_moved("hook_deliveries")


async def test_every_metric_moves(
    own_kafka: LocalKafka, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """No metric of `controller/telemetry.py` keeps one value from start to end."""
    store = redis.asyncio.Redis.from_url(own_redis.url)
    async with (
        faults.fault_server(advise) as model,
        DaemonProcess(
            own_kafka.bootstrap,
            own_redis.url,
            tmp_path,
            prefix=topic_prefix,
            ROLLOUTD_ADVISOR__URL=model.url,
            ROLLOUTD_PLANES__REDIS__URL=own_redis.url,
            **SETTINGS,
        ) as daemon,
        Client(own_kafka.bootstrap, topic_prefix) as client,
        asyncio.TaskGroup() as tasks,
    ):
        observer = Observer(daemon)
        observing = tasks.create_task(observer.run())
        plan = quick_plan(FLAG, advisor={"mode": "can_hold"})
        await client.command(CommandVerb.START, FLAG, plan=plan)
        async with Traffic(client, daemon, FLAG) as traffic:
            await ask_for_flags(daemon)
            await daemon.until(FLAG, lambda doc: doc["percent"] == 50)
            await discard_totals(store)
            await observer.until_moved("fence_conflicts")
            traffic.error_rates = {"on": 0.6, "off": 0.05}
            await daemon.until(FLAG, lambda doc: doc["phase"]["name"] == "rolled_back")
            await observer.until_moved("advice_agreement", "explanations")
        await client.command(CommandVerb.START, FLAG, plan=plan_with_bake("1h"))
        await Traffic(client, daemon, "nobody-knows").emit_evaluation(
            "ann", "on", datetime.now(UTC)
        )
        await observer.until_moved("unknown_flag_events")
        await Traffic(client, daemon, "nobody-knows").emit_evaluation(
            "ann", "on", datetime.now(UTC)
        )
        await observer.until_moved("unknown_flag_events_by_name")
        await close_a_flag(client, observer)
        await lose_redis_for_a_while(own_redis, observer)
        await daemon.ready()
        await client.command(CommandVerb.ROLL_BACK, FLAG)
        await client.command(CommandVerb.START, FLAG, plan=plan_with_bake("5s"))
        own_kafka.pause()  # the gate opens meanwhile, which is to be published
        await observer.until_moved("state_silence_seconds", "outbox_age_seconds")
        own_kafka.resume()
        await daemon.ready()
        revision = await forge_state(client)
        await daemon.until(FLAG, lambda doc: doc["revision"] >= revision)  # it may decide at once
        await client.command(CommandVerb.FREEZE, FLAG)
        await observer.until_moved("invariant_violations")
        await refuse_many(own_kafka, client)
        await observer.until_moved("refusals_dropped", "refusals_waiting", "quarantined")
        await deliver_without_a_proof(daemon, observer)
        await break_off_a_handshake(observer, tmp_path)
        assert observer.unmoved == set()
        observing.cancel()
    await store.aclose()
