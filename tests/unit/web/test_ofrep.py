from __future__ import annotations

import asyncio
import json
import time
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.codec.rollouts import rollout_to_json
from controller.core.audience import Audience, Condition
from controller.core.rollout import RolledBack
from controller.health import Health
from controller.telemetry import Metrics
from controller.web import ofrep
from controller.web.answers import MAX_BODY_BYTES, BodyRefused, read_body
from controller.web.app import make_app
from schemas.terms import Operator
from tests.builders import T0, make_plan, make_rollout, make_stage
from tests.reports import no_reports
from tests.unit.web.conftest import Surface

ONE = "/ofrep/v1/evaluate/flags/new-checkout"
ALL = "/ofrep/v1/evaluate/flags"


def context(targeting_key: str = "user-3", **attributes: Any) -> dict[str, Any]:
    """Return a request for one context, by default one that is in at 10 %."""
    return {"context": {"targetingKey": targeting_key, **attributes}}


@pytest.mark.parametrize(
    ("targeting_key", "value", "variant"), [("user-3", True, "on"), ("user-1", False, "off")]
)
async def test_a_context_gets_its_variant(
    client: httpx.AsyncClient, targeting_key: str, value: bool, variant: str
) -> None:
    """At 10 % bucket 375 is in treatment and 4965 is not; the answer has all that clients read."""
    response = await client.post(ONE, json=context(targeting_key, plan="pro"))
    assert response.status_code == 200
    assert response.json() == {
        "key": "new-checkout",
        "value": value,
        "reason": "SPLIT",
        "variant": variant,
        "metadata": {"flagSetId": "rolloutd", "version": "1", "rolloutd.rollout_id": "start-1"},
    }


async def test_the_newest_revision_answers(surface: Surface, client: httpx.AsyncClient) -> None:
    """A raised and a rolled-back percentage hold from the next evaluation on."""
    seen = []
    for revision, percent in [(2, 50.0), (3, 100.0), (4, 0.0)]:
        surface.board.update(make_rollout(revision=revision, percent=percent))
        answer = (await client.post(ONE, json=context("user-1"))).json()
        seen.append((answer["variant"], answer["metadata"]["version"]))
    assert seen == [("on", "2"), ("on", "3"), ("off", "4")]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "PARSE_ERROR"),
        (b"not json", "PARSE_ERROR"),
        (b'{"context":{"targetingKey":"\xff"}}', "PARSE_ERROR"),
        (b'{"context":{"targetingKey":"\\ud800"}}', "PARSE_ERROR"),
        (b'{"a":' + b"[" * 30_000, "PARSE_ERROR"),
        (b'{"context":{"targetingKey":"u"}} trailing', "PARSE_ERROR"),
        (b"[]", "INVALID_CONTEXT"),
        (b'{"context":[]}', "INVALID_CONTEXT"),
        (b'{"context":{"targetingKey":7}}', "INVALID_CONTEXT"),
        (b'{"context":{"targetingKey":null}}', "INVALID_CONTEXT"),
        (b"{}", "TARGETING_KEY_MISSING"),
        (b'{"context":{}}', "TARGETING_KEY_MISSING"),
        (b'{"context":{"targetingKey":""}}', "TARGETING_KEY_MISSING"),
    ],
)
async def test_an_unusable_request_is_refused_with_its_code(
    client: httpx.AsyncClient, body: bytes, code: str
) -> None:
    """Each kind of unusable request has OFREP's code, and the details that clients insist on."""
    response = await client.post(ONE, content=body)
    assert response.status_code == 400
    assert response.json()["errorCode"] == code
    assert response.json()["errorDetails"]
    assert response.json()["key"] == "new-checkout"


any_json = st.recursive(
    st.none() | st.booleans() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200)
    | any_json.map(lambda value: json.dumps({"context": value}).encode())
)
async def test_no_body_breaks_it(client: httpx.AsyncClient, body: bytes) -> None:
    """Whatever the body, the answer is an evaluation or a refusal."""
    for path in (ONE, ALL):
        assert (await client.post(path, content=body)).status_code in (200, 400)


@pytest.mark.parametrize("key", ["other", "a/b", "a%2Fb", "%F0%9F%98%80", "<script>", "x" * 2_000])
async def test_an_unknown_flag_is_not_found(client: httpx.AsyncClient, key: str) -> None:
    """A flag without a rollout is FLAG_NOT_FOUND, whatever its key looks like.

    A long key is not repeated in full.
    """
    response = await client.post(f"/ofrep/v1/evaluate/flags/{key}", json=context())
    assert response.status_code == 404
    assert response.json()["errorCode"] == "FLAG_NOT_FOUND"
    assert len(response.content) < 1_000


