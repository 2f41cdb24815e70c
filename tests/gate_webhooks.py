"""Gate webhooks for tests: one in memory, and one on a real socket that checks what it is sent."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from controller.core.judging.judgement import Judgement
from controller.core.rollout import Gating, Rollout
from controller.errors import NotAnswered
from schemas.terms import GateAnswer, HealthGap
from tests.fault_server import Exchange, Request
from tests.notification_services import SECRET


class Webhooks:
    """Answers each endpoint as set; one that is not set hangs."""

    def __init__(self, answers: Mapping[str, GateAnswer | HealthGap] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[tuple[str, str, int]] = []  # endpoint, gate, revision

    @property
    def endpoints(self) -> frozenset[str]:
        """The names that are set."""
        return frozenset(self.answers)

    async def ask(
        self, endpoint: str, rollout: Rollout, gate: Gating, judgement: Judgement, at: datetime
    ) -> tuple[GateAnswer, str]:
        """Return what was set. Raises NotAnswered."""
        self.asked.append((endpoint, gate.gate_id, rollout.revision))
        answer = self.answers.get(endpoint)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, HealthGap):
            raise NotAnswered(answer, f"the test says {answer}")
        assert answer is not None
        return answer, f"the test says {answer}"


def fault_of(request: Request) -> str:
    """Return what is wrong with a question by Standard Webhooks 1.0; empty: nothing is."""
    headers = request.headers
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not message_id or "." in message_id or not timestamp.isdigit():
        return "no id or timestamp"
    if abs(time.time() - int(timestamp)) > 300:
        return "the timestamp is minutes off"
    signed = f"{message_id}.{timestamp}.".encode() + request.body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    if f"v1,{expected}" not in headers.get("webhook-signature", "").split():
        return "the signature does not fit"
    return "" if json.loads(request.body)["id"] == message_id else "the id is not the event's"


_PASS = '{"answer": "pass"}'
#: Answers that a webhook may give in place of a good one: status, body and headers.
_BAD: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "500": ("500 Internal Server Error", "database is locked", {}),
    "401": ("401 Unauthorized", _PASS, {}),
    "redirect": ("307 Moved", _PASS, {"Location": "http://169.254.169.254/latest"}),
    "too large": ("200 OK", '{"answer": "pass", "reason": "' + "x" * 70_000 + '"}', {}),
    "wrong type": ("200 OK", _PASS, {"Content-Type": "text/html"}),
    "packed": ("200 OK", _PASS, {"Content-Encoding": "gzip"}),
    "no JSON": ("200 OK", "pass", {}),
    "nothing": ("200 OK", "", {}),
    "other word": ("200 OK", '{"answer": "PASSED"}', {}),
    "a list": ("200 OK", '["pass"]', {}),
    "deep": ("200 OK", "[" * 30_000, {}),
}


class GateService:
    """A team's own system: answers what it is set to, well or badly."""

    def __init__(self, mode: str = "pass") -> None:
        self.mode = mode
        self.asked: list[dict[str, Any]] = []  # the questions
        self.ids: list[str] = []
        self.faults: list[str] = []

    async def answer(self, exchange: Exchange) -> None:
        """Answer one question."""
        if fault := fault_of(exchange.request):
            self.faults.append(fault)
        self.asked.append(json.loads(exchange.request.body)["data"])
        self.ids.append(exchange.request.headers["webhook-id"])
        if self.mode == "hang":
            await asyncio.Event().wait()
        elif self.mode == "slow":  # a byte now and then, for ever
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            while True:
                await exchange.send(b" ")
                await asyncio.sleep(0.05)
        elif self.mode == "reset":
            await exchange.reset()
        elif self.mode in _BAD:
            status, body, headers = _BAD[self.mode]
            await exchange.answer(body, status=status, headers=headers)
        else:
            reason = f"it is set to {self.mode}"
            await exchange.answer(json.dumps({"answer": self.mode, "reason": reason}))


#: What each bad answer is called.
GAPS: Mapping[str, str] = {
    "hang": "webhook_no_answer",
    "slow": "webhook_no_answer",
    "reset": "webhook_no_answer",
    "500": "webhook_http_error",
    "401": "webhook_http_error",
    "redirect": "webhook_redirect",
    "too large": "webhook_too_large",
    "wrong type": "webhook_wrong_type",
    "packed": "webhook_malformed",
    "no JSON": "webhook_malformed",
    "nothing": "webhook_malformed",
    "other word": "webhook_malformed",
    "a list": "webhook_malformed",
    "deep": "webhook_malformed",
}
