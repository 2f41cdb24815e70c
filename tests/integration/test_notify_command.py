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

from schemas.api import BASE
from tests.brokers import free_port
from tests.builders import T0
from tests.fault_server import Exchange, answering, fault_server

CHANNEL = {"type": "slack", "waiting": 0, "sent": 0, "sent_at": None, "trouble": "", "since": None}
DEAD = {"number": 7, "channel": "mail", "flag": "a", "summary": "a", "why": "no", "at": T0}
ROUTES = [{"name": "payments", "to": ["chat"]}, {"name": "quiet", "to": []}]
PARTS = ("channels", "incidents", "ended", "mutes", "dead_letters")


async def rolloutctl(
    *words: str, answer: dict[str, Any] | None, flags: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of a daemon that answers so; None: nothing is there.

    `flags` is its inventory; None: it does not know it yet.
    """
    document = {"at": T0, **dict.fromkeys(PARTS, ()), **(answer or {})}
    notifications = answering(json.dumps(document, default=str))

    async def script(exchange: Exchange) -> None:
        if f"{BASE}/flags" not in exchange.request.line:
            await notifications(exchange)
        elif flags is None:
            await exchange.answer('{"error": "it is loading"}', status="503 Away")
        else:
            await exchange.answer(json.dumps(flags, default=str))

    async with fault_server(script) as daemon:
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
            "no refused message is chat: refused were messages by mail; ",
        ),
        (("retry", "*"), {}, "no message was refused: no channel has refused any; "),
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


def inventory(*flags: str, unknown: tuple[str, ...]) -> dict[str, Any]:
    """Return an inventory of flags; those of `unknown` have events and no rollout."""
    line = {"owner": "", "flag_type": "release", "phase": "baking", "percent": 5, "findings": []}
    times = {"started_at": T0, "updated_at": T0, "expires_at": None}
    return {
        "flags": [{"flag": flag, **line, **times} for flag in flags],
        "total": len(flags),
        "offset": 0,
        "counts": {},
        "without_rollout": [{"flag": flag, "events": 1} for flag in unknown],
        "at": T0,
    }


@pytest.mark.parametrize(
    ("about", "words", "said"),
    [
        ("chekout", (), "no flag is like chekout: did you mean checkout? The mute holds all the"),
        ("paymentz", (), "no flag is like paymentz: did you mean payments?"),
        ("search-*", (), "no flag is like search-*: routes are payments, quiet. The mute holds"),
        ("payments", ("--flag",), "no flag is like payments: routes are"),
        ("Checkout", (), ""),
        ("check*", (), ""),
        ("no-rollout", (), ""),
        ("payments", (), ""),
        ("*", (), ""),
    ],
)
async def test_a_mute_that_fits_no_flag_says_so(
    about: str, words: tuple[str, ...], said: str
) -> None:
    """It is sent all the same: the flag may come later. A typing error was silent."""
    options = ("--for", "2h", "--reason", "x", *words)
    flags = inventory("checkout", unknown=("no-rollout",))
    tried = await rolloutctl("mute", about, *options, answer={"routes": ROUTES}, flags=flags)
    heard = " ".join(tried.stderr.split())
    assert "Kafka" in heard, "it is sent"
    assert said in heard if said else "no flag" not in heard


async def test_a_mute_is_sent_where_the_flags_are_not_known() -> None:
    """A replica that has just started does not know them yet."""
    options = ("--for", "2h", "--reason", "x")
    tried = await rolloutctl("mute", "checkout", *options, answer={"routes": ROUTES})
    heard = " ".join(tried.stderr.split())
    assert "it is not known whether a flag is like checkout" in heard
    assert "it is loading" in heard
    assert "Kafka" in heard
