"""The daemon goes on with what each earlier release has stored in Redis and Kafka."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas.terms import CommandStatus, CommandVerb
from tests.golden import scene
from tests.golden.stored import ANSWERS_FILE, Servers, load
from tests.live import Client
from tests.notification_services import Receiver, running

pytestmark = pytest.mark.real_kafka

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASES = sorted(path.name for path in GOLDEN.iterdir() if (path / ANSWERS_FILE).exists())
#: What a Bloom filter takes for a member by chance: one in a thousand at most.
WRONGLY_KNOWN = 3


@dataclass
class Upgraded:
    """The present daemon on what a release has stored."""

    daemon: scene.Watched
    client: Client
    receiver: Receiver
    answers: dict[str, Any]  # what that release answered in the end

    async def written(self, topic: str) -> int:
        """Return how many records a topic has."""
        return len(await self.client.records(topic))

    async def exposures(self, flag: str) -> dict[str, int]:
        """Return the contexts that are counted, by arm; none before the first look is there."""
        found: dict[str, int] = (await self.daemon.counts(flag))["exposures"] or {}
        return found


@asynccontextmanager
async def upgraded(
    release: str, kafka: str, redis_url: str, prefix: str, directory: Path
) -> AsyncIterator[Upgraded]:
    """Store what a release has stored, and start the daemon on it."""
    servers = Servers(kafka, redis_url, prefix)
    await load(servers, GOLDEN / release)
    answers = json.loads((GOLDEN / release / ANSWERS_FILE).read_text(encoding="utf-8"))
    receiver = Receiver()
    async with running(receiver):
        daemon = scene.Watched(servers, directory, receiver)
        async with daemon, Client(kafka, prefix) as client:
            yield Upgraded(daemon, client, receiver, answers)


def differences(recorded: Any, present: Any, at: str = "") -> list[str]:
    """Return where `present` lacks or changes something of `recorded`; it may have more."""
    if isinstance(recorded, dict) and isinstance(present, dict):
        return [
            line
            for name, value in recorded.items()
            for line in differences(value, present.get(name), f"{at}/{name}")
        ]
    return [] if recorded == present else [f"{at}: was {recorded!r}, is {present!r}"]


def test_there_is_something_to_load() -> None:
    """At least the first release is kept."""
    assert "0.1.0" in RELEASES


@pytest.mark.parametrize("release", RELEASES)
async def test_everything_is_as_the_release_left_it(
    release: str, kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Rollouts, counts, signals and incidents; nothing is decided or told because of the start."""
    async with upgraded(release, kafka, redis_url, topic_prefix, tmp_path) as now:
        before = [await now.written(f"rollout.{topic}") for topic in ("decisions", "alerts")]

        async def is_counted() -> bool:
            # What was stored of looks is answered at once; the next look is this daemon's own.
            looks = [
                (await now.daemon.get(f"/api/v1/rollouts/{flag}/evidence")).json().get("at", "")
                for flag in scene.COUNTED
            ]
            return all(look > started for look in looks)

        started = datetime.now(UTC).isoformat()
        await scene.until(is_counted, "each live flag is judged again")
        assert differences(now.answers, await now.daemon.answers()) == []
        standing = await now.daemon.standing()
        assert (standing["faults"], standing["working"]) == ([], True)
        after = [await now.written(f"rollout.{topic}") for topic in ("decisions", "alerts")]
        assert after == before
        assert now.receiver.shown == []


@pytest.mark.parametrize("release", RELEASES)
async def test_rollouts_go_on(
    release: str, kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Contexts that were counted count no second time, new ones do, and every command fits."""
    async with upgraded(release, kafka, redis_url, topic_prefix, tmp_path) as now:
        for flag in scene.COUNTED:
            known = scene.MANY_USERS if flag == scene.FILTERED else scene.USERS
            was = now.answers["counts"][flag]["exposures"]
            await scene.App(now.client, now.daemon, flag, seed=2).serve(range(known + 40))
            least = sum(was.values()) + 40 - WRONGLY_KNOWN

            async def is_counted(flag: str = flag, least: int = least) -> bool:
                return sum((await now.exposures(flag)).values()) >= least

            await scene.until(is_counted, f"the new users of {flag} are counted")
            assert sum((await now.exposures(flag)).values()) <= sum(was.values()) + 40
        for flag, verb, percent in (
            (scene.ASKING, CommandVerb.APPROVE, 100),
            (scene.PAUSED, CommandVerb.RESUME, 50),
            (scene.LIVE, CommandVerb.PROMOTE, 100),
            (scene.COMPLETED, CommandVerb.ROLL_BACK, 0),
            (scene.FILTERED, CommandVerb.ROLL_BACK, 0),
            (scene.HARMFUL, CommandVerb.RETIRE, None),
        ):
            shown = await now.daemon.rollout(flag)
            assert shown is not None
            answer = await now.client.command(
                verb, flag, reason="after the upgrade", expected_revision=shown["revision"]
            )
            assert answer.status is CommandStatus.ACCEPTED, f"{flag}: {answer.reason}"
            document = await now.daemon.rollout(flag)
            assert (document and document["percent"]) == percent, flag


@pytest.mark.parametrize("release", RELEASES)
async def test_a_signal_that_was_heard_does_nothing_again(
    release: str, kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The memory of signals is read: a repeat acts not, a new firing does; old news is not told."""
    async with upgraded(release, kafka, redis_url, topic_prefix, tmp_path) as now:
        answer = await now.client.command(
            CommandVerb.RESTART,
            scene.SIGNALED,
            plan=scene.plan_of(scene.SIGNALED),
            reason="fixed",
        )
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await now.daemon.signal("Down")
        await now.daemon.signal("Slow")
        heard = (await now.daemon.answers())["signals"]
        assert heard == now.answers["signals"]
        document = await now.daemon.rollout(scene.SIGNALED)
        assert document is not None
        assert document["percent"] == 50
        await now.daemon.signal("Down", began="2026-11-24T11:00:00Z")
        await now.daemon.until(scene.SIGNALED, lambda one: one["percent"] == 0, 60)

        async def is_told() -> bool:
            kinds = {one["data"]["kind"] for one in now.receiver.shown}
            return kinds >= {"rolled_back", "signal"}

        await scene.until(is_told, "the new firing is told")
        assert {one["data"]["flag"] for one in now.receiver.shown} == {scene.SIGNALED}
        assert await now.daemon.stop() == 0
