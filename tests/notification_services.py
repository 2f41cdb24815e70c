"""Services that show messages, on a real socket: they refuse what the real ones refuse.

Limits and answers are those that the services document (the modules of `adapters/channels/` name
the sources). Each keeps what it has shown. A `trouble` answers in a service's place, such as 429,
or nothing at all.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.fault_server import Exchange, FaultServer, fault_server

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
TOKEN = "xoxb-0123456789"
Trouble = Callable[[Exchange], Awaitable[bool]]


class Refused(Exception):
    """What the service answers to a request that it does not take: status and body."""

    def __init__(self, status: str, body: str) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


@dataclass
class Service:
    """What a service was sent."""

    server: FaultServer = field(init=False)
    shown: list[dict[str, Any]] = field(default_factory=list)  # taken, in order
    refused: list[str] = field(default_factory=list)  # why something was not
    trouble: Trouble | None = None  # True: it has answered
    is_answer_lost: Callable[[], bool] | None = None  # asked once something is taken

    @property
    def url(self) -> str:
        """Its address."""
        return self.server.url

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request."""
        if self.trouble is not None and await self.trouble(exchange):
            return
        path = exchange.request.line.split()[1]
        try:
            document = json.loads(exchange.request.body)
            status, body = self.take(path, exchange.request.headers, document, exchange)
        except Refused as refused:
            self.refused.append(refused.body)
            status, body = refused.status, refused.body
        if self.is_answer_lost is not None and self.is_answer_lost():
            await exchange.reset()
            return
        await exchange.answer(body, status=status)

    def take(self, path: str, headers: Any, document: Any, exchange: Exchange) -> tuple[str, str]:
        """Return status and body; raise Refused."""
        raise NotImplementedError


@contextlib.asynccontextmanager
async def running(*services: Service) -> AsyncIterator[None]:
    """Serve them all."""
    async with contextlib.AsyncExitStack() as stack:
        for one in services:
            one.server = await stack.enter_async_context(fault_server(one.serve))
        yield


class Slack(Service):
    """The Web API (`chat.postMessage`, `chat.update`) and incoming webhooks (`/services/...`)."""

    def take(self, path: str, headers: Any, document: Any, exchange: Exchange) -> tuple[str, str]:
        """Check a message, and show it."""
        if path.startswith("/services/"):
            if fault := _slack_fault(document):
                raise Refused("400 Bad Request", fault)
            self.shown.append({"method": "webhook", **document})
            return "200 OK", "ok"
        method = path.removeprefix("/api/")
        fault = ""
        if not headers.get("content-type", "").startswith("application/json"):
            fault = "invalid_form_data"
        elif headers.get("authorization") != f"Bearer {TOKEN}":
            fault = "invalid_auth"
        elif document.get("channel") not in ("C1", "D1"):
            fault = "channel_not_found"
        elif method == "chat.update" and document.get("ts") not in self._times():
            fault = "message_not_found"
        elif "thread_ts" in document and document["thread_ts"] not in self._times():
            fault = "thread_not_found"
        else:
            fault = _slack_fault(document)
        if fault:
            self.refused.append(fault)
            return "200 OK", json.dumps({"ok": False, "error": fault})
        time = document.get("ts") or f"1795000000.{len(self.shown):06}"
        self.shown.append({"method": method, **document, "ts": time})
        return "200 OK", json.dumps({"ok": True, "channel": "C1", "ts": time})

    def _times(self) -> set[str]:
        return {one["ts"] for one in self.shown}

    def replies(self) -> dict[str, list[str]]:
        """Return the texts under each message, by its time."""
        found: dict[str, list[str]] = {}
        for one in self.shown:
            if one["method"] == "chat.postMessage" and "thread_ts" in one:
                found.setdefault(one["thread_ts"], []).append(one["text"])
        return found


def _slack_fault(document: Any) -> str:
    """Return the error of a message that Slack does not show; empty: it does."""
    blocks = document.get("blocks", [])
    if not document.get("text"):
        return "no_text"
    if len(document["text"]) > 40_000:
        return "msg_too_long"
    if len(json.dumps(blocks)) > 40_000 or _text_length(blocks) > 13_200:
        return "msg_blocks_too_long"
    is_good = len(blocks) <= 50 and all(_is_block(one) for one in blocks)
    return "" if is_good else "invalid_blocks"


def _text_length(part: Any) -> int:
    if isinstance(part, dict):
        return sum(
            len(value) if name == "text" and isinstance(value, str) else _text_length(value)
            for name, value in part.items()
        )
    return sum(map(_text_length, part)) if isinstance(part, list) else 0


