"""The inventory over HTTP: the API, its table, and the screen; also with 10,000 flags."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from datetime import timedelta
from typing import Any

import pytest

from controller.core.rollout import Completed, Rollout
from controller.ports import FlagUse, FlagUses, LastDecision, Lift
from controller.reporting.inventory import listing
from controller.web.inventory import FlagSource
from schemas.terms import DecisionKind
from tests.builders import T0, make_plan, make_rollout, make_stages
from tests.unit.web.test_api import World

OLD = T0 - timedelta(days=40)


def world_of(count: int = 3, source: FlagSource | None = None) -> World:
    """Return a replica with flags that completed 40 days ago, the last of them today."""
    world = World(source=source)
    for number in range(count):
        key = f"flag-{number:05}"
        plan = make_plan(flag_key=key, owner="=ada", stages=make_stages(100))
        at = T0 if number == count - 1 else OLD
        world.board.update(
            make_rollout(flag_key=key, plan=plan, phase=Completed(at), percent=100.0, updated_at=at)
        )
    world.board.trust()
    return world


async def test_the_api_lists_flags_with_findings_first() -> None:
    """Paged, searched and tagged; a question that makes no sense is refused."""
    world = world_of()
    answer = await world.get("/flags")
    body = answer.json()
    assert [one["flag"] for one in body["flags"]] == ["flag-00000", "flag-00001", "flag-00002"]
    assert [len(one["findings"]) for one in body["flags"]] == [1, 1, 0]
    assert body["counts"]["stale"] == 2
    assert body["total"] == 3
    assert "retire" in body["flags"][0]["findings"][0]["action"]
    tagged = await world.client.get(answer.url, headers={"if-none-match": answer.headers["etag"]})
    assert tagged.status_code == 304
    assert (await world.get("/flags", finding="stale")).json()["total"] == 2
    assert (await world.get("/flags", finding="any", limit="1")).json()["flags"][0]["flag"]
    assert (await world.get("/flags", q="00002")).json()["total"] == 1
    assert (await world.get("/flags", finding="nonsense")).status_code == 400
    assert (await world.get("/flags", limit="0")).status_code == 400


async def test_the_table_is_safe_for_spreadsheets() -> None:
    """An owner that looks like a formula is a text."""
    answer = await world_of().get("/flags", format="csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["findings"] for row in rows] == ["stale", "stale", ""]
    assert rows[0]["owner"] == "'=ada"


async def test_the_screen_says_what_to_tidy_and_how() -> None:
    """Each finding has the one command that resolves it; a retired flag is gone."""
    world = world_of()
    page = (await world.client.get("/ui/flags")).text
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Some flags need tidying." in words
    assert "2 stale" in words
    assert "rolloutctl retire flag-00000" in words
    assert (await world.client.get("/ui/flags?finding=nonsense")).status_code == 400
    world.board.drop("flag-00000", 10**6)
    world.board.drop("flag-00001", 10**6)
    page = (await world.client.get("/ui/flags")).text
    assert "No flag needs tidying." in page


async def test_how_flags_are_used_is_in_every_form() -> None:
    """JSON, table and screen; a flag of which nothing is known is told from one that nobody uses.

    A newer reading is shown at once.
    """
    known = FlagUses()
    world = world_of(source=FlagSource(uses=lambda: known))
    first = (await world.get("/flags")).json()["flags"][0]
    assert (first["evaluations"], first["evaluated_at"]) == (None, None)
    decision, lift = LastDecision(DecisionKind.ROLL_BACK, OLD), Lift("paid", 0.04, -0.01, None, OLD)
    uses = {
        "flag-00000": FlagUse(1200, 34, 5, T0, OLD, decision, (lift,)),
        "flag-00001": FlagUse(0, 0, 0, None, OLD),
    }
    known = FlagUses(uses, version=1)
    first, second, third = (await world.get("/flags")).json()["flags"]
    assert first["evaluations"] == {"treatment": 1200, "control": 34, "neither": 5}
    assert first["evaluated_at"] == T0.isoformat().replace("+00:00", "Z")
    assert second["evaluations"] == {"treatment": 0, "control": 0, "neither": 0}
    assert third["evaluations"] is None
    assert first["last_decision"]["kind"] == "roll_back"
    (shown,) = first["lifts"]
    assert (shown["conversion"], shown["lift"], shown["high"]) == ("paid", 0.04, None)
    assert (second["lifts"], second["last_decision"]) == ([], None)
    rows = list(csv.DictReader(io.StringIO((await world.get("/flags", format="csv")).text)))
    assert [row["evaluations_treatment"] for row in rows] == ["1200", "0", ""]
    assert rows[0]["evaluations_neither"] == "5"
    assert [rows[0][f"lift{end}"] for end in ("", "_low", "_high")] == ["0.04", "-0.01", ""]
    assert [row["last_decision"] for row in rows] == ["roll_back", "", ""]
    page = (await world.client.get("/ui/flags")).text
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "1,200 treatment, 34 control, 5 neither" in words
    assert "Evaluations in 24 h" in words
    assert "paid +4 % (at least -1 %)" in words
    assert "roll back" in words


async def test_flags_without_a_rollout_are_listed_apart() -> None:
    """In JSON, table and screen; they have no findings, and a search finds them."""
    uses = FlagUses(unknown={"typo": 1200, "=cmd": 20})
    world = world_of(source=FlagSource(uses=lambda: uses))
    body = (await world.get("/flags")).json()
    assert (body["total"], len(body["flags"])) == (3, 3)
    assert body["without_rollout"] == [
        {"flag": "typo", "events": 1200},
        {"flag": "=cmd", "events": 20},
    ]
    assert (await world.get("/flags", finding="any")).json()["without_rollout"] == []
    assert len((await world.get("/flags", q="TYP")).json()["without_rollout"]) == 1
    rows = list(csv.DictReader(io.StringIO((await world.get("/flags", format="csv")).text)))
    assert [row["flag"] for row in rows[3:]] == ["typo", "'=cmd"]
    assert [row["events_without_rollout"] for row in rows] == ["", "", "", "1200", "20"]
    page = (await world.client.get("/ui/flags")).text
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Flags without a rollout" in words
    assert "typo 1,200 rolloutctl events typo" in words
    assert "Flags without a rollout" not in (await world.client.get("/ui/flags?q=flag")).text


async def test_a_long_list_is_worked_out_once_per_change_and_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others get a turn between parts of it; `tests/benchmarks/page.py` measures 10,000 flags."""
    asked: list[str] = []

    def counting(rollout: Rollout, *arguments: Any) -> Any:
        asked.append(rollout.flag_key)
        return listing(rollout, *arguments)

    monkeypatch.setattr("controller.web.inventory.listing", counting)
    monkeypatch.setattr("controller.web.inventory._PER_TURN", 10)
    world = world_of(100)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count_turns())
    for path in ("/api/v1/flags", "/ui/flags", "/api/v1/flags?q=flag"):
        assert (await world.client.get(path)).status_code == 200
    other.cancel()
    assert len(asked) == 100
    assert turns >= 10
    world.board.update(make_rollout(flag_key="new", plan=make_plan(flag_key="new"), revision=2))
    await world.client.get("/api/v1/flags")
    assert len(asked) == 201
