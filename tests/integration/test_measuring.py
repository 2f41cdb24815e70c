"""Monitoring systems that are asked: a number, or the name of why there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.measuring.measures import MonitoringSystems
from controller.checking.checks_file import Check
from controller.clock import SystemClock
from controller.errors import NotMeasured
from controller.settings.checks import ChecksSettings
from schemas.terms import MeasurementGap
from tests.fault_server import Exchange, FaultServer, fault_server
from tests.prometheus import scraping

KUMA = """\
# TYPE monitor_status gauge
monitor_status{monitor_name="Checkout",monitor_type="http"} 1
monitor_response_time{monitor_name="Checkout",monitor_type="http"} 250
monitor_status{monitor_name="Down",monitor_type="http"} 0
monitor_status{monitor_name="Mending",monitor_type="http"} 3
monitor_status{monitor_name="Twice",monitor_type="http"} 1
monitor_status{monitor_name="Twice",monitor_type="ping"} 1
"""


def check(**measure: Any) -> Check:
    """Return a check that asks for a number."""
    return Check.model_validate({"name": "it", "at_least": 0, **measure})


@asynccontextmanager
async def systems(
    answer: Any, seconds: float = 5.0
) -> AsyncIterator[tuple[MonitoringSystems, FaultServer]]:
    """Yield systems that all are one server of the test's."""
    async with fault_server(answer) as server:
        asked = {"url": server.url, "token": "a token", "timeout_seconds": seconds}
        names = ("prometheus", "uptime_kuma", "better_stack", "blackbox")
        settings = ChecksSettings.model_validate(dict.fromkeys(names, asked))
        made = MonitoringSystems(settings, SystemClock())
        yield made, server
        await made.close()


