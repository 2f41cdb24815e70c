"""A plan that watches Prometheus: each way to have no number holds the gate, harm rolls back."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import pytest

from schemas.terms import CommandVerb
from tests.fault_server import Exchange, fault_server
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.patience import SLACK
from tests.prometheus import scraping

pytestmark = pytest.mark.real_kafka

FLAG: Final = "checkout"
BUCKETS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
HANGS: Final = "hangs"
#: Kafka gives the partitions of a killed replica to the next one so soon.
QUICK_TO_REJOIN: Final = {
    "ROLLOUTD_KAFKA__SESSION_TIMEOUT_SECONDS": "2",
    "ROLLOUTD_KAFKA__HEARTBEAT_INTERVAL_SECONDS": "0.5",
    "ROLLOUTD_KAFKA__REVOKE_SECONDS": "1",
}


def vector(*pairs: tuple[float, str]) -> str:
    """Return Prometheus' answer with these series, each of one (time, value)."""
    result = [{"metric": {}, "value": list(pair)} for pair in pairs]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})


class Pretender:
    """Answers as Prometheus does, or as it does when something is wrong."""

    def __init__(self) -> None:
        self.mode = "good"

    async def answer(self, exchange: Exchange) -> None:
        """Answer one query."""
        (query,) = parse_qs(exchange.request.body.decode())["query"]
        now = time.time()
        newest = now - 600 if self.mode == "old sample" else now
        if self.mode == "hang":
            await asyncio.sleep(3600)
        elif self.mode == "500":
            await exchange.answer("database is locked", status="500 Internal Server Error")
        elif query == "newest":
            await exchange.answer(vector((now, str(newest))))
        elif self.mode == "empty":
            await exchange.answer(vector())
        elif self.mode == "two series":
            await exchange.answer(vector((now, "0.1"), (now, "0.2")))
        else:
            await exchange.answer(vector((now, "NaN" if self.mode == "NaN" else "0.1")))


GAPS: Final = {
    "empty": "metric_no_data",
    "NaN": "metric_not_a_number",
    "two series": "metric_several_series",
    "500": "metric_refused",
    "hang": "metric_no_answer",
    "old sample": "metric_late",
}


def settings(tmp_path: Path, url: str) -> str:
    """Return the path of a configuration that names this Prometheus."""
    path = tmp_path / "rolloutd.yaml"
    path.write_text(f"checks: {{prometheus: {{url: '{url}', timeout_seconds: 1}}}}\n")
    return str(path)


async def evidence(daemon: DaemonProcess) -> dict[str, Any]:
    """Return the newest judgement of the flag, nothing before the first."""
    answer = await daemon.get(f"/api/v1/rollouts/{FLAG}/evidence")
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


async def until_gap(daemon: DaemonProcess, kind: str | None, seconds: float = 30 * SLACK) -> None:
    """Return once the evidence has this gap of the external metric, or none."""
    deadline = time.monotonic() + seconds
    found: set[str] = set()
    while time.monotonic() < deadline:
        judgement = await evidence(daemon)
        gaps = {one["kind"] for one in judgement.get("gaps", ())}
        found = {one for one in gaps if one.startswith("metric_")}
        if judgement and found == (set() if kind is None else {kind}):
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"not {kind} but {found}\n{daemon.log_tail()}")


