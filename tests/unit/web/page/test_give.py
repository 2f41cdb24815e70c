"""Steering from the page: what buttons say, what the question shows, and what a form may do."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.errors import OperatingTrouble
from schemas.command import Command
from schemas.terms import CommandStatus
from tests.admission import NotedDesk, admission, answered
from tests.pages import PageWorld, filled

ACCESS = """\
grants:
  - {role: operator, people: [otto]}
  - {role: admin, people: [ada, eve]}
  - {role: viewer, people: [vera]}
"""
SAME = {"sec-fetch-site": "same-origin"}


@dataclass
class Office:
    """A page, and what takes its commands."""

    client: httpx.AsyncClient
    desk: NotedDesk

    async def get(self, path: str, name: str = "ada") -> httpx.Response:
        """Open a page as somebody."""
        headers = {"x-forwarded-user": name} if name else {}
        return await self.client.get(path, headers={"accept": "text/html", **headers})

    async def form(self, path: str, name: str = "ada") -> dict[str, str]:
        """Return the fields of the form that somebody gets."""
        text = (await self.get(path, name)).text
        assert "<form" in text, text
        return dict(re.findall(r'name="(form|id|asked|revision)" value="([^"]*)"', text))

    async def post(
        self, path: str, fields: dict[str, str], name: str = "ada", **headers: str
    ) -> httpx.Response:
        """Send a form as somebody's browser does."""
        sent = {"x-forwarded-user": name, **(headers or SAME)}
        return await self.client.post(path, data=fields, headers=sent)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """A replica behind a proxy that knows people, with a rollout in every state."""
    desk = NotedDesk()
    proxy = {"addresses": ["127.0.0.1"]}
    world = PageWorld(
        admit=lambda board: admission(tmp_path, ACCESS, board, desk, proxy=proxy),
    )
    await filled(world)
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield Office(client, desk)


def give(verb: str, flag: str = "search-v3") -> str:
    """Return the address that confirms a command."""
    return f"/ui/rollouts/{flag}/give/{verb}"


def buttons(text: str) -> dict[str, str]:
    """Return each button with where it leads, or with why it cannot be pressed."""
    found: dict[str, str] = {}
    pattern = (
        r'<a class="button[^"]*" href="([^"]*)">([^<]*)</a>'
        r'|<span\s+class="button" aria-disabled="true">([^<]*)</span>\s*'
        r'<span class="dim"><bdi>([^<]*)'
    )
    for href, name, off, why in re.findall(pattern, text):
        found[html.unescape(name or off)] = href or html.unescape(why)
    return found


async def test_buttons_say_what_fits_for_whom(office: Office) -> None:
    """One that does not fit, or is not allowed, is there with why."""
    path = "/ui/rollouts/search-v3"
    ada = buttons((await office.get(path)).text)
    assert list(ada)[:3] == ["Approve", "Pause", "Roll back…"]
    assert ada["Approve"] == give("approve")
    assert ada["Roll back…"] == give("roll-back")
    assert ada["Unfreeze"] == "no operator has frozen it"
    otto = buttons((await office.get(path, "otto")).text)
    assert otto["Approve"] == "needs the role approver"
    assert otto["Pause"] == give("pause")
    assert buttons((await office.get(path, "vera")).text)["Pause"] == "needs the role operator"
    assert set(buttons((await office.get(path, "")).text).values()) == {"sign in first"}
    paused = buttons((await office.get("/ui/rollouts/recommendations")).text)
    assert list(paused)[:3] == ["Approve", "Resume", "Roll back…"]


async def test_without_sign_in_there_are_no_buttons() -> None:
    """The page is as it was."""
    world = await filled(PageWorld())
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        text = (await client.get("/ui/rollouts/search-v3")).text
        assert buttons(text) == {}
        assert "This page only shows" in text
        assert (await client.get(give("approve"))).status_code == 404


async def test_with_tokens_alone_the_page_only_shows(tmp_path: Path) -> None:
    """No browser can sign in there, so no button says "sign in first"."""
    world = await filled(
        PageWorld(admit=lambda board: admission(tmp_path, ACCESS, board, NotedDesk()))
    )
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        text = (await client.get("/ui/rollouts/search-v3")).text
    assert buttons(text) == {}
    assert "This page only shows" in text


async def test_the_question_shows_what_will_happen(office: Office) -> None:
    """From where to where, for everybody, on which revision, in whose name."""
    text = (await office.get(give("approve"))).text
    assert "Approve search-v3?" in text
    assert "25 %, awaiting approval" in text
    assert "50 %, baking" in text
    assert "revision 11" in text
    assert "Approve as <bdi>ada</bdi>" in " ".join(text.split())
    assert "required" not in text
    assert "required" in (await office.get(give("promote"))).text


async def test_what_does_not_fit_has_no_button_to_confirm(office: Office) -> None:
    """It says why, in the state machine's words."""
    text = (await office.get(give("approve", "pricing-api"))).text
    assert "It does not fit now" in text
    assert 'name="revision"' not in text


async def test_a_form_gives_the_command_that_was_shown(office: Office) -> None:
    """In the person's name, for the revision that they saw, with their reason on one line."""
    fields = await office.form(give("approve"))
    answer = await office.post(give("approve"), {**fields, "reason": "größer ☂\r\n is fine"})
    assert answer.status_code == 200
    assert "Approve: done" in answer.text
    (command,) = office.desk.commands
    assert (command.verb, command.flag, command.issuer) == ("approve", "search-v3", "ada")
    assert (command.id, command.expected_revision) == (fields["id"], 11)
    assert command.reason == "größer ☂ is fine"


