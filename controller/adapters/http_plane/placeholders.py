"""Texts with placeholders: `{name}`, `{name?this:that}` by a boolean, `{{` and `}}` for braces.

Nothing else: no expressions, no attributes, no loops. What a template cannot compute is given to it
as a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_PIECE = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]*)(?:\?([^{}:?]*):([^{}:?]*))?\}|[{}]")


@dataclass(frozen=True, slots=True)
class _Placeholder:
    name: str
    choice: tuple[str, str] | None = None  # (when true, when false)

    def value(self, scope: Mapping[str, Any]) -> Any:
        value = scope[self.name]
        return value if self.choice is None else self.choice[0 if value else 1]


@dataclass(frozen=True, slots=True)
class Text:
    """A text whose placeholders are filled from a scope.

    A name that the scope lacks raises KeyError.
    """

    pieces: tuple[str | _Placeholder, ...]

    @classmethod
    def parse(cls, text: str) -> Text:
        """Return the text. Raises ValueError for a brace that opens or closes nothing."""
        pieces: list[str | _Placeholder] = []
        end = 0
        for match in _PIECE.finditer(text):
            pieces.append(text[end : match.start()])
            end = match.end()
            if match[0] in ("{{", "}}"):
                pieces.append(match[0][0])
            elif match[1] is None:
                raise ValueError(
                    f"{text!r}: write {{name}} or {{name?this:that}}, and {{{{ for a brace"
                )
            else:
                pieces.append(
                    _Placeholder(match[1], None if match[2] is None else (match[2], match[3]))
                )
        pieces.append(text[end:])
        return cls(tuple(piece for piece in pieces if piece != ""))

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in it."""
        return frozenset(piece.name for piece in self.pieces if isinstance(piece, _Placeholder))

    @property
    def first(self) -> str | None:
        """The placeholder that it begins with; None when it begins with text, or is empty."""
        return (
            self.pieces[0].name
            if self.pieces and isinstance(self.pieces[0], _Placeholder)
            else None
        )

    def value(self, scope: Mapping[str, Any]) -> Any:
        """Return the value: that of a lone placeholder with its type, else text."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], _Placeholder):
            return self.pieces[0].value(scope)
        return self.text(scope)

    def text(self, scope: Mapping[str, Any], quoted: Callable[[str], str] = str) -> str:
        """Return the text, with `quoted` applied to filled-in values after the beginning."""
        parts = []
        for place, piece in enumerate(self.pieces):
            if isinstance(piece, str):
                parts.append(piece)
            else:
                value = _as_text(piece.value(scope))
                parts.append(quoted(value) if place else value)
        return "".join(parts)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
