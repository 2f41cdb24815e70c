"""HTTP planes over real sockets.

The shipped templates against services that answer as their documents say, and what fails.

The services are ours, written from the public API documents of LaunchDarkly, Flagsmith and
GrowthBook; nothing here has met the real ones.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from controller.adapters.http_plane.plane import HttpPlane
from controller.adapters.http_plane.signing import Signer
from controller.clock import SystemClock
from controller.core.rollout import RolledBack, Rollout
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import FlagPlane, Served
from controller.settings import HttpPlaneSettings
from tests.builders import T0, make_plan, make_rollout
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

SECRET = "token-3f9a"
SIGNING_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class HandClock(SystemClock):
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__(monotonic=lambda: self.seconds)


@asynccontextmanager
async def plane_at(
    template: str | Path, clock: HandClock | None = None, **fields: Any
) -> AsyncIterator[HttpPlane]:
    """Give a plane by a template."""
    settings = {"template": str(template), "secret": SECRET, **fields}
    plane = HttpPlane("test", HttpPlaneSettings.model_validate(settings), clock or HandClock())
    try:
        yield plane
    finally:
        await plane.close()


async def serve(plane: FlagPlane, rollout: Rollout) -> Served:
    """Do what actuation does: look, serve if need be, look again."""
    served = await plane.look(rollout)
    if served.difference is None:
        return served
    await plane.serve(rollout)
    return await plane.look(rollout)


def service(handle: Callable[[str, str, Any], Any]) -> Script:
    """Return a script for a JSON service.

    `handle` gets method, address and body, and gives an answer or an HTTP status.
    """

    async def script(exchange: Exchange) -> None:
        method, address, _ = exchange.request.line.split(" ")
        assert SECRET in exchange.request.headers["authorization"]
        answer = handle(
            method, address, json.loads(exchange.request.body) if exchange.request.body else None
        )
        if isinstance(answer, int):
            await exchange.answer("{}", status=f"{answer} Refused")
        else:
            await exchange.answer(json.dumps(answer))

    return script


# --- the three
# --------------------------------------------------------------------------------------------------


class LaunchDarkly:
    """One boolean flag in one environment, as the REST API shows and patches it."""

    def __init__(self) -> None:
        self.on = False
        self.fallthrough: dict[str, Any] = {"variation": 1}
        self.variations = [{"_id": "id-true", "value": True}, {"_id": "id-false", "value": False}]

    def __call__(self, method: str, address: str, body: Any) -> Any:
        parts = urlsplit(address)
        if parts.path != "/api/v2/flags/shop/new-checkout":
            return 404
        if method == "GET":
            assert parse_qs(parts.query) == {"env": ["production"]}
            environment = {"on": self.on, "fallthrough": self.fallthrough, "offVariation": 1}
            return {
                "key": "new-checkout",
                "variations": self.variations,
                "environments": {"production": environment},
            }
        assert (method, body["environmentKey"]) == ("PATCH", "production")
        for instruction in body["instructions"]:
            match instruction:
                case {"kind": "turnFlagOn"}:
                    self.on = True
                case {"kind": "turnFlagOff"}:
                    self.on = False
                case {
                    "kind": "updateFallthroughVariationOrRollout",
                    "rolloutWeights": weights,
                    "rolloutContextKind": "user",
                }:
                    if sum(weights.values()) != 100_000:
                        return 400
                    ids = [variation["_id"] for variation in self.variations]
                    split = [
                        {"variation": ids.index(each), "weight": weight}
                        for each, weight in weights.items()
                    ]
                    self.fallthrough = {
                        "rollout": {"variations": split, "bucketBy": instruction["rolloutBucketBy"]}
                    }
                case _:
                    return 400
        return {}


class Flagsmith:
    """One multivariate feature in one environment.

    The search also finds a feature whose name is longer.
    """

    def __init__(self, variants: int = 1) -> None:
        self.enabled = False
        self.weights = {33 + number: 0.0 for number in range(variants)}

    def __call__(self, method: str, address: str, body: Any) -> Any:
        parts = urlsplit(address)
        if parts.path == "/api/v1/projects/7/features/":
            assert parse_qs(parts.query)["search"] == ["new-checkout"]
            options = [{"id": variant} for variant in self.weights]
            other = {"id": 4, "name": "new-checkout-two", "multivariate_options": []}
            return {
                "results": [
                    other,
                    {"id": 5, "name": "new-checkout", "multivariate_options": options},
                ]
            }
        if parts.path != "/api/__future__/environments/key/features/5/":
            return 404
        if method == "PATCH":
            default = body["environment_default"]
            if {variant["id"] for variant in default["variants"]} != self.weights.keys():
                return 400
            self.enabled = default["enabled"]
            self.weights = {variant["id"]: variant["weight"] for variant in default["variants"]}
        variants = [{"id": variant, "weight": weight} for variant, weight in self.weights.items()]
        return {
            "environment_default": {"enabled": self.enabled, "variants": variants},
            "segment_overrides": [],
        }


class GrowthBook:
    """One feature whose rules are replaced as a whole."""

    def __init__(self) -> None:
        self.rules = [
            {
                "id": "fr_1",
                "type": "force",
                "description": "staff",
                "value": "true",
                "enabled": True,
            },
            {
                "id": "fr_2",
                "type": "rollout",
                "description": "rolloutd",
                "value": "true",
                "coverage": 0,
                "enabled": True,
            },
        ]

    def __call__(self, method: str, address: str, body: Any) -> Any:
        if address != "/v2/features/new-checkout":
            return 404
        if method == "POST":
            assert body.keys() == {"rules"}
            self.rules = body["rules"]
        return {
            "feature": {
                "id": "new-checkout",
                "rules": self.rules,
                "environments": {"production": {"enabled": True}},
            }
        }


KNOWN: list[tuple[str, Callable[[], Callable[[str, str, Any], Any]], dict[str, str]]] = [
    ("launchdarkly", LaunchDarkly, {"project": "shop"}),
    ("flagsmith", Flagsmith, {"project": "7", "environment": "key"}),
    ("growthbook", GrowthBook, {}),
]


@pytest.mark.parametrize(("template", "system", "values"), KNOWN)
async def test_the_shipped_templates_set_and_read_back(
    template: str, system: Callable[[], Callable[[str, str, Any], Any]], values: dict[str, str]
) -> None:
    """From off over 1, 33.33 and 100 % to a roll back: what is read back is what was decided."""
    async with (
        fault_server(service(system())) as server,
        plane_at(template, values={"base": server.url, **values}) as plane,
    ):
        assert (await plane.look(make_rollout(percent=1.0))).percent == 0.0
        for revision, percent in enumerate([1.0, 33.33, 100.0], start=1):
            assert await serve(plane, make_rollout(revision=revision, percent=percent)) == Served(
                percent, None
            )
        rolled_back = make_rollout(revision=4, percent=100.0, phase=RolledBack(T0, "breach"))
        assert await serve(plane, rolled_back) == Served(0.0, None)
        calls = len(server.requests)
        assert await plane.look(rolled_back) == Served(0.0, None)
        assert len(server.requests) == calls, "read back too often: such services limit calls"


async def test_launchdarkly_is_turned_off_at_nothing() -> None:
    """At 0 % no individual target or rule keeps the treatment alive.

    And a flag's other variation fixed is 0 or 100 %.
    """
    system = LaunchDarkly()
    async with (
        fault_server(service(system)) as server,
        plane_at("launchdarkly", values={"base": server.url, "project": "shop"}) as plane,
    ):
        await serve(plane, make_rollout())
        assert system.on
        assert system.fallthrough["rollout"]["variations"] == [
            {"variation": 0, "weight": 10_000},
            {"variation": 1, "weight": 90_000},
        ]
        await serve(plane, make_rollout(revision=2, percent=0.0))
        assert not system.on
    for fallthrough, percent in (
        ({"variation": 0}, 100.0),
        ({"variation": 1}, 0.0),
        ({"rollout": {"variations": []}}, 0.0),
    ):
        system.on, system.fallthrough = True, fallthrough
        async with (
            fault_server(service(system)) as server,
            plane_at("launchdarkly", values={"base": server.url, "project": "shop"}) as plane,
        ):
            assert (await plane.look(make_rollout())).percent == percent


async def test_growthbook_keeps_the_rules_of_others() -> None:
    """All rules are sent back, one of them changed.

    A feature without our rule is refused in words.
    """
    system = GrowthBook()
    async with (
        fault_server(service(system)) as server,
        plane_at("growthbook", values={"base": server.url}) as plane,
    ):
        await serve(plane, make_rollout())
        assert [(rule["id"], rule.get("coverage")) for rule in system.rules] == [
            ("fr_1", None),
            ("fr_2", 0.1),
        ]
        system.rules = system.rules[:1]
        with pytest.raises(FlagPlaneUnavailable, match="no element has description = rolloutd"):
            await plane.serve(make_rollout(revision=2))


async def test_flagsmith_features_with_more_variants_are_refused() -> None:
    """Weights that nobody decided are not guessed."""
    values = {"project": "7", "environment": "key"}
    async with (
        fault_server(service(Flagsmith(variants=2))) as server,
        plane_at("flagsmith", values={"base": server.url, **values}) as plane,
    ):
        with pytest.raises(FlagPlaneUnavailable, match="more than one variant"):
            await plane.serve(make_rollout())


# --- a service of one's own
# -------------------------------------------------------------------------------------------------


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The signature of a message that the specification's reference library signs as well."""
    signer = Signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signer.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_service_of_ones_own_can_tell_who_called_and_what_is_late() -> None:
    """The POST is signed with its time, has an id that only a retry repeats.

    And says percentage and revision.
    """
    async with (
        fault_server(answering("")) as server,
        plane_at(
            "webhook", secret=SIGNING_SECRET, values={"url": f"{server.url}/hook?tenant=a"}
        ) as plane,
    ):
        assert (await plane.look(make_rollout())).difference == "has not acknowledged revision 1"
        assert await serve(plane, make_rollout(percent=25.5)) == Served(25.5, None)
        server.script = answering("", status="500 Oops")
        with pytest.raises(FlagPlaneUnavailable, match="answered 500"):
            await plane.serve(make_rollout(revision=2, percent=0.0))
        with pytest.raises(FlagPlaneUnavailable, match="not asked for another"):
            await plane.serve(make_rollout(revision=2, percent=0.0))
        assert (
            await plane.look(make_rollout(revision=2, percent=0.0))
        ).difference == "has not acknowledged revision 2"
    told, failed = server.requests
    assert told.line == "POST /hook?tenant=a HTTP/1.1"
    signed = (
        f"{told.headers['webhook-id']}.{told.headers['webhook-timestamp']}.".encode() + told.body
    )
    expected = base64.b64encode(hmac.digest(bytes(range(32)), signed, hashlib.sha256)).decode()
    assert told.headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(told.headers["webhook-timestamp"]) - time.time()) < 10
    assert told.headers["webhook-id"] != failed.headers["webhook-id"]
    data = json.loads(told.body)["data"]
    assert (data["flag"], data["percent"], data["revision"]) == ("new-checkout", 25.5, 1)


