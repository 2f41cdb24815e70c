from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.routing import Route

from controller.health import Health, Scope
from controller.telemetry import Metrics
from controller.web.answers import SECURITY_HEADERS
from controller.web.app import is_ours, make_app, make_ops_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer
from controller.web.views import Readyz
from tests.builders import T0, make_plan, make_rollout
from tests.reports import no_reports
from tests.unit.web.conftest import Surface, describe

EVERY_PATH = [
    "/",
    "/flagd/flags.json",
    "/healthz",
    "/readyz",
    "/metrics",
    "/rollouts",
    "/rollouts/new-checkout",
    "/api/v1/rollouts/new-checkout/evidence",
    "/api/v1/rollouts/new-checkout/planes",
    "/rollouts/new-checkout/events",
    "/events",
]


def test_no_route_changes_anything(surface: Surface) -> None:
    """Every route is for GET and HEAD, but OFREP's two and the check of a plan.

    Which carry a context, and a plan that is not kept, and are read-only too.
    """
    posts = set()
    for route in surface.app.routes:
        assert isinstance(route, Route), "a mount or websocket would escape this test"
        assert route.methods is not None
        if route.methods != {"GET", "HEAD"}:
            assert route.methods - {"GET", "HEAD"} == {"POST"}
            posts.add(route.path)
    evaluations = {"/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/{key:path}"}
    assert posts == evaluations | {"/ui/plan"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", [*EVERY_PATH, "/ofrep/v1/sse"])
async def test_other_methods_are_not_allowed(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    """405 in JSON, with the methods that are."""
    response = await client.request(method, path)
    assert response.status_code == 405
    allowed = response.headers["allow"]
    assert "GET" in allowed
    assert response.json()["error"] == f"this path takes {allowed} alone"


async def test_the_index_names_every_path_with_its_purpose(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """`GET /` lists what the port serves, so that nobody has to guess."""
    response = await client.get("/")
    assert response.status_code == 200
    paths = response.json()["paths"]
    routes = [route.path for route in surface.app.routes if isinstance(route, Route)]
    assert [one["path"] for one in paths] == [path for path in routes if path != "/"]
    assert all(one["methods"] and len(one["what"]) > 15 for one in paths)
    assert not [one for one in paths if one["what"].startswith(("GET", "POST"))]
    assert {one["what"][-1] for one in paths} == {"."}


@pytest.mark.parametrize("path", ["/nope", "/rollouts/", "/flagd/flags.yaml", "/rollouts/a/b"])
async def test_other_paths_are_not_found(client: httpx.AsyncClient, path: str) -> None:
    """404 in JSON, and no redirect that would repeat the caller's Host."""
    response = await client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]


async def test_a_broken_endpoint_says_nothing_of_its_inside(surface: Surface) -> None:
    """500 in JSON without a trace of the error, under the same security headers.

    With the field OFREP clients read.
    """

    def broken(rollout: object) -> bytes:
        raise RuntimeError("secret")

    app = make_app(
        surface.board, surface.health, surface.metrics, describe=broken, reports=no_reports()
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get("/rollouts")
    assert response.status_code == 500
    assert "errorDetails" in response.json()
    assert "secret" not in response.text
    _assert_guarded(response)


@pytest.mark.parametrize("path", [*EVERY_PATH, "/nope"])
async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient, path: str) -> None:
    """No answer can be framed, run or guessed about by a browser, whatever its status."""
    _assert_guarded(await client.get(path))
    _assert_guarded(await client.put(path))


def _assert_guarded(response: httpx.Response) -> None:
    for name, value in SECURITY_HEADERS:
        assert response.headers.get_list(name.decode()) == [value.decode()]
    assert "server" not in response.headers
    assert response.headers["cache-control"] in ("no-store", "no-cache")


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("localhost.", True),
        ("flags.example.org", True),
        ("a.pods.example.org:80", True),
        ("a.b.pods.example.org", True),
        ("127.0.0.1:8080", True),
        ("10.1.2.3", True),
        ("[::1]:8080", True),
        ("[2001:db8::7]", True),
        ("pods.example.org", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example:localhost", False),
        ("127.0.0.1.evil.example", False),
        ("[localhost.evil", False),
        ("", False),
        ("localhost,evil.example", False),
    ],
)
def test_only_our_own_names_are_answered(host: str, is_answered: bool) -> None:
    """Names on the list and IP addresses pass; a page that rebinds its own name to us does not."""
    assert (
        is_ours(host, frozenset({"localhost", "flags.example.org", "*.pods.example.org"}))
        is is_answered
    )


async def test_a_foreign_host_learns_nothing(client: httpx.AsyncClient) -> None:
    """421 before any endpoint is reached."""
    response = await client.get("/rollouts", headers={"host": "evil.example"})
    assert response.status_code == 421
    assert "new-checkout" not in response.text
    _assert_guarded(response)


@pytest.mark.parametrize(
    "head", [b"GET /livez HTTP/1.1\r\n", b"POST /ofrep/v1/evaluate/flags/x HTTP/1.1\r\n"]
)
async def test_a_host_of_thousands_of_labels_costs_nothing(surface: Surface, head: bytes) -> None:
    """A name of 40 KB took 5 s of the loop and 400 MB, for whoever can connect; now it is none."""
    server = HttpServer(surface.app, port=0, at_once=surface.app.state.at_once)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        began = time.process_time()
        writer.write(head + b"content-length: 0\r\nhost: " + b"a." * 20_000 + b"\r\n\r\n")
        status = await reader.readline()
        took = time.process_time() - began
        writer.close()
    finally:
        await server.stop()
    assert b" 421 " in status
    assert took < 0.5


async def test_all_hosts_can_be_allowed(surface: Surface) -> None:
    """`*` answers every name, for those who have a proxy in front that checks."""
    app = make_app(
        surface.board,
        surface.health,
        surface.metrics,
        describe=describe,
        reports=no_reports(),
        allowed_hosts=["*"],
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://any.example"
    ) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_alive_until_an_invariant_breaks(surface: Surface, client: httpx.AsyncClient) -> None:
    """Nothing but a broken invariant asks for a restart: a dependency that is away does not."""
    surface.health.not_ready("event_log", "no broker answers")
    assert (await client.get("/healthz")).status_code == 200
    surface.health.broken("partition 3: totals do not add up")
    response = await client.get("/healthz")
    assert response.status_code == 503
    assert response.json() == {
        "alive": False,
        "fatal_errors": ["partition 3: totals do not add up"],
    }


async def test_readiness_names_what_is_missing(surface: Surface, client: httpx.AsyncClient) -> None:
    """Each component stands there with why not.

    Only what serves flags makes it unready, whether it has started or not; the others degraded.
    """
    response = await client.get("/readyz")
    body = response.json()
    assert (response.status_code, body["starting"], body["working"]) == (200, True, False)
    assert (await client.get("/readyz?strict=1")).status_code == 503
    event_log = body["components"]["event_log"]
    assert event_log.pop("since")
    assert event_log.pop("for_seconds") >= 0
    assert event_log == {"ready": False, "required": True, "reason": "not started"}
    surface.health.ready("event_log")
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["ready"], response.json()["degraded"]) == (
        200,
        True,
        True,
    )
    surface.health.ready("advisor")
    assert (await client.get("/readyz")).json()["degraded"] is False
    surface.board.doubt("reading again")
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["components"]["serving"]["reason"] == "reading again"


