"""A real Unleash, driven by our plane and seen by its real Python SDK. `make unleash` runs it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any, Self

import mmh3

from controller.adapters.unleash.plane import UnleashPlane
from controller.adapters.unleash.target import target_of
from controller.clock import SystemClock
from controller.core.audience import Audience, Condition
from controller.core.rollout import Rollout
from controller.core.serving import EARLIER_SUFFIX, Part, Serving, chooser, serving
from schemas.terms import CommandVerb, ControlArm, Operator
from tests.audiences import at_stage
from tests.brokers import free_port
from tests.builders import make_plan, make_stage
from tests.flag_clients import (
    details_of,
    flagd_sync,
    installed_ofrep_clients,
    ofrep_client,
    openfeature_client,
    users_in,
)
from tests.live import Client, DaemonProcess, quick_plan
from tests.unleash.given import decided, make_settings, rolled_back
from tests.unleash.server import (
    ADMIN_TOKEN,
    BACKEND_TOKEN,
    ENVIRONMENT,
    HERE,
    UnleashServer,
    installed,
)

INSTALLED = installed()
USERS = [f"user-{number}" for number in range(10_000)]


def lets_in(flag_key: str, user: str, percent: int) -> bool:
    """Tell by Unleash's published hash whether a user is in."""
    return bool(mmh3.hash(f"{flag_key}:{user}", 0, signed=False) % 100 + 1 <= percent)


