"""What a service repeats of its secrets, and what anybody's words would do in its markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest

from controller.adapters.channels.hiding import hiding_of
from controller.adapters.channels.types import make_channels
from controller.adapters.http.hiding import HIDDEN
from controller.errors import ChannelUnavailable, MessageRefused
from controller.notifying.book import Purpose
from controller.settings import ChannelSettings
from tests.fault_server import Exchange
from tests.integration.test_channels import CLOCK, message, send
from tests.notification_services import (
    PASSWORD,
    PATH,
    SECRET,
    SERVICES,
    TOKEN,
    running,
    settings_of,
)

SECRETS = (
    TOKEN,
    *PATH.split("/"),
    "abc%2BDEF",
    "abc+DEF",
    SECRET,
    PASSWORD,
    "YWRhOnBhc3Mtd29yZC0wMTIz",
)


def made_for(kind: str, url: str) -> ChannelSettings:
    """Return settings of a channel that speaks to a test's server."""
    return ChannelSettings.model_validate(settings_of(kind, url))


@pytest.mark.parametrize("status", ["404 Not Found", "400 Bad Request", "403 Forbidden"])
@pytest.mark.parametrize("kind", SERVICES)
async def test_a_server_that_repeats_the_request_gives_no_secret_away(
    kind: str, status: str
) -> None:
    """As Express does: `Cannot POST /services/...`. The words go into logs and onto the page."""
    service = SERVICES[kind]()

    async def repeat(exchange: Exchange) -> bool:
        request = exchange.request
        credentials = request.headers.get("authorization", "")
        words = f"{credentials} Cannot POST {request.line.split()[1]} {request.body.decode()}"
        await exchange.answer(words, status=status)
        return True

    service.trouble = repeat
    async with running(service):
        one = make_channels({"it": made_for(kind, service.url)}, CLOCK)[0]
        with pytest.raises((ChannelUnavailable, MessageRefused)) as caught:
            await send(one, message())
        await one.close()
    assert str(caught.value).startswith("127.0.0.1 answered")
    assert [secret for secret in SECRETS if secret in str(caught.value)] == []


def test_a_secret_is_hidden_before_words_are_cut_and_as_it_may_be_written() -> None:
    """Half of a token is too much of it; an address may be repeated decoded."""
    settings = made_for("teams", "http://teams.example.com")
    hide = hiding_of(settings).hide
    assert settings.url is not None
    assert hide(settings.url.get_secret_value()) == HIDDEN
    assert hide("sig: abc+DEF0123456789, abc%2BDEF0123456789") == f"sig: {HIDDEN}, {HIDDEN}"
    assert hide("Too Many Requests") == "Too Many Requests"
    slack = made_for("slack_webhook", "http://slack.example.com")
    assert PATH[-24:] not in hiding_of(slack).hide(quote(f"/proxy/services/{PATH}"))


@pytest.mark.parametrize("kind", ["discord", "teams"])
async def test_a_link_hidden_behind_words_is_shown_as_it_is(kind: str) -> None:
    """A flag's owner or a reason may be anybody's text, and a channel is trusted."""
    link = "[rolled back](https://evil.example.com) <@1> **now** a_b_c"
    service = SERVICES[kind]()
    async with running(service):
        one = make_channels({"it": made_for(kind, service.url)}, CLOCK)[0]
        told: dict[str, Any] = {"summary": link, "cause": link, "owner": link}
        await send(one, message(purpose=Purpose.NEWS, **told))
        await one.send_group([message(number, **told) for number in (1, 2)])
        await one.close()
    texts = list(strings_of(service.shown))
    shown = [one for one in texts if "evil" in one]
    assert len(shown) >= 4
    for text in shown:
        assert "\\[rolled back\\]" in text
        assert "\\*\\*now" in text


@pytest.mark.parametrize("length", range(1_018, 1_030))
async def test_no_half_of_an_escape_ends_what_discord_cuts(length: int) -> None:
    """It would be taken for the escape of whatever Discord puts behind it."""
    service = SERVICES["discord"]()
    async with running(service):
        one = make_channels({"it": made_for("discord", service.url)}, CLOCK)[0]
        await send(one, message(owner="x" + "*" * length))
        await one.close()
    (owner,) = [one["value"] for one in service.shown[0]["fields"] if one["name"] == "Owner"]
    assert owner.count("\\") == owner.count("*")


def strings_of(part: Any) -> Any:
    """Yield every text in a document."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from strings_of(value)
    elif isinstance(part, list):
        for value in part:
            yield from strings_of(value)
