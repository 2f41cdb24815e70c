"""Bodies of write requests: JSON whose texts have placeholders, and edits of what was read.

`{"$edit": "{name}", "$set": {path: value}}` is the value that was read as `name`, with other values
at some places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.adapters.http_plane.json_paths import JsonPath
from controller.adapters.http_plane.placeholders import Text

_EDIT: Final = "$edit"
_SET: Final = "$set"


@dataclass(frozen=True, slots=True)
class _Edit:
    """A value that was read, with other values at some places."""

    name: str
    changes: tuple[tuple[JsonPath, Any], ...]


def parse_body(value: Any) -> Any:
    """Return a body with every text parsed. Raises ValueError."""
    match value:
        case str():
            return Text.parse(value)
        case list():
            return [parse_body(each) for each in value]
        case {"$edit": str(text), "$set": dict(changes), **others} if not others:
            source = Text.parse(text)
            if source.first is None or len(source.pieces) != 1:
                raise ValueError(f"{_EDIT}: name a value that was read, like '{{rules}}'")
            return _Edit(
                source.first,
                tuple((JsonPath.parse(path), parse_body(new)) for path, new in changes.items()),
            )
        case dict():
            if _EDIT in value or _SET in value:
                raise ValueError(f"{_EDIT} and {_SET} stand together, and nothing with them")
            return {Text.parse(str(key)): parse_body(each) for key, each in value.items()}
        case bool() | int() | float() | None:
            return value
        case _:
            raise ValueError(f"{value!r} is no JSON: quote it")


def names_in(value: Any) -> frozenset[str]:
    """Return the placeholders in a parsed body."""
    match value:
        case Text():
            return value.names
        case _Edit():
            inner = [path.names | names_in(new) for path, new in value.changes]
            return frozenset({value.name}).union(*inner)
        case list():
            return frozenset[str]().union(*map(names_in, value))
        case dict():
            return frozenset[str]().union(
                *(key.names | names_in(each) for key, each in value.items())
            )
        case _:
            return frozenset()


def fill(value: Any, scope: Mapping[str, Any]) -> Any:
    """Return a parsed body as JSON. Raises KeyError for a name without a value, and NotThere."""
    match value:
        case Text():
            return value.value(scope)
        case _Edit():
            edited = scope[value.name]
            for path, new in value.changes:
                edited = path.replaced(edited, fill(new, scope), scope)
            return edited
        case list():
            return [fill(each, scope) for each in value]
        case dict():
            return {key.text(scope): fill(each, scope) for key, each in value.items()}
        case _:
            return value
