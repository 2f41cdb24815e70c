"""E-mail. All messages of a rollout are one conversation.

Source: RFC 5322 (Message-ID, References); aiosmtplib.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from typing import Final, Never

from controller.adapters.channels.hiding import hiding_of
from controller.errors import (
    ChannelUnavailable,
    ConfigInvalid,
    MessageRefused,
    RecipientsMissed,
)
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message, grouped_title
from controller.settings.notifications import ChannelSettings

_PORTS: Final = {"starttls": 587, "on_connect": 465, "off": 25}


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
        self._hiding = hiding_of(settings)
        self._sender = settings.sender
        self._domain = settings.sender.rpartition("@")[2]
        try:
            self._context = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ValueError) as error:
            file = f"notifications.channels.{name}: ca_file {settings.ca_file}"
            raise ConfigInvalid(f"{file} cannot be used: {error}") from error

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
        if message.is_urgent:
            mail["Importance"] = "high"
        await self._send(mail, message.only)

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Send several messages as one."""
        text = "\n".join(f"- {one.line}" for one in messages)
        title = f"[{messages[0].environment}] {grouped_title(messages)}"
        # Of all of them: a repeat may have more, and must not be taken for the same mail.
        message_id = "\n".join([*(one.id for one in messages), "group"])
        await self._send(self._mail(title, text + "\n", message_id), messages[0].only)

    def _mail(self, subject: str, text: str, message_id: str) -> EmailMessage:
        mail = EmailMessage(policy=SMTP)
        mail["From"] = self._sender
        mail["To"] = ", ".join(self._settings.recipients)
        mail["Subject"] = subject
        # The same when it is sent again: some servers drop the second.
        mail["Message-ID"] = self._id(message_id)
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text)
        return mail

    def _id(self, name: str) -> str:
        return f"<{hashlib.sha256(name.encode()).hexdigest()[:32]}@{self._domain}>"

    async def _send(self, mail: EmailMessage, only: Sequence[str]) -> None:
        """Send to the recipients, or those named in `only` of them. Raises as a channel does."""
        present = self._settings.recipients
        if recipients := [one for one in present if not only or one in only]:
            missed = await self._deliver(mail, recipients)
            if missed and not only and len(missed) == len(recipients):
                self._raise_for_all(missed)
            if missed:
                words = "; ".join(f"{name}: {code} {text}" for name, (code, text) in missed.items())
                raise RecipientsMissed(
                    f"{self._settings.server}: {self._hiding.excerpt(words)}",
                    later=[name for name, (code, _) in missed.items() if code < 500],
                    never=[name for name, (code, _) in missed.items() if code >= 500],
                )

    def _raise_for_all(self, missed: Mapping[str, tuple[int, str]]) -> Never:
        """Raise for a mail that no recipient has."""
        host = self._settings.server
        words = self._hiding.excerpt("; ".join(f"{code} {text}" for code, text in missed.values()))
        if any(code < 500 for code, _ in missed.values()):  # greylisting, for one
            raise ChannelUnavailable(f"{host}: {words}")
        raise MessageRefused(f"{host} refused all recipients: {words}")

    async def _deliver(
        self, mail: EmailMessage, recipients: Sequence[str]
    ) -> Mapping[str, tuple[int, str]]:
        """Send to some recipients; return code and words for those that the server refused."""
        # Loaded by the first mail: few installations send any.
        import aiosmtplib

        settings = self._settings
        host, secret = settings.server, settings.password
        try:
            refused, _ = await aiosmtplib.send(
                mail,
                recipients=list(recipients),
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
            return {one.recipient: (one.code, one.message) for one in error.recipients}
        except aiosmtplib.SMTPDataError as error:
            words = f"{host} answered {error.code}: {self._hiding.excerpt(str(error.message))}"
            if 500 <= error.code < 600:
                raise MessageRefused(words) from None
            raise ChannelUnavailable(words) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            words = self._hiding.excerpt(str(error)) or type(error).__name__
            raise ChannelUnavailable(f"{host}: {words}") from None
        return {name: (answer.code, answer.message) for name, answer in refused.items()}

    async def close(self) -> None:
        """Nothing is kept open between two mails."""
