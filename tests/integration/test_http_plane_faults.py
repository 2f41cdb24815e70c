"""HTTP planes: edits by others, failing servers, and settings that cannot work."""

from __future__ import annotations

import json
import logging
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from controller.adapters.http_plane.plane import HttpPlane
from controller.clock import SystemClock
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Served
from controller.settings.planes import HttpPlaneSettings
from tests.builders import make_plan, make_rollout
from tests.fault_server import (
    Exchange,
    Script,
    answering,
    fault_server,
    hang,
    hang_in_body,
    repeating,
    reset,
)
from tests.integration.http_services import (
    SECRET,
    SIGNING_SECRET,
    HandClock,
    LaunchDarkly,
    plane_at,
    serve,
    service,
)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A template that reads and writes at `base`."""
    document = {
        "values": {"base": None},
        "headers": {"Authorization": "Bearer {secret}"},
        "read": [{"url": "{base}/{flag}", "extract": {"percent_there": "/percent"}}],
        "percent": [{"is": "{percent_there}"}],
        "write": {"method": "PUT", "url": "{base}/{flag}", "body": {"percent": "{percent}"}},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def test_an_edit_by_others_is_recognised_when_it_is_looked_for() -> None:
    """What we never sent is somebody else's.

    It is found within the period of looking, and what we put right is ours again.
    """
    system, clock = LaunchDarkly(), HandClock()
    async with (
        fault_server(service(system)) as server,
        plane_at("launchdarkly", clock, values={"base": server.url, "project": "shop"}) as plane,
    ):
        await serve(plane, make_rollout())
        system.on = False
        assert (await plane.look(make_rollout())).edited_by is None, "looked before its time"
        clock.seconds += 31
        for _ in range(2):
            served = await plane.look(make_rollout())
            assert (served.percent, served.edited_by) == (
                0.0,
                f"somebody at {urlsplit(server.url).netloc}",
            )
        await plane.serve(make_rollout(revision=2))
        assert await plane.look(make_rollout(revision=2)) == Served(10.0, None)


async def test_a_lost_answer_does_not_make_our_own_change_a_strangers() -> None:
    """The change was made and its answer was not heard: what is read back then is ours."""
    system = LaunchDarkly()
    respond = service(system)

    async def deaf(exchange: Exchange) -> None:
        if exchange.request.line.startswith("PATCH"):
            system("PATCH", exchange.request.line.split(" ")[1], json.loads(exchange.request.body))
            await exchange.reset()
        else:
            await respond(exchange)

    clock = HandClock()
    async with (
        fault_server(respond) as server,
        plane_at("launchdarkly", clock, values={"base": server.url, "project": "shop"}) as plane,
    ):
        await serve(plane, make_rollout())
        server.script = deaf
        with pytest.raises(FlagPlaneUnavailable):
            await plane.serve(make_rollout(revision=2, percent=50.0))
        clock.seconds += 31
        assert await plane.look(make_rollout(revision=2, percent=50.0)) == Served(50.0, None)


async def test_a_change_that_did_not_arrive_is_no_strangers_edit(template: Path) -> None:
    """The write was lost on its way: what is still there is not held for an edit, but replaced."""
    state = {"percent": 0}
    is_lost = True

    async def script(exchange: Exchange) -> None:
        if exchange.request.body and is_lost:
            await exchange.reset()
            return
        if exchange.request.body:
            state.update(json.loads(exchange.request.body))
        await exchange.answer(json.dumps(state))

    clock = HandClock()
    async with (
        fault_server(script) as server,
        plane_at(template, clock, values={"base": server.url}) as plane,
    ):
        with pytest.raises(FlagPlaneUnavailable):
            await serve(plane, make_rollout())
        clock.seconds += 31
        assert (await plane.look(make_rollout())).edited_by is None
        is_lost = False
        assert await serve(plane, make_rollout()) == Served(10.0, None)
        state["percent"] = 0
        clock.seconds += 31
        assert (await plane.look(make_rollout())).edited_by is not None, "it had arrived"


async def test_what_a_percentage_cannot_say_is_sent_once_and_complained_of(template: Path) -> None:
    """Divided treatment is not told to a system that knows percentages alone.

    The percentage is, and not again and again.
    """
    state = {"percent": 0}

    async def script(exchange: Exchange) -> None:
        if exchange.request.body:
            state.update(json.loads(exchange.request.body))
        await exchange.answer(json.dumps(state))

    rollout = make_rollout(plan=make_plan(split=(("red", 1), ("blue", 1))))
    async with (
        fault_server(script) as server,
        plane_at(template, values={"base": server.url}) as plane,
    ):
        for _ in range(3):
            served = await serve(plane, rollout)
            assert (
                served.difference
                == "cannot serve treatment divided among variants; everybody else gets the "
                "decided 10 %"
            )
        assert [request.line.split(" ")[0] for request in server.requests].count("PUT") == 1


FAILURES: list[tuple[str, Script, str]] = [
    ("hangs", hang, "gave no complete answer within 0.2 s"),
    ("hangs in the body", hang_in_body, "gave no complete answer within 0.2 s"),
    (
        "drips",
        repeating(b" ", head=b"HTTP/1.1 200 OK\r\n\r\n", pause_seconds=0.01),
        "gave no complete answer within 0.2 s",
    ),
    ("resets", reset, "gave no usable answer"),
    (
        "never ends",
        repeating(b"x" * 4096, head=b"HTTP/1.1 200 OK\r\n\r\n"),
        "the answer is longer than 2048 bytes",
    ),
    (
        "endless head",
        repeating(b"a: " + b"b" * 4096 + b"\r\n", head=b"HTTP/1.1 200 OK\r\n"),
        "gave no usable answer",
    ),
    ("no HTTP", answering("x", status="OK"), "gave no usable answer"),
    ("no JSON", answering("<html>"), "no JSON"),
    ("deep JSON", answering("[" * 2000), "no JSON"),
    ("packed", answering("x", content_encoding="gzip"), "a compressed answer"),
    (
        "redirect",
        answering("", status="302 Found", location="http://127.0.0.1:1/"),
        "a redirect is not followed",
    ),
    (
        "unknown token",
        answering(f"no such token {SECRET}", status="401 No"),
        "no such token ***; is the secret of",
    ),
    ("forbidden", answering("approval wanted", status="403 No"), "answered 403: approval wanted"),
    ("missing", answering("", status="404 No"), "answered 404"),
    ("conflict", answering("", status="409 No"), "answered 409"),
    ("escape codes", answering("\x1b[2Jgone", status="500 No"), "answered 500: [2Jgone"),
]


@pytest.mark.parametrize(
    ("script", "why"), [each[1:] for each in FAILURES], ids=[each[0] for each in FAILURES]
)
async def test_whatever_fails_is_said_in_words_and_in_time(
    template: Path, script: Script, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of bad server ends in trouble with a name, within the deadline.

    And the secret is nowhere in it.
    """
    caplog.set_level(logging.DEBUG)
    async with fault_server(script) as server:
        async with plane_at(
            template, values={"base": server.url}, call_timeout_seconds=0.2, max_answer_bytes=2048
        ) as plane:
            started = time.monotonic()
            with pytest.raises(FlagPlaneUnavailable) as trouble:
                await plane.look(make_rollout())
            assert time.monotonic() - started < 20  # the deadline is 0.2 s
            assert why in str(trouble.value)
            assert SECRET not in str(trouble.value) + caplog.text
        assert len(server.requests) == 1
        assert "127.0.0.1:1/" not in server.requests[0].line


