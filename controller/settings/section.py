"""The base class of every section of the settings, and the types of their fields."""

from __future__ import annotations

import ast
import inspect
import ipaddress
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, TypeGuard, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from controller.text import file_trouble
from schemas.terms import NAME_PATTERN

Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
KafkaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
EnvironmentName = Annotated[str, Field(pattern=NAME_PATTERN)]

#: Ends the name of the setting that holds a secret's file: `password`, `password_file`.
FILE_SUFFIX: Final = "_file"


def _check_http_url(value: str) -> str:
    """Refuse anything but http and https with a host, and a password in the address."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give an address like http://127.0.0.1:8081")
    if parts.username or parts.password:
        raise ValueError(
            "keep the secret out of the address: there is a setting of its own for it, and "
            "one for a file"
        )
    return value.rstrip("/")


def _check_redis_url(value: str) -> str:
    """Refuse what redis-py cannot open, and a password in the address."""
    parts = urlsplit(value)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("give an address like redis://127.0.0.1:6379/0, rediss:// for TLS")
    if parts.username or parts.password:
        raise ValueError(
            "keep the secret out of the address: use username and password or password_file"
        )
    return value


def _check_addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no address, and networks that hold everybody."""
    for text in value:
        if ipaddress.ip_network(text, strict=False).prefixlen == 0:
            raise ValueError(f"{text} is everybody: name the proxy's own addresses")
    return value


#: Addresses or networks of a proxy whose headers are believed.
def _check_kafka_servers(servers: str) -> str:
    for server in [one.strip() for one in servers.split(",") if one.strip()] or [""]:
        parts = urlsplit(f"//{server}")
        try:
            is_address = bool(parts.hostname) and parts.port != 0 and not parts.path
        except ValueError:  # a port that is no number, or out of range
            is_address = False
        if not is_address or "@" in server:
            raise ValueError(
                f"{server!r} is not host:port: give a list like kafka-1:9092,kafka-2:9092"
            )
    return servers


ProxyAddresses = Annotated[tuple[str, ...], AfterValidator(_check_addresses)]
HeaderName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,100}$")]
HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
KafkaServers = Annotated[str, AfterValidator(_check_kafka_servers)]


def is_section(annotation: Any) -> TypeGuard[type[Section]]:
    """Return whether a field's type is a section of settings."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def named_section(annotation: Any) -> type[Section] | None:
    """Return the section under each name of a mapping, None for a field of another type.

    A mapping is a type such as `dict[PlaneName, HttpPlaneSettings]`.
    """
    inner = get_args(annotation)[1] if get_origin(annotation) is dict else None
    return inner if is_section(inner) else None


def is_secret(annotation: Any) -> bool:
    """Return whether a field's type is a secret, optional or not."""
    return SecretStr in (annotation, *get_args(annotation))


def is_loopback(host: str | None) -> bool:
    """Return whether only this machine is reached under that name; so it is without a host."""
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def _docstrings(section: type) -> Mapping[str, str]:
    """Return the docstring below each field that the class itself defines."""
    if not issubclass(section, Section) or section is Section:
        return {}
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(words.value.value)
        for field, words in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(words, ast.Expr)
        and isinstance(words.value, ast.Constant)
        and isinstance(words.value.value, str)
    }


class Section(BaseModel):
    """A frozen part of the settings.

    Unknown keys are refused. `<secret>_file` is read into `<secret>`. A section with nothing under
    its key (`kafka:`, with every line below it commented out) has its defaults.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        # The whole is built once, when settings are read, and no section before it.
        defer_build=True,
    )

    @classmethod
    def meaning(cls, name: str) -> str:
        """Return what the docstring below a field says; "" where there is none.

        It is read from the source when it is asked for: pydantic would parse the source of every
        section at each start, which takes a command longer than reading its settings.
        """
        return next(
            (found for one in cls.__mro__ if (found := _docstrings(one).get(name)) is not None), ""
        )

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            is_part = is_section(field.annotation) or named_section(field.annotation) is not None
            if is_part and name in merged and merged[name] is None:
                del merged[name]
            file_name = f"{name}{FILE_SUFFIX}"
            if not is_secret(field.annotation) or merged.get(file_name) is None:
                continue
            if merged.get(name) is not None:
                raise ValueError(f"{name} and {file_name} are both given: keep one")
            try:
                secret = Path(str(merged[file_name])).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{file_name} cannot be read: {merged[file_name]}: {file_trouble(error)}"
                ) from error
            merged[name] = secret.rstrip("\r\n")
        return merged

    def insecure_connections(self, where: str) -> Iterable[str]:
        """Return each connection of this section that is not secure.

        Each is one sentence with what to do. `where` is the section's place in the settings, such
        as `planes.redis`.
        """
        return ()
