"""Monitoring systems that answer what they should not: nothing stops, stands still or leaks."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from controller.adapters.measuring.measures import MonitoringSystems
from controller.clock import SystemClock
from controller.errors import NotMeasured
from controller.settings.checks import ChecksSettings
from schemas.terms import MeasurementGap
from tests.fault_server import Exchange, fault_server
from tests.integration.test_measuring import answering, check, systems

TOKEN = "token-of-24-characters-0"
PASSWORD = "password-of-24-characters"
#: Python turns neither of them into a float, and the second not even into text.
LONG = ("1" + "0" * 400, "1" + "0" * 5_000)
ASKED = (
    {"prometheus": "up"},
    {"uptime_kuma": {"monitor": "x"}},
    {"better_stack": {"monitor": "1"}},
    {"blackbox": {"target": "http://a"}},
)


def stack(what: str) -> Any:
    """Return a question to Better Stack."""
    return check(better_stack={"monitor": "1", "what": what})


@pytest.mark.parametrize("number", LONG)
async def test_an_integer_that_is_no_float_is_no_number(number: str) -> None:
    """It ended the checks of all systems, again and again, with an OverflowError."""
    of_prometheus = (
        '{"status":"success","data":{"resultType":"vector","result":'
        f'[{{"metric":{{}},"value":[{number},"1"]}}]}}}}'
    )
    of_stack = f'{{"data":{{"attributes":{{"availability":{number}}}}}}}'
    for asked, body in ((check(prometheus="up"), of_prometheus), (stack("availability"), of_stack)):
        async with systems(answering(body)) as (made, _):
            with pytest.raises(NotMeasured):
                await made.value(asked)


async def test_regions_that_are_no_list_are_none() -> None:
    """A TypeError ended all checks, too."""
    body = json.dumps({"data": {"attributes": {"regions": 5}}})
    async with systems(answering(body)) as (made, _):
        with pytest.raises(NotMeasured) as why:
            await made.value(stack("response_seconds"))
    assert why.value.gap is MeasurementGap.NO_DATA


@pytest.mark.parametrize("line", ['monitor_status{a="' + "\\" * 1_900_000, "up " + "z" * 500_000])
async def test_what_is_said_of_unreadable_metrics_is_bounded(line: str) -> None:
    """The parser quotes the whole line, and `/readyz` grew to 7.6 MB."""
    async with systems(answering(line + "\n")) as (made, _):
        with pytest.raises(NotMeasured, match=r"answers no metrics: ") as why:
            await made.value(check(uptime_kuma={"monitor": "x"}))
    assert len(str(why.value)) < 500


async def test_long_metrics_are_read_beside_the_loop() -> None:
    """2 MB of short lines take the parser most of a second; it stood still for 3 s under load."""
    lines = "".join(f"m{number} 1\n" for number in range(150_000))
    longest, is_over = 0.0, False

    async def beat() -> None:
        nonlocal longest
        while not is_over:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    async with systems(answering(f'{lines}monitor_status{{monitor_name="x"}} 1\n')) as (made, _):
        asked = check(uptime_kuma={"monitor": "x"})
        began = time.process_time()
        beats = asyncio.create_task(beat())
        try:
            assert await made.value(asked) == 1
        finally:
            is_over = True
            await beats
        took = time.process_time() - began
    assert longest < took / 2  # nearly all of it, when it is read in the loop


@pytest.mark.parametrize("secret", [{"token": TOKEN}, {"username": "ada", "password": PASSWORD}])
@pytest.mark.parametrize("asked", ASKED, ids=[next(iter(one)) for one in ASKED])
@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized"])
async def test_no_secret_comes_back(secret: Any, asked: Any, status: str) -> None:
    """What a server repeats of a request was on `/readyz`, on the page, and in the log."""
    pair = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()

    async def repeat(exchange: Exchange) -> None:
        headers = exchange.request.headers
        said = f"{headers.get('authorization')} {TOKEN} {PASSWORD} {pair}"
        # Also where the words are cut in the middle of it.
        for filler in ("", "x" * 190, "x" * 290):
            said += f"{filler} {headers.get('authorization')}"
        await exchange.answer(said, status=status)

    async with fault_server(repeat) as server:
        names = ("prometheus", "uptime_kuma", "better_stack", "blackbox")
        settings = ChecksSettings.model_validate(
            {name: {"url": server.url, **secret} for name in names}
        )
        made = MonitoringSystems(settings, SystemClock())
        with pytest.raises(NotMeasured) as why:
            await made.value(check(**asked))
        await made.close()
    ours = [TOKEN] if "token" in secret else [PASSWORD, pair]
    assert [one for one in ours if one[:12] in str(why.value)] == []
