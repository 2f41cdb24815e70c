"""Checks that Redis and the state topic belong to this environment, and go on belonging to it.

Two environments on the same topics or keys would undo each other's decisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from controller.adapters.kafka.topics import cluster_id
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.identity import SHARED_PREFIX, EnvironmentIdentity, StoredIdentity
from controller.adapters.redis.server_check import check_server
from controller.codec.rollouts import read_state
from controller.core.rollout import Rollout
from controller.deciding.raise_guard import REDIS_IDENTITY, TOPIC_EPOCH
from controller.errors import (
    ConfigInvalid,
    EventLogUnavailable,
    ForeignDocument,
    OperatingTrouble,
    RolloutdError,
)
from controller.health import Faults, Scope
from controller.ports import Rollouts, StateFeed
from controller.running.flag_faults import DamagedDocuments
from controller.settings import Settings

#: How often Redis is asked whether it still holds the keys of this environment. An address may come
#: to name another Redis.
IDENTITY_SECONDS = 60.0
_OWN_TOPICS = "Give each environment its own kafka.topic_prefix, or its own Kafka"
_FORMER_REDIS = (
    "give redis.url its former address and restart; flags stay as they are, nothing is decided"
)
#: What Redis's configuration would do to the keys, while it runs.
REDIS_SETTINGS = "redis settings"
_SETTINGS_FIX = (
    "run `redis-cli CONFIG SET maxmemory-policy noeviction` and write it to redis.conf: replicas "
    "that are started meanwhile refuse this Redis"
)
#: The reporter of foreign rollouts in the state topic, which alone clears them.
_FOREIGN = "foreign"


class StateReader:
    """Reads records of the state topic, and remembers the first of another environment."""

    def __init__(self, settings: Settings, faults: Faults) -> None:
        self._environment = settings.environment
        self._names = (settings.environment, *settings.former_environments)
        self._topic = settings.kafka.topic("state")
        self._faults = faults
        self._foreign: tuple[str, str] | None = None  # a flag, and the environment it is of

    def read(self, value: bytes) -> Rollout:
        """Return the rollout in a record. Raises DocumentUnreadable."""
        try:
            return read_state(value, self._names)
        except ForeignDocument as foreign:
            if self._foreign is None:
                self._foreign = (read_state(value).flag_key, foreign.environment)
                why = self._describe(*self._foreign)
                flag_key = self._foreign[0]
                self._faults.report(Scope.FLAG, flag_key, why, _OWN_TOPICS, reporter=_FOREIGN)
            raise

    def check(self) -> None:
        """Raise ConfigInvalid when the state topic holds another environment's rollout."""
        if self._foreign is not None:
            environment = self._foreign[1]
            raise ConfigInvalid(
                f"{self._describe(*self._foreign)}. {_OWN_TOPICS}; or, if {environment!r} is "
                f"this environment's former name, add it to former_environments"
            )

    def _describe(self, flag_key: str, environment: str) -> str:
        return (
            f"{self._topic} holds the rollout of {flag_key} of environment {environment!r}, and "
            f"this is {self._environment!r}: two environments on the same topics would undo each "
            f"other's decisions"
        )


async def check_state_topic(feed: StateFeed, reader: StateReader, settings: Settings) -> None:
    """Refuse another environment's topics before a consumer group is joined.

    Its replicas would lose partitions. Raises ConfigInvalid, and EventLogUnavailable while the
    state topic has not been read to its end.
    """
    try:
        async with asyncio.timeout(settings.kafka.call_seconds):
            await feed.caught_up()
    except TimeoutError:
        topic = settings.kafka.topic("state")
        raise EventLogUnavailable(f"{topic} has not been read to its end yet") from None
    reader.check()


