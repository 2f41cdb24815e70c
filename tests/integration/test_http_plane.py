"""HTTP planes by the shipped templates, at imitations of the systems and at services of our own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from controller.adapters.http.signing import RequestSigner
from controller.core.rollout import RolledBack
from controller.errors import FlagPlaneUnavailable
from controller.ports import Served
from tests.builders import T0, make_rollout
from tests.fault_server import (
    answering,
    fault_server,
)
from tests.integration.http_services import (
    SIGNING_SECRET,
    Flagsmith,
    GrowthBook,
    LaunchDarkly,
    plane_at,
    serve,
    service,
)

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


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The signature of a message that the specification's reference library signs as well."""
    signer = RequestSigner("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
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
        with pytest.raises(FlagPlaneUnavailable, match="no request for another"):
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
