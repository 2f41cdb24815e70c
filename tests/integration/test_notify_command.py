"""`rolloutctl notify` where there is nothing to do what is asked with: it says so at once.

No Kafka is there: whoever would send something first fails here.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import free_port
from tests.builders import T0
from tests.fault_server import answering, fault_server

CHANNEL = {"type": "slack", "waiting": 0, "sent": 0, "sent_at": None, "trouble": "", "since": None}
DEAD = {"number": 7, "channel": "mail", "flag": "a", "summary": "a", "why": "no", "at": T0}
ROUTES = [{"name": "payments", "to": ["chat"]}, {"name": "quiet", "to": []}]
PARTS = ("channels", "incidents", "ended", "mutes", "dead_letters")


async def rolloutctl(
    *words: str, answer: dict[str, Any] | None
) -> subprocess.CompletedProcess[str]:
    """Run a command of a daemon that answers so; None: nothing is there."""
    document = {"at": T0, **dict.fromkeys(PARTS, ()), **(answer or {})}
    async with fault_server(answering(json.dumps(document, default=str))) as daemon:
        url = f"http://127.0.0.1:{free_port()}" if answer is None else daemon.url
        return await asyncio.to_thread(
            subprocess.run,
            [str(Path(sys.executable).with_name("rolloutctl")), "notify", *words, "--daemon", url],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"},
        )


@pytest.mark.parametrize(
    ("words", "answer", "why"),
    [
        (("test", "payments"), {}, "there is no channel: set notifications.channels"),
        (
            ("test", "paymentz"),
            {"channels": [{"name": "chat", **CHANNEL}], "routes": ROUTES},
            "there is no route or channel paymentz: routes are payments, quiet; channels are chat",
        ),
        (
            ("test", "quiet"),
            {"channels": [{"name": "chat", **CHANNEL}], "routes": ROUTES},
            "the route quiet names no channel: nobody is told by it",
        ),
        (("ack", "checkout"), {}, "there is no open incident of checkout to take: it is over"),
        (
            ("retry", "chat"),
            {"dead_letters": [DEAD]},
            "no message of chat was refused; mail refused some",
        ),
        (("retry", "*"), {}, "no message of * was refused; no channel refused some"),
    ],
    ids=["no channel", "no such route", "nobody", "no incident", "no letter", "no letters"],
)
async def test_what_cannot_be_done_is_told_and_not_sent(
    words: tuple[str, ...], answer: dict[str, Any], why: str
) -> None:
    """It took 20 s to say that a route is unknown, and `ack` said that it was taken."""
    tried = await rolloutctl(*words, answer=answer)
    assert tried.returncode != 0
    assert why in " ".join(tried.stderr.split())


async def test_an_incident_can_be_taken_while_no_replica_answers_over_http() -> None:
    """The request goes over Kafka, which is tried then."""
    tried = await rolloutctl("ack", "checkout", answer=None)
    said = " ".join(tried.stderr.split())
    assert "it is sent all the same" in said
    assert "Kafka" in said
