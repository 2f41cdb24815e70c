"""Redis: the partitions' totals and the flags' rollouts.

One hash each, written by one script with one HSET.

Belongs here: keys, calls, deadlines, and what Redis's errors mean to us. Does not belong here: what
the fields say (`schemas/totals.py`, `documents.py`).

| key | what |
|---|---|
| `<prefix>agg:{<topic>/<partition>/<epoch>}` | hash: fence and totals of one event partition |
| `<prefix>ro:{<flag>}` | hash: `token`, `digest`, `document`, `tests`, `outbox:<n>`, `answer:<command id>` of one flag |
| `<prefix>flags` | set: every flag that has a hash |
| `<prefix>claims` | hash: by command partition, who works on it and when it said so |
| `<prefix>identity` | hash: the Kafka cluster, topic prefix and environment these keys belong to, and the count's `epoch` |

Braces are literal: a key's hash tag, so that Redis Cluster spreads partitions and flags over its
nodes. No command touches two keys.

A call that failed may have been done, and may still be done later. So every write is one that can
be repeated: retries are ours, of the same bytes, within one deadline, and the script tells a repeat
from somebody else's write.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from typing import Any, Self, TypeVar

import msgspec
import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from controller.codec.documents import read_state, rollout_from_json, rollout_to_json
from controller.codec.merging import (
    Merger,
    ReadFaults,
    Reading,
    check_totals_save,
    digest_of,
    fields_of,
    outbox_number,
    stored_partition,
    visits_of,
)
from controller.core.evidence import PartitionProgress, VisitTotals
from controller.core.rollout import Rollout
from controller.errors import (
    BrokenInvariant,
    ConfigInvalid,
    DocumentNewer,
    DocumentUnreadable,
    StoreUnavailable,
)
from controller.health import Faults
from controller.ports import NO_FENCE, OutboxEntry, StoredPartition, StoredRollout
from schemas.terms import NAME
from schemas.totals import FORMAT, MAX_FIELDS_PER_SAVE, PROGRESS_FIELDS, rebased_field

T = TypeVar("T")

_log = structlog.get_logger()

_SCRIPT = resources.files("controller.adapters.redis").joinpath("fenced_save.lua").read_text()
_SCRIPT_SHA = hashlib.sha1(
    _SCRIPT.encode(), usedforsecurity=False
).hexdigest()  # the name Redis gives it

OLDEST_SERVER = (7, 0)
"""Scripts with `#!lua` begin with Redis 7.0. Valkey answers with the Redis version it is compatible with."""

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.25
"""Between two tries of one call: short against the 100 ms of a flush, long enough for a server to get up."""

FIELDS_PER_CALL = 2_000
"""Fields of one HDEL: about 1 ms of the server's one thread."""

FIELDS_PER_SLICE = 300
"""Fields of one HSCAN of a partition's hash, of 3 KB each: 1 MB, and filters of 64 KB each: 20 MB."""

LOADS_TRIED = 5
"""A hash that is written to while it is read is read again so many times: only a zombie writes then."""

VISITS_PER_READ = 200
"""Visits of one HMGET: two arms each, and their bundles. With 10,000 flags a reply of 8 partitions has 2 MB."""

VISITS_MERGED_AT_ONCE = 20
"""Between two looks at the loop: 20 visits of 8 partitions take about 10 ms when every total has changed."""

DOCUMENTS_AT_ONCE = 200
"""Documents asked for together at start: far more than connections, far fewer than would keep the loop busy for long."""

ANSWERS_KEPT = 1_000
ANSWERS_PRUNED_EVERY = 128
"""Answers to commands kept per flag, newest first, and after how many saves the older ones are looked for. A command that comes
back after a thousand later ones of its flag is treated as new; all that raise exposure are too old by then."""

_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")


# : Before prefixes were made of the environment's name everybody had this one, and no identity said
# whose it was.
SHARED_PREFIX = "rolloutd:"