async def test_a_server_that_asks_for_time_gets_it_but_a_rollback_is_tried(template: Path) -> None:
    """After a 429 nothing is sent until Retry-After is over, except a lowering, once a second."""
    clock = HandClock()
    async with (
        fault_server(answering('{"percent": 10}')) as server,
        plane_at(template, clock, values={"base": server.url}) as plane,
    ):
        assert await plane.look(make_rollout()) == Served(10.0, None)
        server.script = answering("", status="429 Slow down", retry_after="120")
        with pytest.raises(FlagPlaneUnavailable, match="answered 429"):
            await plane.serve(make_rollout(revision=2, percent=50.0))
        asked = len(server.requests)
        for seconds in (1, 50, 60):
            clock.seconds += seconds
            with pytest.raises(FlagPlaneUnavailable, match="no request for another"):
                await plane.serve(make_rollout(revision=2, percent=50.0))
        assert len(server.requests) == asked
        with pytest.raises(FlagPlaneUnavailable, match="answered 429"):
            await plane.serve(make_rollout(revision=3, percent=0.0))
        assert len(server.requests) == asked + 1
        clock.seconds += 130
        server.script = answering('{"percent": 0}')
        await plane.serve(make_rollout(revision=3, percent=0.0))
        assert await plane.look(make_rollout(revision=3, percent=0.0)) == Served(0.0, None)


