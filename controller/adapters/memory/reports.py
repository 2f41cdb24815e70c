"""What is shown of rollouts, in memory: `controller.ports.Reports`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.adapters.memory.outage import Outage
from controller.errors import StoreUnavailable
from controller.ports import CourseKey


class MemoryReports:
    """Keeps reports, courses and news as they come; nothing expires."""

    def __init__(self) -> None:
        self.outage = Outage(StoreUnavailable)
        self._reports: dict[str, bytes] = {}
        self._courses: dict[tuple[str, CourseKey], dict[int, bytes]] = {}
        self._news: dict[tuple[str, str], list[bytes]] = {}

    async def write(
        self,
        flag_key: str,
        report: bytes,
        course: CourseKey | None = None,
        points: Mapping[int, bytes] | None = None,
        gone: Sequence[int] = (),
    ) -> None:
        self.outage.before()
        self._reports[flag_key] = report
        if course is not None:
            kept = self._courses.setdefault((flag_key, course), {})
            kept.update(points or {})
            for second in gone:
                kept.pop(second, None)
        self.outage.after()

    async def read(self, flag_key: str) -> bytes | None:
        self.outage.before()
        self.outage.after()
        return self._reports.get(flag_key)

    async def course(self, flag_key: str, course: CourseKey) -> Mapping[int, bytes]:
        self.outage.before()
        self.outage.after()
        return dict(sorted(self._courses.get((flag_key, course), {}).items()))

    async def append_news(self, flag_key: str, topic: str, events: Sequence[bytes]) -> None:
        self.outage.before()
        kept = self._news.setdefault((flag_key, topic), [])
        for event in events:
            kept.insert(0, event)
        self.outage.after()

    async def news(self, flag_key: str, topic: str, *, most: int | None = None) -> Sequence[bytes]:
        self.outage.before()
        self.outage.after()
        return list(self._news.get((flag_key, topic), ()))[:most]

    async def discard(self, flag_key: str, courses: Sequence[CourseKey]) -> None:
        self.outage.before()
        self._reports.pop(flag_key, None)
        for course in courses:
            self._courses.pop((flag_key, course), None)
        for key in [key for key in self._news if key[0] == flag_key]:
            del self._news[key]
        self.outage.after()
