"""The installed daemon with a model.

What the model says beside the way, and that nothing waits for it.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from schemas.alert import Alert
from schemas.terms import CommandVerb
from tests import fault_server as faults
from tests.fault_server import Exchange
from tests.live import Client, DaemonProcess, Traffic, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
GUESS = {
    "likely_cause": "The new provider refuses cards. This is a guess.",
    "next_steps": ["look at its log"],
}


async def answer_late(exchange: Exchange) -> None:
    """Advise to proceed, and explain after a second."""
    if b"likely_cause" in exchange.request.body:
        await asyncio.sleep(1)
        await exchange.answer(faults.completion(GUESS))
    else:
        await exchange.answer(faults.completion())


#: At least one: on a busy machine other alerts may be explained as well.
ATTACHED = re.compile(r'^rolloutd_explanations_total{outcome="attached"} [1-9]', re.MULTILINE)


async def test_a_roll_back_is_explained_later(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The alert goes out with the roll back.

    The model's guess follows in an alert of the same dedup key.
    """
    async with (
        faults.fault_server(answer_late) as server,
        DaemonProcess(
            kafka, redis_url, tmp_path, prefix=topic_prefix, ROLLOUTD_ADVISOR__URL=server.url
        ) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        plan = quick_plan(FLAG, advisor={"mode": "can_hold"})
        await client.command(CommandVerb.START, FLAG, plan=plan)
        async with Traffic(client, daemon, FLAG, error_rates={"on": 0.5, "off": 0.05}):
            document = await daemon.until(
                FLAG, lambda doc: doc["phase"]["name"] == "rolled_back", 30
            )
        assert document["percent"] == 0
        first, later = await client.alerts("rolled_back", 2)
        assert (first["kind"], first["severity"], first["explanation"]) == (
            "rolled_back",
            "critical",
            None,
        )
        assert (later["kind"], later["severity"], later["dedup_key"]) == (
            "rolled_back",
            "info",
            first["dedup_key"],
        )
        assert later["explanation"]["likely_cause"] == GUESS["likely_cause"]
        assert later["explanation"]["prompt"] == "explain-v1"
        Alert.model_validate(later)
        async with asyncio.timeout(60):  # counted once Kafka has the alert
            while ATTACHED.search((await daemon.get("/metrics")).text) is None:
                await asyncio.sleep(0.1)
        assert await daemon.stop() == 0
