"""Commands over HTTP: each verb for each role, and what a request needs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from controller.errors import OperatingTrouble
from controller.settings.access_file import Role
from controller.web.access.roles import NEEDED, needed
from controller.web.commands import MAX_COMMAND_BYTES
from schemas.api import BASE
from schemas.command import NEEDS_PLAN, Command
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus, CommandVerb
from tests.admission import NotedDesk, admission, answered, bearer, token_line
from tests.pages import PageWorld, filled

BROWSER = {"accept": "text/html,application/xhtml+xml"}
NAMES = ("viewer", "operator", "approver", "admin")
ACCESS = (
    "tokens:\n"
    + "".join(token_line(name) for name in (*NAMES, "nobody-here"))
    + "grants:\n"
    + "  - {role: viewer, tokens: [viewer]}\n"
    + "".join(
        f"  - {{role: {name}, tokens: [{name}], flags: ['pricing-*']}}\n" for name in NAMES[1:]
    )
    + "  - {role: admin, tokens: [nobody-here], flags: [another]}\n"
    + "  - {role: approver, people: [ada]}\n"
)
PLAN = {
    "name": "p",
    "flag": "pricing-api",
    "variants": {"treatment": "on", "control": "off"},
    "stages": [{"percent": 1, "bake": "10m"}],
}


def body(verb: CommandVerb, flag: str = "pricing-api", **more: Any) -> dict[str, Any]:
    """Return a whole request for a verb."""
    fields: dict[str, Any] = {"verb": verb.value, "reason": "tested", "expected_revision": 11}
    if verb in NEEDS_PLAN:
        fields["plan"] = {**PLAN, "flag": flag}
    return {**fields, **more}


@pytest.fixture
def desk() -> NotedDesk:
    """What takes commands."""
    return NotedDesk()


@pytest.fixture
async def client(tmp_path: Path, desk: NotedDesk) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a replica with a rollout in every state."""
    proxy = {"addresses": ["127.0.0.1"]}
    world = PageWorld(
        admit=lambda board: admission(tmp_path, ACCESS, board, desk, proxy=proxy),
    )
    await filled(world)
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def path(flag: str = "pricing-api") -> str:
    """Return where commands of a flag go."""
    return f"{BASE}/rollouts/{flag}/commands"


@pytest.mark.parametrize("flag", ["pricing-api", "search-v3"])
@pytest.mark.parametrize("name", [*NAMES, "nobody-here"])
async def test_each_verb_needs_its_role_for_the_flag(
    client: httpx.AsyncClient, desk: NotedDesk, name: str, flag: str
) -> None:
    """Every verb x role x pattern: what is allowed is sent in the machine's name, nothing else."""
    has = Role[name.upper()] if name in NAMES and flag.startswith("pricing-") else None
    for verb in CommandVerb:
        desk.commands.clear()
        answer = await client.post(path(flag), json=body(verb, flag=flag), headers=bearer(name))
        least = NEEDED.get(verb, Role.ADMIN)
        if has is not None and has >= least:
            assert answer.status_code == 200, (verb, answer.text)
            (command,) = desk.commands
            assert (command.verb, command.issuer) == (verb, f"token:{name}")
            assert command.flag == flag
        else:
            assert answer.status_code == 403, (verb, answer.text)
            assert f"needs the role {least.word}" in answer.json()["error"]
            assert desk.commands == []


def test_raising_needs_more_than_stopping() -> None:
    """And a verb that nobody has thought of needs an admin."""
    assert all(needed(verb) is NEEDED.get(verb, Role.ADMIN) for verb in CommandVerb)
    assert all(NEEDED[verb] is Role.OPERATOR for verb in ALWAYS_ACCEPTED)
    assert NEEDED[CommandVerb.APPROVE] > NEEDED[CommandVerb.ROLL_BACK]
    assert NEEDED[CommandVerb.PROMOTE] > NEEDED[CommandVerb.APPROVE]


async def test_nobody_gives_a_command_who_is_not_signed_in(
    client: httpx.AsyncClient, desk: NotedDesk
) -> None:
    """Though whoever connects from this machine may read."""
    assert (await client.get(f"{BASE}/rollouts")).status_code == 200
    answer = await client.post(path(), json=body(CommandVerb.PAUSE))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    wrong = await client.post(
        path(), json=body(CommandVerb.PAUSE), headers={"authorization": "Bearer x"}
    )
    assert wrong.status_code == 401
    assert desk.commands == []


