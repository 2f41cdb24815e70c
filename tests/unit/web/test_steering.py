"""Commands that lower, over HTTP: only with the token, only down, never too many."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from controller.errors import OperatingTrouble
from controller.web.app import make_app, make_ops_app
from controller.web.steering import MAX_LOWERING_BYTES, PER_SECOND, VERBS, Steer, Tokens
from schemas.command import Command
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus
from tests.reports import no_reports
from tests.unit.web.conftest import Surface, describe

TOKEN = "a" * 32
OTHER = "b" * 40
RIGHT = {"authorization": f"Bearer {TOKEN}"}


class NotedSteering:
    """Answers as a test says, and notes what it was asked."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.status = CommandStatus.ACCEPTED
        self.pending = ""
        self.trouble: OperatingTrouble | None = None

    async def carry_out(self, command: Command) -> Result | str:
        """Note the command."""
        if self.trouble is not None:
            raise self.trouble
        self.commands.append(command)
        if self.pending:
            return self.pending
        return Result(
            command_id=command.id,
            flag=command.flag,
            verb=command.verb,
            status=self.status,
            reason="",
            revision=7,
            at=datetime.now(UTC),
        )


@pytest.fixture
def steering() -> NotedSteering:
    """What stands behind the routes."""
    return NotedSteering()


@pytest.fixture
async def client(surface: Surface, steering: NotedSteering) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a surface that takes commands by two tokens."""
    app = make_app(
        surface.board,
        surface.health,
        surface.metrics,
        describe=describe,
        reports=no_reports(),
        steer=Steer(steering, Tokens(f"{TOKEN}\n{OTHER}")),
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_readyz_says_whether_commands_are_taken(
    client: httpx.AsyncClient, surface: Surface
) -> None:
    """`rolloutctl doctor` says it before an emergency does."""
    assert (await client.get("/readyz")).json()["takes_commands"] is True
    app = make_app(
        surface.board, surface.health, surface.metrics, describe=describe, reports=no_reports()
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as bare:
        assert (await bare.get("/readyz")).json()["takes_commands"] is False


def test_only_verbs_that_lower_have_a_route(surface: Surface, steering: NotedSteering) -> None:
    """Nothing that could raise can be asked for, on either port; without a token nothing can."""
    assert set(VERBS.values()) == ALWAYS_ACCEPTED
    steer = Steer(steering, Tokens(TOKEN))
    arguments = (surface.board, surface.health, surface.metrics)
    for app, others in (
        (
            make_app(*arguments, describe=describe, reports=no_reports(), steer=steer),
            {"/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/{key:path}", "/ui/plan"},
        ),
        (make_ops_app(*arguments, surface.faults, steer=steer), set()),
    ):
        posts = set()
        for route in app.routes:
            assert isinstance(route, Route)
            if "POST" in (route.methods or ()):
                posts.add(route.path)
        assert posts - others == {f"/rollouts/{{flag_key}}/{name}" for name in VERBS}
    silent = make_ops_app(*arguments, surface.faults)
    assert not any("POST" in (one.methods or ()) for one in silent.routes if isinstance(one, Route))


async def test_the_index_says_what_each_command_does(client: httpx.AsyncClient) -> None:
    """And that it needs a token: not how the route is made."""
    paths = (await client.get("/")).json()["paths"]
    told = {
        one["path"].rpartition("/")[2]: one["what"] for one in paths if "POST" in one["methods"]
    }
    assert all("token" in told[name] for name in VERBS)
    assert told["kill"].startswith("serves 0 %")
    assert told["pause"].startswith("stops the rollout where it is")


@pytest.mark.parametrize(("name", "verb"), VERBS.items())
async def test_a_command_is_carried_out(
    client: httpx.AsyncClient, steering: NotedSteering, name: str, verb: str
) -> None:
    """Without a body it has an id, an issuer, a reason and a time; the result is the answer."""
    answer = await client.post(f"/rollouts/new-checkout/{name}", headers=RIGHT)
    assert answer.status_code == 200
    (command,) = steering.commands
    assert (command.flag, command.verb) == ("new-checkout", verb)
    assert command.issuer.startswith("http:")
    assert command.reason
    assert abs((datetime.now(UTC) - command.issued_at).total_seconds()) < 60
    assert answer.json()["command_id"] == command.id
    assert answer.json()["revision"] == 7


async def test_the_body_says_who_and_why(
    client: httpx.AsyncClient, steering: NotedSteering
) -> None:
    """Id, issuer, reason and time are taken over, so that a repeat is the same command."""
    body = {"id": "one", "issuer": "ann@laptop", "reason": "5xx", "issued_at": "2026-01-02T03:04Z"}
    for _ in range(2):
        headers = {"authorization": f"bearer {OTHER}"}
        await client.post("/rollouts/f/roll-back", headers=headers, content=json.dumps(body))
    first, second = steering.commands
    assert first == second
    assert (first.id, first.issuer, first.reason) == ("one", "ann@laptop", "5xx")
    assert first.issued_at == datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer {TOKEN}\n{OTHER}".replace("\n", ","),
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN.upper()}",
        "Bearer " + "z" * 5_000,
    ],
)
async def test_without_the_token_nothing_is_done(
    client: httpx.AsyncClient, steering: NotedSteering, authorization: str | None
) -> None:
    """401 with a challenge, the same for every wrong token, and not a word about the flag."""
    headers = {} if authorization is None else {"authorization": authorization}
    for flag in ("new-checkout", "no-such-flag"):
        answer = await client.post(f"/rollouts/{flag}/roll-back", headers=headers, content=b"{")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert flag not in answer.text
    assert steering.commands == []


async def test_a_repeated_header_is_no_way_in(
    client: httpx.AsyncClient, steering: NotedSteering
) -> None:
    """Two Authorization headers are one that is wrong."""
    pairs = [("authorization", "Bearer x"), ("authorization", f"Bearer {TOKEN}")]
    answer = await client.post("/rollouts/f/kill", headers=pairs)
    assert (answer.status_code, steering.commands) == (401, [])


async def test_the_token_is_no_query_and_no_cookie(
    client: httpx.AsyncClient, steering: NotedSteering
) -> None:
    """What a browser sends by itself, or a log keeps, is no token."""
    for path in (f"/rollouts/f/kill?token={TOKEN}", f"/rollouts/f/kill?authorization={TOKEN}"):
        cookie = {"cookie": f"token={TOKEN}; authorization=Bearer {TOKEN}"}
        assert (await client.post(path, headers=cookie)).status_code == 401
    assert steering.commands == []


async def test_a_web_page_gets_no_permission(client: httpx.AsyncClient) -> None:
    """A browser asks before it sends the header to another origin, and is never allowed to."""
    answer = await client.options(
        "/rollouts/f/roll-back",
        headers={
            "origin": "https://evil.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        },
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "no JSON"),
        (b'{"reason":"\xff"}', "no JSON"),
        (b"[" * 8_000, "nested too deeply"),
        (b'{"reason":' + b"[" * 4_000 + b"]" * 4_000 + b"}", "nested too deeply"),
        (b'{"reason":' + b"[" * 700 + b"]" * 700 + b"}", "recursion limit"),
        (b"[]", "JSON object"),
        (b'{"verb":"promote"}', "JSON object"),
        (b'{"plan":{}}', "JSON object"),
        (b'{"expected_revision":3}', "JSON object"),
        (b'{"issuer":"rolloutd"}', "issuer"),
        (b'{"issuer":5}', "issuer"),
        (b'{"id":"a b"}', "id"),
        (b'{"reason":["a"]}', "reason"),
        (b'{"issued_at":"yesterday"}', "issued_at"),
    ],
)
async def test_a_body_that_is_no_command_is_refused(
    client: httpx.AsyncClient, steering: NotedSteering, body: bytes, word: str
) -> None:
    """400 with what is wrong; no field can turn it into another command."""
    answer = await client.post("/rollouts/f/roll-back", headers=RIGHT, content=body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]
    assert steering.commands == []


async def test_a_long_body_is_refused(client: httpx.AsyncClient, steering: NotedSteering) -> None:
    """413: more than a reason needs."""
    body = b'{"reason":"' + b"x" * MAX_LOWERING_BYTES + b'"}'
    answer = await client.post("/rollouts/f/roll-back", headers=RIGHT, content=body)
    assert (answer.status_code, steering.commands) == (413, [])


@pytest.mark.parametrize("flag", ["a%20b", "%2e%2e", "a%0ab", "a" * 129])
async def test_what_is_no_flag_key_is_refused(
    client: httpx.AsyncClient, steering: NotedSteering, flag: str
) -> None:
    """400 or 404: only a flag's key names a flag."""
    answer = await client.post(f"/rollouts/{flag}/roll-back", headers=RIGHT)
    assert answer.status_code in (400, 404)
    assert steering.commands == []