async def test_an_older_revision_is_not_told() -> None:
    """What this process knows to be late is not sent, and said in words."""
    async with (
        fault_server(answering("")) as server,
        plane_at("webhook", secret=SIGNING_SECRET, values={"url": server.url}) as plane,
    ):
        await serve(plane, make_rollout(revision=8, percent=0.0))
        await plane.serve(make_rollout(revision=7, percent=50.0))
        assert len(server.requests) == 1
        assert (
            await plane.look(make_rollout(revision=7, percent=50.0))
        ).difference == "was sent revision 8, newer than 7"


# --- edits by others
# --------------------------------------------------------------------------------------------------


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


# --- what fails
# --------------------------------------------------------------------------------------------------


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


FAILURES: list[tuple[str, Script, str]] = [
    ("hangs", hang, "gave no complete answer within 0.2 s"),
    ("hangs in the body", hang_in_body, "gave no complete answer within 0.2 s"),
    (
        "drips",
        repeating(b" ", head=b"HTTP/1.1 200 OK\r\n\r\n", pause_seconds=0.01),
        "gave no complete answer within 0.2 s",
    ),
    ("resets", reset, "cannot be asked"),
    (
        "never ends",
        repeating(b"x" * 4096, head=b"HTTP/1.1 200 OK\r\n\r\n"),
        "the answer is longer than 2048 bytes",
    ),
    (
        "endless head",
        repeating(b"a: " + b"b" * 4096 + b"\r\n", head=b"HTTP/1.1 200 OK\r\n"),
        "cannot be asked",
    ),
    ("no HTTP", answering("x", status="OK"), "cannot be asked"),
    ("no JSON", answering("<html>"), "no JSON"),
    ("deep JSON", answering("[" * 2000), "no JSON"),
    ("packed", answering("x", content_encoding="gzip"), "a packed answer"),
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
            with pytest.raises(FlagPlaneUnavailable, match="not asked for another"):
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
            with pytest.raises(FlagPlaneUnavailable, match="cannot be asked"):
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