async def test_without_a_number_nothing_advances_and_each_reason_has_its_name(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """No series, NaN, two series, 500, a hang, an old sample: never a zero, never a pass."""
    pretender = Pretender()
    pretender.mode = "empty"
    metric = {
        "name": "p95",
        "prometheus": {"query": "p95", "newest": "newest"},
        "at_most": 0.3,
        "every": "1s",
        "misses": 2,
        "of": 2,
    }
    async with fault_server(pretender.answer) as server:
        config = settings(tmp_path, server.url)
        daemon = DaemonProcess(
            kafka, redis_url, tmp_path, prefix=topic_prefix, ROLLOUTD_CONFIG=config
        )
        async with daemon, Client(kafka, topic_prefix) as client:
            plan = quick_plan(FLAG, external=[metric])
            await client.command(CommandVerb.START, FLAG, plan=plan)
            async with Traffic(client, daemon, FLAG):
                await daemon.until(FLAG, lambda one: one["hold"] == "health")
                for mode, gap in GAPS.items():
                    pretender.mode = mode
                    await until_gap(daemon, gap)
                    await asyncio.sleep(2)
                    rollout = await daemon.rollout(FLAG)
                    assert rollout is not None
                    assert (rollout["percent"], mode) == (10, mode)
                pretender.mode = "good"
                await daemon.until(FLAG, lambda one: one["percent"] == 50)
            # While it runs: what is served may be ahead of what is published.
            (advance,) = await client.decisions("advance", 1)
    (report,) = [one for one in advance["judgement"]["metrics"] if one["metric"] == "external:p95"]
    assert (report["safe"], report["arms"]["treatment"]["estimate"]) == ("pass", 0.1)


async def test_a_start_is_told_that_the_monitoring_system_does_not_answer(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """At once, and not when the first bake is over."""
    metric = {"name": "p95", "prometheus": "up", "at_most": 0.3, "every": "1s", "of": 3}
    daemon = DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix)
    async with daemon, Client(kafka, topic_prefix) as client:
        await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG, external=[metric]))
        (alert,) = await client.alerts("preflight", 1)
    assert "external metric p95 cannot be measured (checks.prometheus.url is not set)" in str(alert)


class Histogram:
    """An exporter of request durations by variant, as an app that we know nothing of has."""

    def __init__(self) -> None:
        self.seconds = {"on": 0.1, "off": 0.1}
        self._counts = {
            variant: dict.fromkeys((*BUCKETS, math.inf), 0.0) for variant in self.seconds
        }
        self._at = time.monotonic()

    async def answer(self, exchange: Exchange) -> None:
        """Answer a scrape; 100 requests a second have come since the last one."""
        new, self._at = 100 * (time.monotonic() - self._at), time.monotonic()
        lines = ["# TYPE request_seconds histogram"]
        for variant, counts in self._counts.items():
            for bound in counts:
                counts[bound] += new if self.seconds[variant] <= bound else 0.0
                le = "+Inf" if bound == math.inf else f"{bound:g}"
                labels = f'variant="{variant}",le="{le}"'
                lines.append(f"request_seconds_bucket{{{labels}}} {counts[bound]}")
        headers = {"Content-Type": "text/plain; version=0.0.4"}
        await exchange.answer("\n".join(lines) + "\n", headers=headers)


class Servers:
    """Two processes with counters by variant; either may be restarted."""

    def __init__(self) -> None:
        self.share_bad = {"on": 0.02, "off": 0.02}
        self.restarts = 0
        self._counts = {
            (pod, variant, code): 0.0
            for pod in ("a", "b")
            for variant in self.share_bad
            for code in ("200", "500")
        }
        self._at = time.monotonic()

    def restart(self, pod: str) -> None:
        """Let a process begin at 0 again."""
        self.restarts += 1
        for key in self._counts:
            if key[0] == pod:
                self._counts[key] = 0.0

    async def answer(self, exchange: Exchange) -> None:
        """Answer a scrape; 200 requests a second of each variant and process since the last."""
        new, self._at = round(200 * (time.monotonic() - self._at)), time.monotonic()
        lines = ["# TYPE http_requests_total counter"]
        for (pod, variant, code), before in self._counts.items():
            bad = self.share_bad[variant]
            count = before + round(new * (bad if code == "500" else 1 - bad))
            self._counts[pod, variant, code] = count
            labels = f'pod="{pod}",variant="{variant}",code="{code}"'
            if count:  # a code that was not answered yet has no counter
                lines.append(f"http_requests_total{{{labels}}} {count}")
        headers = {"Content-Type": "text/plain; version=0.0.4"}
        await exchange.answer("\n".join(lines) + "\n", headers=headers)