class Sdk:
    """Unleash's Python SDK, in its own environment and process."""

    def __init__(self, url: str) -> None:
        python = INSTALLED / "venv" / "bin" / "python"
        self._process = subprocess.Popen(
            [str(python), str(HERE / "client.py"), url, BACKEND_TOKEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=10)

    async def ask(
        self, flag_key: str, users: Sequence[dict[str, Any]], state: dict[str, Any] | None = None
    ) -> list[bool | str]:
        """Return what each user is served, as the SDK knows the flag now, or as `state` has it."""
        asked = {"flag": flag_key, "users": users, **({} if state is None else {"state": state})}

        def exchange() -> list[bool | str]:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            answers: list[bool | str] = json.loads(self._process.stdout.readline())
            return answers

        return await asyncio.to_thread(exchange)

    async def users_in(self, flag_key: str, percent: int, seconds: float = 15.0) -> set[str]:
        """Return who is in, once the SDK has fetched what lets in who should be at `percent`.

        It asks once a second.
        """
        deadline = time.monotonic() + seconds
        probe = USERS[:500]
        expected = [lets_in(flag_key, user, percent) for user in probe]
        while time.monotonic() < deadline:
            if await self.ask(flag_key, [{"userId": user} for user in probe]) == expected:
                break
            await asyncio.sleep(0.2)
        answers = await self.ask(flag_key, [{"userId": user} for user in USERS])
        return {user for user, answer in zip(USERS, answers, strict=True) if answer}


def near(users: set[str], percent: int) -> bool:
    """Tell whether so many users are what a percentage gives, within four standard errors."""
    share = percent / 100
    return abs(len(users) / len(USERS) - share) <= 4 * sqrt(share * (1 - share) / len(USERS))


async def test_real_users_go_in_stage_by_stage_and_all_out_again(
    real_unleash: UnleashServer,
) -> None:
    """The real SDK sees 1, 10, 25, 50, 100 % and 0 %.

    Shares within sampling error, and nobody who was in falls out before.
    """
    plane, flag_key = (
        UnleashPlane(make_settings(real_unleash.url), SystemClock()),
        f"flag-{uuid.uuid4().hex[:8]}",
    )
    before: set[str] = set()
    with Sdk(real_unleash.url) as sdk:
        for revision, percent in enumerate((1, 10, 25, 50, 100), 1):
            rollout = decided(flag_key, percent, revision)
            await plane.serve(rollout)
            served = await plane.look(rollout)
            assert (served.percent, served.difference) == (percent, None)
            users = await sdk.users_in(flag_key, percent)
            assert near(users, percent)
            assert before <= users
            before = users
        await plane.serve(rolled_back(flag_key, 6))
        assert (await plane.look(rolled_back(flag_key, 6))).difference is None
        assert await sdk.users_in(flag_key, 0) == set()
    await plane.close()


def _stands_at(percent: int, document: dict[str, Any]) -> bool:
    return bool(document["percent"] == percent)


async def test_one_rollout_reaches_users_of_unleash_flagd_and_ofrep(
    real_unleash: UnleashServer, kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """The installed daemon takes a flag from 1 to 100 % and back to 0.

    Three kinds of clients follow, and none loses a user.

    Unleash's SDK asks the server that the daemon writes to; flagd's and OFREP's ask the daemon, and
    agree with each other.
    """
    flag_key = f"flag-{uuid.uuid4().hex[:8]}"
    fields = {
        "URL": real_unleash.url,
        "TOKEN": ADMIN_TOKEN,
        "ENVIRONMENT": ENVIRONMENT,
        "CREATE_FLAGS": "true",
    }
    environ = {f"ROLLOUTD_PLANES__UNLEASH__{name}": value for name, value in fields.items()}
    sync_port = free_port()
    daemon = DaemonProcess(
        kafka,
        redis_url,
        tmp_path,
        prefix=topic_prefix,
        ROLLOUTD_FLAGD_SYNC__PORT=str(sync_port),
        **environ,
    )
    percents = (1, 10, 25, 50, 100)
    stages = [
        {"percent": percent, "bake": "300s", "settle": "1s", "min_sample": 50, "max_bake": "400s"}
        for percent in percents
    ]
    before = {"unleash": set[str](), "flagd": set[str](), "ofrep": set[str]()}
    async with (
        daemon,
        Client(kafka, topic_prefix) as operator,
        openfeature_client(flagd_sync(sync_port)) as flagd,
        ofrep_client(installed_ofrep_clients(), "server", daemon.url, flag_key) as ofrep,
    ):
        with Sdk(real_unleash.url) as sdk:

            async def seen(percent: int) -> dict[str, set[str]]:
                """Return who is in, by client, once every client has `percent`."""
                by_ofrep = await details_of(ofrep, USERS)
                return {
                    "unleash": await sdk.users_in(flag_key, percent),
                    "ofrep": {
                        user for user, one in zip(USERS, by_ofrep, strict=True) if one["value"]
                    },
                    "flagd": await asyncio.to_thread(users_in, flagd, flag_key, USERS),
                }

            await operator.command(
                CommandVerb.START, flag_key, plan=quick_plan(flag_key, stages=stages)
            )
            for percent in percents:
                await daemon.until(flag_key, partial(_stands_at, percent))
                now = await seen(percent)
                shares = ", ".join(
                    f"{name} {100 * len(users) / len(USERS):.2f} %" for name, users in now.items()
                )
                sys.stdout.write(f"decided {percent} %: {shares}\n")
                assert all(near(users, percent) for users in now.values())
                assert all(before[name] <= users for name, users in now.items())
                assert now["flagd"] == now["ofrep"]
                before = now
                if percent < 100:
                    await operator.command(CommandVerb.PROMOTE, flag_key)
            assert (
                'rolloutd_actuation_gap_seconds{plane="unleash"} 0.0'
                in (await daemon.get("/metrics")).text
            )
            await operator.command(CommandVerb.ROLL_BACK, flag_key)
            assert not any((await seen(0)).values())


# --- audiences: the SDK's own engine against the reference ---

COUNTRIES, PLANS = ("DE", "FR", "", "de"), ("pro", "free", "pro-annual")
VERSIONS = ("1.2.3", "2.4.0", "2.4.0-rc.1", "2.5.1", "3.0.0-0", "3.0.0", "10.0.0")
MOMENTS = (
    "2026-02-28T23:59:59Z",
    "2026-03-01T00:00:00Z",
    "2026-03-01T12:00:00Z",
    "2027-01-01T00:00:00Z",
)
AGES = (0, 17, 18, 17.5, 99)
RANGES = [
    f"{comparison} {version}"
    for comparison in ("=", "!=", "<", "<=", ">", ">=", "^", "~")
    for version in ("2.4.0", "3")
]


def draw_context(chance: random.Random) -> dict[str, Any]:
    """Return what is known of a user: any of the attributes may be missing."""
    every: dict[str, Any] = {
        "country": chance.choice(COUNTRIES),
        "plan": chance.choice(PLANS),
        "app": chance.choice(VERSIONS),
        "registered": chance.choice(MOMENTS),
        "age": chance.choice(AGES),
        "targetingKey": f"user-{chance.randrange(10_000)}",
    }
    return {
        name: value
        for name, value in every.items()
        if name == "targetingKey" or chance.random() < 0.8
    }


def draw_condition(chance: random.Random) -> Condition:
    """Return one of every kind of condition."""
    return chance.choice(
        [
            Condition("country", Operator.EQ, ("DE",)),
            Condition("country", Operator.IN, ("FR", "de")),
            Condition("age", Operator.IN, (17, 17.5, 99)),
            Condition("age", Operator.GTE, (17.5,)),
            Condition("age", Operator.LTE, (18.0,)),
            Condition("plan", Operator.STARTS_WITH, ("pro", "x")),
            Condition("plan", Operator.ENDS_WITH, ("annual", "ee")),
            Condition("app", Operator.SEM_VER, (chance.choice(RANGES),)),
            Condition(
                "registered",
                Operator.BEFORE,
                (chance.choice(["2026-03-01", "2026-03-01T12:00:00Z"]),),
            ),
            Condition(
                "registered",
                Operator.AFTER,
                (chance.choice(["2026-03-01", "2026-03-01T12:00:00Z"]),),
            ),
            Condition(
                "targetingKey",
                Operator.IN,
                tuple(f"user-{number}" for number in range(0, 10_000, 3))[:250],
            ),
        ]
    )


def draw_rollout(chance: random.Random) -> Rollout:
    """Return a rollout in any stage of a plan that opens rings, in whole percents."""
    audiences = tuple(
        Audience(
            f"ring-{number}",
            tuple((draw_condition(chance),) for _ in range(chance.choice((1, 1, 2)))),
        )
        for number in range(2)
    )
    stages, reached = [], dict.fromkeys((None, "ring-0", "ring-1"), 0)
    for _ in range(chance.randint(1, 4)):
        name = chance.choice(list(reached))
        if reached[name] >= 100:
            continue
        reached[name] = chance.randint(reached[name] + 1, 100)
        control = chance.choice(list(ControlArm)) if reached[name] <= 50 else ControlArm.REST
        stages.append(make_stage(percent=float(reached[name]), audience=name, control=control))
    split = chance.choice([(), (("red", 1), ("blue", 2))])
    values = {"red": {"hue": 0}, "blue": {"hue": 240}, "off": {}} if split else {}
    plan = make_plan(stages=tuple(stages), audiences=audiences, split=split, values=values)
    return at_stage(plan, chance.randrange(len(stages)))


async def test_every_rule_means_the_same_to_unleash(real_unleash: UnleashServer) -> None:
    """The SDK's own engine serves each user as the reference does, for any plan."""
    chance = random.Random(7)
    seen: Counter[str] = Counter()
    with Sdk(real_unleash.url) as sdk:
        for _ in range(60):
            rollout = draw_rollout(chance)
            served = serving(rollout)
            asked = target_of(rollout, stickiness="userId")
            strategies = [{"name": part.name, **part.fields()} for part in asked.parts]
            state = {
                "version": 2,
                "features": [{"name": rollout.flag_key, "enabled": True, "strategies": strategies}],
            }
            contexts = [draw_context(chance) for _ in range(200)]
            users = [
                {
                    "userId": context["targetingKey"],
                    "properties": {
                        name: str(value)
                        for name, value in context.items()
                        if name != "targetingKey"
                    },
                }
                for context in contexts
            ]
            choose = chooser(served)
            for context, answer in zip(
                contexts, await sdk.ask(rollout.flag_key, users, state), strict=True
            ):
                bucket = (
                    mmh3.hash(f"{rollout.flag_key}:{context['targetingKey']}", 0, signed=False)
                    % 100
                    * 100
                )
                part = choose(bucket, context)
                assert answer in names_of(served, part), (
                    context,
                    part,
                    answer,
                    asked.parts,
                    served.rings,
                )
                seen[part] += 1
    assert min(seen[part] for part in Part) > 100, seen


def names_of(served: Serving, part: Part) -> set[bool | str]:
    """Return what a user of this part may be served.

    A share of everybody is a matter of in or out.
    """
    drawn: set[bool | str] = {name for name, _ in served.split} or {served.treatment}
    if served.is_plain:
        return (drawn if served.split else {True}) if part is Part.TREATMENT else {False}
    if part is Part.TREATMENT:
        return set(drawn)
    return (
        {f"{name}{EARLIER_SUFFIX}" for name in drawn}
        if part is Part.EARLIER
        else {served.name(part)}
    )