async def test_a_cross_site_post_is_refused(client: httpx.AsyncClient, desk: NotedDesk) -> None:
    """A person's browser sends who they are by itself, so a form of ours must have sent it."""
    ada = {"x-forwarded-user": "ada", "content-type": "application/json"}
    for more in ({}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-origin"}):
        content = json.dumps(body(CommandVerb.PAUSE))
        answer = await client.post(path(), content=content, headers={**ada, **more})
        assert answer.status_code == 403, more
    assert desk.commands == []


@pytest.mark.parametrize(
    ("changed", "status", "why"),
    [
        ({"verb": "approve", "expected_revision": None}, 400, "needs expected_revision"),
        ({"verb": "resume", "expected_revision": None}, 400, "it is 11 now"),
        ({"verb": "explode"}, 400, "verb is one of"),
        ({"verb": 7}, 400, "verb is one of"),
        ({"issuer": "eve"}, 400, "the body has issuer"),
        ({"verb": "promote", "reason": " "}, 400, "needs a `reason`"),
        ({"verb": "apply", "plan": {"flag": "other"}}, 400, "plan"),
        ({"verb": "freeze", "expected_revision": "x"}, 400, "expected_revision"),
        ({"id": "a b"}, 400, "id"),
    ],
)
async def test_a_request_that_is_no_command_is_refused(
    client: httpx.AsyncClient, desk: NotedDesk, changed: dict[str, Any], status: int, why: str
) -> None:
    """With what is wrong; nothing is sent."""
    fields = {"verb": "pause", "expected_revision": 11, "reason": "r", **changed}
    answer = await client.post(path(), json=fields, headers=bearer("admin"))
    assert answer.status_code == status
    assert why in answer.json()["error"]
    assert desk.commands == []


async def test_hostile_bodies_are_refused(client: httpx.AsyncClient, desk: NotedDesk) -> None:
    """Too large, too deep, no JSON, no object, no text, or of another type."""
    right = {**bearer("admin"), "content-type": "application/json"}
    for content, status in (
        (b" " * (MAX_COMMAND_BYTES + 1), 413),
        (b"[" * 100_000, 400),
        (b'{"plan":' + b'{"a":' * 900 + b"1" + b"}" * 901, 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"", 400),
    ):
        answer = await client.post(path(), content=content, headers=right)
        assert answer.status_code == status, content[:20]
    form = await client.post(path(), content=b"{}", headers=bearer("admin"))
    assert form.status_code == 415
    assert desk.commands == []


async def test_a_flag_without_a_rollout_is_said(client: httpx.AsyncClient) -> None:
    """Nothing is sent that nobody would answer; a start is for such flags."""
    missing = path("pricing-unknown")
    answer = await client.post(missing, json=body(CommandVerb.PAUSE), headers=bearer("admin"))
    assert answer.status_code == 404
    start = body(CommandVerb.START, flag="pricing-unknown")
    assert (await client.post(missing, json=start, headers=bearer("admin"))).status_code == 200


async def test_the_result_is_the_answer(client: httpx.AsyncClient, desk: NotedDesk) -> None:
    """Carried out, rejected, on its way, or not known to be sent."""

    async def ask() -> httpx.Response:
        fields = body(CommandVerb.APPROVE, id="c-1")
        return await client.post(path(), json=fields, headers=bearer("approver"))

    done = await ask()
    assert (done.status_code, Result.model_validate(done.json()).command_id) == (200, "c-1")
    stale = "stale: revision 11 was expected, it is 12"
    desk.answer = lambda command: answered(command, CommandStatus.REJECTED, stale)
    rejected = await ask()
    assert (rejected.status_code, rejected.json()["reason"]) == (409, stale)

    def late(command: Command) -> str:
        return "no result yet"

    desk.answer = late
    waiting = await ask()
    assert waiting.status_code == 202
    assert waiting.json() == {
        "command_id": "c-1",
        "flag": "pricing-api",
        "verb": "approve",
        "status": "pending",
        "reason": "no result yet",
    }
    desk.trouble = OperatingTrouble("Kafka is away")
    assert (await ask()).status_code == 503


async def test_one_machine_cannot_flood_the_command_topic(client: httpx.AsyncClient) -> None:
    """And another one's command is taken meanwhile, and its own that lowers."""
    fields = body(CommandVerb.FREEZE)
    answers = [
        await client.post(path(), json=fields, headers=bearer("operator")) for _ in range(30)
    ]
    assert answers[0].status_code == 200
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    lowered = await client.post(path(), json={"verb": "pause"}, headers=bearer("operator"))
    assert lowered.status_code == 200
    other = await client.post(path(), json={"verb": "pause"}, headers=bearer("admin"))
    assert other.status_code == 200


@pytest.mark.parametrize("verb", sorted(ALWAYS_ACCEPTED))
async def test_lowering_many_flags_at_once_is_never_refused(
    client: httpx.AsyncClient, verb: CommandVerb
) -> None:
    """Thirty at once in an emergency; only a flood gets 429, and is told how long to wait."""
    fields = {"verb": verb.value, "reason": "r"}
    asks = (client.post(path(), json=fields, headers=bearer("operator")) for _ in range(30))
    assert {answer.status_code for answer in await asyncio.gather(*asks)} == {200}
    refused = None
    for _ in range(300):
        answer = await client.post(path(), json=fields, headers=bearer("operator"))
        if answer.status_code == 429:
            refused = answer
            break
    assert refused is not None
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_repeat_gets_its_first_answer_though_the_flag_is_retired(
    client: httpx.AsyncClient, desk: NotedDesk
) -> None:
    """The rollout is gone by then, and the answer is kept for a day."""
    fields = body(CommandVerb.RETIRE, id="c-9")
    first = await client.post(path(), json=fields, headers=bearer("admin"))
    desk.stored["c-9"] = Result.model_validate(first.json())
    desk.commands.clear()
    gone = path("pricing-gone")
    again = await client.post(gone, json=fields, headers=bearer("admin"))
    assert (again.status_code, again.json()) == (200, first.json())
    other = await client.post(gone, json={**fields, "id": "c-10"}, headers=bearer("admin"))
    assert other.status_code == 404
    assert desk.commands == []


# --- reading ---


async def test_who_is_not_signed_in_sees_what_the_settings_say(
    tmp_path: Path, desk: NotedDesk
) -> None:
    """Refused where nobody may read, and let in with any role; never with an unknown token."""
    world = PageWorld(
        admit=lambda board: admission(tmp_path, ACCESS, board, desk),
        why_not_shown="rollouts are not shown",
    )
    await filled(world)
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for where in (
            f"{BASE}/rollouts",
            "/rollouts",
            "/ui/rollouts/pricing-api",
            "/ui/live/fleet",
        ):
            assert (await client.get(where)).status_code == 401, where
            wrong = await client.get(where, headers={"authorization": "Bearer x"})
            assert wrong.status_code in (401, 429), where
        for where in (f"{BASE}/rollouts", "/rollouts", "/ui/rollouts/pricing-api"):
            seen = await client.get(where, headers=bearer("viewer"))
            assert seen.status_code == 200, where
        for where in ("/healthz", "/flagd/flags.json"):
            assert (await client.get(where)).status_code == 200, where


@pytest.mark.parametrize(
    ("proxies", "to_do"),
    [(["10.0.0.0/8"], "Sign in at the proxy"), ([], "sets sign_in.oidc or sign_in.proxy")],
)
async def test_a_browser_without_a_way_to_sign_in_gets_a_page(
    tmp_path: Path, desk: NotedDesk, proxies: list[str], to_do: str
) -> None:
    """A person is told what to do; a machine gets JSON with the way for machines."""
    world = PageWorld(
        admit=lambda board: admission(tmp_path, ACCESS, board, desk, proxy={"addresses": proxies}),
        why_not_shown="rollouts are not shown",
    )
    await filled(world)
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        page = await client.get("/", headers=BROWSER)
        assert (page.status_code, "rollouts are not shown" in page.text) == (401, True)
        assert page.headers["content-type"].startswith("text/html")
        assert to_do in page.text
        assert "pricing-api" not in page.text
        machine = await client.get("/")
        assert (machine.status_code, "Bearer TOKEN" in machine.json()["error"]) == (401, True)


async def test_a_claim_that_is_not_true_is_refused_with_a_page_in_a_browser(
    tmp_path: Path, desk: NotedDesk
) -> None:
    """Such as the header of a proxy from an address that is none of its."""
    world = PageWorld(
        admit=lambda board: admission(
            tmp_path, ACCESS, board, desk, proxy={"addresses": ["10.0.0.0/8"]}
        ),
        why_not_shown="rollouts are not shown",
    )
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    claim = {"x-forwarded-user": "ada@example.org"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        page = await client.get("/", headers={**BROWSER, **claim})
        assert (page.status_code, "sign_in.proxy.addresses" in page.text) == (403, True)
        assert page.headers["content-type"].startswith("text/html")
        machine = await client.get("/", headers=claim)
        assert "sign_in.proxy.addresses" in machine.json()["error"]


#: What whoever can connect may use, whoever they are.
OPEN = (
    "/ofrep/v1/",
    "/flagd/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/ui/files/",
    "/ui/sign-in",
    "/ui/sign-out",
)


async def test_no_other_route_answers_who_is_not_signed_in(tmp_path: Path, desk: NotedDesk) -> None:
    """A route that somebody adds is behind the check too, unless it is named above."""
    world = PageWorld(
        admit=lambda board: admission(tmp_path, ACCESS, board, desk),
        why_not_shown="rollouts are not shown",
    )
    await filled(world)
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    asked = 0
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for route in world.app.routes:
            assert isinstance(route, Route)
            if route.path.startswith(OPEN):
                continue
            where = re.sub(r"{[^}]*}", "pricing-api", route.path)
            for method in (route.methods or set()) - {"HEAD"}:
                answer = await client.request(method, where)
                assert answer.status_code == 401, (method, where)
                asked += 1
    assert asked > 20