async def test_a_form_that_is_sent_twice_is_one_command(office: Office) -> None:
    """Whoever presses twice sends one id."""
    fields = await office.form(give("pause"))
    for _ in range(2):
        await office.post(give("pause"), fields)
    assert len({command.id for command in office.desk.commands}) == 1


async def test_a_form_of_an_earlier_rollout_does_nothing(office: Office) -> None:
    """A reload of the answer to a roll back must not lower the rollout that came after it."""
    fields = await office.form(give("roll-back"))
    earlier = {**fields, "asked": fields["asked"].rpartition("/")[0] + "/start-0"}
    answer = await office.post(give("roll-back"), earlier)
    assert answer.status_code == 409
    assert "an earlier rollout of the flag" in answer.text
    assert office.desk.commands == []
    assert (await office.post(give("roll-back"), fields)).status_code == 200


async def test_the_second_of_two_people_is_told(office: Office) -> None:
    """That the first was quicker, and that nothing was done twice."""
    stale = "stale: revision 11 was expected, it is 12; check the rollout and send it again"
    office.desk.answer = lambda command: answered(command, CommandStatus.REJECTED, stale)
    answer = await office.post(give("approve"), await office.form(give("approve")))
    assert answer.status_code == 409
    assert "was quicker. Nothing was done twice" in answer.text


async def test_what_is_not_known_is_said(office: Office) -> None:
    """On its way, or not known to be sent."""

    def late(command: Command) -> str:
        return "Kafka has the command"

    office.desk.answer = late
    fields = await office.form(give("approve"))
    waiting = await office.post(give("approve"), fields)
    assert (waiting.status_code, "not done yet" in waiting.text) == (202, True)
    office.desk.trouble = OperatingTrouble("Kafka did not confirm the command")
    away = await office.post(give("approve"), fields)
    assert away.status_code == 503
    assert "Kafka did not confirm the command" in away.text
    assert "It is not known whether this is carried out" in away.text
    assert "Nothing was sent" not in away.text


@pytest.mark.parametrize(
    ("changed", "headers", "status"),
    [
        ({}, {"sec-fetch-site": "cross-site"}, 403),
        ({}, {"origin": "https://evil.example"}, 403),
        ({"form": ""}, SAME, 403),
        ({"form": "0" * 64}, SAME, 403),
        ({"asked": ""}, SAME, 409),
        ({"asked": "pause/search-v3/start-1"}, SAME, 409),
        ({"revision": ""}, SAME, 400),
        ({"revision": "1" * 30}, SAME, 400),
        ({"id": "a b"}, SAME, 400),
        ({"reason": "x" * 1_001}, SAME, 400),
        ({"reason": "x" * 20_000}, SAME, 413),
    ],
)
async def test_a_form_that_is_not_ours_does_nothing(
    office: Office, changed: dict[str, str], headers: dict[str, str], status: int
) -> None:
    """Another site's, another session's, or a changed one."""
    fields = {**await office.form(give("approve")), **changed}
    answer = await office.post(give("approve"), fields, **headers)
    assert answer.status_code == status
    assert "Nothing was sent" in answer.text
    assert office.desk.commands == []


async def test_another_persons_form_does_nothing(office: Office) -> None:
    """Its token is bound to whom it was made for."""
    fields = await office.form(give("approve"), "eve")
    assert (await office.post(give("approve"), fields, "ada")).status_code == 403
    assert office.desk.commands == []


@pytest.mark.parametrize(
    ("name", "verb", "status"),
    [
        ("otto", "approve", 403),
        ("vera", "pause", 403),
        ("nobody", "pause", 403),
        ("", "pause", 401),
    ],
)
async def test_who_may_not_give_a_command_is_not_asked(
    office: Office, name: str, verb: str, status: int
) -> None:
    """Neither shown the form nor taken a made-up one from."""
    assert (await office.get(give(verb), name)).status_code == status
    fields = await office.form(give("pause"), "ada")
    headers: dict[str, Any] = {**SAME} | ({"x-forwarded-user": name} if name else {})
    answer = await office.client.post(give(verb), data=fields, headers=headers)
    assert answer.status_code == status
    assert office.desk.commands == []


@pytest.mark.parametrize("path", [give("explode"), give("start"), give("pause", "unknown")])
async def test_what_there_is_not_is_said(office: Office, path: str) -> None:
    """A command without a button, and a flag without a rollout."""
    assert (await office.get(path)).status_code == 404


async def test_names_of_people_are_hostile_too(tmp_path: Path) -> None:
    """A provider may let them choose theirs."""
    name = '<img src=x onerror="x">'
    text = f"grants: [{{role: admin, people: ['{name}']}}]"
    desk, proxy = NotedDesk(), {"addresses": ["127.0.0.1"]}
    world = await filled(
        PageWorld(admit=lambda board: admission(tmp_path, text, board, desk, proxy=proxy))
    )
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        headers = [(b"x-forwarded-user", name.encode())]
        for path in ("/ui/rollouts/search-v3", give("approve")):
            shown = (await client.get(path, headers=headers)).text
            assert "<img" not in shown
            assert "&lt;img" in shown
