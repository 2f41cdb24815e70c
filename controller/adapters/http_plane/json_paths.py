"""Where something stands in a JSON value.

JSON Pointer, and `[name=value]` for the one element of a list that has it.

Source of the first: RFC 6901. Texts may hold placeholders, which are filled in per step: a
filled-in slash starts no new step.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.adapters.http_plane.placeholders import Text


class NotThere(LookupError):
    """The value has no such place."""


@dataclass(frozen=True, slots=True)
class _Step:
    name: Text
    wanted: Text | None = (
        None  # the value an element must have under `name`; None: `name` is a key or an index
    )

    def key_in(self, value: Any, scope: Mapping[str, Any]) -> Any:
        """Return the key or index this step leads to. Raises NotThere."""
        name = self.name.text(scope)
        if isinstance(value, dict) and self.wanted is None:
            return name
        if isinstance(value, list):
            if self.wanted is None and name.isascii() and name.isdigit():
                return int(name)
            if self.wanted is not None:
                wanted = self.wanted.value(scope)
                found = [
                    index
                    for index, each in enumerate(value)
                    if isinstance(each, dict) and name in each and is_equal(each[name], wanted)
                ]
                if len(found) > 1:
                    raise NotThere(f"{len(found)} elements have {name} = {wanted}")
                if found:
                    return found[0]
                raise NotThere(f"no element has {name} = {wanted}")
        raise NotThere(f"nothing is called {name} there")


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A place in a JSON value."""

    steps: tuple[_Step, ...]

    @classmethod
    def parse(cls, text: str) -> JsonPath:
        """Return the path that `text` words. Raises ValueError."""
        if text == "":
            return cls(())
        if not text.startswith("/"):
            raise ValueError(f"{text!r} does not begin with a slash")
        return cls(tuple(_parse_step(step) for step in text[1:].split("/")))

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in it."""
        texts = [
            text for step in self.steps for text in (step.name, step.wanted) if text is not None
        ]
        return frozenset[str]().union(*(text.names for text in texts))

    def get(self, value: Any, scope: Mapping[str, Any]) -> Any:
        """Return what stands there. Raises NotThere."""
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
            raise NotThere(f"the list has {len(parent)} elements")
        parent[key] = new
        return edited


def _parse_step(step: str) -> _Step:
    if step.startswith("[") and step.endswith("]"):
        name, sign, wanted = step[1:-1].partition("=")
        if not sign or not name:
            raise ValueError(f"{step!r}: write [name=value]")
        return _Step(Text.parse(_unescaped(name)), Text.parse(_unescaped(wanted)))
    return _Step(Text.parse(_unescaped(step)))


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def is_equal(found: Any, wanted: Any) -> bool:
    """Return whether a JSON value is what was asked for.

    The same, or worded the same (`true` for true, `7` for 7).
    """
    if isinstance(wanted, str) and not isinstance(found, str):
        return json.dumps(found) == wanted
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted  # in Python, True == 1
    return bool(found == wanted)
