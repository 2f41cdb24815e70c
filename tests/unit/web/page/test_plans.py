"""The form that checks a plan: bounded, off the loop, and nothing but lint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from controller.web.page.plans import LONGEST_FORM, LONGEST_PLAN
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


def test_no_file_is_opened() -> None:
    """The screen's source uses no path and opens nothing."""
    source = (Path(__file__).parents[4] / "controller/web/page/plans.py").read_text()
    assert "open(" not in source
    assert "Path" not in source
