"""The form that checks and simulates a plan: bounded, and off the loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from controller.reporting.tried_plan import TrialAnswer, TrialOrder
from controller.settings.flags import FlagsSettings
from controller.web.inventory import FlagSource
from controller.web.page.files import Files
from controller.web.page.plans import LONGEST_FORM, LONGEST_PLAN, PlanScreen
from controller.web.page.rendering import Renderer
from controller.web.page.trials import NotTried, PlanTrials
from tests.builders import make_rollout
from tests.pages import PageWorld

NOW = datetime(2026, 11, 23, 9, 0, 7, tzinfo=UTC)
FORM = {"content-type": "application/x-www-form-urlencoded"}
GOOD = """\
name: checkout-canary
flag: new-checkout
owner: payments
variants: {treatment: "on", control: "off"}
stages:
  - {percent: 1%, bake: 10m, min_sample: 500}
  - {percent: 50%, bake: 30m, min_sample: 2000}
  - {percent: 100%, bake: 30m, min_sample: 2000}
guardrails:
  - {metric: error_rate, limit: 5%}
"""


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    """A browser of a replica without rollouts."""
    world = PageWorld(lambda: NOW)
    world.show()
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def post(browser: httpx.AsyncClient, text: str, **headers: str) -> httpx.Response:
    """Send a plan as a form does."""
    body = urlencode({"plan": text.replace("\n", "\r\n")})
    return await browser.post("/ui/plan", content=body, headers={**FORM, **headers})


async def test_findings_are_shown_at_their_lines(browser: httpx.AsyncClient) -> None:
    """Each with how to fix it; what was pasted stays in the form."""
    answer = await post(browser, "flag: new-checkout\nstages: many\nsurprise: 1\n")
    assert answer.status_code == 200
    assert "It cannot be started:" in answer.text
    assert 'href="#line-2"' in answer.text
    assert 'id="line-2" class="marked"' in answer.text
    assert "surprise" in answer.text
    assert "rolloutctl start" not in answer.text


async def test_a_plan_of_the_package_can_be_started(browser: httpx.AsyncClient) -> None:
    """Then the command to start it is shown."""
    answer = await post(browser, GOOD)
    assert "rolloutctl start plan.yaml" in answer.text, answer.text


async def test_what_a_start_would_be_told_is_found_here() -> None:
    """By the daemon's own rules, and beside the flags that it has."""
    refusing = FlagsSettings.model_validate(
        {
            "name_pattern": "pay-[a-z]+",
            "most_active": 1,
            "at_start": {"name": "refuse", "too_many": "warn"},
        }
    )
    world = PageWorld(lambda: NOW, flag_source=FlagSource(refusing))
    world.show(make_rollout(flag_key="old"))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await post(client, GOOD)
    assert "It cannot be started: 1 error, 1 warning." in answer.text
    assert "the flag key new-checkout does not fit pay-[a-z]+" in answer.text
    assert "active flags, 1 is allowed" in answer.text
    assert 'id="line-2" class="marked"' in answer.text
    assert "rolloutctl start" not in answer.text


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\x00", "]]]", "{", "&a [*a]", "a: &a [x]\nb: *a", "😀" * 100, "<script>" * 50],
)
async def test_anything_may_be_pasted(browser: httpx.AsyncClient, text: str) -> None:
    """It is explained, and never run or repeated as markup."""
    answer = await post(browser, text)
    assert answer.status_code == 200
    assert "<script>" not in answer.text.replace("<script src", "")
    assert "rolloutctl start" not in answer.text


async def test_what_is_read_is_bounded(browser: httpx.AsyncClient) -> None:
    """A large plan is for `rolloutctl`; a larger body is not read at all."""
    assert "characters; here" in (await post(browser, "x" * (LONGEST_PLAN + 1))).text
    huge = await browser.post("/ui/plan", content=b"p" * (LONGEST_FORM + 1), headers=FORM)
    assert huge.status_code == 413
    many = await browser.post("/ui/plan", content=b"&".join([b"a=1"] * 100), headers=FORM)
    assert many.status_code == 400


async def test_another_site_cannot_send_the_form(browser: httpx.AsyncClient) -> None:
    """It could only make us work, and that is refused."""
    answer = await post(browser, GOOD, **{"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403
    assert (await post(browser, GOOD, **{"sec-fetch-site": "same-origin"})).status_code == 200


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let simulations take longer than on a page: other tests come before their processes."""
    trials = partial(PlanTrials, deadline_seconds=400.0)
    monkeypatch.setattr("controller.web.page.plans.PlanTrials", trials)


async def simulated(world: PageWorld, text: str, **typed: str) -> httpx.Response:
    """Send a plan with the button that simulates it."""
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post("/ui/plan", data={"plan": text, "do": "simulate", **typed})


@pytest.mark.usefixtures("patience")
async def test_a_plan_is_simulated_in_place() -> None:
    """The page says what virtual rollouts came to, and keeps what was typed."""
    answer = await simulated(PageWorld(), GOOD, traffic="5000/s", effect="errors=x9")
    assert answer.status_code == 200
    for words in ("50 virtual rollouts each", "with errors=x9", "harm found", "undecided"):
        assert words in answer.text
    assert 'value="5000/s"' in answer.text
    assert "assumed, because not stated" in answer.text


@pytest.mark.usefixtures("patience")
async def test_what_was_typed_is_refused_in_the_form() -> None:
    """It stays there, and is no markup; lint's findings are beside it."""
    answer = await simulated(PageWorld(), GOOD, traffic='"><script>')
    assert answer.status_code == 200
    assert "Not simulated" in answer.text
    assert "is not a rate: write it as in 50/s" in answer.text
    assert "<script>" not in answer.text.replace("<script src", "")
    faulty = await simulated(PageWorld(), "flag: x\nstages: many\n", traffic="50/s")
    assert "It cannot be started" in faulty.text
    assert "Simulated" not in faulty.text


class Refusing(PlanTrials):
    """Trials that are taken up."""

    async def tried(self, order: TrialOrder) -> TrialAnswer:
        """Refuse every plan."""
        raise NotTried(429, "Another plan is being simulated")


async def test_a_simulation_that_cannot_be_had_keeps_the_plan() -> None:
    """The status is for programs; a person reads why, and sends it again."""
    screen = PlanScreen(Renderer(Files(), "test"), lambda: NOW, lambda: lambda _: (), Refusing())
    outcome = await screen.checked(urlencode({"plan": GOOD, "do": "simulate"}).encode())
    page = "".join(one.html for one in outcome.sections)
    assert outcome.status == 429
    assert "Another plan is being simulated" in page
    assert "checkout-canary" in page


def test_no_file_is_opened() -> None:
    """The screen's source uses no path and opens nothing."""
    source = (Path(__file__).parents[4] / "controller/web/page/plans.py").read_text()
    assert "open(" not in source
    assert "Path" not in source