async def test_an_outage_is_told_and_takes_nobody_out_of_the_load_balancer(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """With Redis or Kafka away the last decision is served: 200, degraded, not working.

    For monitors 503.
    """
    surface.health.ready("event_log")
    surface.health.ready("advisor")
    body = (await client.get("/readyz")).json()
    assert (body["ready"], body["working"], body["degraded"], body["starting"]) == (
        True,
        True,
        False,
        False,
    )
    surface.health.not_ready("event_log", "no broker has answered for 7 s")
    response = await client.get("/readyz")
    body = response.json()
    assert response.status_code == 200
    assert (body["ready"], body["working"], body["degraded"]) == (True, False, True)
    assert (await client.get("/readyz?strict=1")).status_code == 503
    surface.health.ready("event_log")
    assert (await client.get("/readyz?strict=1")).status_code == 200
    assert (await client.get("/readyz?strict=0")).status_code == 200


async def test_contained_faults_are_listed_and_degrade(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """Each with its scope, name, reason and fix; one refused command is no degradation."""
    surface.health.ready("event_log")
    surface.health.ready("advisor")
    surface.faults.report(Scope.COMMAND, "id-1", "no such flag")
    assert (await client.get("/readyz")).json()["degraded"] is False
    surface.faults.report(Scope.FLAG, "checkout", "cannot be read", "rolloutd repair flag checkout")
    body = (await client.get("/readyz")).json()
    assert body["degraded"] is True
    assert body["ready"] is True
    fault = body["faults"][1]
    assert fault.pop("since")
    assert fault == {
        "scope": "flag",
        "name": "checkout",
        "reason": "cannot be read",
        "fix": "rolloutd repair flag checkout",
        "reporter": "",
        "count": 1,
    }


async def test_a_stale_lease_is_told_and_refused_only_where_that_is_wanted(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """A replica that no broker has answered for half a minute says since when."""
    surface.health.ready("event_log")
    surface.health.ready("advisor")
    surface.board.note_silence(31.0)
    response = await client.get("/readyz")
    serving = response.json()["components"]["serving"]
    assert (response.status_code, serving["ready"]) == (200, False)
    assert serving["since"] is not None
    assert response.json()["working"] is False
    refusing = FlagBoard(generation=Generation.V3, when_stale="refuse")
    refusing.trust()
    refusing.note_silence(31.0)
    assert Readyz(surface.health, refusing).report()["ready"] is False


async def test_probes_and_metrics_have_an_application_of_their_own(surface: Surface) -> None:
    """Liveness, readiness and metrics, and nothing else; the main one then has no metrics."""
    ops = make_ops_app(surface.board, surface.health, surface.metrics, surface.faults)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=ops), base_url="http://localhost"
    ) as client:
        for path in ("/livez", "/healthz", "/metrics"):
            answer = await client.get(path)
            assert answer.status_code == 200
            _assert_guarded(answer)
        surface.board.doubt("reading again")
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/rollouts")).status_code == 404
        assert (await client.get("/livez", headers={"host": "evil.example"})).status_code == 421
    main = make_app(
        surface.board,
        surface.health,
        surface.metrics,
        describe=describe,
        reports=no_reports(),
        has_metrics=False,
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=main), base_url="http://localhost"
    ) as client:
        assert (await client.get("/metrics")).status_code == 404
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text; version=1.0.0",
        ),
    ],
)
async def test_metrics_come_in_the_format_asked_for(
    client: httpx.AsyncClient, accept: str, content_type: str
) -> None:
    """The content type is one that Prometheus 3 accepts."""
    response = await client.get("/metrics", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(content_type)
    assert 'rolloutd_percent{flag_key="new-checkout"} 10.0' in response.text
    assert 'rolloutd_component_ready{component="event_log"} 0.0' in response.text


async def test_the_flagd_document_is_not_sent_twice(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """Flagd gets 304 for what it has, and the new document after a change."""
    first = await client.get("/flagd/flags.json")
    assert first.headers["content-type"] == "application/json"
    tag = first.headers["etag"]
    assert (
        await client.get("/flagd/flags.json", headers={"if-none-match": tag})
    ).status_code == 304
    surface.board.update(make_rollout(revision=2, percent=50.0))
    changed = await client.get("/flagd/flags.json", headers={"if-none-match": tag})
    assert changed.json()["flags"]["new-checkout"]["targeting"]["fractional"][0] == ["on", 5_000]


async def test_flagd_never_gets_an_empty_document_by_mistake(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """While in doubt flagd gets 503 and keeps what it has.

    An empty document would delete its flags.
    """
    surface.board.doubt("the state topic has not been read")
    response = await client.get("/flagd/flags.json")
    assert response.status_code == 503
    assert "flags" not in response.json()


@pytest.fixture
async def starting() -> AsyncIterator[tuple[FlagBoard, httpx.AsyncClient]]:
    """A replica that has not read the state topic yet, and a client of it."""
    board = FlagBoard(generation=Generation.V3)
    app = make_app(board, Health(()), Metrics(version="1"), describe=describe, reports=no_reports())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield board, client


async def test_no_list_of_rollouts_before_any_is_known(
    starting: tuple[FlagBoard, httpx.AsyncClient],
) -> None:
    """An empty list would say that there are none: the answer is 503 with the reason."""
    board, client = starting
    board.update(make_rollout())  # the topic is being read: more may follow
    api = ("/api/v1/rollouts/other/evidence", "/api/v1/rollouts/other/planes")
    for path in ("/rollouts", "/rollouts/new-checkout", "/rollouts/other", *api):
        response = await client.get(path)
        assert response.status_code == 503
        assert "state topic" in response.json()["error"]
    board.trust()
    assert len((await client.get("/rollouts")).json()["rollouts"]) == 1


async def test_what_is_remembered_is_served_and_marked(
    starting: tuple[FlagBoard, httpx.AsyncClient],
) -> None:
    """Over every surface, read-only; a flag that is not remembered may exist all the same."""
    board, client = starting
    board.remember([make_rollout(percent=100.0, revision=7)], T0)
    since = "2026-01-05T09:00:00+00:00"
    body = {"context": {"targetingKey": "user-1"}}
    one = (await client.post("/ofrep/v1/evaluate/flags/new-checkout", json=body)).json()
    assert (one["value"], one["reason"]) == (True, "STALE")
    assert one["metadata"]["stale_since"] == since
    bulk = (await client.post("/ofrep/v1/evaluate/flags", json=body)).json()
    assert bulk["flags"] == [one]
    assert (await client.get("/flagd/flags.json")).json()["metadata"]["stale_since"] == since
    rollouts = await client.get("/rollouts")
    assert (rollouts.json()["stale_since"], rollouts.headers["rolloutd-stale-since"]) == (
        since,
        since,
    )
    assert (await client.get("/rollouts/new-checkout")).headers["rolloutd-stale-since"] == since
    api = ("/api/v1/rollouts/other/evidence", "/api/v1/rollouts/other/planes")
    for path in ("/rollouts/other", *api):
        assert (await client.get(path)).status_code == 503
    other = await client.post("/ofrep/v1/evaluate/flags/other", json=body)
    assert other.status_code == 503
    assert "not known yet" in other.json()["errorDetails"]
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["working"]) == (200, False)
    board.trust()
    assert (await client.get("/rollouts/other")).status_code == 404
    assert "rolloutd-stale-since" not in (await client.get("/rollouts")).headers


async def test_what_became_of_events_is_shown(client: httpx.AsyncClient) -> None:
    """Of one flag, and of all; a flag that no event names is unknown."""
    shown = await client.get("/rollouts/new-checkout/events")
    assert (shown.status_code, shown.json()) == (200, {"flag": "new-checkout"})
    assert (await client.get("/events")).json() == {"flag": None}
    answer = await client.get("/rollouts/other/events")
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "no rollout has this flag key, and no event names it",
    )


async def test_rollouts_are_shown_as_on_the_state_topic(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """All documents in the order of flag keys, or one.

    With a tag, and as new as the last revision taken.
    """
    for number in range(120):
        key = f"flag-{number:03}"
        surface.board.update(make_rollout(flag_key=key, plan=make_plan(flag_key=key)))
    shown = (await client.get("/rollouts")).json()["rollouts"]
    assert [rollout["flag_key"] for rollout in shown] == [
        f"flag-{number:03}" for number in range(120)
    ] + ["new-checkout"]
    one = await client.get("/rollouts/new-checkout")
    assert one.json() == {"flag_key": "new-checkout", "revision": 1}
    tag = one.headers["etag"]
    assert (
        await client.get("/rollouts/new-checkout", headers={"if-none-match": tag})
    ).status_code == 304
    surface.board.update(make_rollout(revision=2))
    assert (await client.get("/rollouts/new-checkout", headers={"if-none-match": tag})).json()[
        "revision"
    ] == 2
    assert (await client.get("/rollouts/other")).status_code == 404


async def test_head_is_answered_as_get(client: httpx.AsyncClient) -> None:
    """HEAD has the status and length of GET."""
    assert (await client.head("/healthz")).headers["content-length"] == str(
        len((await client.get("/healthz")).content)
    )


def test_a_document_is_json(surface: Surface) -> None:
    """The fixture's documents are what the tests above compare."""
    assert json.loads(describe(make_rollout())) == {"flag_key": "new-checkout", "revision": 1}
