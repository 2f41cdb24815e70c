"""Nothing is defined that nothing uses: functions, methods, classes, constants, enum members.

A name counts as used when any source outside of the tests names it: as a name, an attribute, a
keyword, or a word in a string (settings and enum values are looked up by name).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Names that something outside of our sources calls or reads, each with who does.
_AIOKAFKA, _YAML = "aiokafka calls it", "yaml calls it"
_ASYNCIO = "asyncio calls it"
_ORACLE = "tests compare the daemon's faster form with it"
_BY_VALUE = "members are looked up by value"
USED_ELSEWHERE: dict[str, str] = {
    "wrap_str_format": "Jinja2's sandbox calls it",
    "on_broken_pipe": "rich calls it",
    "on_partitions_assigned": _AIOKAFKA,
    "validate_crc": _AIOKAFKA,
    "on_partitions_revoked": _AIOKAFKA,
    "buffer_updated": _ASYNCIO,
    "get_buffer": _ASYNCIO,
    "construct_mapping": _YAML,
    "ignore_aliases": _YAML,
    "ABSURD": _BY_VALUE,
    "DRIFT": _BY_VALUE,
    "LOW_DATA": _BY_VALUE,
    "MISLEADING_TEXT": _BY_VALUE,
    "MIXED": _BY_VALUE,
    "V3": _BY_VALUE,
    "RECORD_CLASS": _ORACLE,
    "decode_evaluation": _ORACLE,
    "decode_outcome": _ORACLE,
    "locate": _ORACLE,
    "ratio_increment": _ORACLE,
    "SHAPES": "the benchmark of detection needs it",
    "longest_fold_seconds": "the benchmark of throughput reads it",
}
#: What exists for tests and for people who try things: its users are there.
FOR_TESTS = ("controller/adapters/memory/", "ops/kafka/")


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """Return every source that is delivered or that tries what is delivered."""
    folders = ("controller", "schemas", "ops")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in paths
    )


def definitions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each function, method, class and constant with its line."""
    yield from (
        (node.name, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_plain(node))
    )
    for statement in tree.body:
        yield from _assigned(statement)
        if isinstance(statement, ast.ClassDef) and "Enum" in ast.unparse(statement).split(":")[0]:
            for inner in statement.body:
                yield from _assigned(inner)


def _is_plain(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether all decorators leave the function to be used by its name."""
    plain = {
        "property",
        "staticmethod",
        "classmethod",
        "cached_property",
        "cache",
        "contextmanager",
    }
    return all(isinstance(one, ast.Name) and one.id in plain for one in node.decorator_list)


def _assigned(node: ast.stmt) -> Iterator[tuple[str, int]]:
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id, node.lineno


@cache
def uses() -> Counter[str]:
    """Return how often each name is used."""
    found: Counter[str] = Counter()
    for _, tree in sources():
        exported = {id(one) for one in _exports(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found[node.id] += 1
            elif isinstance(node, ast.Attribute):
                found[node.attr] += 1
            elif isinstance(node, ast.keyword) and node.arg:
                found[node.arg] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in exported and not _is_docstring(node, tree):
                    found.update(set(re.findall(r"\w+", node.value)))
            elif isinstance(node, ast.MatchClass):
                found.update(node.kwd_attrs)
    return found


def _exports(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the strings of `__all__`, which use nothing."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            yield from ast.walk(node.value)


@cache
def _docstrings(tree: ast.Module) -> frozenset[int]:
    return frozenset(
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _is_docstring(node: ast.Constant, tree: ast.Module) -> bool:
    return id(node) in _docstrings(tree)


def unused() -> list[str]:
    """Return each definition that nothing uses, as `file:line name`."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return [
        f"{name}:{line} {defined}"
        for name, tree in sources()
        for defined, line in definitions(tree)
        if not uses()[defined]
        and not name.startswith(FOR_TESTS)
        and defined not in USED_ELSEWHERE
        and not defined.startswith("__")
        and f":{defined}" not in project
    ]


def test_everything_is_used() -> None:
    """What nothing uses is removed, or named above with its user.

    Each name above is defined, and nothing of ours uses it.
    """
    assert unused() == []
    defined = {name for _, tree in sources() for name, _ in definitions(tree)}
    assert USED_ELSEWHERE.keys() <= defined
    assert [name for name in USED_ELSEWHERE if uses()[name]] == []
