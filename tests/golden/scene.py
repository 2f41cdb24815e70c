"""The scene that is kept of each release: a flag in every state, and what stands around them.

Belongs here: the daemon's settings, flags, events and the answers that are compared. Does not
belong here: how what is stored becomes files (`tests/golden/stored.py`). A later release may add
flags to it; what earlier releases have kept does not change by that.

A stage that lasts does so for `LONG`: what is kept must be the same years later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from controller.codec.flagd import WEIGHT_TOTAL
from controller.web.bucketing import Generation, bucketer
from schemas import outcome
from schemas.plan import PlanDocument
from schemas.terms import CommandStatus, CommandVerb
from tests.golden.stored import Servers
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.notification_services import SECRET, Receiver
from tests.patience import SLACK

LONG: Final = "3650d"
HOOK_TOKEN: Final = "0123456789abcdef0123456789abcdef"

LIVE, FILTERED, RINGS = "live", "filtered", "rings"
ASKING, PAUSED, HELD = "asking", "paused", "held"
HARMFUL, ABORTED, COMPLETED = "harmful", "aborted", "completed"
SIGNALED, RETIRED, UNKNOWN = "signaled", "retired", "unknown-to-rolloutd"
#: Every flag that has a rollout, in the order in which they begin.
FLAGS: Final = (
    LIVE,
    FILTERED,
    RINGS,
    ASKING,
    PAUSED,
    HELD,
    HARMFUL,
    ABORTED,
    COMPLETED,
    SIGNALED,
)
#: Those that are live and whose users have been served.
COUNTED: Final = (LIVE, FILTERED, ASKING)
#: More contexts than a set holds exactly, in each partition and arm.
EXACT_SET_LIMIT: Final = 32
MANY_USERS: Final = 500
USERS: Final = 200

SIGNAL_RULES: Final = f"""\
version: 1
rules:
  - {{name: down, when: {{title: Down}}, flags: {SIGNALED}, do: roll_back}}
  - {{name: slow, when: {{title: Slow}}, flags: {HELD}, do: hold}}
"""
NOTIFICATION_RULES: Final = """\
version: 1
routes:
  - {name: all, when: {severity: info}, to: [mine], escalation: again}
escalations:
  - {name: again, severity: critical, steps: [{after: 1s, to: [mine]}]}
"""

#: Runs in the daemon, because Python imports it at start: what a release remembers only for days
#: must be compared years later, too.
_FORGETTING_NOTHING: Final = """
from datetime import timedelta

from controller.notifying import book, planner, sending
from controller.responding import memory

