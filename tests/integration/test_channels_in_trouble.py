"""Every channel through every trouble: each alert arrives, in order, in its conversation.

The servers refuse what the real ones refuse, the notifier and its Redis are the real ones.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import pytest

from controller.adapters.redis.connection import RedisConnection
from tests.integration.test_notifier import World, until
from tests.mail_server import MailServer, serving
from tests.notification_services import (
    SERVICES,
    AlertmanagerApi,
    PagerDuty,
    Service,
    Slack,
    failing,
    hanging,
    lossy,
    running,
    sometimes,
    too_many,
)
from tests.patience import SLACK

FLAGS = ("flag-a", "flag-b", "flag-c")
#: News, and fewer than are put together.
ALERTS = [(flag, number) for number in (1, 2, 3) for flag in FLAGS]


class Everywhere:
    """A service of every type, each with a channel to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.services: Mapping[str, Service] = {kind: make() for kind, make in SERVICES.items()}
        self.mail = MailServer()

    @contextlib.asynccontextmanager
    async def running(self, **values: Any) -> AsyncIterator[None]:
        """Run them, and set a channel to each; `values` are settings of every channel."""
        async with running(*self.services.values()), serving(self.mail):
            for kind, service in self.services.items():
                self.world.channel(kind, kind, service, **values)
            self.world.mail_channel("email", self.mail, **values)
            yield

    def texts(self) -> Mapping[str, list[str]]:
        """Return what each has shown, in order."""
        found = {
            kind: [json.dumps(one, ensure_ascii=False) for one in service.shown]
            for kind, service in self.services.items()
        }
        found["email"] = [f"{one['Subject']}\n{one.get_content()}" for one in self.mail.mails]
        return found

    def refused(self) -> Mapping[str, list[str]]:
        """Return what any has refused."""
        return {kind: one.refused for kind, one in self.services.items() if one.refused}


def alerts_in(texts: list[str]) -> list[tuple[str, int]]:
    """Return the alerts that were shown, each where it was seen first."""
    found = re.findall(r"(flag-\w+) number (\d+)\b", "\n".join(texts))
    return list(dict.fromkeys((flag, int(number)) for flag, number in found))


def slowed(all_: Everywhere) -> None:
    """Ask for patience."""
    for service in all_.services.values():
        service.trouble = too_many(2)
    all_.mail.refusals = ["451 too many mails", "452 later"]


def broken(all_: Everywhere) -> None:
    """Fail."""
    for service in all_.services.values():
        service.trouble = failing(2, "502 Bad Gateway")
    all_.mail.refusals = ["421 shutting down", "451 local error"]


def hung(all_: Everywhere) -> None:
    """Take the request, and say nothing."""
    for service in all_.services.values():
        service.trouble = hanging(1)
    all_.mail.hangs = 1


def losing_requests(all_: Everywhere) -> None:
    """Lose 30 % of what is sent."""
    for number, service in enumerate(all_.services.values()):
        service.trouble = lossy(0.3, seed=number)
    all_.mail.is_request_lost = sometimes(0.3, seed=8)


def losing_answers(all_: Everywhere) -> None:
    """Take everything, and lose 30 % of the answers: such a message is sent again."""
    for number, service in enumerate(all_.services.values()):
        service.is_answer_lost = sometimes(0.3, seed=number)
    all_.mail.is_answer_lost = sometimes(0.3, seed=8)


@pytest.fixture
async def everywhere(store: RedisConnection) -> Everywhere:
    """Every service, not running yet."""
    return Everywhere(World(store))


@pytest.mark.parametrize(
    "trouble", [slowed, broken, hung, losing_requests, losing_answers], ids=lambda one: one.__name__
)
async def test_every_alert_arrives_on_every_channel(
    everywhere: Everywhere, trouble: Callable[[Everywhere], None]
) -> None:
    """Each by its number, those of a rollout in order; each rollout has one conversation."""
    for flag, number in ALERTS:
        everywhere.world.news.add(number, flag)
    async with everywhere.running(timeout_seconds=1.5):
        trouble(everywhere)
        async with everywhere.world.replica():
            with contextlib.suppress(TimeoutError):  # the comparison below says what lacks
                await until(partial(all_have_arrived, everywhere), 20 * SLACK)
        book = await everywhere.world.book()
    assert {kind: alerts_in(texts) for kind, texts in everywhere.texts().items()} == dict.fromkeys(
        everywhere.texts(), ALERTS
    )
    assert everywhere.refused() == {}
    assert book.dead == {}
    check_conversations(everywhere)


def all_have_arrived(everywhere: Everywhere) -> bool:
    """Return whether every channel has shown every alert."""
    return all(len(alerts_in(texts)) == len(ALERTS) for texts in everywhere.texts().values())


def check_conversations(everywhere: Everywhere) -> None:
    """Check that those who know conversations or keys have one for each rollout or incident."""
    slack = everywhere.services["slack"]
    assert isinstance(slack, Slack)
    threads = {alerts_in(texts)[0][0]: texts for texts in slack.replies().values()}
    assert len(threads) == len(slack.replies()) == len(FLAGS)
    for flag, texts in threads.items():
        assert alerts_in(texts) == [one for one in ALERTS if one[0] == flag]
    keys = {f"{flag}/{number}" for flag, number in ALERTS}
    pager, api = everywhere.services["pagerduty"], everywhere.services["alertmanager"]
    assert isinstance(pager, PagerDuty)
    assert pager.incidents.keys() == keys
    assert isinstance(api, AlertmanagerApi)
    assert {one["labels"]["incident"] for one in api.alerts.values()} == keys
    assert len(api.alerts) == len(everywhere.services["webhook"].shown) == len(ALERTS)
    mails = everywhere.mail.mails
    assert len({one["Message-ID"] for one in mails}) == len(ALERTS)
    assert len({one["References"] for one in mails}) == len(FLAGS)
