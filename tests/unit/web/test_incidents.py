"""Taking incidents over HTTP: by the API with a token, and by the page's form."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from controller.web import incidents as incidents_module
from controller.web.page.incident_screen import seen_value
from schemas.terms import Severity
from tests.admission import NotedDesk, admission, bearer, token_line
from tests.builders import T0
from tests.incidents import NotedIncidents
from tests.pages import PageWorld, rollout_in

ACCESS: Final = (
    "tokens:\n"
    + token_line("chat")
    + token_line("viewer")
    + token_line("search")
    + "grants:\n"
    + "  - {role: operator, tokens: [chat], people: [ada@example.org]}\n"
    + "  - {role: viewer, tokens: [viewer], people: [vic@example.org]}\n"
    + "  - {role: operator, tokens: [search], flags: ['search-*']}\n"
)
PROXY: Final = {"addresses": ["127.0.0.1"], "user_header": "x-forwarded-user"}
KEY: Final = "checkout/r1/rolled_back"
ACK: Final = "/api/v1/notifications/acknowledge"
TAKE: Final = "/ui/incidents/take"


class Office:
    """A replica with one open incident, and who may take it."""

    def __init__(self, directory: Path) -> None:
        self.incidents = NotedIncidents(now=lambda: T0 + timedelta(minutes=5))
        self.incidents.tell("checkout", T0)
        world = PageWorld(
            now=lambda: T0,
            admit=lambda board: admission(
                directory, ACCESS, board, NotedDesk(), proxy=PROXY, now=lambda: T0
            ),
            notifications=self.incidents,
        )
        world.show(rollout_in(lambda _: _phase(), "checkout", 1, T0))
        self.world = world
        transport = httpx.ASGITransport(app=world.app, client=("127.0.0.1", 1))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def acknowledge(
        self,
        token: str = "chat",  # noqa: S107
        **document: Any,
    ) -> httpx.Response:
        """Return the API's answer."""
        return await self.client.post(ACK, json=document, headers=bearer(token))

    async def screen(self, who: str = "ada@example.org") -> str:
        """Return the page as somebody sees it."""
        headers = {"x-forwarded-user": who, "accept": "text/html"}
        return (await self.client.get("/ui/incidents", headers=headers)).text

    async def press(self, who: str = "ada@example.org", **form: str) -> httpx.Response:
        """Return the answer to a form that somebody's browser sends from our own page."""
        headers = {
            "x-forwarded-user": who,
            "accept": "text/html",
            "sec-fetch-site": form.pop("site", "same-origin"),
        }
        return await self.client.post(TAKE, data=form, headers=headers)

    async def form(self, who: str = "ada@example.org") -> dict[str, str]:
        """Return what the button of the only incident sends."""
        page = await self.screen(who)
        token = page.partition('name="form" value="')[2].partition('"')[0]
        view = await self.incidents.standing()
        return {"form": token, "incident": seen_value(view.incidents[0])}

    @property
    def taken_by(self) -> list[str]:
        """Who has taken the open incidents."""
        return [one.taken_by for one in self.incidents.book.incidents.values()]


def _phase() -> Any:
    from controller.core.rollout import RolledBack

    return RolledBack(T0, "error_rate 4 %")


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """One."""
    return Office(tmp_path)


# --- the API ---


async def test_a_machine_takes_an_incident_by_its_key(office: Office) -> None:
    """In its name, or that of whom it speaks for; the answer has the incident as it is then."""
    answer = await office.acknowledge(key=KEY, by="ada")
    assert answer.status_code == 200
    (one,) = answer.json()["incidents"]
    assert (one["key"], one["taken_by"]) == (KEY, "ada (token:chat)")
    assert office.taken_by == ["ada (token:chat)"]


async def test_all_incidents_of_a_flag_are_taken_at_once(office: Office) -> None:
    """Those that somebody has already stay theirs."""
    office.incidents.planner.acknowledge(KEY, "bob", T0)
    office.incidents.tell("checkout", T0, kind="unwatched")
    office.incidents.tell("search", T0)
    answer = await office.acknowledge(flag="checkout")
    assert [one["kind"] for one in answer.json()["incidents"]] == ["unwatched"]
    assert office.taken_by == ["bob", "token:chat", ""]