class RightMissing(StoreUnavailable):
    """Our Redis user may not run a command, or not on this key.

    It passes once the right is granted.
    """


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose keys stand under a prefix: an environment is all three of these together."""

    cluster_id: str
    topic_prefix: str
    environment: str
    former_environments: tuple[str, ...] = ()  # names that this environment had before

    @property
    def fields(self) -> dict[str, bytes]:
        """As they are stored."""
        return {
            "cluster_id": self.cluster_id.encode(),
            "topic_prefix": self.topic_prefix.encode(),
            "environment": self.environment.encode(),
        }

    def why_not(self, stored: Mapping[bytes, bytes], prefix: str) -> str | None:
        """Return why `stored` is another environment's, with what to do.

        None when it is this one's.
        """
        cluster, topics, name = (
            _text_in(stored, field) for field in ("cluster_id", "topic_prefix", "environment")
        )
        at = f"Redis under prefix {prefix!r}"
        another = (
            "set redis.key_prefix to a prefix of this environment's own, or redis.url to its "
            "own Redis"
        )
        if cluster != self.cluster_id:
            return (
                f"{at} belongs to Kafka cluster {cluster!r}, not to {self.cluster_id!r}: {another}"
            )
        adopt = (
            f"If it is this environment's, stop every replica and run `redis-cli HSET "
            f"{prefix}identity topic_prefix "
            f'"{self.topic_prefix}" environment "{self.environment}"`'
        )
        if topics is None or name is None:
            if self.topic_prefix and prefix == SHARED_PREFIX:
                return (
                    f"{at} was written before keys named their environment, perhaps by the "
                    f"one without a topic prefix; "
                    f"this one has kafka.topic_prefix {self.topic_prefix!r}: {another}. {adopt}"
                )
            return None
        if topics != self.topic_prefix:
            return (
                f"{at} belongs to topic prefix {topics!r}, not to {self.topic_prefix!r}: "
                f"{another}. {adopt}"
            )
        if name not in (self.environment, *self.former_environments):
            return (
                f"{at} belongs to environment {name!r}, not to {self.environment!r}: {another}. "
                f"If {name!r} is this environment's former name, add it to former_environments"
            )
        return None


def _text_in(stored: Mapping[bytes, bytes], field: str) -> str | None:
    value = stored.get(field.encode())
    return None if value is None else value.decode(errors="replace")


class Store:
    """One Redis or Redis Cluster, with the discipline every call keeps.

    What `RedisTotals` and `RedisRollouts` stand on.
    """

    def __init__(self, client: Any, *, prefix: str, deadline_seconds: float) -> None:
        """`client` is a `redis.asyncio` Redis or RedisCluster that answers bytes and does not retry; see `connect`."""
        if not _PREFIX.match(prefix):
            raise ConfigInvalid(
                f"Redis prefix {prefix!r}: 1 to 64 of letters, digits, dot, underscore, "
                f"colon, hyphen"
            )
        self.client = client
        self.prefix = prefix
        self._deadline_seconds = deadline_seconds
        self._why_foreign: str | None = None
        self.heard_at: float | None = None
        """When Redis last answered a call, in seconds of the loop's clock; None: never."""

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        prefix: str = "rolloutd:",
        is_cluster: bool = False,
        deadline_seconds: float = 2.0,
        try_seconds: float = 0.5,
        connect_seconds: float | None = None,
        health_check_seconds: float = 15.0,
        connections: int = 8,
    ) -> Self:
        """Return a store; nothing is connected before the first call.

        `url` is redis:// or rediss:// with user, password and database as redis-py takes them.
        `deadline_seconds` bounds a call with all its tries (loading a whole hash has five times as
        long), `try_seconds` the silence of the server within one, `connect_seconds` making a
        connection (None: the same). One idle for `health_check_seconds` is tried before use.
        """
        options: dict[str, Any] = {
            "socket_timeout": try_seconds,
            "socket_connect_timeout": try_seconds if connect_seconds is None else connect_seconds,
            "health_check_interval": health_check_seconds,
            "socket_keepalive": True,
            "retry": Retry(
                NoBackoff(), 0
            ),  # repeats are ours; a client of redis-py's default sends up to ten
            "protocol": 2,  # nothing here needs RESP3, and proxies without HELLO refuse it
            "client_name": "rolloutd",
        }
        try:
            if is_cluster:
                client: Any = redis.asyncio.RedisCluster.from_url(
                    url, max_connections=connections, **options
                )
            else:
                pool = redis.asyncio.BlockingConnectionPool.from_url(
                    url, max_connections=connections, timeout=deadline_seconds, **options
                )
                client = redis.asyncio.Redis.from_pool(pool)
        except (ValueError, RedisClusterException) as error:
            raise ConfigInvalid(f"the Redis address cannot be used: {error}") from error
        return cls(client, prefix=prefix, deadline_seconds=deadline_seconds)

    async def close(self) -> None:
        """Drop all connections, within the deadline."""
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self.client.aclose()
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis connections did not close: {error}") from error

    async def call(
        self,
        purpose: str,
        make: Callable[[], Awaitable[T]],
        *,
        times_deadline: float = 1.0,
        is_identity: bool = False,
    ) -> T:
        """Return what `make()` gives, tried again while trouble may pass and the deadline lasts. It must bear repeating.

        Raises StoreUnavailable, or BrokenInvariant for what Redis can only answer to a mistake of
        ours.
        """
        if self._why_foreign is not None and not is_identity:
            raise StoreUnavailable(f"{purpose}: {self._why_foreign}")
        task = asyncio.current_task()
        cancels_before = 0 if task is None else task.cancelling()
        seconds = self._deadline_seconds * times_deadline
        pause = FIRST_PAUSE_SECONDS
        trouble: BaseException | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        answer = await make()
                    except (RedisError, RedisClusterException, OSError) as error:
                        trouble = error
                        await self._judge(purpose, error)
                    else:
                        # redis-py sends through asyncio.wait_for, which in Python 3.11 swallows a
                        # cancellation that comes as it finishes: whoever was to stop would go on
                        # for ever, and whoever waits for that, wait.
                        if task is not None and task.cancelling() > cancels_before:
                            raise asyncio.CancelledError
                        self.heard_at = asyncio.get_running_loop().time()
                        return answer
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        except TimeoutError as error:
            last = f"; last trouble: {_described(trouble)}" if trouble is not None else ""
            raise StoreUnavailable(
                f"{purpose}: Redis gave no answer within {seconds:g} s{last}"
            ) from error

    async def _judge(self, purpose: str, error: Exception) -> None:
        """Return when another try may help; raise what it means when none can."""
        text = _described(error)
        if isinstance(error, ReadOnlyError):
            # We speak to a former primary. Idle connections are dropped, so that its name is looked
            # up again.
            if isinstance(self.client, redis.asyncio.Redis):
                await self.client.connection_pool.disconnect(inuse_connections=False)
        elif isinstance(error, ResponseError) and text.startswith(("WRONGTYPE", "ROLLOUTD")):
            raise BrokenInvariant(f"{purpose}: {text}") from error
        elif isinstance(error, NoPermissionError):
            raise RightMissing(
                f"{purpose}: {text}: grant the right to our user, see ops/security.md"
            ) from error
        elif isinstance(error, OutOfMemoryError | AuthenticationError) or text.startswith(
            _NO_USE_TO_RETRY
        ):
            raise StoreUnavailable(f"{purpose}: {text}") from error

    async def fenced_save(
        self,
        key: str,
        *,
        fence: str,
        expected: int | None,
        after: int,
        fields: Mapping[str, bytes],
        purpose: str,
        guard: tuple[str, str] = ("", ""),
    ) -> tuple[bool, int | None]:
        """Write `fields` and the fence `after`, if the stored fence is `expected` (None: no fence).

        `guard` is a second field and what must stand in it (nothing, for a field that is missing).
        Returns (True, after) when written, now or by an earlier try; (False, the stored fence or
        None) when not.
        """
        words: list[str | bytes] = [fence, "" if expected is None else str(expected), str(after)]
        words += (digest_of(expected, after, fields), *guard)
        for name, value in fields.items():
            words += (name, value)

        async def evaluate() -> Any:
            try:
                return await self.client.evalsha(_SCRIPT_SHA, 1, key, *words)
            except NoScriptError:  # the server is new or was restarted
                return await self.client.eval(_SCRIPT, 1, key, *words)

        answer = await self.call(purpose, evaluate)
        if answer[0] == 1:
            return True, after
        return False, int(answer[1]) if len(answer) > 1 and answer[1] is not None else None

    async def ask_time(self) -> datetime:
        """Return Redis's wall clock.

        The lightest call there is, so it also shows that Redis answers.

        Within half the deadline of a call. Raises StoreUnavailable.
        """
        seconds, microseconds = await self.call(
            "ask Redis for the time", self.client.time, times_deadline=0.5
        )
        return datetime.fromtimestamp(int(seconds) + int(microseconds) / 1e6, UTC)

    async def claim(self, partitions: Sequence[int], value: bytes) -> None:
        """Write one value for each command partition. Raises StoreUnavailable."""
        mapping = {str(partition): value for partition in partitions}
        key = f"{self.prefix}claims"
        await self.call(
            "claim partitions", lambda: self.client.hset(key, mapping=mapping), times_deadline=0.5
        )

    async def claims(self) -> Mapping[int, bytes]:
        """Return the newest claim of every command partition. Raises StoreUnavailable."""
        key = f"{self.prefix}claims"
        stored: Mapping[bytes, bytes] = await self.call(
            "read the claims", lambda: self.client.hgetall(key), times_deadline=0.5
        )
        known = {field: value for field, value in stored.items() if field.isdigit()}
        return {int(field): value for field, value in known.items() if len(field) < 10}

    async def drop_claims(self, partitions: Sequence[int]) -> None:
        """Forget command partitions. Raises StoreUnavailable."""
        fields = [str(partition) for partition in partitions]
        key = f"{self.prefix}claims"
        await self.call("drop claims", lambda: self.client.hdel(key, *fields), times_deadline=0.5)

    async def check_server(self) -> Sequence[str]:
        """Return what an operator should know about this Redis, one sentence each.

        Nothing for one that is as it should be.

        Raises ConfigInvalid when it cannot be used: too old, or set to evict keys when memory is
        short.
        """
        try:
            answer = await self.call("look at the Redis server", self._info)
        except RightMissing as missing:
            what_to_check = (
                "that it is 7.0 or later, that maxmemory-policy is noeviction and appendonly yes"
            )
            return [f"{missing}. Without INFO nothing is known of this Redis: see {what_to_check}"]
        warnings: list[str] = []
        for node, info in answer.items():
            version = str(info.get("redis_version", "0"))
            if tuple(int(number) for number in version.split(".")[:2]) < OLDEST_SERVER:
                raise ConfigInvalid(
                    f"{node} is version {version}: rolloutd needs Redis 7.0 or Valkey"
                )
            policy = info.get("maxmemory_policy", "noeviction")
            if policy != "noeviction" and info.get("maxmemory", 0) > 0:
                raise ConfigInvalid(
                    f"{node} has maxmemory-policy {policy}: it would silently drop totals "
                    f"and rollouts; set noeviction"
                )
            if not info.get("aof_enabled"):
                warnings.append(
                    f"{node} has no append-only file (appendonly no): after a crash "
                    f"everything since its last snapshot is "
                    "counted again, as far as Kafka still has it"
                )
            elif info.get("aof_last_write_status") != "ok":
                warnings.append(f"{node} cannot write its append-only file")
        return warnings

    async def _info(self) -> dict[str, dict[str, Any]]:
        if isinstance(self.client, redis.asyncio.RedisCluster):
            found: dict[str, dict[str, Any]] = await self.client.info(
                target_nodes=redis.asyncio.RedisCluster.PRIMARIES
            )
            return {f"Redis at {node}": info for node, info in found.items()}
        return {"Redis": await self.client.info()}

    async def check_identity(self, identity: Identity, epoch: int) -> None:
        """Tie this prefix to one environment, or check that it is tied to the one given.

        `epoch` (at least 1) is the configured epoch of the count: a greater one than stored is
        adopted, because an operator begins a new count so. Raises ConfigInvalid for another
        environment or a smaller epoch: then it is the wrong Redis, an old copy of it, or an old
        configuration.
        """
        key = f"{self.prefix}identity"
        while True:
            stored = await self._stored_identity()
            known_epoch = _epoch_in(stored, key)
            if known_epoch is not None:
                if (why := identity.why_not(stored, self.prefix)) is not None:
                    raise ConfigInvalid(why)
                if known_epoch > epoch:
                    raise ConfigInvalid(
                        f"Redis under prefix {self.prefix!r} is at epoch {known_epoch} and the "
                        f"configuration at {epoch}: the configuration is out of date"
                    )
                fields = identity.fields
                if known_epoch == epoch and all(
                    stored.get(name.encode()) == value for name, value in fields.items()
                ):
                    return
            # Read again afterwards: of two environments that come at once one finds the other's
            # name.
            await self.fenced_save(
                key,
                fence="epoch",
                expected=known_epoch,
                after=epoch,
                fields=identity.fields,
                purpose="write the identity",
            )

    async def look_at_identity(self, identity: Identity, epoch: int) -> str | None:
        """Return why this Redis is not ours any more, None while it is; to be asked while running.

        While it is not, every other call is refused with StoreUnavailable: nothing is counted or
        decided on another environment's data. A Redis that was emptied is claimed again. Raises
        StoreUnavailable.
        """
        stored = await self._stored_identity()
        self._why_foreign = identity.why_not(stored, self.prefix) if stored else None
        if not stored:
            await self.check_identity(identity, epoch)
        return self._why_foreign

    async def environment_at(self, prefix: str) -> str | None:
        """Return the environment whose data stand under another prefix.

        None for none, or none that we may read.
        """
        key = f"{prefix}identity"
        try:
            stored = await self.call("read an identity", lambda: self.client.hgetall(key))
        except StoreUnavailable:
            return None
        return _text_in(stored, "environment")

    async def has_shared_data(self) -> bool:
        """Whether the prefix that everybody had once holds data, and it is not this prefix."""
        if self.prefix == SHARED_PREFIX or await self._stored_identity():
            return False
        key = f"{SHARED_PREFIX}identity"
        try:
            stored = await self.call("read an identity", lambda: self.client.hgetall(key))
        except StoreUnavailable:
            return False  # no right to read there: then nothing of ours stands there
        return bool(stored) and b"environment" not in stored

    async def _stored_identity(self) -> Mapping[bytes, bytes]:
        key = f"{self.prefix}identity"
        stored: Mapping[bytes, bytes] = await self.call(
            "read the identity", lambda: self.client.hgetall(key), is_identity=True
        )
        return stored


