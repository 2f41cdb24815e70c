"""Slack: by a bot one message per rollout with replies under it, or by an incoming webhook.

Source: docs.slack.dev, chat.postMessage, chat.update, rate limits; limits of blocks from Slack's
own SDK (`packages/types`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from controller.adapters.channels.http_post import HttpPost
from controller.adapters.http.cooldown import retry_after_seconds
from controller.adapters.http.posting import HttpAnswer
from controller.errors import ChannelUnavailable, MessageRefused
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message, grouped_title, headline
from controller.settings.notifications import ChannelSettings
from schemas.terms import Severity

HEADER: Final = 150
SECTION: Final = 3_000
FIELD: Final = 2_000
FIELDS: Final = 10
#: Of all blocks together; undocumented, and refused as `msg_blocks_too_long` beyond it.
ALL_BLOCKS: Final = 13_000
TEXT: Final = 4_000
_SLACK: Final = "https://slack.com"
_MARKS: Final = {
    Severity.CRITICAL: ":red_circle:",
    Severity.WARNING: ":large_yellow_circle:",
    Severity.INFO: ":large_blue_circle:",
}
#: Errors that are about the message. All others are about the bot or the channel.
_ABOUT_THE_MESSAGE: Final = frozenset(
    {
        "invalid_blocks",
        "invalid_blocks_format",
        "msg_blocks_too_long",
        "msg_too_long",
        "no_text",
        "invalid_arguments",
    }
)
_COPY_IT: Final = "copy the bot token (xoxb-...) from the app's page OAuth & Permissions"
#: What to do about an error of the bot or the channel.
_TO_DO: Final = {
    **dict.fromkeys(
        ("invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"),
        _COPY_IT,
    ),
    "not_allowed_token_type": _COPY_IT,
    "channel_not_found": "`place` is the id of a channel (C...), a private one with the app in it",
    "not_in_channel": "invite the app into the channel",
    "is_archived": "the channel is archived: name another `place`",
    "missing_scope": "give the app the scope chat:write, and install it again",
}


def escape(text: str) -> str:
    """Return text whose `&`, `<` and `>` Slack shows as they are; it neither links nor mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, most: int) -> str:
    """Return escaped text of at most so many characters, with no half of an escape at its end."""
    escaped = escape(text)
    if len(escaped) <= most:
        return escaped
    cut = escaped[: most - 1]
    start = cut.rfind("&")
    return (cut[:start] if start > most - 7 and ";" not in cut[start:] else cut) + "…"


def _mark(message: Message) -> str:
    if message.is_taken:
        return ":eyes:"
    return ":white_check_mark:" if message.is_over else _MARKS[message.news.severity]


def blocks_of(message: Message) -> list[Mapping[str, Any]]:
    """Return a message as blocks."""
    title = f"{_mark(message)} *{_cut(message.title, 500)}*"
    made: list[Mapping[str, Any]] = [_section(title)]
    if message.text:
        made.append(_section(_cut(message.text, SECTION)))
    fields = [
        {"type": "mrkdwn", "text": f"*{_cut(name, 100)}*\n{_cut(value, FIELD - 200)}"}
        for name, value in message.facts[:FIELDS]
    ]
    if fields:
        made.append({"type": "section", "fields": fields})
    if message.link:
        button = {"type": "plain_text", "text": "Open in rolloutd"}
        made.append(
            {
                "type": "actions",
                "elements": [{"type": "button", "text": button, "url": message.link[:SECTION]}],
            }
        )
    return made


