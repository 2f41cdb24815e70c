"""The HTTP API: every rollout, in the form that `schemas/api.py` promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from controller.adapters.memory import MemoryReports
from controller.codec.reports import report_to_json
from controller.core.machine import decide
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Completed,
    Paused,
    Phase,
    RolledBack,
    Rollout,
)
from controller.health import Faults, Health
from controller.reporting.fitting import SHOWN, fitting_commands
from controller.responding.memory import Recent
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.hooks.endpoint import Hooks
from controller.web.inventory import FlagSource
from schemas.api import BASE, ENDPOINTS, MOST_OF_A_PAGE
from schemas.terms import CommandVerb, HoldReason
from tests.builders import (
    T0,
    make_command,
    make_judgement,
    make_plan,
    make_rollout,
)
from tests.incidents import NotedIncidents
from tests.reports import make_report, reports_of

NOW = T0 + timedelta(minutes=5)


def rollout(flag_key: str, phase: Phase | None = None, owner: str = "") -> Rollout:
    """Return a rollout of a flag, baking unless a phase is given."""
    plan = make_plan(flag_key=flag_key, name=f"plan-of-{flag_key}", owner=owner)
    made = make_rollout(plan=plan, flag_key=flag_key)
    return made if phase is None else replace(made, phase=phase)


def paused(made: Rollout) -> Rollout:
    """Return it as an operator paused it."""
    return replace(made, phase=Paused(T0, HoldReason.OPERATOR, made.phase))  # type: ignore[arg-type]


class Signals:
    """What monitors told."""

    hooks: Hooks | None = None

    async def recent(self) -> list[Recent]:
        """Return one."""
        return [Recent(T0, "grafana/prod", "firing", "down", "shop", "c", "", ("a: paused",))]


class World:
    """A replica that serves some flags; all run elsewhere."""

    def __init__(self, now: datetime = NOW, source: FlagSource | None = None) -> None:
        self.store = MemoryReports()
        self.board = FlagBoard(generation=Generation.V3, monotonic=lambda: 1.0)
        self.app = make_app(
            self.board,
            Health(required=[]),
            Metrics(version="1"),
            describe=lambda _: b"{}",
            reports=reports_of({}, self.store),
            now=lambda: now,
            faults=Faults(lambda: T0),
            flag_source=source,
            signals=Signals(),
            notifications=NotedIncidents(),
        )
        transport = httpx.ASGITransport(app=self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def get(self, path: str, **query: str) -> httpx.Response:
        """Return the API's answer."""
        return await self.client.get(f"{BASE}{path}", params=query)

    async def flags(self, **query: str) -> list[str]:
        """Return the flags of the list."""
        return [one["flag"] for one in (await self.get("/rollouts", **query)).json()["rollouts"]]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A replica with one rollout in each state that people tell apart."""
    made = World()
    baking = rollout("baking", owner="payments")
    for one in (
        rollout("done", Completed(T0)),
        rollout("off", RolledBack(T0, "errors")),
        rollout("aborted", Aborted(T0, "changed our mind")),
        baking,
        paused(rollout("paused")),
        rollout("asking", AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL)),
    ):
        made.board.update(one)
    made.board.trust()
    async with made.client:
        yield made


async def test_what_needs_a_person_comes_first_then_what_moves(world: World) -> None:
    """What was rolled back within a day needs one, too; the order is that of the page."""
    assert await world.flags() == ["off", "asking", "paused", "baking", "aborted", "done"]
    assert await world.flags(state="attention") == ["off", "asking", "paused"]
    assert await world.flags(state="active") == ["baking"]
    assert await world.flags(state="ended") == ["aborted", "done"]


async def test_a_list_is_searched_and_paged(world: World) -> None:
    """By flag, plan and owner; `total` says how many there are."""
    assert await world.flags(q="PAY") == ["baking"]
    assert await world.flags(owner="payments") == ["baking"]
    assert await world.flags(q="plan-of-d") == ["done"]
    page = (await world.get("/rollouts", limit="2", offset="2")).json()
    assert [one["flag"] for one in page["rollouts"]] == ["paused", "baking"]
    assert (page["total"], page["offset"]) == (6, 2)
    assert await world.flags(offset="100") == []
    assert await world.flags(q="nothing-like-this") == []


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"state": "x"}, "state is one of attention, active, ended"),
        ({"limit": "0"}, f"limit is a whole number from 1 to {MOST_OF_A_PAGE}"),
        ({"limit": "501"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"offset": "-1"}, "offset is a whole number"),
        ({"offset": "9" * 30}, "offset"),
        ({"offset": "²"}, "offset"),
    ],
)
async def test_a_wrong_parameter_is_explained(
    world: World, query: dict[str, str], why: str
) -> None:
    """With what it may be."""
    answer = await world.get("/rollouts", **query)
    assert answer.status_code == 400
    assert why in answer.json()["error"]


async def test_before_anything_is_known_there_is_no_list() -> None:
    """An empty list would say that there are no rollouts."""
    made = World()
    async with made.client:
        answer = await made.get("/rollouts")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


async def test_one_rollout_is_everything_about_it(world: World) -> None:
    """Where it stands, its stages, its evidence, and what may be done."""
    baking = world.board.rollout("baking")
    assert baking is not None
    report = make_report(baking, make_judgement(at=NOW))
    await world.store.write("baking", report_to_json(report))
    view = (await world.get("/rollouts/baking")).json()
    assert view["summary"]["percent"] == baking.percent
    assert [stage["state"] for stage in view["ladder"]] == ["present", *["ahead"] * 2]
    assert view["evidence"]["at"] == "2026-01-05T09:05:00Z"
    assert view["evidence_trouble"] is None
    fitting = {one["verb"]: one["fits"] for one in view["commands"]}
    assert (fitting["pause"], fitting["resume"]) == (True, False)


async def test_without_redis_a_rollout_is_shown_all_the_same(world: World) -> None:
    """And it is said what is missing."""
    world.store.outage.is_down = True
    answer = await world.get("/rollouts/baking")
    assert answer.status_code == 200
    assert answer.json()["evidence"] is None
    assert "cannot be read from Redis" in answer.json()["evidence_trouble"]


async def test_the_plan_is_answered_whole(world: World) -> None:
    """Nothing is left to defaults."""
    plan = (await world.get("/rollouts/baking/plan")).json()
    assert (plan["flag"], plan["owner"]) == ("baking", "payments")
    assert plan["advisor"]


async def test_every_answer_is_as_the_contract_says(world: World) -> None:
    """Each endpoint's example answer fits its model, and has an ETag that works."""
    baking = world.board.rollout("baking")
    assert baking is not None
    report = make_report(baking, make_judgement(at=NOW))
    await world.store.write("baking", report_to_json(report))
    for endpoint in ENDPOINTS:
        if endpoint.body is not None:
            continue  # `test_commands.py`
        path = BASE + endpoint.path.replace("{flag}", "baking")
        answer = await world.client.get(path)
        assert answer.status_code == 200, path
        TypeAdapter(endpoint.answer).validate_json(answer.content)
        tag = {"if-none-match": answer.headers["etag"]}
        assert (await world.client.get(path, headers=tag)).status_code == 304, path


