"""Writes the grammar of a form: what a model may write, letter by letter, and how long at most.

Belongs here: GBNF, the grammar language of llama.cpp, for the part of JSON Schema that our forms
use. A server that makes its own grammar of a schema may drop every bound; this one keeps them all,
so that an answer ends by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: The largest whole number where a form names none.
MAX_INTEGER: Final = 9_999

#: Any character but a quote, a backslash and controls: no escapes, so that a string's length in
#: the grammar is its length.
_CHAR: Final = r'char ::= [^"\\\x00-\x1F\x7F-\x9F]'


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in GBNF, and the length of the longest text that it allows, in characters."""

    text: str
    longest: int


def grammar_of(form: Mapping[str, Any]) -> Grammar:
    """Return the grammar of a form, which is a JSON Schema.

    Objects have all their properties, in the schema's order. Raises ValueError for a schema with
    parts that our forms do not use, or without a bound.
    """
    rules: list[str] = []
    root = _rule(form, rules)
    text = "\n".join([f"root ::= {root.text}", *rules, _CHAR])
    return Grammar(text + "\n", root.longest)


def _rule(form: Mapping[str, Any], rules: list[str]) -> Grammar:
    """Return an expression for a value; what it repeats is added to `rules`."""
    match form:
        case {"enum": [*choices]} if choices:
            words = [json.dumps(choice, ensure_ascii=False) for choice in choices]
            options = " | ".join(_literal(word) for word in words)
            return Grammar(f"({options})", max(map(len, words)))
        case {"type": "boolean"}:
            return Grammar('("true" | "false")', len("false"))
        case {"type": "integer", "minimum": int(low)} if low >= 0:
            high = form.get("maximum", MAX_INTEGER)
            return Grammar(f"({_numbers(low, high)})", len(str(high)))
        case {"type": "string", "maxLength": int(most)}:
            return Grammar(rf'"\"" char{{{form.get("minLength", 0)},{most}}} "\""', most + 2)
        case {"type": "array", "items": dict(items), "maxItems": int(most)} if most > 0:
            return _array(items, form.get("minItems", 0), most, rules)
        case {"type": "object", "properties": dict(properties), "required": [*required]} if set(
            required
        ) == set(properties):
            return _object(properties, rules)
        case _:
            raise ValueError(f"no grammar for this part of a form: {json.dumps(form)[:100]}")


def _array(items: Mapping[str, Any], least: int, most: int, rules: list[str]) -> Grammar:
    item = _rule(items, rules)
    name = f"item{len(rules) + 1}"
    rules.append(f"{name} ::= {item.text}")
    some = f'{name} (", " {name}){{{max(least, 1) - 1},{most - 1}}}'
    longest = most * (item.longest + len(", "))  # and the brackets in place of the last comma
    return Grammar(f'"[" {some} "]"' if least else f'"[" ({some})? "]"', longest)


def _object(properties: Mapping[str, Any], rules: list[str]) -> Grammar:
    parts, longest = [], len("{}")
    for number, (name, form) in enumerate(properties.items()):
        key = f"{'{' if number == 0 else ', '}{json.dumps(name, ensure_ascii=False)}: "
        value = _rule(form, rules)
        parts.append(f"{_literal(key)} {value.text}")
        longest += len(key) + value.longest
    return Grammar(" ".join([*parts, '"}"']), longest)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _numbers(low: int, high: int) -> str:
    """Return an expression for the whole numbers from `low` to `high`, both at least 0."""
    if low > high:
        raise ValueError(f"no number is from {low} to {high}")
    options = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)  # the largest with as many digits
        options.append(_numbers_of_one_length(str(low), str(last)))
        low = last + 1
    return " | ".join(options)


def _numbers_of_one_length(low: str, high: str) -> str:
    if not low:
        return '""'
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return f"[{low[0]}-{high[0]}]" + (f" [0-9]{{{rest}}}" if rest else "")
    if low[0] == high[0]:
        return f'"{low[0]}" {_numbers_of_one_length(low[1:], high[1:])}'
    options = [f'"{low[0]}" {_numbers_of_one_length(low[1:], "9" * rest)}']
    if int(high[0]) - int(low[0]) > 1:
        options.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{rest}}}")
    options.append(f'"{high[0]}" {_numbers_of_one_length("0" * rest, high[1:])}')
    return f"({' | '.join(options)})"
