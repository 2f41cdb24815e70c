"""Settings as an operator may see them: secrets masked, and warnings about insecure connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, SecretStr

from controller.settings.kafka import KafkaSettings
from controller.settings.model import Settings
from controller.settings.section import FILE_SUFFIX, named_section

MASK: Final = "********"


def show(settings: Settings) -> str:
    """Return the settings as YAML that could be read back, except that secrets are masked."""
    plain = settings.model_dump(mode="json", exclude_none=False)
    return yaml.safe_dump(
        _masked(settings, plain), sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def _masked(section: BaseModel, plain: dict[str, Any]) -> dict[str, Any]:
    masked: dict[str, Any] = {}
    for name, value in plain.items():
        actual = getattr(section, name)
        if isinstance(actual, SecretStr):
            # A secret from a file is shown by its file alone, because both together are refused.
            is_from_file = getattr(section, f"{name}{FILE_SUFFIX}", None) is not None
            masked[name] = None if is_from_file else MASK
        elif isinstance(actual, BaseModel):
            masked[name] = _masked(actual, value)
        elif named_section(type(section).model_fields[name].annotation) is not None:
            masked[name] = {key: _masked(inner, value[key]) for key, inner in actual.items()}
        else:
            masked[name] = value
    return masked


def insecure_connections(settings: Settings) -> list[str]:
    """Return each connection that lets strangers in, as one sentence with what to do."""
    return [*_insecure_kafka(settings.kafka), *_insecure_redis(settings)]


def _insecure_kafka(kafka: KafkaSettings) -> Iterator[str]:
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",")]
    remote = [server for server in servers if not _is_loopback(urlsplit(f"//{server}").hostname)]
    if not remote:
        return
    security = kafka.security
    if not security.uses_sasl and security.certificate_file is None:
        how = "encrypted, but" if security.uses_tls else "PLAINTEXT and"
        yield (
            f"Kafka at {remote[0]} is {how} does not authenticate its clients: whoever reaches it "
            f"and can write {kafka.topic('commands')} may promote any flag, as long as commands "
            "are not signed. Set kafka.security.protocol to SASL_SSL and grant the rights of "
            "ops/security.md"
        )
    elif not security.uses_tls:
        yield (
            f"Kafka at {remote[0]} is reached over {security.protocol}: whoever listens reads the "
            "password or changes records. Set kafka.security.protocol to SASL_SSL"
        )


def _insecure_redis(settings: Settings) -> Iterator[str]:
    for name, redis in (("redis", settings.redis), ("planes.redis", settings.planes.redis)):
        parts = urlsplit(redis.url or "")
        if parts.scheme in ("", "unix") or _is_loopback(parts.hostname):
            continue
        if redis.password is None or not redis.password.get_secret_value():
            yield (
                f"Redis at {parts.netloc} is used without a password: whoever reaches it may "
                f"change what is served. Set {name}.username and {name}.password_file, see "
                "ops/security.md"
            )
        elif parts.scheme == "redis":
            yield (
                f"Redis at {parts.netloc} receives our password unencrypted: use rediss:// in "
                f"{name}.url"
            )


def _is_loopback(host: str | None) -> bool:
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