def _epoch_in(stored: Mapping[bytes, bytes], key: str) -> int | None:
    """Return the stored epoch, None for none. Raises ConfigInvalid for what is no number."""
    value = stored.get(b"epoch")
    if value is None:
        return None
    if not value.isdigit():
        raise ConfigInvalid(
            f"{key} in Redis is damaged: its epoch is no number; see `redis-cli HGETALL {key}`"
        )
    return int(value)


#: Beginnings of answers that another try within a second or two does not change.
_NO_USE_TO_RETRY = ("MISCONF", "OOM", "NOPERM", "NOAUTH", "WRONGPASS", "NOREPLICAS")


def _described(error: BaseException | None) -> str:
    return str(error) or type(error).__name__


class RedisTotals:
    """The `Totals` port."""

    max_fields = MAX_FIELDS_PER_SAVE

    def __init__(self, store: Store, faults: Faults | None = None) -> None:
        """What `read` cannot read is reported to `faults`."""
        self._store = store
        self._merger = Merger()
        self._faults = ReadFaults(faults)

    def _key(self, partition_key: str) -> str:
        return f"{self._store.prefix}agg:{{{partition_key}}}"

    async def load(self, partition_key: str) -> StoredPartition:
        """Return the hash, read in slices.

        However large it is, each call has a deadline it can meet.

        What is read is one moment's: a save in between changes the digest, and reading begins
        again.
        """
        for _ in range(LOADS_TRIED):
            before = await self._version(partition_key)
            raw = await self._slices(partition_key)
            if await self._version(partition_key) == before:
                break
        else:
            raise StoreUnavailable(f"load totals of {partition_key}: somebody keeps writing them")
        try:
            fields = {name.decode(): value for name, value in raw.items()}
        except UnicodeDecodeError as error:
            raise BrokenInvariant(
                f"the hash of {partition_key} has a field that we did not write: {error}"
            ) from error
        return stored_partition(partition_key, fields)

    async def _version(self, partition_key: str) -> list[bytes | None]:
        key = self._key(partition_key)
        purpose = f"load the fence of {partition_key}"
        version: list[bytes | None] = await self._store.call(
            purpose, lambda: self._store.client.hmget(key, ["next", "digest"])
        )
        return version

    async def _slices(self, partition_key: str) -> dict[bytes, bytes]:
        key, purpose = self._key(partition_key), f"load totals of {partition_key}"
        raw: dict[bytes, bytes] = {}
        cursor = 0
        while True:
            scan = partial(self._store.client.hscan, key, cursor, count=FIELDS_PER_SLICE)
            cursor, some = await self._store.call(purpose, scan, times_deadline=5)
            raw |= some
            if cursor == 0:
                return raw

    async def save(
        self,
        partition_key: str,
        *,
        expected: int | None,
        next_offset: int,
        fields: Mapping[str, bytes],
        rebased: int = 0,
    ) -> int | None:
        check_totals_save(expected, next_offset, fields, rebased)
        is_done, stored = await self._store.fenced_save(
            self._key(partition_key),
            fence="next",
            expected=expected,
            after=next_offset,
            fields={"format": b"%d" % FORMAT, **fields},
            purpose=f"save totals of {partition_key}",
            guard=("rebased", rebased_field(rebased).decode()),
        )
        if is_done:
            return None
        return NO_FENCE if stored is None else stored

    async def drop(self, partition_key: str, fields: Sequence[str]) -> None:
        key = self._key(partition_key)
        for chunk in _chunks(fields, FIELDS_PER_CALL):
            await self._store.call(
                f"drop totals of {partition_key}", partial(self._store.client.hdel, key, *chunk)
            )

    async def discard(self, partition_key: str) -> bool:
        key = self._key(partition_key)
        # UNLINK frees the memory in another thread: a hash of 80 MB would hold the server up.
        gone: int = await self._store.call(
            f"discard totals of {partition_key}", lambda: self._store.client.unlink(key)
        )
        return gone > 0

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, tuple[str, Sequence[int]]]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        reading = Reading(self._merger, partition_keys, wanted)
        # Without visits there is still one round, for the progress.
        for number, chunk in enumerate(_chunks(visits_of(wanted), VISITS_PER_READ) or [[]]):
            names = fields_of(chunk)
            rows = await self._read_rows(partition_keys, [*_HEAD, *names])
            if number == 0:  # of the first round: never ahead of what later rounds read
                reading.take_heads(
                    row if isinstance(row, Exception) else dict(zip(_HEAD, row, strict=False))
                    for row in rows
                )
            reading.begin_rows()
            for row in rows:
                values = [] if isinstance(row, Exception) else row[len(_HEAD) :]
                reading.take_row(dict(zip(names, values, strict=False)))
                await asyncio.sleep(0)
            for some in _chunks(chunk, VISITS_MERGED_AT_ONCE):
                await asyncio.sleep(0)  # nobody else runs while totals are decoded
                for visit in some:
                    reading.merge(visit)
        self._faults.note(reading.unreadable, reading.damaged)
        return reading.found, reading.progress

    async def _read_rows(
        self, partition_keys: Sequence[str], names: Sequence[str]
    ) -> list[list[bytes | None] | Exception]:
        """Return one row of values per partition, all asked for at once.

        A row is an exception where the key holds something else than a hash.
        """

        async def ask() -> list[list[bytes | None] | Exception]:
            async with self._store.client.pipeline(transaction=False) as pipeline:
                for key in partition_keys:
                    pipeline.hmget(self._key(key), names)
                rows: list[list[bytes | None] | Exception] = await pipeline.execute(
                    raise_on_error=False
                )
            for row in rows:
                if isinstance(row, Exception) and not str(row).startswith("WRONGTYPE"):
                    raise row
            return rows

        return await self._store.call("read totals", ask) if partition_keys else []


