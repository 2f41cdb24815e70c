"""The compacted state topic, followed by every replica: what was decided, by any of them.

Belongs here: which document of a flag is the newest, noticing when an older one was written over
it, and connecting again. Does not belong here: reading the topic (`state_connection.py`), consumer
groups (`group_member.py`), publishing (`publisher.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence

import msgspec
import structlog
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError

from controller.adapters.kafka.client import must_propagate
from controller.adapters.kafka.state_connection import StateConnection
from controller.codec.tombstones import DELETED, retired_revision
from controller.core.rollout import Rollout
from controller.ports import RetiredFlag
from controller.settings import KafkaSettings

log = structlog.get_logger(__name__)

_CORRUPT_KEPT = 1_000  # keys of records that cannot be used; any writer can invent keys
_RETIRED_KEPT = 10_000  # retired flags whose revision is known, to refuse what comes late
_KEY_KEPT = 500  # characters; no flag's key is longer


class KafkaStateFeed:
    """The compacted state topic, followed from its first record.

    `controller.ports.StateFeed`, with stop.

    Per flag it gives only documents with a higher revision than all before, and the newest once
    more when it came back after the topic had lost it. For a flag that was retired it gives
    `RetiredFlag`. A record that cannot be used (no document, another flag's key, deleted by
    somebody else) stops that flag only: `corrupt` names it until a good document arrives.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        decode: Callable[[bytes], Rollout],
        *,
        overtaken: Callable[[str], None] = lambda flag_key: None,
        retry_seconds: float = 1.0,
    ) -> None:
        """Read with `decode`, which raises any Exception for what is no document.

        `retry_seconds` pass between connections, and between two checks of the topic's ends.

        `overtaken` is called, once a second, with a flag whose last record in the topic is older
        than one before it: another replica wrote it late, and compaction would keep only that. Also
        with one that the topic no longer has, because it was deleted and made again.
        """
        self._settings = settings
        self._topic = settings.topic("state")
        self._decode = decode
        self._overtaken = overtaken
        self._retry_seconds = retry_seconds
        self._revisions: dict[str, int] = {}  # by flag, the newest that was read
        self._last: dict[str, int] = {}  # by flag, that of the last record
        self._retired: dict[str, None] = {}  # flags whose newest record retires them, oldest first
        self._lost: set[str] = set()  # flags whose newest document is not their last in the topic
        self._corrupt: dict[str, str] = {}
        self._caught_up = asyncio.Event()
        self._last_confirmed: float | None = None
        self._connection: StateConnection | None = None
        self._is_stale = False

    @property
    def corrupt(self) -> Mapping[str, str]:
        """Record keys whose newest record cannot be used, with the reason."""
        return dict(self._corrupt)

    def revision_of(self, flag_key: str) -> int | None:
        """Return the revision of a flag's last record in the topic, None where it has none."""
        return self._last.get(flag_key)

    @property
    def silent_seconds(self) -> float | None:
        """Seconds since the brokers last confirmed that nothing is newer than what was given.

        None before the first time.
        """
        if self._last_confirmed is None:
            return None
        return asyncio.get_running_loop().time() - self._last_confirmed

    async def caught_up(self) -> None:
        await self._caught_up.wait()

    async def documents(self) -> AsyncGenerator[Rollout | RetiredFlag, None]:
        while True:
            try:
                async for rollout in self._follow():
                    yield rollout
            except BaseException as error:
                if must_propagate(error):
                    raise
                # Of any type, it is the client's error: to read what a document holds raises
                # nothing. Revisions are kept, so that reading from the beginning repeats nothing.
                log.warning(
                    "state_feed_lost",
                    topic=self._topic,
                    error_type=type(error).__name__,
                    reason=str(error),
                )
            finally:
                await self.stop()
            await asyncio.sleep(self._retry_seconds)

    def read_again(self) -> None:
        """Read the topic from its beginning once more.

        It was deleted and made again, and may have grown past our position.
        """
        self._is_stale = True

    async def stop(self) -> None:
        """Disconnect within `stop_seconds`; `documents` does it, too, when its reader goes."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.stop()

    async def _follow(self) -> AsyncIterator[Rollout | RetiredFlag]:
        """Yield until the connection is lost, which raises."""
        connection = self._connection = StateConnection(self._settings, self._retry_seconds)
        self._is_stale = False
        await connection.start()
        # It is read from its beginning: what it no longer has must not be remembered.
        self._last.clear()
        self._corrupt.clear()
        while self._connection is connection:
            await connection.check()
            if self._is_stale:
                raise KafkaError("the topic that was read has ended")
            for records in await connection.read():
                for rollout in self._newer(records):
                    yield rollout
            confirmed_at = await connection.confirmed_at()
            if confirmed_at is not None:
                self._last_confirmed = confirmed_at
                self._report_overtaken()
            if not self._caught_up.is_set() and await connection.has_reached_first_ends():
                self._caught_up.set()
                log.info(
                    "state_caught_up",
                    topic=self._topic,
                    flags=len(self._revisions),
                    corrupt=len(self._corrupt),
                )

    def _newer(self, records: Sequence[ConsumerRecord]) -> Iterator[Rollout | RetiredFlag]:
        """Yield the documents that are newer than their flags' newest.

        While catching up, of several documents of a flag only the newest.
        """
        chosen = records if self._caught_up.is_set() else _without_outdated(records)
        yield from filter(None, map(self._read, chosen))
        if len(chosen) < len(records) and any(
            _key_of(record) in self._corrupt for record in chosen
        ):
            # A record that seemed to be the newest cannot be used: the newest that can is among the
            # others.
            yield from filter(None, map(self._read, records))

    def _report_overtaken(self) -> None:
        for flag_key, revision in self._revisions.items():
            last = self._last.get(flag_key)
            if last == revision or (last is None and flag_key in self._corrupt):
                continue
            self._lost.add(flag_key)
            log.warning("state_overtaken", flag_key=flag_key, revision=revision, last=last)
            self._overtaken(flag_key)

    def _read(self, record: ConsumerRecord) -> Rollout | RetiredFlag | None:
        """Return the document if it is newer than its flag's newest, else None.

        The reason why a record cannot be used is kept in `corrupt`.
        """
        key = _key_of(record)
        retired_as = retired_revision(record.value, record.headers)
        if retired_as is not None and len(key) <= _KEY_KEPT:
            return RetiredFlag(key, retired_as) if self._is_news(key, retired_as) else None
        try:
            if record.value is None:
                raise ValueError(DELETED)  # noqa: TRY301
            rollout = self._decode(record.value)
            if rollout.flag_key != key:
                raise ValueError(f"the document is of flag {rollout.flag_key!r}")  # noqa: TRY301
        except Exception as error:
            is_kept = len(key) <= _KEY_KEPT and (
                key in self._revisions or len(self._corrupt) < _CORRUPT_KEPT
            )
            if key in self._corrupt or is_kept:
                self._corrupt[key] = str(error)
            log.warning(
                "state_refused",
                flag_key=key,
                partition=record.partition,
                offset=record.offset,
                reason=str(error)[:500],
            )
            return None
        if not self._is_news(key, rollout.revision, is_document=True):
            return None
        return rollout

    def _is_news(self, key: str, revision: int, *, is_document: bool = False) -> bool:
        """Note a record that can be used; return whether it says something new about its flag."""
        self._last[key] = revision
        newest = self._revisions.get(key, -1)
        if revision == newest and key in self._lost:
            self._lost.discard(key)
            return True
        if revision <= newest:
            return False  # an old copy that was written late, or one from before a reconnection
        self._revisions[key] = revision
        self._lost.discard(key)
        self._corrupt.pop(key, None)
        self._retired.pop(key, None)
        if not is_document:
            self._retired[key] = None
            self._forget_retired()
        return True

    def _forget_retired(self) -> None:
        """Forget the flags that were retired longest ago, so that they take bounded memory."""
        while len(self._retired) > _RETIRED_KEPT:
            oldest = next(iter(self._retired))
            del self._retired[oldest], self._revisions[oldest]
            self._last.pop(oldest, None)
            self._lost.discard(oldest)


def _key_of(record: ConsumerRecord) -> str:
    return (record.key or b"").decode(errors="replace")


def _without_outdated(records: Sequence[ConsumerRecord]) -> Sequence[ConsumerRecord]:
    """Return the records without those that are older than a later one of the same flag.

    Compaction leaves the newest segment as it is, up to a week of it. To decode a document takes
    over a millisecond, its revision alone four microseconds.
    """
    newest: dict[bytes | None, int] = {}
    kept: list[ConsumerRecord] = []
    for record in reversed(records):
        revision = _revision_in(record.value)
        if revision is None or revision >= newest.get(record.key, 0):
            kept.append(record)
            newest[record.key] = max(revision or 0, newest.get(record.key, 0))
    kept.reverse()
    return kept


class _Document(msgspec.Struct):
    revision: int


class _Event(msgspec.Struct):
    data: _Document


_event = msgspec.json.Decoder(_Event).decode


def _revision_in(value: bytes | None) -> int | None:
    """Return the revision of a document, None when it cannot be read; decoding it says why."""
    try:
        return _event(value or b"").data.revision
    except (ValueError, RecursionError):
        return None
