"""Identifies the environment that the keys under a prefix belong to, and the epoch of its count.

Two environments that share a Redis, or an old copy of one, must never mix their counts. So the
first to come writes its name, and all others compare.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from controller.adapters.redis.connection import RedisConnection
from controller.errors import ConfigInvalid, StoreUnavailable

#: The prefix of every environment in early releases, when neither prefix nor identity named one.
SHARED_PREFIX: Final = "rolloutd:"


@dataclass(frozen=True, slots=True)
class EnvironmentIdentity:
    """The owner of the keys under a prefix: an environment is all three of these together."""

    cluster_id: str
    topic_prefix: str
    environment: str
    former_environments: tuple[str, ...] = ()  # names that this environment had before

    @property
    def fields(self) -> dict[str, bytes]:
        """The fields as they are stored."""
        return {
            "cluster_id": self.cluster_id.encode(),
            "topic_prefix": self.topic_prefix.encode(),
            "environment": self.environment.encode(),
        }

    def why_not(self, stored: Mapping[bytes, bytes], prefix: str) -> str | None:
        """Return why `stored` is another environment's, with what to do; None when it is ours."""
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


class StoredIdentity:
    """The identity that is stored under a connection's prefix."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._key = f"{connection.prefix}identity"
        #: The epoch that `recheck` found; None: none.
        self.epoch: int | None = None

    async def check(self, identity: EnvironmentIdentity, epoch: int) -> None:
        """Tie the prefix to one environment, or check that it is tied to the one given.

        `epoch` (at least 1) is the configured epoch of the count. One greater than the stored epoch
        is adopted: that is how an operator begins a new count. Raises ConfigInvalid for another
        environment or a smaller epoch (the wrong Redis, an old copy of it, or an old
        configuration), and StoreUnavailable.
        """
        while True:
            stored = await self._read()
            stored_epoch = _epoch_in(stored, self._key)
            if stored_epoch is not None:
                self._check_stored(identity, epoch, stored, stored_epoch)
                is_current = stored_epoch == epoch and all(
                    stored.get(name.encode()) == value for name, value in identity.fields.items()
                )
                if is_current:
                    return
            # The loop reads again: of two environments that come at once, one reads the other's
            # name.
            await self._connection.fenced_save(
                self._key,
                fence="epoch",
                expected=stored_epoch,
                after=epoch,
                fields=identity.fields,
                purpose="write the identity",
            )

    def _check_stored(
        self,
        identity: EnvironmentIdentity,
        epoch: int,
        stored: Mapping[bytes, bytes],
        stored_epoch: int,
    ) -> None:
        prefix = self._connection.prefix
        if (why := identity.why_not(stored, prefix)) is not None:
            raise ConfigInvalid(why)
        if stored_epoch > epoch:
            raise ConfigInvalid(
                f"Redis under prefix {prefix!r} is at epoch {stored_epoch} and the "
                f"configuration at {epoch}: the configuration is out of date"
            )

    async def recheck(self, identity: EnvironmentIdentity, epoch: int) -> str | None:
        """Return why this Redis is no longer ours, None while it is; for use while running.

        While it is not, every other call is refused with StoreUnavailable: nothing is counted or
        decided on another environment's data. A Redis that was emptied is claimed again. Raises
        StoreUnavailable, and ConfigInvalid for an epoch that is no number.
        """
        stored = await self._read()
        why = identity.why_not(stored, self._connection.prefix) if stored else None
        self._connection.why_refused = why
        if not stored:
            await self.check(identity, epoch)
        self.epoch = _epoch_in(stored, self._key)
        return why

    async def is_of(self, topic_prefix: str, environments: Collection[str]) -> bool:
        """Return whether the keys are of an environment of these names; for reading alone.

        The Kafka cluster is not compared: it may be away. Keys without an identity are nobody's.
        Raises StoreUnavailable.
        """
        stored = await self._read()
        return (
            _text_in(stored, "topic_prefix") == topic_prefix
            and _text_in(stored, "environment") in environments
        )

    async def environment_at(self, prefix: str) -> str | None:
        """Return the environment whose data are under another prefix.

        None for none, or for one that we may not read.
        """
        return _text_in(await self._read_at(prefix), "environment")

    async def has_shared_data(self) -> bool:
        """Return whether the shared prefix holds data, and this prefix is another and empty.

        Raises StoreUnavailable.
        """
        if self._connection.prefix == SHARED_PREFIX or await self._read():
            return False
        stored = await self._read_at(SHARED_PREFIX)
        return bool(stored) and b"environment" not in stored

    async def _read(self) -> Mapping[bytes, bytes]:
        stored: Mapping[bytes, bytes] = await self._connection.call(
            "read the identity",
            lambda: self._connection.client.hgetall(self._key),
            is_about_identity=True,
        )
        return stored

    async def _read_at(self, prefix: str) -> Mapping[bytes, bytes]:
        """Return the identity under another prefix, empty when we may not or cannot read it."""
        key = f"{prefix}identity"
        try:
            stored: Mapping[bytes, bytes] = await self._connection.call(
                "read an identity", lambda: self._connection.client.hgetall(key)
            )
        except StoreUnavailable:
            return {}  # without the right to read there, nothing there is ours
        return stored


def _text_in(stored: Mapping[bytes, bytes], field: str) -> str | None:
    value = stored.get(field.encode())
    return None if value is None else value.decode(errors="replace")


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
