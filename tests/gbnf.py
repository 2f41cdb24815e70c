"""Reads GBNF, the grammar language of llama.cpp, as far as our grammars use it.

For tests: what a grammar allows, and what a model writes that likes to write on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r'\s*(?:"((?:\\.|[^"\\])*)"|\[((?:\\.|[^\]\\])*)\]|\{(\d+)(?:,(\d+))?\}|([\w-]+)|([()|?]))'
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-F]{2})|(.))")


@dataclass(frozen=True)
class Literal:
    """These characters."""

    text: str


@dataclass(frozen=True)
class OneOf:
    """One character of a class, written as a regular expression's."""

    pattern: str


@dataclass(frozen=True)
class Name:
    """What another rule allows."""

    name: str


@dataclass(frozen=True)
class Sequence:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """One of them."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """So many of them."""

    part: Node
    least: int
    most: int


Node = Literal | OneOf | Name | Sequence | Choice | Repeat
Rules = dict[str, Node]


def parse(grammar: str) -> Rules:
    """Return the rules. Raises ValueError for anything that our grammars do not use."""
    rules = {}
    for line in grammar.splitlines():
        name, arrow, text = line.partition(" ::= ")
        if not arrow:
            raise ValueError(f"no rule: {line}")
        rules[name] = _Parser(text).parse()
    return rules


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[re.Match[str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            token = _TOKEN.match(text, at)
            if token is None:
                raise ValueError(f"not read: {text[at:]}")
            self._tokens.append(token)
            at = token.end()

    def parse(self) -> Node:
        node = self._choice()
        if self._tokens:
            raise ValueError(f"not read: {self._tokens[0].group()}")
        return node

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._tokens and self._tokens[0][6] == "|":
            self._tokens.pop(0)
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts = []
        while self._tokens and self._tokens[0][6] not in ("|", ")"):
            parts.append(self._repeated(self._one(self._tokens.pop(0))))
        return Sequence(tuple(parts))

    def _one(self, token: re.Match[str]) -> Node:
        literal, characters, _, _, name, sign = token.groups()
        if literal is not None:
            return Literal(_ESCAPE.sub(lambda escape: escape[2], literal))
        if characters is not None:
            return OneOf(f"[{characters}]")
        if name is not None:
            return Name(name)
        if sign == "(":
            node = self._choice()
            self._tokens.pop(0)
            return node
        raise ValueError(f"not expected: {token.group()}")

    def _repeated(self, node: Node) -> Node:
        if self._tokens and self._tokens[0][6] == "?":
            self._tokens.pop(0)
            return Repeat(node, 0, 1)
        if self._tokens and self._tokens[0][3] is not None:
            token = self._tokens.pop(0)
            return Repeat(node, int(token[3]), int(token[4] or token[3]))
        return node


def _pattern(rules: Rules, node: Node) -> str:
    """Return a regular expression: our grammars do not recur."""
    match node:
        case Literal(text):
            return re.escape(text)
        case OneOf(pattern):
            return pattern
        case Name(name):
            return f"(?:{_pattern(rules, rules[name])})"
        case Sequence(parts):
            return "".join(_pattern(rules, part) for part in parts)
        case Choice(options):
            return f"(?:{'|'.join(_pattern(rules, option) for option in options)})"
        case Repeat(part, least, most):
            return f"(?:{_pattern(rules, part)}){{{least},{most}}}"


def matches(grammar: str, text: str) -> bool:
    """Return whether a grammar allows a text."""
    rules = parse(grammar)
    return re.fullmatch(_pattern(rules, rules["root"]), text) is not None


def longest_text(grammar: str) -> str:
    """Return what a model writes that never ends anything of itself: the longest text."""
    rules = parse(grammar)
    return "".join(_longest(rules, rules["root"]))


def shortest_text(grammar: str) -> str:
    """Return what a model writes that ends everything as soon as it may: the shortest text."""
    rules = parse(grammar)
    return _shortest(rules, rules["root"])


def _shortest(rules: Rules, node: Node) -> str:
    match node:
        case Literal(text):
            return text
        case OneOf():
            return "".join(_longest(rules, node))
        case Name(name):
            return _shortest(rules, rules[name])
        case Sequence(parts):
            return "".join(_shortest(rules, part) for part in parts)
        case Choice(options):
            return min((_shortest(rules, option) for option in options), key=len)
        case Repeat(part, least, _):
            return _shortest(rules, part) * least


def _longest(rules: Rules, node: Node) -> Iterator[str]:
    match node:
        case Literal(text):
            yield text
        case OneOf(pattern):
            yield next(char for char in "x9876543210" if re.fullmatch(pattern, char))
        case Name(name):
            yield from _longest(rules, rules[name])
        case Sequence(parts):
            for part in parts:
                yield from _longest(rules, part)
        case Choice(options):
            yield max(("".join(_longest(rules, option)) for option in options), key=len)
        case Repeat(part, _, most):
            for _ in range(most):
                yield from _longest(rules, part)
