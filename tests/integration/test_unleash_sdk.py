"""A real Unleash, driven by our plane and seen by its real Python SDK. `make unleash` runs it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import uuid
from collections.abc import Sequence
from math import sqrt
from typing import Any, Self

import mmh3

from controller.adapters.unleash import UnleashPlane
from controller.clock import SystemClock
from tests.unleash.given import decided, make_settings, rolled_back
from tests.unleash.server import BACKEND_TOKEN, HERE, UnleashServer, installed

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

    async def ask(self, flag_key: str, users: Sequence[dict[str, Any]]) -> list[bool | str]:
        """Return what each user is served, as the SDK knows the flag now."""

        def exchange() -> list[bool | str]:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps({"flag": flag_key, "users": users}) + "\n")
            self._process.stdin.flush()
            answers: list[bool | str] = json.loads(self._process.stdout.readline())
            return answers

        return await asyncio.to_thread(exchange)

    async def users_in(self, flag_key: str, percent: int, seconds: float = 15.0) -> set[str]:
        """Return who is in, once the SDK has fetched what lets in who should be at `percent`; it asks once a second."""
        deadline = time.monotonic() + seconds
        probe = USERS[:500]
        expected = [lets_in(flag_key, user, percent) for user in probe]
        while time.monotonic() < deadline:
            if await self.ask(flag_key, [{"userId": user} for user in probe]) == expected:
                break
            await asyncio.sleep(0.2)
        answers = await self.ask(flag_key, [{"userId": user} for user in USERS])
        return {user for user, answer in zip(USERS, answers, strict=True) if answer}


async def test_real_users_go_in_stage_by_stage_and_all_out_again(
    real_unleash: UnleashServer,
) -> None:
    """The real SDK sees 1, 10, 25, 50, 100 % and 0 %: shares within sampling error, and nobody who was in falls out before."""
    plane, flag_key = UnleashPlane(make_settings(real_unleash.url), SystemClock()), f"flag-{uuid.uuid4().hex[:8]}"
    before: set[str] = set()
    with Sdk(real_unleash.url) as sdk:
        for revision, percent in enumerate((1, 10, 25, 50, 100), 1):
            rollout = decided(flag_key, percent, revision)
            await plane.serve(rollout)
            served = await plane.look(rollout)
            assert (served.percent, served.difference) == (percent, None)
            users = await sdk.users_in(flag_key, percent)
            share, error = len(users) / len(USERS), sqrt(percent / 100 * (1 - percent / 100) / len(USERS))
            assert abs(share - percent / 100) <= 4 * error
            assert before <= users
            before = users
        await plane.serve(rolled_back(flag_key, 6))
        assert (await plane.look(rolled_back(flag_key, 6))).difference is None
        assert await sdk.users_in(flag_key, 0) == set()
    await plane.close()
