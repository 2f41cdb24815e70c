"""A mail server on a real socket, by aiosmtpd, that takes mails or has trouble."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP


@dataclass
class MailServer:
    """What it was sent, and what it answers."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)  # taken, in order
    refusals: list[str] = field(default_factory=list)  # answered to the next mails, one each
    hangs: int = 0  # of the next mails
    is_request_lost: Callable[[], bool] | None = None
    is_answer_lost: Callable[[], bool] | None = None  # asked once a mail is taken

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, server: Any, _session: Any, envelope: Any
    ) -> str:
        """Take a mail."""
        if self.hangs > 0:
            self.hangs -= 1
            await asyncio.sleep(3600)
        if self.refusals:
            return self.refusals.pop(0)
        if self.is_request_lost is not None and self.is_request_lost():
            server.transport.abort()
            return "421 gone"
        mail = message_from_bytes(envelope.content, policy=policy.SMTP)
        self.mails.append(mail)
        if self.is_answer_lost is not None and self.is_answer_lost():
            server.transport.abort()
        return "250 OK"


@contextlib.asynccontextmanager
async def serving(mail_server: MailServer) -> AsyncIterator[None]:
    """Listen on a free port of loopback."""
    listener = await asyncio.get_running_loop().create_server(
        lambda: SMTP(mail_server, hostname="mail.example.com", enable_SMTPUTF8=True),
        "127.0.0.1",
        0,
    )
    mail_server.port = listener.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        listener.close()