def _section(text: str) -> Mapping[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def group_of(messages: Sequence[Message]) -> tuple[str, list[Mapping[str, Any]]]:
    """Return text and blocks of several messages, each on a line of its own."""
    title = grouped_title(messages)
    most = (ALL_BLOCKS - 500) // len(messages) - 40
    lines: list[str] = []
    blocks, size = [_section(f"*{escape(title)}*")], 0
    for one in messages:
        line = f"{_mark(one)} {_cut(one.line, most)}"
        if lines and size + len(line) + 1 > SECTION:
            blocks.append(_section("\n".join(lines)))
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    return title, [*blocks, _section("\n".join(lines))]


class SlackBot:
    """Implements `notifying.sending.Channel` by the Web API. Needs the scope `chat:write`."""

    tracks = False
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid."""
        assert settings.token is not None
        self.name = name
        #: A message is two calls, of which Slack takes about one a second in a channel.
        self.limits = Limits(settings.per_minute or 30, 5, 50, settings.timeout_seconds)
        self._place = settings.place
        self._token = settings.token.get_secret_value()
        self._base = settings.base_url or _SLACK
        self._post = HttpPost(name, settings, self._base)

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Reply under the rollout's message, which says how it stands now."""
        if not message.facts or message.news.phase == "":  # of no rollout
            await self._say(message)
            return
        if thread is None or not await self._update(message, thread):
            answer = await self._call("chat.postMessage", self._head(message))
            thread = Thread(
                str(answer.get("ts", "")), datetime.now(UTC), str(answer.get("channel", ""))
            )
            keep(thread)
        await self._say(message, thread)

    async def _say(self, message: Message, thread: Thread | None = None) -> None:
        body = {
            "channel": self._place,
            "text": _cut(f"{message.title}\n{message.text}", TEXT),
            "blocks": blocks_of(message),
            "unfurl_links": False,
        }
        if thread is not None:
            body |= {"thread_ts": thread.handle, "reply_broadcast": message.is_urgent}
        await self._call("chat.postMessage", body)

    def _head(self, message: Message) -> dict[str, Any]:
        """Return the message of a rollout, under which all others are replies."""
        text = _cut(headline(message), TEXT)
        about = (message.environment, message.news.owner)
        name = f"*<{message.link}|{text}>*" if message.link else f"*{text}*"
        return {
            "channel": self._place,
            "text": text,
            "blocks": [
                _section(f"{_mark(message)} {name}"),
                {
                    "type": "context",
                    "elements": [
                        {
                            "type": "mrkdwn",
                            "text": _cut(" · ".join(filter(None, about)), FIELD),
                        }
                    ],
                },
            ],
            "unfurl_links": False,
        }

    async def _update(self, message: Message, thread: Thread) -> bool:
        """Update the rollout's message; return False when somebody deleted it."""
        body = self._head(message) | {"ts": thread.handle, "channel": thread.place or self._place}
        try:
            await self._call("chat.update", body)
        except _CannotEdit as fault:
            return fault.is_there
        return True

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Show several messages as one, outside of any conversation."""
        title, blocks = group_of(messages)
        body = {"channel": self._place, "text": _cut(title, TEXT), "blocks": blocks}
        await self._call("chat.postMessage", body)

    async def _call(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the answer. Slack answers 200 to what it refuses as well."""
        url = f"{self._base}/api/{method}"
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json; charset=utf-8",
        }
        answer = await self._post.deliver(url, body, headers)
        found = answer.json()
        if found.get("ok") is not True:
            error = self._post.words_of(str(found.get("error", "no reason given")))
            _raise_error(error, answer, method)
        return found

    async def close(self) -> None:
        """Drop its connections."""
        await self._post.close()


class _CannotEdit(Exception):
    """A message that was posted cannot be changed any more."""

    def __init__(self, *, is_there: bool) -> None:
        super().__init__(is_there)
        self.is_there = is_there


def _raise_error(error: str, answer: HttpAnswer, method: str) -> None:
    if error in ("message_not_found", "cant_update_message", "edit_window_closed"):
        raise _CannotEdit(is_there=error != "message_not_found")
    if error in _ABOUT_THE_MESSAGE:
        raise MessageRefused(f"{method}: {error}")
    wait = retry_after_seconds(answer.headers, datetime.now(UTC))
    hint = f"; {_TO_DO[error]}" if error in _TO_DO else ""
    raise ChannelUnavailable(f"{method}: {error}{hint}", wait)


class SlackWebhook:
    """Implements `notifying.sending.Channel` by an incoming webhook, which knows no replies."""

    tracks = False
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid."""
        assert settings.url is not None
        self.name = name
        self.limits = Limits(settings.per_minute or 60, 5, 50, settings.timeout_seconds)
        self._url = settings.url.get_secret_value()
        self._post = HttpPost(name, settings, self._url)

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Show one message."""
        text = _cut(f"{message.title}\n{message.text}", TEXT)
        await self._post.deliver(self._url, {"text": text, "blocks": blocks_of(message)})

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Show several messages as one."""
        title, blocks = group_of(messages)
        await self._post.deliver(self._url, {"text": _cut(title, TEXT), "blocks": blocks})

    async def close(self) -> None:
        """Drop its connections."""
        await self._post.close()
