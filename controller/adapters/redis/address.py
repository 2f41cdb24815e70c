"""The address of Redis as redis-py takes it, and a connection as the settings say."""

from __future__ import annotations

from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from controller.adapters.redis.connection import RedisConnection
from controller.settings import Settings
from controller.settings.redis import RedisAddressSettings


def redis_url(settings: RedisAddressSettings) -> str:
    """Return the address with user, password and certificate authorities in it.

    The settings must have one.
    """
    parts = urlsplit(settings.url or "")
    netloc, query = parts.netloc, parts.query
    if settings.password is not None:
        user = quote(settings.username or "", safe="")
        password = quote(settings.password.get_secret_value(), safe="")
        netloc = f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"
    if settings.ca_file is not None:
        query = "&".join(filter(None, (query, urlencode({"ssl_ca_certs": str(settings.ca_file)}))))
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def connect_redis(settings: Settings) -> RedisConnection:
    """Return a connection to the environment's Redis; nothing is connected before the first call.

    A call may take two tries. Raises ConfigInvalid.
    """
    redis = settings.redis
    return RedisConnection.connect(
        redis_url(redis),
        prefix=settings.redis_key_prefix,
        is_cluster=redis.is_cluster,
        deadline_seconds=2 * redis.call_timeout_seconds,
        try_seconds=redis.call_timeout_seconds,
        connect_seconds=redis.connect_timeout_seconds,
        health_check_seconds=redis.health_check_seconds,
        connections=redis.max_connections,
    )
