"""What any replica answers about one rollout: evidence, planes, course, decisions, alerts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from controller.adapters.memory import MemoryReports
from controller.codec.reports import point_to_bytes, report_to_json
from controller.core.rollout import Rollout
from controller.health import Faults, Health
from controller.ports import CourseKey, PlaneStanding
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from schemas.report import LiveReport
from tests.builders import T0, make_judgement, make_rollout, make_visit
from tests.reports import make_report, reports_of

FLAG = "new-checkout"
ROLLOUT = make_rollout(visits=(make_visit(), make_visit(stage=1)))
PLANES = (
    PlaneStanding("ofrep", True, 10.0, 10.0, None, None, T0),
    PlaneStanding("redis", False, 10.0, 25.0, "serves 25 %, decided is 10 %", T0, T0),
)
REPORT = make_report(ROLLOUT, make_judgement(), *PLANES)


class World:
    """A replica that serves one flag, which another replica runs unless `own` says otherwise."""

    def __init__(self, rollout: Rollout = ROLLOUT) -> None:
        self.store = MemoryReports()
        self.own: dict[str, LiveReport] = {}
        board = FlagBoard(generation=Generation.V3, monotonic=lambda: 1.0)
        board.update(rollout)
        board.trust()
        app = make_app(
            board,
            Health(required=[]),
            Metrics(version="1"),
            describe=lambda _: b"{}",
            reports=reports_of(self.own, self.store),
            faults=Faults(lambda: T0),
        )
        transport = httpx.ASGITransport(app=app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def get(self, path: str) -> httpx.Response:
        """Return the answer about the flag."""
        return await self.client.get(f"/api/v1/rollouts/{FLAG}/{path}")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A replica without anything in Redis yet."""
    made = World()
    async with made.client:
        yield made


async def test_a_flag_that_runs_here_needs_no_redis(world: World) -> None:
    """What its worker says is newer than anything stored."""
    world.store.outage.is_down = True
    world.own[FLAG] = REPORT
    shown = await world.get("evidence")
    assert shown.status_code == 200
    assert shown.json()["at"] == REPORT.judgement.at.isoformat().replace("+00:00", "Z")  # type: ignore[union-attr]
    again = await world.client.get(
        f"/api/v1/rollouts/{FLAG}/evidence", headers={"if-none-match": shown.headers["etag"]}
    )
    assert again.status_code == 304


async def test_a_flag_of_another_replica_is_answered_from_redis(world: World) -> None:
    """Whoever is asked answers."""
    await world.store.write(FLAG, report_to_json(REPORT))
    assert (await world.get("evidence")).json()["visit"] == 0
    planes = (await world.get("planes")).json()
    assert (planes["flag"], planes["is_converged"]) == (FLAG, False)
    assert planes["planes"][1] == {
        "plane": "redis",
        "is_converged": False,
        "decided_percent": 10.0,
        "percent": 25.0,
        "reason": "serves 25 %, decided is 10 %",
        "since": "2026-01-05T09:00:00Z",
        "checked_at": "2026-01-05T09:00:00Z",
    }


async def test_an_earlier_rollouts_evidence_is_not_this_ones(world: World) -> None:
    """Between a start and its first report, Redis still has the rollout before."""
    before = make_report(make_rollout(rollout_id="an-earlier-one"), make_judgement())
    await world.store.write(FLAG, report_to_json(before))
    assert (await world.get("evidence")).status_code == 404


@pytest.mark.parametrize("path", ["evidence", "planes", "history", "decisions", "alerts"])
async def test_without_redis_it_says_so(world: World, path: str) -> None:
    """Not "there is none": it cannot be known."""
    world.store.outage.is_down = True
    answer = await world.get(path)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "cannot be read" in answer.json()["error"]


@pytest.mark.parametrize("path", ["evidence", "planes", "history", "decisions", "alerts"])
async def test_an_unknown_flag_is_said_to_be_unknown(world: World, path: str) -> None:
    """In the same words everywhere."""
    answer = await world.client.get(f"/api/v1/rollouts/nope/{path}")
    assert (answer.status_code, answer.json()) == (404, {"error": "no rollout has this flag key"})


@pytest.mark.parametrize("stored", [b"", b"{}", b"[1]", b"\xff", b'{"flag": "new-checkout"}'])
async def test_a_damaged_report_is_none(world: World, stored: bytes) -> None:
    """It is written again within a second."""
    await world.store.write(FLAG, stored)
    assert (await world.get("evidence")).status_code == 404


async def test_the_course_of_a_stage_is_its_points(world: World) -> None:
    """Oldest first; a damaged point is left out; the newest visit unless another is asked for."""
    judgement = make_judgement()
    points = {
        1_000: point_to_bytes(10.0, judgement),
        1_001: b"damaged",
        1_003: point_to_bytes(10.0, judgement).replace(b'["error_rate",2,', b'["error_rate",99,'),
        1_004: b"[" * 200_000,
        1_002: point_to_bytes(10.0, judgement),
    }
    await world.store.write(FLAG, b"{}", CourseKey(ROLLOUT.rollout_id, 1), points)
    newest = (await world.get("history")).json()
    assert (newest["visit"], newest["stage"], len(newest["points"])) == (1, 2, 2)
    assert newest["points"][0]["at"] == "1970-01-01T00:16:40Z"
    assert [one["metric"] for one in newest["points"][0]["metrics"]] == [
        metric.metric for metric in judgement.metrics
    ]
    assert (await world.get("history?visit=0")).json()["points"] == []


@pytest.mark.parametrize("visit", ["2", "-1", "x", "", "99999999999", "1.0", "²"])
async def test_a_visit_that_there_is_not_is_refused(world: World, visit: str) -> None:
    """With what may be asked for."""
    answer = await world.client.get(f"/api/v1/rollouts/{FLAG}/history", params={"visit": visit})
    assert answer.status_code == (400 if visit else 200)
    if visit:
        assert "from 0, the first, to 1, the newest" in answer.json()["error"]


async def test_the_only_visit_is_not_called_a_range() -> None:
    """Not "from 0, the first, to 0, the newest"."""
    world = World(make_rollout())
    async with world.client:
        answer = await world.get("history?visit=9")
    assert (answer.status_code, answer.json()) == (400, {"error": "visit is 0, the only one"})


@pytest.mark.parametrize("topic", ["decisions", "alerts"])
async def test_news_is_shown_once_newest_first(world: World, topic: str) -> None:
    """An event that was kept twice is shown once; what is no event is left out."""
    events = [
        b'{"id":"a","n":1}',
        b"junk",
        b"[" * 200_000,
        b"[]",
        b'{"id":"b","n":2}',
        b'{"id":"b","n":3}',
    ]
    await world.store.append_news(FLAG, topic, events)
    shown = (await world.get(topic)).json()[topic]
    assert [(one["id"], one["n"]) for one in shown] == [("b", 3), ("a", 1)]
    one = await world.get(f"{topic}?limit=1")
    assert len(one.json()[topic]) == 1
    for wrong in ("0", "101", "x"):
        assert (await world.get(f"{topic}?limit={wrong}")).status_code == 400


async def test_many_who_ask_are_one_read(world: World) -> None:
    """Hundreds of open pages must not be hundreds of calls a second."""
    calls = 0
    read = world.store.read

    async def counted(flag_key: str) -> bytes | None:
        nonlocal calls
        calls += 1
        return await read(flag_key)

    world.store.read = counted  # type: ignore[method-assign]
    await world.store.write(FLAG, report_to_json(REPORT))
    for _ in range(20):
        assert (await world.get("evidence")).status_code == 200
    assert calls == 1
