"""Commands of a machine with a token: two replicas on real servers, also while Kafka hangs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.plan import PlanDocument
from tests.admission import bearer, token_line
from tests.chaos.outage_stand import OutageStand
from tests.live import Client, DaemonProcess, quick_plan
from tests.tcp_proxy import Fault

pytestmark = [pytest.mark.real_kafka, pytest.mark.one_worker]

FLAG = "new-checkout"
ACCESS = (
    "tokens:\n"
    + token_line("bot")
    + token_line("boss")
    + "grants:\n  - {role: operator, tokens: [bot]}\n  - {role: admin, tokens: [boss]}\n"
)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutageStand]:
    """Kafka and Redis behind proxies."""
    with OutageStand(tmp_path_factory.mktemp("stand")) as stand:
        yield stand


async def give(daemon: DaemonProcess, name: str, **body: Any) -> httpx.Response:
    """Give a command over HTTP in a machine's name."""
    async with httpx.AsyncClient() as http:
        return await http.post(
            f"{daemon.url}/api/v1/rollouts/{FLAG}/commands",
            headers=bearer(name),
            json=body,
            timeout=30,
        )


def plan() -> PlanDocument:
    """Return a plan that stays at 50 %."""
    stage = {"percent": 50, "bake": "3h", "settle": "0s", "max_bake": "4h"}
    return quick_plan(FLAG, stages=[stage], blind=True, guardrails=[])


async def test_a_machine_steers_through_any_replica(stand: OutageStand, tmp_path: Path) -> None:
    """Its name is in the audit log; a repeat is answered as before; lowering needs no Kafka."""
    path = tmp_path / "access.yaml"
    path.write_text(ACCESS)
    environ = {
        "ROLLOUTD_SIGN_IN__ACCESS_FILE": str(path),
        "ROLLOUTD_SIGN_IN__PUBLIC_URL": "http://localhost:8080",
        "ROLLOUTD_SIGN_IN__OIDC__ISSUER": "http://127.0.0.1:1",
        "ROLLOUTD_SIGN_IN__OIDC__CLIENT_ID": "rolloutd",
    }
    async with (
        stand.daemon(**environ) as first,
        stand.daemon(**environ) as second,
        Client(stand.kafka.bootstrap, stand.prefix) as client,
    ):
        begun = await give(
            first, "bot", verb="start", plan=plan().model_dump(mode="json", exclude_none=True)
        )
        assert (begun.status_code, begun.json()["status"]) == (200, "accepted"), begun.text
        for daemon in (first, second):
            await daemon.until(FLAG, lambda one: one["percent"] == 50)
        paused = await give(second, "bot", verb="pause", reason="lunch", id="p-1")
        assert paused.status_code == 200
        revision = paused.json()["revision"]
        for daemon in (first, second):
            await daemon.until(FLAG, lambda one: one["revision"] == revision)
        stale = await give(second, "bot", verb="resume", expected_revision=revision - 1)
        assert stale.status_code == 409
        assert "stale: revision" in stale.json()["reason"]
        resume = {"verb": "resume", "expected_revision": revision, "id": "r-1"}
        done, again = await give(first, "bot", **resume), await give(second, "bot", **resume)
        assert done.status_code == again.status_code == 200
        assert done.json() == again.json()
        decisions = await client.until_read(
            "rollout.decisions", lambda found: any(one["kind"] == "resume" for one in found)
        )
        assert {one["issuer"] for one in decisions if one["kind"] in ("start", "pause")} == {
            "token:bot"
        }
        page = (await first.get(f"/ui/rollouts/{FLAG}")).text
        assert 'href="/ui/sign-in?to=' in page
        away = await first.get("/ui/sign-in")
        assert (away.status_code, "does not answer" in away.text) == (503, True)
        stand.proxies["kafka"].apply(Fault.HANG)
        try:
            retried = await give(first, "bot", verb="retry", reason="r", expected_revision=1)
            assert retried.status_code == 503
            assert "roll back, abort and pause work without Kafka" in retried.json()["error"]
            lowered = await give(first, "bot", verb="roll_back", reason="5xx")
            assert (lowered.status_code, lowered.json()["status"]) == (200, "accepted")
        finally:
            stand.proxies["kafka"].apply(Fault.NONE)
        path.write_text("grants: []\n")
        await _until_refused(first)
        assert await first.stop() == 0


async def _until_refused(daemon: DaemonProcess) -> None:
    """Send SIGHUP, and return once the machine's token is worth nothing."""
    daemon.send(signal.SIGHUP)
    async with asyncio.timeout(30):
        while (await give(daemon, "bot", verb="pause")).status_code != 401:
            await asyncio.sleep(0.2)
