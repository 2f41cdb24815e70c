"""Places in a JSON value: JSON Pointer, and `[name=value]` for the one element that has it.

Source of JSON Pointer: RFC 6901. Texts may hold placeholders, which are filled in per step: a
filled-in slash starts no new step.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.adapters.http_plane.placeholders import Text
from controller.text import plural


class NotThere(LookupError):
    """The value has no such place."""


@dataclass(frozen=True, slots=True)
class _Step:
    name: Text
    # the value that an element must have under `name`; None: `name` is a key or an index
    value: Text | None = None

    def key_in(self, value: Any, scope: Mapping[str, Any]) -> Any:
        """Return the key or index this step leads to. Raises NotThere."""
        name = self.name.text(scope)
        if isinstance(value, dict) and self.value is None:
            return name
        if isinstance(value, list):
            if self.value is None and name.isascii() and name.isdigit():
                return int(name)
            if self.value is not None:
                expected = self.value.value(scope)
                indexes = [
                    index
                    for index, each in enumerate(value)
                    if isinstance(each, dict) and name in each and is_equal(each[name], expected)
                ]
                if len(indexes) > 1:
                    raise NotThere(f"{len(indexes)} elements have {name} = {expected}")
                if indexes:
                    return indexes[0]
                raise NotThere(f"no element has {name} = {expected}")
        raise NotThere(f"nothing is called {name} there")


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A place in a JSON value."""

    steps: tuple[_Step, ...]

    @classmethod
    def parse(cls, text: str) -> JsonPath:
        """Return the path that `text` writes. Raises ValueError."""
        if text == "":
            return cls(())
        if not text.startswith("/"):
            raise ValueError(f"{text!r} does not begin with a slash")
        return cls(tuple(_parse_step(step) for step in text[1:].split("/")))

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in it."""
        texts = [
            text for step in self.steps for text in (step.name, step.value) if text is not None
        ]
        return frozenset[str]().union(*(text.names for text in texts))

    def get(self, value: Any, scope: Mapping[str, Any]) -> Any:
        """Return the value at this place. Raises NotThere."""
        for step in self.steps:
            key = step.key_in(value, scope)
            try:
                value = value[key]
            except (KeyError, IndexError):
                raise NotThere(f"nothing is called {key} there") from None
        return value

    def index(self, value: Any, scope: Mapping[str, Any]) -> int:
        """Return the position in its list of the element that the last step names.

        Raises NotThere.
        """
        key = self.steps[-1].key_in(JsonPath(self.steps[:-1]).get(value, scope), scope)
        if not isinstance(key, int):
            raise NotThere("it is in no list")
        return key

    def replaced(self, value: Any, new: Any, scope: Mapping[str, Any]) -> Any:
        """Return a copy of `value` with `new` at this place.

        Only the last step may name something new. Raises NotThere.
        """
        edited = copy.deepcopy(value)
        parent = JsonPath(self.steps[:-1]).get(edited, scope)
        key = self.steps[-1].key_in(parent, scope)
        if isinstance(key, int) and key >= len(parent):
            raise NotThere(f"the list has {plural(len(parent), 'element')}")
        parent[key] = new
        return edited


def _parse_step(step: str) -> _Step:
    if step.startswith("[") and step.endswith("]"):
        name, sign, value = step[1:-1].partition("=")
        if not sign or not name:
            raise ValueError(f"{step!r}: write [name=value]")
        return _Step(Text.parse(_unescaped(name)), Text.parse(_unescaped(value)))
    return _Step(Text.parse(_unescaped(step)))


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def is_equal(value: Any, expected: Any) -> bool:
    """Return whether a JSON value is the expected one, or is written so (`true` for true)."""
    if isinstance(expected, str) and not isinstance(value, str):
        return json.dumps(value) == expected
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected  # in Python, True == 1
    return bool(value == expected)
