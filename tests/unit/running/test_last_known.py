from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog

from controller.adapters.last_known_file import LastKnownFile
from controller.adapters.memory import ManualClock, MemoryRollouts
from controller.adapters.private_file import PrivateFile, ReplicaDirectory
from controller.codec.last_known import Origin
from controller.core.rollout import RolledBack, Rollout
from controller.errors import DocumentUnreadable, LastKnownUnavailable, StoreUnavailable
from controller.health import Faults
from controller.running.last_known import FILE, AskingPace, LastKnown, pause_after_write
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from tests.builders import T0, make_plan, make_rollout

OURS = Origin("production", "")
AT_HALF = make_rollout(percent=50.0, revision=7)
ROLLED_BACK = make_rollout(percent=0.0, revision=8, phase=RolledBack(T0, "guardrail"))
QUICK = AskingPace(store_first=0.05, retry=0.01, follow=0.01, refresh=0.01, write=0.01)


@dataclass
class Store:
    """What Redis has."""

    rollouts: MemoryRollouts = field(default_factory=MemoryRollouts)
    ours: bool = True
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    hangs: bool = False
    reads: int = 0

    async def is_ours(self) -> bool:
        self.reads += 1
        if self.hangs:
            await self.answers.wait()
        if self.rollouts.outage.is_down:
            raise StoreUnavailable("away")
        return self.ours

    async def save(self, rollout: Rollout) -> None:
        """Save a decision."""
        token = (await self.rollouts.load(rollout.flag_key)).token
        assert await self.rollouts.save(rollout.flag_key, expected_token=token, rollout=rollout)


@dataclass
class Feed:
    """The state topic: here only when the brokers answered last."""

    silent_seconds: float | None = None


class Replica:
    """A board, and what is remembered for it."""

    def __init__(self, directory: Path, store: Store, max_age: timedelta, pace: AskingPace) -> None:
        self.clock = ManualClock(T0)
        self.store = store
        self.feed = Feed()
        self.file = LastKnownFile(ReplicaDirectory(directory, OURS, 8080))
        self.faults = Faults(self.clock.now)
        self.board = FlagBoard(generation=Generation.V3, now=self.clock.now)
        self.last_known = LastKnown(
            self.board,
            store,
            self.file,
            self.feed,
            self.clock,
            max_age=max_age,
            update=self.board.update,
            faults=self.faults,
            pace=pace,
        )

    @property
    def percents(self) -> dict[str, float] | None:
        """What is served by flag; None while nothing is."""
        return None if self.board.why_not is not None else dict(self.board.percents())

    async def until(self, percents: dict[str, float]) -> None:
        """Return once this is served."""
        async with asyncio.timeout(60):
            while self.percents != percents:
                await asyncio.sleep(0.001)

    async def until_faults(self, names: list[str]) -> None:
        """Return once these faults are told, and no other."""
        async with asyncio.timeout(60):
            while [fault.name for fault in self.faults.current] != names:
                await asyncio.sleep(0.001)

    async def asked(self, times: int) -> None:
        """Return once Redis was asked so often more."""
        goal = self.store.reads + times
        async with asyncio.timeout(60):
            while self.store.reads < goal:
                await asyncio.sleep(0.001)

    async def written(self, known_at: datetime, rollouts: Sequence[Rollout]) -> None:
        """Return once the file holds this."""
        async with asyncio.timeout(60):
            while True:
                with suppress(DocumentUnreadable):
                    state = self.file.read()
                    if state and (state.known_at, [*state.rollouts]) == (known_at, [*rollouts]):
                        return
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running(
    directory: Path, store: Store, *, pace: AskingPace = QUICK
) -> AsyncIterator[Replica]:
    """A replica that has just been started."""
    replica = Replica(directory, store, timedelta(hours=1), pace)
    task = asyncio.create_task(replica.last_known.run())
    try:
        yield replica
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def keep(directory: Path, *rollouts: Rollout, known_at: datetime = T0) -> None:
    """Leave a file as a replica before left it."""
    LastKnownFile(ReplicaDirectory(directory, OURS, 8080)).write(known_at, rollouts)


async def away() -> Store:
    """Return a Redis that refuses."""
    store = Store()
    store.rollouts.outage.is_down = True
    return store


async def holding(*rollouts: Rollout) -> Store:
    """Return a Redis that has these."""
    store = Store()
    for rollout in rollouts:
        await store.save(rollout)
    return store