_HEAD = ("next", "format", *PROGRESS_FIELDS)


class RedisRollouts:
    """The `Rollouts` port."""

    def __init__(
        self, store: Store, *, unreadable: Callable[[str, str], None] = lambda _flag_key, _why: None
    ) -> None:
        """`unreadable` is called with flag and reason for each document that `newer_than` leaves out."""
        self._store = store
        self._unreadable = unreadable

    def _key(self, flag_key: str) -> str:
        return f"{self._store.prefix}ro:{{{flag_key}}}"

    async def load(self, flag_key: str) -> StoredRollout:
        key = self._key(flag_key)
        raw = await self._store.call(f"load {flag_key}", lambda: self._store.client.hgetall(key))
        try:
            token = int(raw.get(b"token", 0))
        except ValueError as error:
            # Nothing can be compared and set: only a person may take this away.
            raise DocumentUnreadable(
                f"the token stored for {flag_key} is damaged: {error}"
            ) from error
        outbox = _readable_entries(flag_key, raw)
        rollout, trouble, is_newer = None, "", False
        try:
            document = raw.get(b"document")
            rollout = None if document is None else rollout_from_json(document)
        except DocumentUnreadable as error:
            trouble, is_newer = str(error), isinstance(error, DocumentNewer)
            rollout = None if is_newer else _newest_of(outbox)
        except Exception as error:  # damage of any kind concerns this flag alone
            trouble, rollout = repr(error), _newest_of(outbox)
        return StoredRollout(
            rollout=rollout,
            token=token,
            tests=raw.get(b"tests", b""),
            outbox=outbox,
            trouble=trouble,
            is_newer=is_newer,
        )

    async def discard(self, flag_key: str) -> bool:
        """Delete everything stored for a flag; False when there was nothing.

        Its workers then go on from the newest document of the state topic. Answers to its commands
        are gone, and so are effects that were not published.
        """
        key = self._key(flag_key)
        gone = await self._store.call(f"discard {flag_key}", lambda: self._store.client.unlink(key))
        index = f"{self._store.prefix}flags"
        listed = await self._store.call(
            f"discard {flag_key}", lambda: self._store.client.srem(index, flag_key)
        )
        return bool(gone or listed)

    async def save(
        self,
        flag_key: str,
        *,
        expected_token: int,
        rollout: Rollout | None = None,
        tests: bytes | None = None,
        outbox: Sequence[OutboxEntry] = (),
        answer: tuple[str, bytes] | None = None,
    ) -> bool:
        fields: dict[str, bytes] = {}
        if rollout is not None:
            fields["document"] = rollout_to_json(rollout)
        if tests is not None:
            fields["tests"] = tests
        for entry in outbox:
            outbox_number(entry.field)
            fields[entry.field] = _entry_bytes(entry)
        token = expected_token + 1
        if answer is not None:
            fields[f"answer:{answer[0]}"] = b"%d\n%b" % (token, answer[1])
        if expected_token == 0:
            # Before the hash, so that no hash is ever without its name in the index, whatever is
            # cut off the file's tail.
            await self._store.call(
                "index the flags",
                lambda: self._store.client.sadd(f"{self._store.prefix}flags", flag_key),
            )
        is_done, _ = await self._store.fenced_save(
            self._key(flag_key),
            fence="token",
            expected=expected_token or None,
            after=token,
            fields=fields,
            purpose=f"save {flag_key}",
        )
        if is_done and token % ANSWERS_PRUNED_EVERY == 0:
            await self._prune_answers(flag_key)
        return is_done

    async def _prune_answers(self, flag_key: str) -> None:
        """Delete all but the newest answers. A second command on purpose: see fenced_save.lua."""
        key = self._key(flag_key)
        raw = await self._store.call(f"load {flag_key}", lambda: self._store.client.hgetall(key))
        answers = [
            (int(value.split(b"\n", 1)[0]), name)
            for name, value in raw.items()
            if name.startswith(b"answer:")
        ]
        for chunk in _chunks(
            [name for _, name in sorted(answers)[:-ANSWERS_KEPT]], FIELDS_PER_CALL
        ):
            await self._store.call(
                f"prune answers of {flag_key}", partial(self._store.client.hdel, key, *chunk)
            )

    async def answer_to(self, flag_key: str, command_id: str) -> bytes | None:
        key = self._key(flag_key)
        value: bytes | None = await self._store.call(
            f"look up an answer of {flag_key}",
            lambda: self._store.client.hget(key, f"answer:{command_id}"),
        )
        return None if value is None else value.split(b"\n", 1)[1]

    async def settle(self, flag_key: str, fields: Sequence[str]) -> None:
        for name in fields:
            outbox_number(name)
        if fields:
            key = self._key(flag_key)
            await self._store.call(
                f"settle effects of {flag_key}", lambda: self._store.client.hdel(key, *fields)
            )

    async def flag_keys(self) -> Sequence[str]:
        names = await self._store.call(
            "list the flags",
            lambda: self._store.client.smembers(f"{self._store.prefix}flags"),
            times_deadline=5,
        )
        # What is no name was never written by us: it can be no flag's.
        texts = (name.decode(errors="replace") for name in names)
        return sorted(text for text in texts if NAME.match(text))

    async def newer_than(self, revisions: Mapping[str, int]) -> Sequence[Rollout]:
        newer: list[Rollout] = []
        for flag_keys in _chunks(await self.flag_keys(), DOCUMENTS_AT_ONCE):
            for flag_key, document in zip(
                flag_keys, await asyncio.gather(*map(self._document, flag_keys)), strict=True
            ):
                # Read whole only where needed: of ten thousand flags a crash left a few
                # unpublished.
                if isinstance(document, Exception):
                    self._unreadable(flag_key, str(document))
                    continue
                try:
                    if document is not None and _revision_of(document).revision > revisions.get(
                        flag_key, 0
                    ):
                        newer.append(rollout_from_json(document))
                except Exception as error:  # damage of any kind concerns this flag alone
                    self._unreadable(flag_key, str(error))
        return newer

    async def _document(self, flag_key: str) -> bytes | Exception | None:
        """Return a document, or why there is none to be had: a hash that is none, say."""
        key = self._key(flag_key)
        try:
            document: bytes | None = await self._store.call(
                f"read the document of {flag_key}",
                lambda: self._store.client.hget(key, "document"),
                times_deadline=5,
            )
        except BrokenInvariant as damage:
            return damage
        return document


