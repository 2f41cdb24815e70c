"""An advisor at a server that misbehaves on request."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from controller.adapters.llm.advisor import ModelAdvisor
from controller.clock import SystemClock
from controller.core.effects import AskAdvice
from controller.core.judging.judgement import Advice
from controller.settings import AdvisorSettings
from tests.builders import make_judgement, make_rollout
from tests.fault_server import FaultServer

CLOCK = SystemClock()
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
CHUNKED_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)

#: The dialects share all but the words of request and completion; every fault is put before these
#: two. `localai` reads its completions as `openai` does.
PROTOCOLS = ("openai", "ollama")

#: Far above any deadline used here, far below what a hang would take: a busy machine must not fail
#: a test.
SOON_SECONDS = 120.0


def make_advisor(url: str, **overrides: Any) -> ModelAdvisor:
    """Return an advisor that gives up after 10 s and never stops asking, unless told otherwise."""
    fields: dict[str, Any] = {
        "url": url,
        "model": "tiny",
        "deadline_seconds": 10.0,
        "breaker_failures": 1000,
    }
    return ModelAdvisor(AdvisorSettings(**{**fields, **overrides}), CLOCK)


def make_question(seconds: float = 600.0) -> AskAdvice:
    """Return a question that may take as long as this."""
    until = CLOCK.now() + timedelta(seconds=seconds)
    return AskAdvice(gate_id="gate-1", round=1, until=until, judgement=make_judgement())


async def ask(server: FaultServer | str, **overrides: Any) -> Advice:
    """Put one question by an advisor of its own."""
    url = server if isinstance(server, str) else server.url
    advisor = make_advisor(url, **overrides)
    try:
        return await advisor.ask(make_rollout(), make_question())
    finally:
        await advisor.close()