async def test_trouble_with_one_flag_keeps_no_other_waiting(template: Path) -> None:
    """A flag that is unknown there is asked for more and more rarely; the others are not."""
    clock = HandClock()

    async def script(exchange: Exchange) -> None:
        known = "/new-checkout" in exchange.request.line
        await exchange.answer('{"percent": 10}', status="200 OK" if known else "404 No")

    async with (
        fault_server(script) as server,
        plane_at(template, clock, values={"base": server.url}) as plane,
    ):
        for _ in range(3):
            with pytest.raises(FlagPlaneUnavailable):
                await plane.look(make_rollout(flag_key="unknown"))
        assert len(server.requests) == 1
        assert await plane.look(make_rollout()) == Served(10.0, None)


async def test_a_server_that_cannot_prove_who_it_is_gets_no_secret(
    template: Path, certificate: tuple[Path, Path]
) -> None:
    """Over https an unknown authority ends the connection before a request.

    With ca_file it is known.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with fault_server(answering('{"percent": 10}'), tls=context) as server:
        async with plane_at(template, values={"base": server.url}) as plane:
            with pytest.raises(FlagPlaneUnavailable, match="gave no usable answer"):
                await plane.look(make_rollout())
        assert not server.requests
        async with plane_at(template, values={"base": server.url}, ca_file=certificate[0]) as plane:
            assert await plane.look(make_rollout()) == Served(10.0, None)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"template": "webhook", "secret": None, "values": {"url": "https://x.example/"}},
            "needs secret",
        ),
        (
            {"template": "webhook", "secret": "hunter2", "values": {"url": "https://x.example/"}},
            "a signing secret is",
        ),
        (
            {
                "template": "webhook",
                "secret": "whsec_c2hvcnQ=",
                "values": {"url": "https://x.example/"},
            },
            "a signing secret is",
        ),
        (
            {
                "template": "webhook",
                "secret": SIGNING_SECRET,
                "values": {"url": "http://x.example/"},
            },
            "allow_plain_http",
        ),
        ({"template": "growthbook", "secret": "a\nb"}, "not one line of ASCII"),
        ({"template": "growthbook", "secret": "a", "ca_file": "missing.pem"}, "No such file"),
        ({"template": "missing.yaml", "secret": "a"}, "nor a readable file"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(fields: dict[str, Any], why: str) -> None:
    """Each is named with the plane it belongs to, and without the secret."""
    with pytest.raises(ConfigInvalid) as refused:
        HttpPlane("ours", HttpPlaneSettings.model_validate(fields), SystemClock())
    assert str(refused.value).startswith("planes.http.ours: ")
    assert why in str(refused.value)
    assert "hunter2" not in str(refused.value)
