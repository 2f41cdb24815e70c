"""What is shown of each rollout, in Redis, where every replica reads it.

Belongs here: keys and calls. Does not belong here: what a report says (`codec/reports.py`), and
when it is written (`running/report_writer.py`).

| key | what |
|---|---|
| `<prefix>live:{<flag>}` | hash: `report` |
| `<prefix>course:{<flag>}:<rollout>:<visit>` | hash: second since the epoch -> point |
| `<prefix>news:{<flag>}:<topic>` | list: the newest events of a topic, newest first |

All expire. Nothing is decided by them, so a Redis that lost them loses a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import xxhash

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.gathered_calls import Command, GatheredCalls
from controller.ports import NEWS_TOPICS, CourseKey

#: Digits of a second since the epoch. A longer field was not written by us.
MAX_SECOND_DIGITS: Final = 12
#: Events kept of one topic and flag.
NEWS_KEPT: Final = 100


class RedisReports:
    """Implements `controller.ports.Reports`. Each call takes half the deadline at most."""

    def __init__(self, connection: RedisConnection, *, keep_seconds: int) -> None:
        """What was not written again for `keep_seconds` goes."""
        self._connection = connection
        self._calls = GatheredCalls(connection, times_deadline=0.5)
        self._keep_seconds = keep_seconds

    async def write(
        self,
        flag_key: str,
        report: bytes,
        course: CourseKey | None = None,
        points: Mapping[int, bytes] | None = None,
        gone: Sequence[int] = (),
    ) -> None:
        live = self._live(flag_key)
        commands: list[Command] = [
            ("HSET", live, "report", report),
            ("EXPIRE", live, self._keep_seconds),
        ]
        if course is not None and points:
            key = self._course(flag_key, course)
            pairs: list[bytes | int] = []
            for second, point in points.items():
                pairs += (second, point)
            commands.append(("HSET", key, *pairs))
            if gone:
                commands.append(("HDEL", key, *gone))
            commands.append(("EXPIRE", key, self._keep_seconds))
        await self._calls.call(f"report on {flag_key}", *commands)

    async def read(self, flag_key: str) -> bytes | None:
        report: bytes | None = await self._connection.call(
            f"read the report on {flag_key}",
            lambda: self._connection.client.hget(self._live(flag_key), "report"),
            times_deadline=0.5,
        )
        return report

    async def course(self, flag_key: str, course: CourseKey) -> Mapping[int, bytes]:
        stored: Mapping[bytes, bytes]
        (stored,) = await self._calls.call(
            f"read the course of {flag_key}", ("HGETALL", self._course(flag_key, course))
        )
        seconds = sorted(
            (int(name), point)
            for name, point in stored.items()
            if name.isdigit() and len(name) <= MAX_SECOND_DIGITS
        )
        return dict(seconds)

    async def append_news(self, flag_key: str, topic: str, events: Sequence[bytes]) -> None:
        key = self._news(flag_key, topic)
        if events:
            await self._calls.call(
                f"keep {topic} of {flag_key}",
                ("LPUSH", key, *events),
                ("LTRIM", key, 0, NEWS_KEPT - 1),
                ("EXPIRE", key, self._keep_seconds),
            )

    async def news(self, flag_key: str, topic: str, *, most: int | None = None) -> Sequence[bytes]:
        key = self._news(flag_key, topic)
        last = NEWS_KEPT if most is None else most
        stored: Sequence[bytes] = await self._connection.call(
            f"read {topic} of {flag_key}",
            lambda: self._connection.client.lrange(key, 0, last - 1),
            times_deadline=0.5,
        )
        return stored

    async def discard(self, flag_key: str, courses: Sequence[CourseKey]) -> None:
        keys = [self._live(flag_key), *(self._news(flag_key, topic) for topic in NEWS_TOPICS)]
        keys += [self._course(flag_key, course) for course in courses]
        await self._connection.call(
            f"forget the reports on {flag_key}", lambda: self._connection.client.unlink(*keys)
        )

    def _live(self, flag_key: str) -> str:
        return f"{self._connection.prefix}live:{{{flag_key}}}"

    def _course(self, flag_key: str, course: CourseKey) -> str:
        """Return a visit's key: the rollout's id may be of any form, so its hash stands for it."""
        rollout = xxhash.xxh3_64_hexdigest(course.rollout_id.encode())
        return f"{self._connection.prefix}course:{{{flag_key}}}:{rollout}:{course.visit}"

    def _news(self, flag_key: str, topic: str) -> str:
        return f"{self._connection.prefix}news:{{{flag_key}}}:{topic}"
