"""Every channel against a server that refuses what the real service refuses, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters.channels.types import make_channels
from controller.clock import SystemClock
from controller.errors import ChannelUnavailable, ConfigInvalid, MessageRefused
from controller.notifying.book import Delivery, Purpose, Thread
from controller.notifying.sending import Channel
from controller.notifying.words import Message, plain_message
from controller.settings import ChannelSettings
from schemas.terms import Severity
from tests.builders import T0
from tests.notification_services import (
    SERVICES,
    TOKEN,
    AlertmanagerApi,
    PagerDuty,
    Receiver,
    Slack,
    failing,
    hanging,
    running,
    settings_of,
    too_many,
)
from tests.prometheus import alertmanager
from tests.unit.notifying.news_of import news

CLOCK = SystemClock()


def channel(kind: str, url: str) -> Channel:
    """Return a channel to a test's server."""
    made = ChannelSettings.model_validate(settings_of(kind, url))
    return make_channels({"it": made}, CLOCK)[0]


def message(number: int = 1, purpose: Purpose = Purpose.NEWS, **told: Any) -> Message:
    """Return a message about a flag that was rolled back."""
    delivery = Delivery(number, "it", news(number, **told), purpose, T0)
    return plain_message(delivery, "production", "https://rollouts.example.com")


async def send(one: Channel, made: Message, thread: Thread | None = None) -> Thread | None:
    """Send one message; return its conversation."""
    kept: list[Thread] = []
    await one.send(made, thread, kept.append)
    return kept[-1] if kept else thread


TEXTS = st.text(max_size=4_000)


@pytest.mark.parametrize("kind", SERVICES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    summary=TEXTS,
    action=TEXTS,
    cause=TEXTS,
    owner=st.text(max_size=300),
    key=st.text(min_size=1, max_size=400),
    severity=st.sampled_from(list(Severity)),
    purpose=st.sampled_from(list(Purpose)),
)
def test_whatever_a_message_says_its_channel_takes_it(
    kind: str, purpose: Purpose, **told: Any
) -> None:
    """Of any length, in any script, with the marks of any markup."""

    async def run() -> None:
        service = SERVICES[kind]()
        async with running(service):
            one = channel(kind, service.url)
            await send(one, message(purpose=purpose, **told))
            await one.send_group(
                [message(number, **told) for number in range(one.limits.most_grouped)]
            )
            await one.close()
        assert service.refused == []
        assert service.shown

    asyncio.run(run())


@pytest.mark.parametrize("kind", SERVICES)
async def test_what_an_answer_means(kind: str) -> None:
    """Later, with the wait that was asked for; or never."""
    service = SERVICES[kind]()
    async with running(service):
        one = channel(kind, service.url)
        service.trouble = too_many(1, "7")
        with pytest.raises(ChannelUnavailable) as trouble:
            await send(one, message())
        assert trouble.value.retry_after_seconds == 7
        service.trouble = failing(1)
        with pytest.raises(ChannelUnavailable, match="answered 503: broken"):
            await send(one, message())
        service.trouble = failing(1, "403 Forbidden")
        with pytest.raises(ChannelUnavailable, match="answered 403: broken; is its token"):
            await send(one, message())
        service.trouble = failing(1, "400 Bad Request")
        with pytest.raises(MessageRefused):
            await send(one, message())
        service.trouble = None
        await send(one, message())
        await one.close()
    assert service.shown
    with pytest.raises(ChannelUnavailable) as gone:
        await send(one, message())
    await one.close()
    assert "/services/" not in str(gone.value)
    assert "sig=" not in str(gone.value)


async def test_slack_shows_one_message_per_rollout_and_replies_under_it() -> None:
    """The first one says how the rollout stands now; what is critical is seen by the channel."""
    service = Slack()
    async with running(service):
        one = channel("slack", service.url)
        begun = {"kind": "started", "severity": Severity.INFO, "phase": "baking", "percent": 1.0}
        thread = await send(one, message(1, Purpose.NOTE, summary="checkout started", **begun))
        await send(one, message(2), thread)
        await one.close()
    methods = [made["method"] for made in service.shown]
    assert methods == ["chat.postMessage", "chat.postMessage", "chat.update", "chat.postMessage"]
    parent = service.shown[0]["ts"]
    assert len(service.replies()[parent]) == 2
    assert "0 %, rolled back" in service.shown[2]["text"]
    assert [made.get("reply_broadcast") for made in service.shown if "thread_ts" in made] == [
        False,
        True,
    ]