async def test_the_file_is_served_where_nothing_answers(tmp_path: Path) -> None:
    """As stale since the moment at which it was known to be the newest."""
    keep(tmp_path, AT_HALF, known_at=T0 - timedelta(minutes=5))
    async with running(tmp_path, await away()) as replica:
        await replica.until({"new-checkout": 50.0})
        assert replica.board.stale_since == T0 - timedelta(minutes=5)
        assert "flags are served as they were known at" in (replica.board.why_stale or "")


async def test_a_redis_that_hangs_does_not_keep_the_file_back(tmp_path: Path) -> None:
    """It is waited for, for a moment."""
    keep(tmp_path, AT_HALF)
    async with running(tmp_path, Store(hangs=True)) as replica:
        await replica.until({"new-checkout": 50.0})


async def test_redis_overrules_the_file(tmp_path: Path) -> None:
    """A roll back by another replica while this one was down: the old percentage is never served.

    The file waits for Redis.
    """
    keep(tmp_path, AT_HALF)
    store = await holding(ROLLED_BACK)
    store.hangs = True
    async with running(tmp_path, store, pace=AskingPace(store_first=600.0)) as replica:
        await replica.asked(1)
        before = replica.percents
        store.answers.set()
        await replica.until({"new-checkout": 0.0})
        assert replica.board.stale_since == T0
    assert before is None


async def test_redis_that_comes_later_overrules_what_the_file_said(tmp_path: Path) -> None:
    """Redis is asked again until the topic was read."""
    keep(tmp_path, AT_HALF)
    store = await holding(ROLLED_BACK)
    store.rollouts.outage.is_down = True
    async with running(tmp_path, store) as replica:
        await replica.until({"new-checkout": 50.0})
        store.rollouts.outage.is_down = False
        await replica.until({"new-checkout": 0.0})


async def test_a_disk_that_hangs_does_not_keep_redis_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the file has a limit."""
    is_over = threading.Event()
    monkeypatch.setattr(LastKnownFile, "read", lambda _: is_over.wait() and None)
    try:
        async with running(tmp_path, await holding(AT_HALF), pace=AskingPace(read=0.05)) as replica:
            await replica.until({"new-checkout": 50.0})
    finally:
        is_over.set()


async def test_of_file_and_redis_the_newer_revision_is_served(tmp_path: Path) -> None:
    """Redis may have lost its last second; a flag that it does not have is served, too."""
    other = make_rollout(flag_key="other", plan=make_plan(flag_key="other"), percent=10.0)
    keep(tmp_path, ROLLED_BACK, other)
    async with running(tmp_path, await holding(AT_HALF)) as replica:
        await replica.until({"new-checkout": 0.0, "other": 10.0})


async def test_without_a_file_redis_is_enough(tmp_path: Path) -> None:
    """The first start on a new machine in an outage of Kafka."""
    async with running(tmp_path, await holding(AT_HALF)) as replica:
        await replica.until({"new-checkout": 50.0})


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(hours=1, seconds=1), "3601 s old, which is more than last_known"),
        (-timedelta(hours=2), "from the future"),
    ],
)
async def test_an_old_file_is_not_served(tmp_path: Path, age: timedelta, words: str) -> None:
    """Others may have lowered the flag since. Why nothing is served is said."""
    keep(tmp_path, AT_HALF, known_at=T0 - age)
    async with running(tmp_path, await away()) as replica:
        await replica.asked(3)
        assert replica.percents is None
        assert words in (replica.board.why_not or "")


async def test_an_old_file_holds_what_redis_confirms_and_nothing_else(tmp_path: Path) -> None:
    """A flag that Redis knows is read from Redis; one that it does not know is left out."""
    gone = make_rollout(flag_key="gone", plan=make_plan(flag_key="gone"), percent=100.0)
    keep(tmp_path, AT_HALF, gone, known_at=T0 - timedelta(days=3))
    async with running(tmp_path, await holding(AT_HALF)) as replica:
        await replica.until({"new-checkout": 50.0})


async def test_redis_of_another_environment_is_not_served(tmp_path: Path) -> None:
    """Names decide, for the Kafka cluster is not known yet."""
    store = await holding(AT_HALF)
    store.ours = False
    async with running(tmp_path, store) as replica:
        await replica.asked(3)
        assert replica.percents is None


async def test_a_file_of_no_use_is_reported_and_replaced(tmp_path: Path) -> None:
    """Damage stops nothing; once trusted, the file is written again."""
    keep(tmp_path, AT_HALF)
    path = LastKnownFile(ReplicaDirectory(tmp_path, OURS, 8080)).path
    path.write_bytes(path.read_bytes()[:-1])
    with structlog.testing.capture_logs() as logs:
        async with running(tmp_path, await away()) as replica:
            await replica.asked(2)
            assert replica.percents is None
            replica.board.update(ROLLED_BACK)
            replica.feed.silent_seconds = 0.0
            replica.board.trust()
            await replica.written(T0, [ROLLED_BACK])
    refused = [line for line in logs if line["event"] == "last_known_refused"]
    assert [line["path"] for line in refused] == [str(path)]


async def test_every_change_is_kept_with_the_time_of_the_last_word(tmp_path: Path) -> None:
    """Nothing is written before the topic was read; later, silence does not make it look newer."""
    async with running(tmp_path, await away()) as replica:
        replica.board.update(AT_HALF)
        await replica.asked(2)
        assert replica.file.read() is None
        replica.feed.silent_seconds = 2.0
        replica.board.trust()
        await replica.written(T0 - timedelta(seconds=2), [AT_HALF])
        replica.clock.advance(timedelta(seconds=30))
        replica.feed.silent_seconds = 1.0
        await replica.written(T0 + timedelta(seconds=29), [AT_HALF])
        replica.clock.advance(timedelta(seconds=60))
        replica.feed.silent_seconds = 61.0
        replica.board.update(ROLLED_BACK)
        await replica.written(T0 + timedelta(seconds=29), [ROLLED_BACK])


@pytest.mark.parametrize(
    ("worked", "took", "pause"),
    [
        (0.001, 0.01, 0.5),  # one flag
        (0.06, 0.1, 1.2),  # 10,000 flags, few of which have changed
        (2.5, 3.0, 10.0),  # all of them, as after a start
        (0.001, 1.5, 1.5),  # a slow disk
        (0.001, 600.0, 2.0),  # one that hung for ten minutes
    ],
)
def test_the_pause_after_a_write_goes_by_its_work(worked: float, took: float, pause: float) -> None:
    """What is decided meanwhile is not kept, so it has a limit."""
    assert pause_after_write(worked, took) == pytest.approx(pause)


async def test_a_busy_disk_does_not_leave_what_is_decided_next_unkept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the work of a write makes the pause after it longer, not what it waited for.

    A start that waited a second for its first file, without a rollout, kept nothing for twenty.
    """
    first_written = threading.Event()
    write = LastKnownFile.write

    def slow(
        file: LastKnownFile,
        known_at: datetime,
        rollouts: Sequence[Rollout],
        confirmed_at: datetime | None = None,
    ) -> None:
        if not first_written.is_set():
            time.sleep(1)
        write(file, known_at, rollouts, confirmed_at)
        first_written.set()

    monkeypatch.setattr(LastKnownFile, "write", slow)
    async with running(tmp_path, await away()) as replica:
        replica.feed.silent_seconds = 0.0
        replica.board.trust()
        await asyncio.to_thread(first_written.wait)
        replica.board.update(AT_HALF)
        async with asyncio.timeout(10):
            await replica.written(T0, [AT_HALF])