def _is_block(block: Any) -> bool:
    kind = block["type"]
    if kind == "section":
        fields = block.get("fields", [])
        texts = [block["text"]] if "text" in block else []
        return (
            (bool(texts) or bool(fields))
            and len(fields) <= 10
            and all(1 <= len(one["text"]) <= 2_000 for one in fields)
            and all(1 <= len(one["text"]) <= 3_000 for one in texts)
            and all("<!" not in one["text"] and "<@" not in one["text"] for one in texts + fields)
        )
    if kind == "header":
        return 1 <= len(block["text"]["text"]) <= 150
    if kind == "context":
        return 1 <= len(block["elements"]) <= 10
    if kind == "actions":
        return len(block["elements"]) <= 25 and all(
            len(one["text"]["text"]) <= 75 and len(one["url"]) <= 3_000 for one in block["elements"]
        )
    return False


class Teams(Service):
    """A workflow: 202 for everything but what is too large."""

    def take(self, path: str, headers: Any, document: Any, exchange: Exchange) -> tuple[str, str]:
        """Check a card."""
        if len(exchange.request.body) > 28_000:
            raise Refused("413 Request Entity Too Large", "Request Entity too large")
        (attachment,) = document["attachments"]
        card = attachment["content"]
        if attachment["contentType"] != "application/vnd.microsoft.card.adaptive":
            raise Refused("400 Bad Request", "contentType")
        if card["type"] != "AdaptiveCard" or not card["body"]:
            raise Refused("400 Bad Request", "card")
        if not all(one["type"] in ("TextBlock", "FactSet") for one in card["body"]):
            raise Refused("400 Bad Request", "body")
        self.shown.append(card)
        return "202 Accepted", ""


class Discord(Service):
    """A webhook with `wait=true`."""

    def take(self, path: str, headers: Any, document: Any, exchange: Exchange) -> tuple[str, str]:
        """Check an embed."""
        if not path.endswith("?wait=true"):
            return "204 No Content", ""
        (embed,) = document["embeds"]
        fields = embed.get("fields", [])
        total = len(embed["title"]) + len(embed.get("description", ""))
        total += sum(len(one["name"]) + len(one["value"]) for one in fields)
        is_good = (
            len(embed["title"]) <= 256
            and len(embed.get("description", "")) <= 4_096
            and len(fields) <= 25
            and all(1 <= len(one["name"]) <= 256 for one in fields)
            and all(1 <= len(one["value"]) <= 1_024 for one in fields)
            and total <= 6_000
            and document["allowed_mentions"] == {"parse": []}
        )
        if not is_good:
            raise Refused("400 Bad Request", '{"embeds": ["0"]}')
        self.shown.append(embed)
        return "200 OK", '{"id": "1"}'


class PagerDuty(Service):
    """Events API v2 and change events; `incidents` are those that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.incidents: dict[str, int] = {}  # triggers by key
        self.acknowledged: list[str] = []
        self.resolved: list[str] = []

    def take(self, path: str, headers: Any, document: Any, exchange: Exchange) -> tuple[str, str]:
        """Trigger or resolve, or note a change."""
        if document.get("routing_key") != TOKEN:
            raise Refused("400 Bad Request", '{"errors": ["invalid routing_key"]}')
        if len(exchange.request.body) > 512_000:
            raise Refused("413 Payload Too Large", "")
        if path == "/v2/change/enqueue":
            datetime.fromisoformat(document["payload"]["timestamp"])
            assert document["payload"]["summary"]
        else:
            self._event(document)
        self.shown.append({"path": path, **document})
        return "202 Accepted", '{"status": "success"}'

    def _event(self, document: Any) -> None:
        key = document["dedup_key"]
        if len(key) > 255:
            raise Refused("400 Bad Request", '{"errors": ["dedup_key is too long"]}')
        if document["event_action"] == "resolve":
            self.incidents.pop(key, None)
            self.resolved.append(key)
            return
        if document["event_action"] == "acknowledge":  # as resolve: a key, and no payload
            self.acknowledged.append(key)
            return
        if document["event_action"] != "trigger":
            raise Refused("400 Bad Request", '{"errors": ["event_action"]}')
        payload = document["payload"]
        is_good = (
            1 <= len(payload["summary"]) <= 1_024
            and payload["severity"] in ("critical", "warning", "error", "info")
            and payload["source"]
        )
        if not is_good:
            raise Refused("400 Bad Request", '{"errors": ["payload"]}')
        self.incidents[key] = self.incidents.get(key, 0) + 1


class AlertmanagerApi(Service):
    """`POST /api/v2/alerts`: stores the good ones of an array also where it refuses others."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: dict[str, dict[str, Any]] = {}  # by labels: an alert's identity

    def take(self, path: str, headers: Any, document: Any, exchange: Exchange) -> tuple[str, str]:
        """Check alerts as its API does."""
        if headers.get("content-type") != "application/json":
            raise Refused("415 Unsupported Media Type", "unsupported media type")
        if path != "/api/v2/alerts" or not isinstance(document, list):
            raise Refused("400 Bad Request", "parsing alerts body failed")
        good = [one for one in document if _is_alert(one)]
        for one in good:
            self.alerts[json.dumps(one["labels"], sort_keys=True)] = one
            self.shown.append(one)
        if len(good) < len(document):
            raise Refused("400 Bad Request", '"invalid label set"')
        return "200 OK", ""