async def test_slack_begins_anew_where_somebody_deleted_the_message() -> None:
    """And tells a wrong token and a wrong channel from a wrong message."""
    service = Slack()
    async with running(service):
        one = channel("slack", service.url)
        thread = await send(one, message(), Thread("1.0", T0, "C1"))
        assert thread is not None
        assert thread.handle == service.shown[0]["ts"]
        await one.close()
        wrong = ChannelSettings.model_validate({**settings_of("slack", service.url), "place": "C9"})
        (other,) = make_channels({"it": wrong}, CLOCK)
        with pytest.raises(
            ChannelUnavailable, match=r"chat.postMessage: channel_not_found; `place`"
        ):
            await send(other, message())
        await other.close()


async def test_slack_mentions_nobody_whom_a_text_names() -> None:
    """A reason may be anybody's text."""
    service = Slack()
    async with running(service):
        one = channel("slack", service.url)
        await send(one, message(summary="<!channel> & <@U1>", action="<https://x|y>"))
        await one.close()
    text = str(service.shown)
    assert "&lt;!channel&gt; &amp; &lt;@U1&gt;" in text
    assert "<!channel>" not in text


async def test_pagerduty_triggers_once_and_resolves_by_the_same_key() -> None:
    """News that is no incident is a change event; a long key is shortened to the same one."""
    service = PagerDuty()
    key = "checkout/" + "r" * 400
    async with running(service):
        one = channel("pagerduty", service.url)
        await send(one, message(1, key=key))
        await send(one, message(2, Purpose.REPEAT, key=key))
        assert list(service.incidents.values()) == [2]
        await send(one, message(3, Purpose.TAKEN, key=key))
        assert service.acknowledged == list(service.incidents)
        await send(one, message(3, Purpose.NOTE, key="other"))
        await send(one, message(4, Purpose.OVER, key=key))
        await one.close()
    assert service.incidents == {}
    assert len(service.resolved) == 1
    assert [made["path"] for made in service.shown].count("/v2/change/enqueue") == 1


async def test_a_wrong_integration_key_refuses_no_message() -> None:
    """PagerDuty answers 400, as to a bad message; what waits is sent once the key is right."""
    service = PagerDuty()
    async with running(service):
        wrong = {**settings_of("pagerduty", service.url), "token": "R0123"}
        (one,) = make_channels({"it": ChannelSettings.model_validate(wrong)}, CLOCK)
        for purpose in (Purpose.NEWS, Purpose.NOTE, Purpose.OVER):
            with pytest.raises(ChannelUnavailable, match="token is no integration key"):
                await send(one, message(1, purpose))
        await one.close()


async def test_a_member_that_hangs_keeps_no_alert_from_the_others() -> None:
    """One that refuses, neither. Where none takes it, it is sent again, or known to be refused."""
    members = [AlertmanagerApi() for _ in range(3)]
    async with running(*members):
        made = {"type": "alertmanager", "timeout_seconds": 5}
        made["addresses"] = [member.url for member in members]
        (one,) = make_channels({"it": ChannelSettings.model_validate(made)}, CLOCK)
        members[0].trouble = hanging(1)
        members[1].trouble = failing(2, "400 Bad Request")
        async with asyncio.timeout(one.limits.seconds):  # as its sender has it
            await send(one, message())
        assert [len(member.shown) for member in members] == [0, 0, 1]
        members[0].trouble = members[2].trouble = failing(2)
        with pytest.raises(MessageRefused):
            await send(one, message())
        for member in members:
            member.trouble = failing(1)
        with pytest.raises(ChannelUnavailable):
            await send(one, message())
        await one.close()