async def test_in_an_outage_of_kafka_decisions_come_from_redis(tmp_path: Path) -> None:
    """Another replica rolls back; without Kafka it is served here all the same."""
    store = await holding(AT_HALF)
    async with running(tmp_path, store) as replica:
        replica.board.update(AT_HALF)
        replica.feed.silent_seconds = 0.0
        replica.board.trust()
        await replica.until({"new-checkout": 50.0})
        await asyncio.sleep(5 * QUICK.follow)
        reads = store.reads
        await asyncio.sleep(5 * QUICK.follow)
        assert store.reads == reads, "while Kafka answers, Redis is not read"
        replica.feed.silent_seconds = 60.0
        await store.save(ROLLED_BACK)
        await replica.until({"new-checkout": 0.0})
        store.rollouts.outage.is_down = True
        await replica.asked(2)
        assert replica.percents == {"new-checkout": 0.0}


async def test_before_the_topic_was_read_decisions_come_from_redis_too(tmp_path: Path) -> None:
    """Started in an outage, a replica learns of a roll back by another one."""
    store = await holding(AT_HALF)
    async with running(tmp_path, store) as replica:
        await replica.until({"new-checkout": 50.0})
        await store.save(ROLLED_BACK)
        await replica.until({"new-checkout": 0.0})