long = timedelta(days=36500)
memory.KEPT = planner.FORGOTTEN = sending.GIVEN_UP = long
book.THREADS_KEPT = book.DEAD_KEPT = book.ENDED_KEPT = long
"""


def stages(*percents: int, **fields: Any) -> list[dict[str, Any]]:
    """Return stages that last, the first with these fields."""
    lasting = [
        {"percent": one, "bake": LONG, "max_bake": LONG, "settle": "0s", "min_sample": 50}
        for one in percents
    ]
    return [{**lasting[0], **fields}, *lasting[1:]]


PLANS: Final[Mapping[str, dict[str, Any]]] = {
    LIVE: {
        "stages": stages(50, 100, name="half"),
        "guardrails": [
            "error_rate < 90% and < control + 50pp",
            "latency_p95 < 20s",
            "conversion:bought > 0.1x control",
        ],
    },
    FILTERED: {"stages": stages(50, 100)},
    RINGS: {
        "type": "experiment",
        "variants": {
            "treatment": "on",
            "control": "off",
            "values": {"on": {"layout": "two-step"}, "off": {"layout": "classic"}},
        },
        "audiences": {"staff": [{"attribute": "email", "ends_with": "@corp.example"}]},
        "stages": stages(100, 20, 100, audience="staff"),
    },
    ASKING: {
        "stages": stages(50, 100, bake="1s", approval="required"),
        "guardrails": ["error_rate < 50%"],  # soon shown: a comparison takes thousands of users
    },
    HARMFUL: {"stages": stages(50, 100)},
}


class App(Traffic):
    """Apps of one flag, whose every request is written once; half of the users get treatment."""

    def __init__(self, client: Client, daemon: DaemonProcess, flag: str, seed: int = 1) -> None:
        super().__init__(client, daemon, flag, seed=seed)
        self._flag = flag
        self._bucket_of = bucketer(flag, Generation.V3)

    async def serve(
        self, users: range, *, harm: float = 0.05, seconds: float | None = None
    ) -> None:
        """Serve each user once; `harm` of treatment's requests fail, and 5 % of control's."""
        for number in users:
            user = f"user-{number}"
            variant = "on" if self._bucket_of(user) < WEIGHT_TOTAL // 2 else "off"
            at = datetime.now(UTC)
            await self.emit_evaluation(user, variant, at)
            is_error = self._random.random() < (harm if variant == "on" else 0.05)
            await self.emit_outcome(user, variant, at, is_error=is_error, seconds=seconds)
            if number % 3 == 0:
                await self.convert(user, at)

    async def convert(self, user: str, at: datetime) -> None:
        """Report a conversion that names no flag: it is joined to what the user was served."""
        data = {"feature_flag.context.id": user, "rolloutd.conversions": ["bought"]}
        await self._emit("request.outcomes", outcome.TYPE, user, at, data)


class Watched(DaemonProcess):
    """A daemon that takes signals and notifies people."""

    def __init__(self, servers: Servers, directory: Path, receiver: Receiver) -> None:
        """The receiver must be running."""
        directory.mkdir(parents=True, exist_ok=True)
        signals, notifications = directory / "signals.yaml", directory / "notifications.yaml"
        signals.write_text(SIGNAL_RULES)
        notifications.write_text(NOTIFICATION_RULES)
        config = directory / "rolloutd.yaml"
        config.write_text(
            f"hooks:\n"
            f"  rules_file: {signals}\n"
            f"  endpoints: {{prod: {{source: cloudevents, token: {HOOK_TOKEN}}}}}\n"
            f"notifications:\n"
            f"  rules_file: {notifications}\n"
            f"  channels:\n"
            f"    mine: {{type: webhook, url: '{receiver.url}/x', secret: {SECRET}}}\n"
        )
        startup = directory / "startup"
        startup.mkdir(exist_ok=True)
        (startup / "sitecustomize.py").write_text(_FORGETTING_NOTHING)
        super().__init__(
            servers.bootstrap,
            servers.redis_url,
            directory,
            prefix=servers.prefix,
            ROLLOUTD_CONFIG=str(config),
            PYTHONPATH=str(startup),
            ROLLOUTD_COUNTING__EXACT_SET_LIMIT=str(EXACT_SET_LIMIT),
        )

    async def signal(self, title: str, began: str = "2026-11-24T10:00:00Z") -> None:
        """Deliver a signal that fires."""
        event = {
            "specversion": "1.0",
            "type": "com.example.monitor",
            "source": "/monitor",
            "id": f"{title}-{began}",
            "data": {
                "status": "firing",
                "condition": title,
                "title": title,
                "started_at": began,
            },
        }
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{self.url}/hooks/cloudevents/prod",
                json=event,
                headers={
                    "authorization": f"Bearer {HOOK_TOKEN}",
                    "content-type": "application/cloudevents+json",
                },
                timeout=30,
            )
        assert answer.status_code == 202, answer.text

    async def answers(self) -> dict[str, Any]:
        """Return what it answers about all that was stored, without what only passes."""
        signals = (await self.get("/api/v1/signals")).json()["signals"]
        incidents = (await self.get("/api/v1/notifications")).json()["incidents"]
        return {
            "rollouts": {flag: await self.rollout(flag) for flag in FLAGS},
            "counts": {flag: await self.counts(flag) for flag in COUNTED},
            "retired": await self.ofrep_status(RETIRED),
            "signals": {one["title"]: [one["status"], one["done"]] for one in signals},
            "incidents": sorted([one["flag"], one["kind"]] for one in incidents),
        }

    async def counts(self, flag: str) -> dict[str, Any]:
        """Return what the newest look at a flag has counted, by metric and arm."""
        look = (await self.get(f"/api/v1/rollouts/{flag}/evidence")).json()
        metrics = {
            metric["metric"]: {
                arm: [told["trials"], told["events"], told["estimate"]]
                for arm, told in metric["arms"].items()
            }
            for metric in look.get("metrics", ())
        }
        return {"exposures": look.get("exposures"), "metrics": metrics}


async def until(holds: Callable[[], Awaitable[bool]], what: str, seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds * SLACK
    while not await holds():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.1)


def plan_of(flag: str) -> PlanDocument:
    """Return a flag's plan: two stages that last, unless `PLANS` says otherwise."""
    return quick_plan(flag, **{"stages": stages(50, 100), **PLANS.get(flag, {})})


async def play(daemon: Watched, client: Client) -> None:
    """Bring every flag into its state."""
    for flag in (*FLAGS, RETIRED):
        answer = await client.command(CommandVerb.START, flag, plan=plan_of(flag))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await daemon.until(flag, lambda one: one["phase"]["name"] == "baking")
    await App(client, daemon, LIVE).serve(range(USERS))
    await App(client, daemon, FILTERED).serve(range(MANY_USERS))
    await App(client, daemon, ASKING).serve(range(USERS))
    await App(client, daemon, UNKNOWN).serve(range(3))
    await client.producer.send_and_wait(f"{client.prefix}flag.evaluations", b"{", b"user-1")
    await App(client, daemon, HARMFUL).serve(range(USERS), harm=0.9)
    await daemon.until(HARMFUL, lambda one: one["phase"]["name"] == "rolled_back", 60)
    await daemon.until(ASKING, lambda one: one["phase"]["name"] == "awaiting_approval", 60)
    for flag, verb in (
        (PAUSED, CommandVerb.PAUSE),
        (ABORTED, CommandVerb.ABORT),
        (COMPLETED, CommandVerb.PROMOTE_FULL),
        (COMPLETED, CommandVerb.PROMOTE),
        (RETIRED, CommandVerb.ABORT),
        (RETIRED, CommandVerb.RETIRE),
    ):
        answer = await client.command(verb, flag, reason="a scene that is kept")
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
    await daemon.signal("Down")
    await daemon.signal("Slow")
    await daemon.until(SIGNALED, lambda one: one["percent"] == 0, 60)
