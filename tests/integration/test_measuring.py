"""Monitoring systems that are asked: a number, or the name of why there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from controller.adapters.measuring.measures import MonitoringSystems
from controller.checking.checks_file import Check
from controller.clock import SystemClock
from controller.core.plan import CounterQuestion
from controller.errors import NotMeasured
from controller.settings.checks import ChecksSettings
from schemas.terms import Arm, MeasurementGap
from tests.fault_server import Exchange, FaultServer, fault_server
from tests.prometheus import scraping

KUMA = """\
# TYPE monitor_status gauge
monitor_status{monitor_name="Checkout",monitor_type="http"} 1
monitor_response_time{monitor_name="Checkout",monitor_type="http"} 250
monitor_status{monitor_name="Down",monitor_type="http"} 0
monitor_response_time{monitor_name="Down",monitor_type="http"} -1
monitor_status{monitor_name="Fresh",monitor_type="push"} 1
monitor_response_time{monitor_name="Fresh",monitor_type="push"} -1
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


async def test_an_empty_answer_is_called_one() -> None:
    """A sentence does not end with a colon and nothing behind it."""
    async with systems(answering("")) as (made, _):
        with pytest.raises(NotMeasured, match=r"answers no JSON object: nothing at all$"):
            await made.value(check(prometheus="up"))


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


@pytest.mark.parametrize("monitor", ["Down", "Fresh"])
async def test_no_response_time_of_uptime_kuma_is_no_fast_one(monitor: str) -> None:
    """It exports -1 where it has no ping, which would be within every limit."""
    asked = check(uptime_kuma={"monitor": monitor, "what": "response_seconds"})
    async with systems(answering(KUMA)) as (made, _):
        with pytest.raises(NotMeasured, match="no response time") as why:
            await made.value(asked)
    assert why.value.gap is MeasurementGap.NO_DATA


async def test_a_failed_probe_of_the_blackbox_exporter_has_no_duration() -> None:
    """A refused connection is no fast answer."""
    duration = check(blackbox={"target": "shop", "what": "duration_seconds"})
    body = "probe_success {}\nprobe_duration_seconds 0.0004\n"
    async with systems(answering(body.format(1))) as (made, server):
        assert await made.value(duration) == 0.0004
        assert await made.value(check(blackbox={"target": "shop"})) == 1
        server.script = answering(body.format(0))
        assert await made.value(check(blackbox={"target": "shop"})) == 0
        for answer in (body.format(0), "probe_duration_seconds 0.0004\n"):
            server.script = answering(answer)
            with pytest.raises(NotMeasured) as why:
                await made.value(duration)
            assert why.value.gap is MeasurementGap.NO_DATA


def at(seconds: float, minutes: float) -> Mapping[str, Any]:
    """Return a response time of so many minutes ago."""
    then = datetime.now(UTC) - timedelta(minutes=minutes)
    return {"at": then.isoformat().replace("+00:00", "Z"), "response_time": seconds}


def response_times(**regions: list[Any]) -> Mapping[str, Any]:
    """Return Better Stack's answer of response times by region."""
    named = [{"region": name, "response_times": times} for name, times in regions.items()]
    return {"data": {"attributes": {"regions": named}}}


@pytest.mark.parametrize(
    ("sample", "gap"),
    [
        (at(0.1, 21 * 24 * 60), MeasurementGap.LATE),
        ({"response_time": 0.1}, MeasurementGap.REFUSED),
        ({"response_time": 0.1, "at": "lately"}, MeasurementGap.REFUSED),
    ],
)
async def test_an_old_response_time_of_better_stack_says_nothing(sample: Any, gap: str) -> None:
    """A monitor that is looked at no more keeps its last ones; nor does one without its time."""
    asked = check(better_stack={"monitor": "42", "what": "response_seconds"})
    async with systems(answering(json.dumps(response_times(us=[sample])))) as (made, server):
        with pytest.raises(NotMeasured) as why:
            await made.value(asked)
        assert why.value.gap is gap
        # A region that was taken off the monitor does not speak for the others.
        both = response_times(us=[at(9, 21 * 24 * 60)], eu=[at(0.2, 1)])
        server.script = answering(json.dumps(both))
        assert await made.value(asked) == 0.2


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
            body = response_times(us=[at(9, 60), at(0.2, 0)], eu=[at(0.4, 0)], asia=[])
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