@pytest.mark.parametrize("has_redis", [True, False])
async def test_an_outage_does_not_begin_with_a_restart(tmp_path: Path, *, has_redis: bool) -> None:
    """Stale since the brokers' last word, to whichever process, though Redis was read since."""
    store = await holding(AT_HALF)
    async with running(tmp_path, store) as replica:
        replica.board.update(AT_HALF)
        replica.clock.advance(timedelta(minutes=10))
        replica.feed.silent_seconds = 600.0
        replica.board.trust()
        replica.board.note_silence(600.0)
        assert replica.board.stale_since == T0
        await replica.written(T0 + timedelta(minutes=10), [AT_HALF])
    store.rollouts.outage.is_down = not has_redis
    for minutes in (20, 30):
        async with running(tmp_path, store) as replica:
            replica.clock.advance(timedelta(minutes=minutes))
            await replica.until({"new-checkout": 50.0})
            await replica.asked(3)
            assert replica.board.stale_since == T0
            known = "09:10" if not has_redis else f"09:{minutes}"
            assert f"as they were known at 2026-01-05 {known}:00 UTC" in (
                replica.board.why_stale or ""
            )
    if not has_redis:
        return
    async with running(tmp_path, store) as replica:
        await replica.until({"new-checkout": 50.0})
        await store.save(ROLLED_BACK)
        await replica.until({"new-checkout": 0.0})
        assert replica.board.stale_since == T0


async def test_a_disk_that_refuses_is_reported_once(tmp_path: Path) -> None:
    """Everything else goes on, and a disk that takes it again is written."""
    directory = tmp_path / "state"
    directory.write_text("no directory")
    with structlog.testing.capture_logs() as logs:
        async with running(directory, await away()) as replica:
            replica.board.update(AT_HALF)
            replica.feed.silent_seconds = 0.0
            replica.board.trust()
            for _ in range(20):
                replica.clock.advance(timedelta(seconds=10))
                await asyncio.sleep(2 * QUICK.refresh)
            directory.unlink()
            await replica.written(replica.clock.now(), [AT_HALF])
    reports = [line for line in logs if line["event"] == "last_known_not_kept"]
    assert len(reports) == 1
    assert "last_known.directory" in reports[0]["action"]
    assert replica.faults.current == ()  # somebody's choice, perhaps


class Disk(PrivateFile):
    """A disk that is full but for so many files, or that cannot be written at all."""

    room: int = 2  # the old file and the new one
    is_read_only = False

    def _replace(self, content: bytes, *, is_durable: bool) -> None:
        if self.room <= self.path.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        super()._replace(content, is_durable=is_durable)

    def remove(self) -> None:
        if self.is_read_only:
            raise LastKnownUnavailable("Read-only file system")
        super().remove()


@pytest.mark.parametrize("is_read_only", [False, True])
async def test_what_was_lowered_does_not_come_back_from_a_full_disk(
    tmp_path: Path, *, is_read_only: bool
) -> None:
    """The old file goes. Where even that is refused, people are told."""
    async with running(tmp_path, await away()) as replica:
        disk = replica.file._file = Disk(replica.file.path)
        replica.board.update(AT_HALF)
        replica.feed.silent_seconds = 0.0
        replica.board.trust()
        await replica.written(T0, [AT_HALF])
        disk.room, disk.is_read_only = 0, is_read_only
        replica.board.update(ROLLED_BACK)
        await replica.until_faults([FILE])
        assert replica.file.path.exists() is is_read_only
        disk.room = 2
        replica.clock.advance(timedelta(seconds=1))
        await replica.written(replica.clock.now(), [ROLLED_BACK])
        await replica.until_faults([])


async def test_a_disk_with_room_for_one_file_keeps_what_was_lowered(tmp_path: Path) -> None:
    """The old file, of the process before, makes room for the new one."""
    keep(tmp_path, AT_HALF)
    async with running(tmp_path, await away()) as replica:
        await replica.until({"new-checkout": 50.0})
        disk = replica.file._file = Disk(replica.file.path)
        disk.room = 1
        replica.board.update(ROLLED_BACK)
        replica.feed.silent_seconds = 0.0
        replica.board.trust()
        await replica.written(T0, [ROLLED_BACK])
        assert replica.faults.current == ()


async def test_what_is_remembered_is_served_once_the_waiting_commands_are_read(
    tmp_path: Path,
) -> None:
    """Otherwise a restart brings back for a while what a roll back took away."""
    keep(tmp_path, AT_HALF)
    replica = Replica(tmp_path, await away(), timedelta(hours=1), QUICK)
    read = asyncio.Event()

    async def waiting_read() -> None:
        await read.wait()

    replica.last_known._waiting_read = waiting_read
    task = asyncio.create_task(replica.last_known.run())
    try:
        await asyncio.sleep(0.05)
        assert replica.percents is None
        read.set()
        await replica.until({"new-checkout": 50.0})
    finally:
        task.cancel()
        await asyncio.wait({task})
