"""Any of the hundred services that Apprise knows, by its URL. Needs the extra `apprise`.

Apprise sends in threads that nothing can interrupt, and says whether it worked and nothing more:
so there are no conversations, and every failure is worth another try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from controller.errors import ChannelUnavailable, ConfigInvalid
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message, grouped_title
from controller.settings.notifications import ChannelSettings
from schemas.terms import Severity

_TYPES = {Severity.CRITICAL: "failure", Severity.WARNING: "warning", Severity.INFO: "info"}


class AppriseUrl:
    """Implements `notifying.sending.Channel`."""

    tracks = False
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid without Apprise, or for a URL that it does not know."""
        assert settings.url is not None
        where = f"notifications.channels.{name}"
        try:
            import apprise
        except ImportError:
            raise ConfigInvalid(
                f"{where}: Apprise is not installed: pip install 'rolloutd[apprise]'"
            ) from None
        self.name = name
        self.limits = Limits(settings.per_minute or 20, 2, 50, settings.timeout_seconds)
        self._apprise: Any = apprise.Apprise()
        if not self._apprise.add(settings.url.get_secret_value()):
            raise ConfigInvalid(f"{where}: url is none that Apprise knows")
        # One at a time: a thread that hangs holds up this channel alone.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"apprise-{name}")
        self._busy: asyncio.Future[bool] | None = None

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Send one message."""
        lines = [message.text, *(f"{name}: {value}" for name, value in message.facts)]
        kind = "success" if message.is_over else _TYPES[message.news.severity]
        await self._notify(message.title, "\n".join([*lines, message.link]).strip(), kind)

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Send several messages as one."""
        text = "\n".join(f"- {one.line}" for one in messages)
        await self._notify(grouped_title(messages), text, "failure")

    async def _notify(self, title: str, body: str, kind: str) -> None:
        if self._busy is not None and not self._busy.done():
            raise ChannelUnavailable("the last call has not ended yet")
        loop = asyncio.get_running_loop()
        self._busy = loop.run_in_executor(
            self._threads,
            lambda: bool(self._apprise.notify(body=body, title=title, notify_type=kind)),
        )
        if not await asyncio.shield(self._busy):
            raise ChannelUnavailable("Apprise could not deliver it; it does not say why")

    async def close(self) -> None:
        """Start no more threads; one that hangs ends with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)