QUESTION: CounterQuestion = (
    (Arm.TREATMENT, "bad", "b{v='on'}"),
    (Arm.TREATMENT, "total", "t{v='on'} # all"),
    (Arm.CONTROL, "bad", "b"),
    (Arm.CONTROL, "total", "t"),
)


def series(part: str, value: str = "1", **labels: str) -> Mapping[str, Any]:
    """Return one counter of a part, as in `treatment.bad`."""
    return {"metric": {"__name__": part, "rolloutd_part": part, **labels}, "value": [9.5, value]}


async def test_counters_of_both_arms_are_asked_for_in_one_query() -> None:
    """Parts are told apart by a label, series by all others; a missing part is no series."""
    result = [
        series("treatment.total", "7", pod="a"),
        series("treatment.total", "8", pod="b"),
        series("treatment.bad", "2", pod="b"),
        series("control.total", "9", pod="a"),
    ]
    async with systems(answering(prometheus(result))) as (made, server):
        found = await made.counters(QUESTION)
        query = parse_qs(server.requests[0].body.decode())["query"][0]
    assert len(server.requests) == 1
    assert query.startswith(
        'label_replace((b{v=\'on\'}\n), "rolloutd_part", "treatment.bad", "__name__", ".*") or '
    )
    total, bad = found.values[Arm.TREATMENT]["total"], found.values[Arm.TREATMENT]["bad"]
    (key,) = bad
    assert (sorted(total.values()), total[key], bad[key]) == ([7, 8], 8, 2)
    assert found.values[Arm.CONTROL]["bad"] == {}
    assert found.evaluated_at == 9.5


BOTH = (series("treatment.total"), series("control.total"))


@pytest.mark.parametrize(
    ("result", "gap"),
    [
        ([], MeasurementGap.NO_DATA),
        ([series("treatment.total")], MeasurementGap.NO_DATA),
        ([series("treatment.bad"), series("control.total")], MeasurementGap.NO_DATA),
        ([*BOTH, series("treatment.bad", "NaN")], MeasurementGap.NOT_A_NUMBER),
        ([*BOTH, series("treatment.bad", "-1")], MeasurementGap.NOT_A_NUMBER),
        ([*BOTH, series("treatment.total", __name__="x")], MeasurementGap.SEVERAL_SERIES),
        ([*BOTH] * 501, MeasurementGap.SEVERAL_SERIES),
        ([*BOTH, sample("1")], MeasurementGap.REFUSED),
        ([*BOTH, 7], MeasurementGap.REFUSED),
        ([*BOTH, {**series("treatment.bad"), "value": None}], MeasurementGap.NOT_A_NUMBER),
    ],
)
async def test_what_are_no_counters_has_a_name(result: Any, gap: MeasurementGap) -> None:
    """And is never zero events."""
    async with systems(answering(prometheus(result))) as (made, _):
        with pytest.raises(NotMeasured) as why:
            await made.counters(QUESTION)
    assert why.value.gap is gap


@pytest.mark.rare
async def test_counters_of_a_real_prometheus(tmp_path: Path) -> None:
    """The query that is made of the parts is one that it takes, also with series missing."""
    with scraping([], tmp_path) as server:
        settings = ChecksSettings.model_validate({"prometheus": {"url": server.url}})
        made = MonitoringSystems(settings, SystemClock())
        of_itself = 'sum by (handler) (prometheus_http_requests_total{code=~"."}) or vector(5)'
        parts = {"bad": "no_such_metric # none", "total": of_itself}
        question = tuple((arm, part, query) for arm in Arm for part, query in parts.items())
        found = await made.counters(question)
        wrong = tuple((arm, part, "1") for arm in Arm for part in parts)
        with pytest.raises(NotMeasured) as why:
            await made.counters(wrong)
        await made.close()
    assert why.value.gap is MeasurementGap.REFUSED
    for arm in Arm:
        assert found.values[arm]["bad"] == {}
        assert list(found.values[arm]["total"].values()) == [5.0]


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