async def test_a_signed_webhook_that_comes_twice_is_one() -> None:
    """Its id stays when it is sent again, and differs between messages."""
    service = Receiver()
    async with running(service):
        one = channel("webhook", service.url)
        for made in (message(1), message(1), message(2)):
            await send(one, made)
        await one.close()
    assert len(service.shown) == 2
    assert service.shown[0]["data"]["key"] == "checkout/r1/rolled_back"


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # its own import
async def test_apprise_sends_by_any_of_its_services() -> None:
    """Through a thread of its own; a service that fails is told as such."""
    service = Receiver()

    async def take(exchange: Any) -> bool:
        service.shown.append({"body": exchange.request.body.decode()})
        await exchange.answer("{}")
        return True

    service.trouble = take
    async with running(service):
        made = ChannelSettings.model_validate(
            {"type": "apprise", "url": service.url.replace("http://", "json://") + "/x"}
        )
        (one,) = make_channels({"it": made}, CLOCK)
        await send(one, message())
        service.trouble = failing(5)
        with pytest.raises(ChannelUnavailable, match="does not say why"):
            await send(one, message())
        await one.close()
    assert "too many errors" in service.shown[0]["body"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"type": "slack", "token": TOKEN}, "a channel of type slack needs place"),
        ({"type": "teams", "url": "x"}, "is no address"),
        ({"type": "teams", "url": "ftp://x/y"}, "url is no HTTP address"),
        ({"type": "teams", "url": "https://x", "token": TOKEN}, "type teams cannot use token"),
        (
            {
                "type": "email",
                "server": "mail.example.com",
                "sender": "a@b.c",
                "recipients": ["a@b.c"],
                "tls": "off",
                "username": "x",
                "password": "y",
            },
            "would send the password in plain text",
        ),
        ({"type": "pager", "token": TOKEN}, "type"),
        (
            {"type": "pagerduty", "token": " \n"},
            "token is empty, or the file that token_file names",
        ),
        ({"type": "teams", "url": ""}, "url is empty, or the file that url_file names"),
        (
            {"type": "email", "server": "m", "sender": "Ada", "recipients": ["a@b.c"]},
            "is no mail address: write it as in ada@example.com",
        ),
    ],
)
def test_a_channel_that_cannot_work_is_refused(values: dict[str, Any], fault: str) -> None:
    """When the settings are read, with what is missing."""
    with pytest.raises(ValueError, match=fault):
        ChannelSettings.model_validate(values)


def test_a_secret_that_cannot_sign_is_refused() -> None:
    """With the name of the channel."""
    made = ChannelSettings.model_validate(
        {"type": "webhook", "url": "https://example.com/x", "secret": "short"}
    )
    with pytest.raises(ConfigInvalid, match=r"notifications.channels.mine: a signing secret is"):
        make_channels({"mine": made}, CLOCK)


@pytest.mark.parametrize("kind", ["teams", "email"])
def test_a_missing_file_of_authorities_is_named(kind: str, tmp_path: Path) -> None:
    """With its channel and its path."""
    made: dict[str, Any] = {"type": kind, "ca_file": tmp_path / "none.pem"}
    if kind == "teams":
        made |= {"url": "https://example.com/x"}
    else:
        made |= {"server": "m", "sender": "a@b.c", "recipients": ["a@b.c"]}
    missing = ChannelSettings.model_validate(made)
    with pytest.raises(ConfigInvalid, match=rf"channels.it: ca_file {tmp_path}/none.pem cannot be"):
        make_channels({"it": missing}, CLOCK)


@pytest.mark.rare
async def test_a_real_alertmanager_shows_what_is_open(tmp_path: Path) -> None:
    """From the first post to the end, once each, with the labels that routes go by."""
    with alertmanager(tmp_path) as url:
        made = ChannelSettings.model_validate({"type": "alertmanager", "addresses": [url]})
        (one,) = make_channels({"it": made}, CLOCK)
        now = CLOCK.now()
        opened = message(1, at=now)
        await one.send_group([opened, message(2, at=now, key="other", flag="search")])
        await send(one, message(3, Purpose.REFRESH, at=now))
        async with httpx.AsyncClient() as client:
            found = (await client.get(f"{url}/api/v2/alerts")).json()
            assert sorted(alert["labels"]["flag"] for alert in found) == ["checkout", "search"]
            assert found[0]["labels"]["alertname"] == "RolloutRolledBack"
            await send(one, message(4, Purpose.OVER, at=now))
            open_ones = (await client.get(f"{url}/api/v2/alerts?active=true")).json()
            assert [alert["labels"]["flag"] for alert in open_ones] == ["search"]
        await one.close()