_HOSTILE = (
    b"[" * 65_000,
    b'{"context":' + b'{"a":' * 13_000,
    b'{"context":{"targetingKey":"u","a":' + b"[" * 900 + b"]" * 900 + b"}}",
    b'{"context":{"targetingKey":"u","a":' + b"9" * 60_000 + b"}}",
    b'{"context":{"targetingKey":"u","a":0.' + b"9" * 60_000 + b"}}",
    b'{"context":{"targetingKey":"u","a":1e' + b"9" * 60_000 + b"}}",
    b'{"context":{"targetingKey":"' + b"\\u00e9" * 10_000 + b'"}}',
    b'{"context":{"targetingKey":"u",' + b'"a":1,' * 10_000 + b'"a":1}}',
    b'{"context":{' + b",".join(b'"k%d":[]' % n for n in range(5_000)) + b"}}",
    b'{"context":{"targetingKey":"u"},"more":[' + b"0," * 30_000 + b"0]}",
)


@pytest.mark.parametrize("body", _HOSTILE, ids=range(len(_HOSTILE)))
@pytest.mark.parametrize("path", [ONE, ALL])
async def test_no_body_holds_up_the_loop(
    surface: Surface, client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    """The worst body is read within a fraction of the 50 ms that a stall may take."""
    audiences = (Audience("staff", ((Condition("email", Operator.ENDS_WITH, ("@x",)),),)),)
    plan = make_plan(audiences=audiences, stages=(make_stage(audience="staff"),))
    surface.board.update(make_rollout(revision=2, plan=plan))
    assert len(body) <= MAX_BODY_BYTES
    took = []
    for _ in range(5):  # the machine may be busy: the best of some
        began = time.thread_time()
        assert (await client.post(path, content=body)).status_code in (200, 400)
        took.append(time.thread_time() - began)
    assert min(took) < 0.05


async def test_a_bulk_evaluation_lets_others_have_their_turn(
    surface: Surface, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of flags are answered in slices.

    What is rolled back meanwhile is answered as such.
    """
    monkeypatch.setattr(ofrep, "_SLICE_SECONDS", 0.0)  # a slice is a few flags, on any machine
    for number in range(1_000):
        surface.board.update(make_rollout(flag_key=f"flag-{number:04}", percent=100.0))
    turns = 0
    is_over = False

    async def count_turns() -> None:
        nonlocal turns
        while not is_over:
            turns += 1
            if turns == 20:
                surface.board.update(
                    make_rollout(
                        flag_key="flag-0000", percent=0.0, revision=2, phase=RolledBack(T0, "x")
                    )
                )
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    await asyncio.sleep(0)
    answer = (await client.post(ALL, json=context())).json()
    is_over = True
    await counting
    answers = {one["key"]: one["variant"] for one in answer["flags"]}
    assert len(answers) == 1_001
    assert answers["flag-0000"] == "off"
    assert answers["flag-0001"] == "on"
    assert turns > 40


async def test_one_client_cannot_ask_for_everything_all_the_time(surface: Surface) -> None:
    """Past its rate a client is answered 429 and told when to ask again.

    Another one is answered.
    """
    app = make_app(
        surface.board,
        Health([]),
        Metrics(version="1", planes=[]),
        describe=rollout_to_json,
        reports=no_reports(),
        max_bulk_per_second=1.0,
    )
    statuses = []
    for peer in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2"):
        transport = httpx.ASGITransport(app, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as one:
            response = await one.post(ALL, json=context())
            statuses.append(response.status_code)
            if response.status_code == 429:
                assert response.headers["retry-after"] == "1"
                assert response.json()["errorCode"] == "GENERAL"
            assert (await one.post(ONE, json=context())).status_code == 200
    assert statuses == [200, 200, 429, 200]


async def test_control_for_good_needs_no_targeting_key(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """After a rollback everybody gets control, also those who do not say who they are."""
    surface.board.update(make_rollout(revision=2, phase=RolledBack(T0, "guardrail"), percent=0.0))
    response = await client.post(ONE, json={})
    assert (response.status_code, response.json()["variant"], response.json()["reason"]) == (
        200,
        "off",
        "STATIC",
    )


@pytest.mark.parametrize("path", [ONE, ALL])
async def test_nothing_is_answered_while_in_doubt(
    surface: Surface, client: httpx.AsyncClient, path: str
) -> None:
    """A board that may be out of date answers 503, so that apps use their own default.

    And says when to ask again.
    """
    surface.board.doubt("reading again")
    response = await client.post(path, json=context())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["errorDetails"] == "reading again"


@pytest.mark.parametrize("path", [ONE, ALL])
async def test_a_large_body_is_refused(client: httpx.AsyncClient, path: str) -> None:
    """A body of 64 KiB is read, one byte more is 413, and the connection is not used on."""
    fitting = json.dumps(context()).encode().ljust(MAX_BODY_BYTES)
    assert (await client.post(path, content=fitting)).status_code == 200
    refused = await client.post(path, content=fitting + b" ")
    assert refused.status_code == 413
    assert refused.headers["connection"] == "close"
    assert refused.json()["errorCode"] == "GENERAL"


async def test_a_slow_body_is_refused() -> None:
    """A client that begins a body and does not end it is told so in time."""
    begun = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> MutableMapping[str, Any]:
        return begun.pop() if begun else await asyncio.get_running_loop().create_future()

    with pytest.raises(BodyRefused) as refused:
        await read_body(receive, MAX_BODY_BYTES, within_seconds=0.01)
    assert refused.value.status == 408


async def test_a_client_that_leaves_ends_the_wait() -> None:
    """Half a body and a closed connection are no request."""
    messages: list[dict[str, Any]] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"{", "more_body": True},
    ]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop()

    with pytest.raises(BodyRefused, match="left"):
        await read_body(receive, MAX_BODY_BYTES)


async def test_bulk_answers_every_flag(surface: Surface, client: httpx.AsyncClient) -> None:
    """All flags come in the order of their keys, each as a single evaluation would give it."""
    surface.board.update(
        make_rollout(flag_key="a-flag", plan=make_plan(flag_key="a-flag"), percent=100.0)
    )
    flags = (await client.post(ALL, json=context())).json()["flags"]
    assert [flag["key"] for flag in flags] == ["a-flag", "new-checkout"]
    assert flags[1] == (await client.post(ONE, json=context())).json()


async def test_bulk_without_a_targeting_key_fails_by_flag(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """Flags that are served to a share say what is missing.

    One that is off for good answers all the same.
    """
    phase = RolledBack(T0, "guardrail")
    surface.board.update(
        make_rollout(flag_key="a-flag", plan=make_plan(flag_key="a-flag"), phase=phase, percent=0.0)
    )
    response = await client.post(ALL, json={"context": {}})
    assert response.status_code == 200
    off, split = response.json()["flags"]
    assert off["variant"] == "off"
    assert (split["key"], split["errorCode"]) == ("new-checkout", "TARGETING_KEY_MISSING")


async def test_bulk_needs_a_context(client: httpx.AsyncClient) -> None:
    """The protocol requires the context of a bulk evaluation."""
    response = await client.post(ALL, json={})
    assert (response.status_code, response.json()["errorCode"]) == (400, "INVALID_CONTEXT")


async def test_bulk_is_not_sent_twice(surface: Surface, client: httpx.AsyncClient) -> None:
    """An answer's tag brings 304 while nothing changed for this context, 200 afterwards."""
    first = await client.post(ALL, json=context())
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await client.post(ALL, json=context(), headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (
        await client.post(ALL, json=context("user-1"), headers={"if-none-match": tag})
    ).status_code == 200
    surface.board.update(make_rollout(revision=2))
    assert (
        await client.post(ALL, json=context(), headers={"if-none-match": tag})
    ).status_code == 200


async def test_evaluations_are_counted_by_what_they_gave(
    surface: Surface, client: httpx.AsyncClient
) -> None:
    """Three series, however many flags and contexts there are."""
    for key in ("user-3", "user-1", "user-2"):
        await client.post(ONE, json=context(key))
    await client.post(ONE, json={})
    await client.post("/ofrep/v1/evaluate/flags/other", json=context())
    value = surface.metrics.registry.get_sample_value
    counts = {
        what: value("rolloutd_evaluations_total", {"outcome": what})
        for what in ("treatment", "control", "refused")
    }
    assert counts == {"treatment": 2, "control": 1, "refused": 2}
