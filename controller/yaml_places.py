"""YAML text as values, with the line and column of every key.

Belongs here: reading within bounds, and refusing what is not YAML with its place.
Does not belong here: what the values mean. Plans and settings each check their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

#: Keys and indexes from the top of the document; () is the document itself.
Path = tuple[str | int, ...]
#: Line and column of each key and each list item, both from 1.
Places = dict[Path, tuple[int, int]]

#: Values a text may expand to. Aliases make a short YAML text arbitrarily large.
MAX_VALUES: Final = 20_000
MAX_DEPTH: Final = 20

_CORE_TAGS = "tag:yaml.org,2002:"
#: What an explicit tag makes PyYAML's own constructors raise, as in `!!bool maybe`.
_TAG_MISMATCH = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)


class YamlRefused(ValueError):
    """The text cannot be read as one bounded YAML document; the message is one line."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line  # from 1; None where PyYAML names no place
        self.column = column


@dataclass(frozen=True, slots=True)
class RepeatedKey:
    """A key that one mapping has twice. YAML keeps the last value and drops the first."""

    path: Path
    line: int
    column: int
    first_line: int


@dataclass(frozen=True, slots=True)
class YamlText:
    """One YAML document."""

    values: Any
    places: Places
    repeated_keys: tuple[RepeatedKey, ...]
    is_empty: bool  # no document at all: blank, or comments alone


class CoreSchemaLoader(yaml.SafeLoader):
    """Reads the scalars of YAML 1.2's core schema, and nothing else.

    `on` is a text, not true, and `22:00` a text, not 1320. Keys are texts. Other tags are refused.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name
    _depth = -1  # of the node that is composed; the document's own is 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node. Raises YamlRefused where it is too deep, before the rest is read.

        PyYAML composes by recursion: a text of 20,000 brackets takes it seconds.
        """
        if self._depth >= MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise YamlRefused(f"nested deeper than {MAX_DEPTH}", mark.line + 1, mark.column + 1)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping with each key as it is written."""
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_core_scalar(self, node: yaml.ScalarNode) -> Any:
        """Return a scalar by its tag. Raises ValueError for a text that its tag cannot mean."""
        match node.tag.removeprefix(_CORE_TAGS):
            case "null":
                return None
            case "bool":
                return node.value.lower() == "true"
            case "int":
                return int(node.value)
            case "float":
                return float(node.value)
        return node.value

    def refuse_tag(self, node: yaml.Node) -> Any:
        """Raise YamlRefused: a tag can make a value anything."""
        line, column = _place(node)
        raise YamlRefused(f"the tag {node.tag} is not read here", line, column)


CoreSchemaLoader.yaml_constructors = {
    **{
        f"{_CORE_TAGS}{name}": CoreSchemaLoader.construct_core_scalar
        for name in ("null", "bool", "int", "float", "str")
    },
    f"{_CORE_TAGS}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_CORE_TAGS}map": yaml.SafeLoader.construct_yaml_map,
    None: CoreSchemaLoader.refuse_tag,
}
CoreSchemaLoader.add_implicit_resolver(
    f"{_CORE_TAGS}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
CoreSchemaLoader.add_implicit_resolver(
    f"{_CORE_TAGS}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
CoreSchemaLoader.add_implicit_resolver(
    f"{_CORE_TAGS}int", re.compile(r"^[-+]?[0-9]{1,18}$"), list("-+0123456789")
)
CoreSchemaLoader.add_implicit_resolver(
    f"{_CORE_TAGS}float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?$"),
    list("-+.0123456789"),
)


#: Frequent mistakes in words that need no knowledge of how YAML is parsed, by PyYAML's.
_PLAINER = {
    "found character '\\t' that cannot start any token": (
        "a tab stands where YAML takes spaces alone: indent with spaces"
    ),
    "but found another document": "a second document begins here: keep each in a file of its own",
}


def read_yaml(text: str, loader_type: type[yaml.SafeLoader]) -> YamlText:
    """Return the one document of `text`, as `loader_type` reads its scalars.

    Raises YamlRefused for what is not YAML, for more than `MAX_VALUES` values, and for nesting
    deeper than `MAX_DEPTH`.
    """
    try:
        loader = loader_type(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return YamlText(None, {}, (), is_empty=True)
            walk = _Walk()
            walk.visit(root, (), 0)
            values = loader.construct_document(root)
        finally:
            loader.dispose()
    except YamlRefused:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"{error.problem or error.context}"
        message = _PLAINER.get(problem, problem)
        if mark is None:
            raise YamlRefused(message) from None
        raise YamlRefused(message, mark.line + 1, mark.column + 1) from None
    except (yaml.YAMLError, RecursionError, *_TAG_MISMATCH) as error:
        raise YamlRefused(" ".join(str(error).split())[:200]) from None
    return YamlText(values, walk.places, tuple(walk.repeated_keys), is_empty=False)


def is_yaml(text: str, loader_type: type[yaml.SafeLoader]) -> bool:
    """Return whether `text` is one YAML document, whatever its values are."""
    try:
        return yaml.compose(text, Loader=loader_type) is not None
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


@dataclass(slots=True)
class _Walk:
    """Visits every node once per alias, and notes the place of each key and item."""

    places: Places = field(default_factory=dict)
    repeated_keys: list[RepeatedKey] = field(default_factory=list)
    values: int = 0

    def visit(self, node: yaml.Node, path: Path, depth: int) -> None:
        """Note everything at and below a node. Raises YamlRefused beyond the bounds."""
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            bounds = f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH}"
            raise YamlRefused(bounds)
        self.places.setdefault(path, _place(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, index), depth + 1)
        elif isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path, depth)

    def _visit_mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> None:
        names: set[str] = set()
        for key, value in node.value:
            line, column = _place(key)
            if not isinstance(key, yaml.ScalarNode):
                raise YamlRefused("a key is a word", line, column)
            inner = (*path, key.value)
            if key.value in names:
                first_line = self.places[inner][0]
                self.repeated_keys.append(RepeatedKey(inner, line, column, first_line))
            names.add(key.value)
            self.places[inner] = line, column
            self.visit(value, inner, depth + 1)


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