def _is_alert(alert: Any) -> bool:
    texts = {**alert["labels"], **alert["annotations"]}
    return (
        bool(alert["labels"].get("alertname"))
        and all(re.fullmatch("[a-z_]+", name) for name in texts)
        and all(isinstance(value, str) for value in texts.values())
        and all(alert["labels"].values())
        and datetime.fromisoformat(alert["startsAt"]) <= datetime.fromisoformat(alert["endsAt"])
        and len(alert.get("generatorURL", "")) <= 2_000
    )


class Receiver(Service):
    """A receiver of signed webhooks that drops what it has had."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()

    def take(self, path: str, headers: Any, document: Any, exchange: Exchange) -> tuple[str, str]:
        """Check the signature as Standard Webhooks does."""
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        message_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        signed = f"{message_id}.{timestamp}.".encode() + exchange.request.body
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        if not hmac.compare_digest(headers["webhook-signature"], f"v1,{expected}"):
            raise Refused("401 Unauthorized", "signature")
        if message_id not in self.ids:
            self.ids.add(message_id)
            self.shown.append(document)
        return "204 No Content", ""


# --- each of them, with a channel to it ---

#: By type of channel; what has no service of HTTP has tests of its own.
SERVICES: Mapping[str, type[Service]] = {
    "slack": Slack,
    "slack_webhook": Slack,
    "teams": Teams,
    "discord": Discord,
    "pagerduty": PagerDuty,
    "alertmanager": AlertmanagerApi,
    "webhook": Receiver,
}
PATH = "T0123456789/B0123456789/abcDEF0123456789abcDEF01"
PASSWORD = "pass-word-0123"
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "slack": {"token": TOKEN, "place": "C1", "base_url": "{url}"},
    "slack_webhook": {"url": f"{{url}}/services/{PATH}"},
    "teams": {"url": "{url}/workflows/1/paths/invoke?sp=run&sig=abc%2BDEF0123456789"},
    "discord": {"url": f"{{url}}/api/webhooks/1234567890/{PATH[-24:]}"},
    "pagerduty": {"token": TOKEN, "base_url": "{url}"},
    "alertmanager": {"addresses": ["{url}"], "username": "ada", "password": PASSWORD},
    "webhook": {"url": f"{{url}}/hooks/{PATH[-24:]}", "secret": SECRET},
}


def settings_of(kind: str, url: str) -> Mapping[str, Any]:
    """Return the settings of a channel to a service at an address, with the secrets it has."""
    given = json.loads(json.dumps(_SETTINGS[kind]).replace("{url}", url))
    return {"type": kind, "timeout_seconds": 2, **given}


# --- troubles ---


def too_many(times: int, retry_after: str = "1") -> Trouble:
    """Return a trouble that asks for patience so many times."""
    left = [times]

    async def answer(exchange: Exchange) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        await exchange.answer(
            "slow down", status="429 Too Many Requests", headers={"Retry-After": retry_after}
        )
        return True

    return answer


def failing(times: int, status: str = "503 Service Unavailable") -> Trouble:
    """Return a trouble that fails so many times."""
    left = [times]

    async def answer(exchange: Exchange) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        await exchange.answer("broken", status=status)
        return True

    return answer


def hanging(times: int) -> Trouble:
    """Return a trouble that answers nothing so many times."""
    left = [times]

    async def answer(exchange: Exchange) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        await asyncio.sleep(3600)
        return True

    return answer


def sometimes(share: float, seed: int = 1) -> Callable[[], bool]:
    """Return what is True for a share of the times, and never more than thrice in a row."""
    dice = random.Random(seed)
    in_a_row = 0

    def decide() -> bool:
        nonlocal in_a_row
        in_a_row = in_a_row + 1 if in_a_row < 3 and dice.random() < share else 0
        return in_a_row > 0

    return decide


def lossy(share: float, seed: int = 1) -> Trouble:
    """Return a trouble that loses a share of the requests: the connection is cut."""
    is_lost = sometimes(share, seed)

    async def answer(exchange: Exchange) -> bool:
        if is_lost():
            await exchange.reset()
            return True
        return False

    return answer