def test_the_contract_has_every_route(world: World) -> None:
    """A route that is added is described in `openapi.yaml`."""
    routes = {
        route.path.replace("{flag_key}", "{flag}")  # type: ignore[attr-defined]
        for route in world.app.routes
        if route.path.startswith(BASE)  # type: ignore[attr-defined]
    }
    read = {BASE + endpoint.path for endpoint in ENDPOINTS if endpoint.body is None}
    assert routes == read
    document = (Path(__file__).parents[3] / "schemas" / "openapi.yaml").read_text()
    assert all(f"  {route}:\n" in document for route in routes)


PHASES: list[Rollout] = [
    rollout("a"),
    paused(rollout("b")),
    rollout("c", Completed(T0)),
    rollout("d", RolledBack(T0, "")),
    rollout("e", AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL)),
]


@pytest.mark.parametrize("one", PHASES, ids=lambda one: one.phase.name.value)
def test_a_command_that_fits_is_accepted_and_no_other(one: Rollout) -> None:
    """The page and the machine cannot differ: what is shown is what a real command would do."""
    shown = {command.verb: command for command in fitting_commands(one, NOW)}
    assert list(shown) == list(SHOWN)
    for verb, command in shown.items():
        real: dict[str, Any] = {"expected_revision": one.revision, "issued_at": NOW}
        after, effects = decide(one, make_command(verb, **real), NOW)
        assert command.fits == (after is not one), verb
        assert (command.why_not is None) == command.fits
        if command.fits:
            assert after is not None
            assert (command.percent, command.phase) == (after.percent, after.phase.name)
        assert effects


def test_an_approval_that_a_gap_hides_does_not_fit() -> None:
    """The reason names the gap."""
    asking = PHASES[-1]
    shown = {one.verb: one for one in fitting_commands(asking, NOW, ("stale: no events",))}
    assert not shown[CommandVerb.APPROVE].fits
    assert "stale: no events" in (shown[CommandVerb.APPROVE].why_not or "")