class RedisEnvironment:
    """Checks at the start, and now and then, whose keys Redis holds."""

    def __init__(
        self,
        redis: RedisConnection,
        rollouts: Rollouts,
        damaged: DamagedDocuments,
        settings: Settings,
        faults: Faults,
    ) -> None:
        self._redis = redis
        self._stored = StoredIdentity(redis)
        self._rollouts = rollouts
        self._damaged = damaged
        self._settings = settings
        self._faults = faults
        self._identity: EnvironmentIdentity | None = None
        self._warnings: Sequence[str] = ()
        self._logger = structlog.get_logger()

    async def prepare(self) -> None:
        """Check Redis before anything is decided. Raises ConfigInvalid and StoreUnavailable."""
        settings = self._settings
        await self._check_server()
        identity = EnvironmentIdentity(
            await cluster_id(settings.kafka) or settings.environment,
            settings.kafka.topic_prefix,
            settings.environment,
            settings.former_environments,
        )
        if settings.redis.key_prefix is None and await self._stored.has_shared_data():
            self._logger.warning("redis_warning", warning=self._shared_data_warning())
        await self._refuse_former_data()
        await self._stored.check(identity, settings.kafka.topic_epoch)
        self._identity = identity
        self._logger.info(
            "redis_ready", key_prefix=self._redis.prefix, environment=settings.environment
        )

    async def _check_server(self) -> None:
        """Log what is new of its configuration. Raises ConfigInvalid and StoreUnavailable."""
        warnings = await check_server(self._redis)
        for warning in warnings:
            if warning not in self._warnings:
                self._logger.warning("redis_warning", warning=warning)
        self._warnings = warnings

    async def why_not_ours(self) -> str | None:
        """Return why Redis may hold another environment's keys, None when it holds ours.

        Before `prepare` was done, as while Kafka is away at the start, the stored name of the
        environment is all that can be compared. Raises StoreUnavailable.
        """
        if self._identity is not None:
            fault = self._faults.of(Scope.DEPENDENCY, REDIS_IDENTITY)
            return None if fault is None else fault.why
        settings = self._settings
        names = (settings.environment, *settings.former_environments)
        if await self._stored.is_of(settings.kafka.topic_prefix, names):
            return None
        return (
            f"what Redis holds under {self._redis.prefix!r} is not known to be of "
            f"{settings.environment!r}: this replica decides nothing before it has started"
        )

    def _shared_data_warning(self) -> str:
        return (
            f"keys under {SHARED_PREFIX!r} may be this environment's, from before keys named it; "
            f"they are not used: all is counted again from Kafka under {self._redis.prefix!r}. "
            f"To go on with them, set redis.key_prefix to {SHARED_PREFIX!r}"
        )

    async def _refuse_former_data(self) -> None:
        """Raise ConfigInvalid when data of a former name are under a prefix that is not used."""
        settings, prefix_in_use = self._settings, self._redis.prefix
        if settings.redis.key_prefix is not None:
            return
        if await self._stored.environment_at(prefix_in_use) is not None:
            return
        for former in settings.former_environments:
            prefix = settings.made_key_prefix(former)
            if prefix != prefix_in_use and await self._stored.environment_at(prefix) == former:
                raise ConfigInvalid(
                    f"Redis holds the data of {former!r}, which former_environments says was this "
                    f"environment, under {prefix!r}: set redis.key_prefix to {prefix!r} to go on "
                    f"with them"
                )

    async def run(self) -> None:
        """Check now and then until cancelled, and read damaged documents again."""
        while True:
            await asyncio.sleep(IDENTITY_SECONDS)
            try:
                await self._damaged.recheck(self._rollouts)
            except OperatingTrouble as trouble:
                self._logger.warning("damaged_not_read", error=str(trouble))
            if self._identity is not None:
                await self._recheck(self._identity)
                await self._recheck_server()

    async def _recheck_server(self) -> None:
        """Report a Redis that was set to drop keys: nothing else says so until they are gone."""
        try:
            await self._check_server()
        except ConfigInvalid as invalid:
            self._faults.report(Scope.DEPENDENCY, REDIS_SETTINGS, str(invalid), _SETTINGS_FIX)
        except OperatingTrouble as trouble:
            self._logger.warning("redis_settings_not_read", error=str(trouble))
        else:
            self._faults.clear(Scope.DEPENDENCY, REDIS_SETTINGS)

    async def _recheck(self, identity: EnvironmentIdentity) -> None:
        try:
            why = await self._stored.recheck(identity, self._settings.kafka.topic_epoch)
        except RolloutdError as trouble:
            self._logger.warning("identity_not_read", error=str(trouble))
            return
        if why is None:
            self._faults.clear(Scope.DEPENDENCY, REDIS_IDENTITY)
        else:
            self._faults.report(Scope.DEPENDENCY, REDIS_IDENTITY, why, _FORMER_REDIS)
        self._compare_epoch()

    def _compare_epoch(self) -> None:
        """Report that others count under a newer epoch: their partitions are not seen here."""
        newest, ours = self._stored.epoch, self._settings.kafka.topic_epoch
        if newest is None or newest <= ours:
            self._faults.clear(Scope.DEPENDENCY, TOPIC_EPOCH)
            return
        self._faults.report(
            Scope.DEPENDENCY,
            TOPIC_EPOCH,
            f"other replicas count under topic epoch {newest} and this one under {ours}: of the "
            f"events it sees only those that it counts itself, and raises nothing",
            f"set kafka.topic_epoch to {newest} for this replica, and restart it",
        )