@pytest.mark.rare
async def test_counters_of_a_real_prometheus_are_tested_across_restarts(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Restarted processes and a restarted daemon are no alarm; twice as many bad events are one."""
    app = Servers()
    asked = 'sum by (pod) (http_requests_total{variant="{variant}"'
    metric = {
        "name": "errors",
        "prometheus": {"bad": asked + ', code="500"})', "total": asked + "})"},
        "margin": "10%",
        "every": "1s",
    }
    stages = [
        {"percent": percent, "bake": "1h", "settle": "3s", "min_sample": 50}
        for percent in (10, 100)
    ]
    async with fault_server(app.answer) as server:
        with scraping([server.url.removeprefix("http://")], tmp_path) as prometheus:
            config = settings(tmp_path, prometheus.url)
            daemon = DaemonProcess(
                kafka,
                redis_url,
                tmp_path,
                prefix=topic_prefix,
                ROLLOUTD_CONFIG=config,
                **QUICK_TO_REJOIN,
            )
            async with daemon, Client(kafka, topic_prefix) as client:
                plan = quick_plan(FLAG, external=[metric], stages=stages)
                await client.command(CommandVerb.START, FLAG, plan=plan)
                async with Traffic(client, daemon, FLAG):
                    await daemon.until(FLAG, lambda one: one["percent"] == 10)
                    before = await until_counted(daemon, 2_000)
                    app.restart("a")
                    await until_counted(daemon, before + 2_000)
                    daemon.kill9()
                    await daemon.start()
                    app.restart("b")
                    await until_counted(daemon, before + 4_000)
                    report = report_of(await evidence(daemon), "counters:errors")
                    assert "across a restart" in report["reason"]
                    assert report["harm"] == "inconclusive"
                    for arm in report["arms"].values():
                        assert 0.015 < arm["estimate"] < 0.025
                    rollout = await daemon.rollout(FLAG)
                    assert rollout is not None
                    assert rollout["percent"] == 10
                    app.share_bad["on"] = 0.04
                    await daemon.until(FLAG, lambda one: one["percent"] == 0)
                (alert,) = await client.alerts("rolled_back", 1)
    assert "counters:errors" in alert["summary"]
    assert app.restarts == 2


def report_of(judgement: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return what a judgement says of a metric, nothing before the first."""
    reports = judgement.get("metrics", ())
    return next((one for one in reports if one["metric"] == metric), {})


async def until_counted(daemon: DaemonProcess, events: int) -> int:
    """Return treatment's counted events once there are so many."""
    deadline = time.monotonic() + 60 * SLACK
    while time.monotonic() < deadline:
        report = report_of(await evidence(daemon), "counters:errors")
        counted: int = report["arms"]["treatment"]["trials"] if report else 0
        if counted >= events:
            return counted
        await asyncio.sleep(0.2)
    raise AssertionError(f"not {events} events: {await evidence(daemon)}\n{daemon.log_tail()}")


@pytest.mark.rare
async def test_treatment_that_is_twice_as_slow_is_rolled_back_by_a_real_prometheus(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Our own events say that all is well: only Prometheus sees it."""
    app = Histogram()
    metric = {
        "name": "p95",
        "prometheus": {
            "query": "histogram_quantile(0.95, sum by (le) "
            '(rate(request_seconds_bucket{variant="{variant}"}[5s])))',
            "newest": "max(timestamp(request_seconds_bucket))",
        },
        "margin": "30%",
        "every": "1s",
        "misses": 3,
        "of": 3,
    }
    stages = [
        {"percent": percent, "bake": "1h", "settle": "5s", "min_sample": 50}
        for percent in (10, 100)
    ]
    async with fault_server(app.answer) as server:
        with scraping([server.url.removeprefix("http://")], tmp_path) as prometheus:
            config = settings(tmp_path, prometheus.url)
            daemon = DaemonProcess(
                kafka, redis_url, tmp_path, prefix=topic_prefix, ROLLOUTD_CONFIG=config
            )
            async with daemon, Client(kafka, topic_prefix) as client:
                plan = quick_plan(FLAG, external=[metric], stages=stages)
                await client.command(CommandVerb.START, FLAG, plan=plan)
                async with Traffic(client, daemon, FLAG):
                    await daemon.until(FLAG, lambda one: one["percent"] == 10)
                    await until_gap(daemon, None)
                    await asyncio.sleep(6)
                    rollout = await daemon.rollout(FLAG)
                    assert rollout is not None
                    assert rollout["percent"] == 10
                    app.seconds["on"] = 0.2 + 0.05
                    await daemon.until(FLAG, lambda one: one["percent"] == 0)
                (alert,) = await client.alerts("rolled_back", 1)
    assert "external:p95" in alert["summary"]