class _Revision(msgspec.Struct):
    """All that is read of a document to see whether it is newer."""

    revision: int


_revision_of = msgspec.json.Decoder(_Revision).decode


class _EntryHead(msgspec.Struct):
    """The first line of a stored outbox entry; the value follows, byte for byte."""

    effect_id: str
    topic: str
    key: str


def _entry_bytes(entry: OutboxEntry) -> bytes:
    return (
        msgspec.json.encode(_EntryHead(entry.effect_id, entry.topic, entry.key))
        + b"\n"
        + entry.value
    )


def _entry(name: str, stored: bytes) -> OutboxEntry:
    head, _, value = stored.partition(b"\n")
    known = msgspec.json.decode(head, type=_EntryHead)
    return OutboxEntry(
        field=name, effect_id=known.effect_id, topic=known.topic, key=known.key, value=value
    )


def _readable_entries(flag_key: str, raw: Mapping[bytes, bytes]) -> list[OutboxEntry]:
    """Return the effects stored for a flag, oldest first, without those that are damaged."""
    outbox = []
    for name, value in raw.items():
        if name.startswith(b"outbox:"):
            try:
                entry = _entry(name.decode(), value)
                outbox_number(entry.field)
            except ValueError as error:
                _log.error(
                    "effect_unreadable", flag_key=flag_key, field=repr(name), error=str(error)
                )
            else:
                outbox.append(entry)
    return sorted(outbox, key=lambda entry: outbox_number(entry.field))


def _newest_of(outbox: Sequence[OutboxEntry]) -> Rollout | None:
    """Return the newest document that still waits to be published.

    A second copy of what is stored.
    """
    newest: Rollout | None = None
    for entry in outbox:
        if entry.topic == "state":
            with suppress(DocumentUnreadable):
                rollout = read_state(entry.value)
                if newest is None or rollout.revision > newest.revision:
                    newest = rollout
    return newest


def _chunks(items: Iterable[T], size: int) -> list[list[T]]:
    listed = list(items)
    return [listed[at : at + size] for at in range(0, len(listed), size)]
