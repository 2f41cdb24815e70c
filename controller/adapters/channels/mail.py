"""E-mail. All messages of a rollout are one conversation.

Source: RFC 5322 (Message-ID, References); aiosmtplib.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from typing import Final

from controller.errors import ChannelUnavailable, ConfigInvalid, MessageRefused
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message, grouped_title
from controller.settings.notifications import ChannelSettings
from controller.text import excerpt
from schemas.terms import Severity

_PORTS: Final = {"starttls": 587, "on_connect": 465, "off": 25}
_MAX_WORDS: Final = 200


class Mail:
    """Implements `notifying.sending.Channel`."""

    tracks = False
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid for an unusable `ca_file`."""
        assert settings.sender is not None
        self.name = name
        self.limits = Limits(settings.per_minute or 30, 5, 200, settings.timeout_seconds)
        self._settings = settings
        self._sender = settings.sender
        self._domain = settings.sender.rpartition("@")[2]
        try:
            self._context = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ValueError) as error:
            where = f"notifications.channels.{name}"
            raise ConfigInvalid(f"{where}: ca_file cannot be used: {error}") from error

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Send one message."""
        lines = [message.text, "", *(f"{name}: {value}" for name, value in message.facts)]
        if message.link:
            lines += ["", message.link]
        subject = f"[{message.environment}] {message.title}"
        mail = self._mail(subject, "\n".join(lines).strip() + "\n", message.id)
        mail["References"] = self._id(f"{message.news.flag}/{message.news.rollout_id}")
        if message.news.severity is Severity.CRITICAL and not message.is_over:
            mail["Importance"] = "high"
        await self._send(mail)

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Send several messages as one."""
        text = "\n".join(f"- {one.line}" for one in messages)
        title = f"[{messages[0].environment}] {grouped_title(messages)}"
        await self._send(self._mail(title, text + "\n", messages[0].id + "/group"))

    def _mail(self, subject: str, text: str, message_id: str) -> EmailMessage:
        mail = EmailMessage(policy=SMTP)
        mail["From"] = self._sender
        mail["To"] = ", ".join(self._settings.recipients)
        mail["Subject"] = subject
        # The same when it is sent again: the receiver's server drops the second.
        mail["Message-ID"] = self._id(message_id)
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text)
        return mail

    def _id(self, name: str) -> str:
        return f"<{hashlib.sha256(name.encode()).hexdigest()[:32]}@{self._domain}>"

    async def _send(self, mail: EmailMessage) -> None:
        # Loaded by the first mail: few installations send any.
        import aiosmtplib

        settings = self._settings
        host, secret = settings.server, settings.password
        try:
            await aiosmtplib.send(
                mail,
                hostname=host,
                port=settings.port or _PORTS[settings.tls],
                username=settings.username or None,
                password=None if secret is None else secret.get_secret_value(),
                use_tls=settings.tls == "on_connect",
                # Never as the server likes: the password would travel in plain text then.
                start_tls=settings.tls == "starttls",
                tls_context=None if settings.tls == "off" else self._context,
                timeout=settings.timeout_seconds,
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            refused = [one for one in error.recipients if one.code < 500]
            words = excerpt("; ".join(str(one) for one in error.recipients), _MAX_WORDS)
            if refused:  # greylisting, for one
                raise ChannelUnavailable(f"{host}: {words}") from None
            raise MessageRefused(f"{host} refused all recipients: {words}") from None
        except aiosmtplib.SMTPDataError as error:
            words = f"{host} answered {error.code}: {excerpt(str(error.message), _MAX_WORDS)}"
            if 500 <= error.code < 600:
                raise MessageRefused(words) from None
            raise ChannelUnavailable(words) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            words = excerpt(str(error), _MAX_WORDS) or type(error).__name__
            raise ChannelUnavailable(f"{host}: {words}") from None

    async def close(self) -> None:
        """Nothing is kept open between two mails."""