def answering(body: str, status: str = "200 OK") -> Any:
    """Return a server that answers this."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(body, status=status)

    return answer


def prometheus(result: object, kind: str = "vector", **more: object) -> str:
    """Return an answer of Prometheus."""
    data = {"resultType": kind, "result": result}
    return json.dumps({"status": "success", "data": data, **more})


def sample(value: str) -> Mapping[str, Any]:
    """Return one series of a vector."""
    return {"metric": {}, "value": [1795335671.9, value]}


GAPS = [
    (prometheus([]), "200 OK", MeasurementGap.NO_DATA),
    (prometheus([sample("NaN")]), "200 OK", MeasurementGap.NOT_A_NUMBER),
    (prometheus([sample("+Inf")]), "200 OK", MeasurementGap.NOT_A_NUMBER),
    (prometheus([1795335671.9, "NaN"], "scalar"), "200 OK", MeasurementGap.NOT_A_NUMBER),
    (prometheus([sample("1"), sample("2")]), "200 OK", MeasurementGap.SEVERAL_SERIES),
    (prometheus([sample("1")], warnings=["truncated"]), "200 OK", MeasurementGap.INCOMPLETE),
    (prometheus([], "matrix"), "200 OK", MeasurementGap.REFUSED),
    (prometheus([{"metric": {}, "histogram": []}]), "200 OK", MeasurementGap.REFUSED),
    ('{"status":"error","errorType":"bad_data","error":"parse error"}', "400 Bad Request", "x"),
    ("<html>502</html>", "502 Bad Gateway", "x"),
    ("<html>welcome</html>", "200 OK", "x"),
    ("[" * 100_000, "200 OK", "x"),
    ('{"status":"success","data":[]}', "200 OK", "x"),
    (prometheus("x"), "200 OK", "x"),
    (prometheus([["a"]]), "200 OK", "x"),
    (prometheus([{"value": 1}]), "200 OK", MeasurementGap.NOT_A_NUMBER),
    (prometheus([{"value": [1, True]}]), "200 OK", MeasurementGap.NOT_A_NUMBER),
]


@pytest.mark.parametrize(("body", "status", "gap"), GAPS)
async def test_what_is_no_number_has_a_name(body: str, status: str, gap: str) -> None:
    """And is never zero."""
    expected = MeasurementGap.REFUSED if gap == "x" else gap
    async with systems(answering(body, status)) as (made, _):
        with pytest.raises(NotMeasured) as why:
            await made.value(check(prometheus="up"))
    assert why.value.gap is expected


async def test_a_number_is_a_number() -> None:
    """Of a vector of one, and of a scalar; the query and the token arrive."""
    async with systems(answering(prometheus([sample("0.25")]))) as (made, server):
        assert await made.value(check(prometheus='sum(up{job="a b"})')) == 0.25
        request = server.requests[0]
        assert request.body == b"query=sum%28up%7Bjob%3D%22a+b%22%7D%29"
        assert request.headers["authorization"] == "Bearer a token"
        server.script = answering(prometheus([1.0, "7"], "scalar"))
        assert await made.value(check(prometheus="7")) == 7


async def test_a_server_that_hangs_or_is_gone_is_said_in_time() -> None:
    """Within the deadline."""

    async def hang(_: Exchange) -> None:
        await asyncio.sleep(3600)

    async with systems(hang, 0.3) as (made, server):
        with pytest.raises(NotMeasured, match=r"no answer within 0.3 s") as why:
            await made.value(check(prometheus="up"))
        assert why.value.gap is MeasurementGap.NO_ANSWER
        server.script = lambda exchange: exchange.reset()
        with pytest.raises(NotMeasured) as why:
            await made.value(check(prometheus="up"))
        assert why.value.gap is MeasurementGap.NO_ANSWER
    nothing = MonitoringSystems(ChecksSettings(), SystemClock())
    with pytest.raises(NotMeasured, match=r"checks.prometheus.url is not set"):
        await nothing.value(check(prometheus="up"))


async def test_uptime_kuma() -> None:
    """Up is 1 and nothing else; maintenance says nothing."""
    async with systems(answering(KUMA)) as (made, server):
        assert await made.value(check(uptime_kuma={"monitor": "Checkout"})) == 1
        assert await made.value(check(uptime_kuma={"monitor": "Down"})) == 0
        seconds = {"monitor": "Checkout", "what": "response_seconds"}
        assert await made.value(check(uptime_kuma=seconds)) == 0.25
        for monitor, gap in (
            ("Mending", MeasurementGap.PAUSED),
            ("Twice", MeasurementGap.SEVERAL_SERIES),
            ("Nobody", MeasurementGap.NO_DATA),
        ):
            with pytest.raises(NotMeasured) as why:
                await made.value(check(uptime_kuma={"monitor": monitor}))
            assert why.value.gap is gap
        server.script = answering("<html>log in</html>")
        with pytest.raises(NotMeasured):
            await made.value(check(uptime_kuma={"monitor": "Checkout"}))


async def test_better_stack() -> None:
    """Availability of today, the slowest region, and open incidents."""
    asked: list[str] = []

    async def answer(exchange: Exchange) -> None:
        path = exchange.request.line.split()[1]
        asked.append(path)
        body: Any = {"data": [{"id": "1"}, {"id": "2"}]}
        if "/sla" in path:
            body = {"data": {"attributes": {"availability": 99.98}}}
        elif "response-times" in path:
            regions = [
                {"region": "us", "response_times": [{"response_time": 9}, {"response_time": 0.2}]},
                {"region": "eu", "response_times": [{"response_time": 0.4}]},
                {"region": "as", "response_times": []},
            ]
            body = {"data": {"attributes": {"regions": regions}}}
        await exchange.answer(json.dumps(body))

    async with systems(answer) as (made, server):
        for what, number in (
            ("availability", 99.98),
            ("response_seconds", 0.4),
            ("open_incidents", 2),
        ):
            found = await made.value(check(better_stack={"monitor": "42", "what": what}))
            assert found == number
        day = datetime.now(UTC).date().isoformat()
        assert asked[0] == f"/api/v2/monitors/42/sla?from={day}&to={day}"
        server.script = answering('{"data": {}}')
        with pytest.raises(NotMeasured):
            await made.value(check(better_stack={"monitor": "42"}))


@pytest.mark.rare
async def test_a_real_prometheus(tmp_path: Path) -> None:
    """What it answers to good and bad queries."""
    with scraping([], tmp_path) as server:
        settings = ChecksSettings.model_validate({"prometheus": {"url": server.url}})
        made = MonitoringSystems(settings, SystemClock())
        assert await made.query("vector(3)") == 3
        assert await made.query("3") == 3
        for query, gap in (
            ("no_such_metric", MeasurementGap.NO_DATA),
            ("0/0", MeasurementGap.NOT_A_NUMBER),
            ("vector(0)/0", MeasurementGap.NOT_A_NUMBER),
            ("histogram_quantile(0.9, no_such_bucket)", MeasurementGap.NO_DATA),
            ("sum(", MeasurementGap.REFUSED),
            ("up[1m]", MeasurementGap.REFUSED),
        ):
            with pytest.raises(NotMeasured) as why:
                await made.query(query)
            assert why.value.gap is gap, query
        await made.close()