@pytest.mark.parametrize(
    "path",
    ["promote", "start", "resume", "approve", "restart", "unfreeze", "step-back", "ROLL-BACK"],
)
async def test_no_other_verb_is_found(
    client: httpx.AsyncClient, steering: NotedSteering, path: str
) -> None:
    """404, with the token too."""
    answer = await client.post(f"/rollouts/f/{path}", headers=RIGHT)
    assert (answer.status_code, steering.commands) == (404, [])


async def test_a_flood_with_the_token_is_limited(
    client: httpx.AsyncClient, steering: NotedSteering
) -> None:
    """429 with a time to wait, after a burst of ten seconds' commands."""
    statuses = [
        (await client.post("/rollouts/f/pause", headers=RIGHT)).status_code for _ in range(200)
    ]
    assert set(statuses) == {200, 429}
    assert len(steering.commands) == statuses.count(200)
    assert 10 * PER_SECOND <= len(steering.commands) < 150


async def test_wrong_tokens_lock_nobody_out(
    client: httpx.AsyncClient, steering: NotedSteering
) -> None:
    """A flood of guesses is answered 429, and the right token works from the same address."""
    wrong = {"authorization": "Bearer guess"}
    statuses = [
        (await client.post("/rollouts/f/kill", headers=wrong)).status_code for _ in range(50)
    ]
    assert statuses.count(429) > 40
    assert steering.commands == []
    assert (await client.post("/rollouts/f/kill", headers=RIGHT)).status_code == 200


async def test_each_outcome_has_its_status(
    client: httpx.AsyncClient, steering: NotedSteering
) -> None:
    """Rejected 409; waiting for Redis 202, which says who serves what; not taken 503."""
    steering.status = CommandStatus.REJECTED
    assert (await client.post("/rollouts/f/kill", headers=RIGHT)).status_code == 409
    steering.pending = "Redis does not answer"
    answer = await client.post("/rollouts/f/kill", headers=RIGHT)
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["status"]) == (202, "pending")
    assert document["reason"] == "Redis does not answer"
    steering.trouble = OperatingTrouble("Redis is away")
    answer = await client.post("/rollouts/f/kill", headers=RIGHT)
    assert answer.status_code == 503
    assert "nothing was done: Redis is away" in answer.json()["error"]
