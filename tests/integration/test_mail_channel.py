"""The channel of mails against a real mail server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters.channels.types import make_channels
from controller.errors import ChannelUnavailable, MessageRefused, RecipientsMissed
from controller.notifying.book import Purpose
from controller.settings import ChannelSettings
from tests.brokers import free_port
from tests.integration.test_channels import CLOCK, TEXTS, message, send
from tests.mail_server import MailServer, serving


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(summary=TEXTS, action=TEXTS, owner=st.text(max_size=300), purpose=st.sampled_from(Purpose))
def test_whatever_a_message_says_it_is_a_mail(purpose: Purpose, **told: Any) -> None:
    """With the headers that it should have, and no others."""

    async def run() -> None:
        server = MailServer()
        async with serving(server):
            made = ChannelSettings.model_validate(mail_settings(server.port))
            (one,) = make_channels({"it": made}, CLOCK)
            await send(one, message(purpose=purpose, **told))
            await one.send_group([message(number, **told) for number in range(20)])
        expected = {"From", "To", "Subject", "Message-ID", "Auto-Submitted", "MIME-Version"}
        expected |= {"Content-Type", "Content-Transfer-Encoding", "References", "Importance"}
        assert len(server.mails) == 2
        assert all(set(mail) <= expected for mail in server.mails)

    asyncio.run(run())


class Inbox:
    """A mail server's handler: it keeps mails, or refuses them."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.answer = "250 OK"
        self.recipient = "250 OK"
        self.recipients: dict[str, str] = {}  # by address, where it is another answer

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
    ) -> str:
        """Take a recipient."""
        answer = self.recipients.get(address, self.recipient)
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        """Take a mail."""
        if self.answer.startswith("250"):
            self.mails.append(envelope)
        return self.answer


@pytest.mark.parametrize("refuses", ["data", "one", "all"])
async def test_a_password_that_a_server_repeats_is_hidden(refuses: str) -> None:
    """Whatever it refuses: its words go into logs and onto the page."""
    password, inbox = "pass-word-0123", Inbox()
    answer = f"554 not you, {password}"
    if refuses == "data":
        inbox.answer = answer
    else:
        addresses = ("ada@example.com", "bob@example.com")[: 1 if refuses == "one" else 2]
        inbox.recipients = dict.fromkeys(addresses, answer)
    server = Controller(
        inbox,
        hostname="127.0.0.1",
        port=free_port(),
        authenticator=lambda *_: AuthResult(success=True),
        auth_require_tls=False,
    )
    server.start()
    try:
        made = {**mail_settings(server.port), "username": "ada", "password": password}
        (one,) = make_channels({"it": ChannelSettings.model_validate(made)}, CLOCK)
        with pytest.raises((MessageRefused, RecipientsMissed)) as caught:
            await send(one, message())
    finally:
        server.stop()
    assert "not you, [hidden]" in str(caught.value)
    assert password not in str(caught.value)


async def test_mails_of_a_rollout_are_one_conversation() -> None:
    """By a real mail server; a repeat has the same id, so that the receiver drops it."""
    inbox = Inbox()
    server = Controller(inbox, hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        (one,) = make_channels(
            {"it": ChannelSettings.model_validate(mail_settings(server.port))}, CLOCK
        )
        for made in (
            message(1),
            message(1),
            message(2, summary="Ünïcödé\r\nBcc: x@example.com"),
        ):
            await send(one, made)
        await one.send_group([message(1), message(2)])
        inbox.answer = "554 too much like spam"
        with pytest.raises(MessageRefused, match="answered 554"):
            await send(one, message())
        inbox.answer = "451 try later"
        with pytest.raises(ChannelUnavailable, match="answered 451"):
            await send(one, message())
        inbox.recipient = "450 greylisted"
        with pytest.raises(ChannelUnavailable):
            await send(one, message())
        inbox.recipient = "550 no such user"
        with pytest.raises(MessageRefused):
            await send(one, message())
    finally:
        server.stop()
    with pytest.raises(ChannelUnavailable):
        await send(one, message())
    texts = [mail.content.decode() for mail in inbox.mails]
    assert len(texts) == 4
    headers = [dict(_headers(text)) for text in texts]
    assert headers[0]["Message-ID"] == headers[1]["Message-ID"] != headers[2]["Message-ID"]
    assert headers[0]["References"] == headers[2]["References"]
    assert headers[0]["Subject"] == "[production] checkout is at 0 %: too many errors"
    assert all("Bcc" not in one for one in headers)
    assert all(mail.rcpt_tos == ["ada@example.com", "bob@example.com"] for mail in inbox.mails)
    assert "What to do: look at the errors" in texts[0]


async def test_it_says_which_recipients_have_no_mail() -> None:
    """A server takes a mail if it takes one recipient: the others got nothing, and nobody knew."""
    inbox = Inbox()
    ada, bob = "ada@example.com", "bob@example.com"
    server = Controller(inbox, hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        (one,) = make_channels(
            {"it": ChannelSettings.model_validate(mail_settings(server.port))}, CLOCK
        )
        inbox.recipients = {bob: "450 4.2.0 greylisted"}
        for going in (send(one, message()), one.send_group([message(1), message(2)])):
            with pytest.raises(
                RecipientsMissed, match=r"bob@example.com: 450 4.2.0 greylisted"
            ) as at:
                await going
            assert (at.value.later, at.value.never) == ((bob,), ())
        # Tried again it goes to him alone, and while he has none that holds up nobody.
        again = replace(message(), only=(bob,))
        with pytest.raises(RecipientsMissed):
            await send(one, again)
        inbox.recipients = {bob: "550 no such user"}
        with pytest.raises(RecipientsMissed) as never:
            await send(one, again)
        assert (never.value.later, never.value.never) == ((), (bob,))
        inbox.recipients = {}
        await send(one, again)
        await send(one, replace(message(), only=("gone@example.com",)))  # not in the settings
    finally:
        server.stop()
    assert [mail.rcpt_tos for mail in inbox.mails] == [[ada], [ada], [bob]]


async def test_groups_of_other_messages_are_other_mails() -> None:
    """After a lost answer more may wait: a server that drops repeats must not drop these."""
    server = MailServer()
    async with serving(server):
        made = ChannelSettings.model_validate(mail_settings(server.port))
        (one,) = make_channels({"it": made}, CLOCK)
        messages = [message(number) for number in range(20)]
        for count in (12, 12, 20):
            await one.send_group(messages[:count])
        await send(one, messages[0])
    first, same, more, alone = (mail["Message-ID"] for mail in server.mails)
    assert first == same
    assert len({first, more, alone}) == 3


def mail_settings(port: int) -> Mapping[str, Any]:
    """Return the settings of a mail channel."""
    return {
        "type": "email",
        "server": "127.0.0.1",
        "port": port,
        "tls": "off",
        "sender": "rolloutd@example.com",
        "recipients": ["ada@example.com", "bob@example.com"],
        "timeout_seconds": 5,
    }


def _headers(mail: str) -> list[tuple[str, str]]:
    lines = mail.partition("\r\n\r\n")[0].replace("\r\n ", " ").split("\r\n")
    return [(line.partition(":")[0], line.partition(":")[2].strip()) for line in lines]
