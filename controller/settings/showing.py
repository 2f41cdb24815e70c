"""Settings as an operator may see them: secrets masked, and warnings about insecure connections."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, Final

import yaml
from pydantic import BaseModel, SecretStr

from controller.settings.model import Settings
from controller.settings.section import FILE_SUFFIX, Section, is_section, named_section

MASK: Final = "********"
_COLUMNS: Final = 100


def show(settings: Settings) -> str:
    """Return the settings as YAML that could be read back, except that secrets are masked."""
    plain = settings.model_dump(mode="json", exclude_none=False)
    return _dumped(_masked(settings, plain))


def show_explained(settings: Settings) -> str:
    """Return the same as `show`, with the meaning of each setting above it as a comment."""
    plain = _masked(settings, settings.model_dump(mode="json", exclude_none=False))
    return "\n".join(_explained_lines(type(settings), plain, 0)) + "\n"


def _explained_lines(section: type[Section], plain: dict[str, Any], depth: int) -> Iterator[str]:
    """Yield the lines of one section. Those under a name of the operator's own are not repeated."""
    indent = "  " * depth
    for name, value in plain.items():
        field = section.model_fields[name]
        inner: Any = field.annotation if is_section(field.annotation) else None
        words = (inner.__doc__ or "") if inner is not None else section.meaning(name)
        if depth == 0 or (inner is not None and depth):
            yield ""
        for paragraph in words.split("\n\n"):
            yield from textwrap.wrap(
                " ".join(paragraph.split()),
                width=_COLUMNS,
                initial_indent=f"{indent}# ",
                subsequent_indent=f"{indent}# ",
                break_on_hyphens=False,
            )
        if inner is not None:
            yield f"{indent}{name}:"
            yield from _explained_lines(inner, value, depth + 1)
        else:
            yield textwrap.indent(_dumped({name: value}).rstrip("\n"), indent)


def _dumped(plain: dict[str, Any]) -> str:
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False)


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
    """Return each connection that is not secure, as one sentence with what to do."""
    return list(_insecure_within(settings, ""))


def _insecure_within(section: Section, where: str) -> Iterator[str]:
    yield from section.insecure_connections(where)
    for name in type(section).model_fields:
        value = getattr(section, name)
        place = f"{where}.{name}" if where else name
        if isinstance(value, Section):
            yield from _insecure_within(value, place)
        elif named_section(type(section).model_fields[name].annotation) is not None:
            for key, inner in value.items():
                yield from _insecure_within(inner, f"{place}.{key}")