REFUSALS: Final[dict[str, tuple[str, dict[str, Any], int, str]]] = {
    "nobody": ("", {"key": KEY}, 401, "in somebody's name"),
    "a wrong token": ("strange", {"key": KEY}, 401, "unknown or has expired"),
    "a viewer": ("viewer", {"key": KEY}, 403, "needs the role operator"),
    "of other flags": ("search", {"key": KEY}, 403, "has no role for checkout"),
    "no such incident": ("chat", {"key": "x"}, 404, "there is no open incident x"),
    "no such flag": ("chat", {"flag": "x"}, 404, "of the flag x"),
    "neither": ("chat", {}, 400, "name either key or flag"),
    "both": ("chat", {"key": KEY, "flag": "checkout"}, 400, "name either key or flag"),
    "another field": ("chat", {"key": KEY, "who": "x"}, 400, "who"),
    "another type": ("chat", {"key": 5}, 400, "key"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_is_refused_takes_nothing(office: Office, case: str) -> None:
    """With why, and what to do."""
    token, document, status, why = REFUSALS[case]
    headers = bearer(token) if token else {}
    answer = await office.client.post(ACK, json=document, headers=headers)
    assert (answer.status_code, why in answer.json()["error"]) == (status, True), answer.text
    assert office.taken_by == [""]
    assert office.incidents.asked == []


async def test_the_second_is_told_who_was_first(office: Office) -> None:
    """Nothing is sent."""
    await office.acknowledge(key=KEY, by="ada")
    answer = await office.acknowledge(key=KEY, by="bob")
    assert answer.status_code == 409
    assert answer.json()["error"].startswith("ada (token:chat) has taken it at ")


async def test_a_body_that_is_no_json_is_refused(office: Office) -> None:
    """As what it is."""
    headers = {**bearer("chat"), "content-type": "application/json"}
    for body, status in ((b"{", 400), (b"\xff", 400), (b"[" * 10_000, 400), (b"x" * 20_000, 413)):
        answer = await office.client.post(ACK, content=body, headers=headers)
        assert answer.status_code == status, answer.text
    assert (await office.client.post(ACK, content=b"{}", headers=bearer("chat"))).status_code == 415


async def test_without_kafka_or_redis_it_says_so(office: Office) -> None:
    """Nothing is claimed that is not known."""
    office.incidents.is_kafka_away = True
    answer = await office.acknowledge(key=KEY)
    assert (answer.status_code, "not known to be taken" in answer.text) == (503, True)
    office.incidents.is_redis_away = True
    answer = await office.acknowledge(key=KEY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_what_is_not_seen_to_be_taken_is_not_called_taken(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on its way, as long as no replica has read it."""
    monkeypatch.setattr(incidents_module, "WAIT_SECONDS", 0.2)
    office.incidents.is_deaf = True
    answer = await office.acknowledge(key=KEY)
    assert answer.status_code == 202
    assert answer.json()["keys"] == [KEY]
    pressed = await office.press(**await office.form())
    assert (pressed.status_code, "Not taken yet" in pressed.text) == (202, True)


async def test_too_many_requests_of_one_machine_are_refused(office: Office) -> None:
    """And cost another one nothing."""
    answers = [(await office.acknowledge(key="x")).status_code for _ in range(30)]
    assert set(answers) == {404, 429}
    assert (await office.acknowledge("viewer", key="x")).status_code == 404


# --- the page ---


async def test_a_person_takes_it_by_the_button(office: Office) -> None:
    """And is led back to the page, which shows it."""
    answer = await office.press(**await office.form())
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/incidents")
    assert office.taken_by == ["ada@example.org"]
    page = await office.screen()
    assert "Somebody looks after every open incident." in page
    assert "Taken by" in page


FORMS: Final[dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str, int, str]]] = {
    "no token": (lambda form: {**form, "form": ""}, "ada@example.org", 403, "earlier session"),
    "another site": (lambda form: {**form, "site": "cross-site"}, "ada@example.org", 403, "site"),
    "nothing named": (lambda form: {**form, "incident": ""}, "ada@example.org", 400, "no incident"),
    "no time": (lambda form: {**form, "incident": f"x {KEY}"}, "ada@example.org", 400, "no inc"),
    "another one": (
        lambda form: {**form, "incident": f"{(T0 - timedelta(days=1)).isoformat()} {KEY}"},
        "ada@example.org",
        409,
        "may have got worse",
    ),
    "somebody else's form": (lambda form: form, "vic@example.org", 403, "earlier session"),
}


@pytest.mark.parametrize("case", FORMS)
async def test_a_form_that_is_not_of_this_page_and_person_takes_nothing(
    office: Office, case: str
) -> None:
    """Forged, of another site, of another incident, of another person."""
    change, who, status, why = FORMS[case]
    answer = await office.press(who, **change(await office.form()))
    assert (answer.status_code, why in answer.text) == (status, True), answer.text
    assert office.taken_by == [""]


async def test_a_viewer_cannot_take_it_with_a_form_of_their_own(office: Office) -> None:
    """The page has no button for them, and the address refuses them all the same."""
    form = await office.form("vic@example.org")
    assert 'name="incident"' not in await office.screen("vic@example.org")
    answer = await office.press("vic@example.org", **form)
    assert (answer.status_code, "needs the role operator" in answer.text) == (403, True)
    assert office.taken_by == [""]


async def test_what_it_shows_is_escaped(office: Office) -> None:
    """Summaries, keys and names are anybody's text."""
    hostile = '"><script>alert(1)</script>'
    office.incidents.tell("checkout", T0, kind="paused", key=hostile, summary=hostile)
    office.incidents.planner.acknowledge(hostile, hostile, T0)
    page = await office.screen()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


async def test_a_storm_of_incidents_is_a_page_of_bounded_size(office: Office) -> None:
    """The most urgent first; it says how many more there are."""
    for number in range(300):
        office.incidents.tell(f"flag-{number}", T0, severity=Severity.WARNING, summary="x" * 900)
    page = await office.screen()
    assert len(page) < 100_000
    assert "261 more" in page
    assert page.index("checkout") < page.index("flag-")


async def test_while_redis_is_away_nothing_is_called_quiet(office: Office) -> None:
    """The screen says that it is not known, and the others show what they know."""
    office.incidents.is_redis_away = True
    assert "not known now which incidents are open" in await office.screen()
    headers = {"x-forwarded-user": "ada@example.org", "accept": "text/html"}
    for path in ("/", "/ui/rollouts/checkout"):
        answer = await office.client.get(path, headers=headers)
        assert (answer.status_code, "checkout" in answer.text) == (200, True)


async def test_many_pages_read_it_once(office: Office) -> None:
    """What is known is shared by all who look."""
    for _ in range(20):
        await office.screen()
    assert office.incidents.reads == 1


async def test_the_list_of_rollouts_does_not_say_that_nothing_waits(tmp_path: Path) -> None:
    """Where an incident does, also one of a rollout that needs nobody."""
    office = Office(tmp_path)
    headers = {"x-forwarded-user": "ada@example.org", "accept": "text/html"}
    page = (await office.client.get("/?q=nothing-fits", headers=headers)).text
    assert "1 incident waits for somebody to take it" in " ".join(page.split())
