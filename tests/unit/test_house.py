"""The limits: sizes of files and functions, width, composition root."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES_PER_FILE = 500
LINES_PER_RUST_FILE = 400
LINES_PER_FUNCTION = 60  # without the docstring
COLUMNS = 100
BOOTSTRAP_LINES = 200

_PROGRAM = "a program of its own, read from top to bottom"
_ONE_SUBJECT = "tests of one subject, to be divided"
#: Files that may be longer, each with its reason. None of them is below `controller` or `schemas`.
LONGER_FILES = {
    "ops/kafka/local_kafka.py": "runs alone, without any other file of ours",
    "tests/benchmarks/detection.py": _PROGRAM,
    "tests/chaos/recount.py": _PROGRAM,
    "tests/chaos/rounds.py": _PROGRAM,
    "tests/hostile/siege.py": _PROGRAM,
    "tests/property/test_bounds.py": _ONE_SUBJECT,
    "tests/property/test_wire.py": _ONE_SUBJECT,
    "tests/unit/core/judging/test_gate.py": _ONE_SUBJECT,
}

_ONE_STORY = "one story, told in order"
#: Functions that may be longer, as `file:name`, each with its reason.
LONGER_FUNCTIONS = {
    "tests/chaos/recount.py:_verify_decisions": _ONE_STORY,
    "tests/chaos/recount.py:_verify_visit": _ONE_STORY,
    "tests/e2e/test_planes.py:test_every_plane_serves_what_is_decided": _ONE_STORY,
    "tests/integration/test_kafka_faults.py:test_a_broker_that_hangs_for_long_ends_nothing": (
        _ONE_STORY
    ),
    "tests/integration/test_unleash_sdk.py:"
    "test_one_rollout_reaches_users_of_unleash_flagd_and_ofrep": _ONE_STORY,
}
#: Files that may be wider, by how they begin or end, each with its reason.
WIDER_FILES = {
    "controller/adapters/llm/prompt_texts/": "sent to models as they are, and hashed",
    "ops/grafana/dashboards/": "a query and a description are one JSON string each",
    "schemas/asyncapi.yaml": "generated",
    "schemas/examples/quarantine.json": "a record's body is one JSON string",
    "schemas/json/": "generated",
    "schemas/openapi.yaml": "generated",
    "tests/golden/0.1.0/answers.json": "recorded",
}
WIDER_SUFFIXES = {".min.js": "minified", "package-lock.json": "generated", "go.sum": "generated"}
#: What the machine did, as `tests/scenarios` writes it into a transcript.
TRANSCRIPTS, PLAYED = "tests/scenarios/", ("  ", "= ")
#: A comment for a tool, at the end of a line, does not count; ruff has the same rule.
PRAGMA = re.compile(r"\s*# (type: ignore|noqa).*$")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tracked(*suffixes: str) -> tuple[str, ...]:
    """Return the files of the repository that end so."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = (name for name in listing.split("\0") if name.endswith(suffixes))
    return tuple(name for name in names if (ROOT / name).is_file())


def syntax(name: str) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def lines(name: str) -> list[str]:
    """Return the lines of a file."""
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def functions(name: str) -> Iterator[tuple[str, int]]:
    """Yield each function of a file with its lines, the docstring left out."""
    for node in ast.walk(syntax(name)):
        if isinstance(node, Function):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_no_file_is_too_long() -> None:
    """A source file has at most 500 lines."""
    longer = {name for name in tracked(".py") if len(lines(name)) > LINES_PER_FILE}
    assert longer - LONGER_FILES.keys() == set()


def test_no_exception_is_in_the_sources() -> None:
    """What is delivered keeps the limit of 500 lines everywhere."""
    assert [name for name in LONGER_FILES if name.startswith(("controller/", "schemas/"))] == []


def test_no_function_is_too_long() -> None:
    """A function has at most 60 lines without its docstring."""
    longer = {
        f"{name}:{function}"
        for name in tracked(".py")
        for function, length in functions(name)
        if length > LINES_PER_FUNCTION
    }
    assert longer - LONGER_FUNCTIONS.keys() == set()


RUST_FUNCTION = re.compile(r"^( *)(?:pub(?:\(\w+\))? )?fn (\w+).*?^\1}$", re.DOTALL | re.MULTILINE)


def test_no_file_or_function_in_rust_is_too_long() -> None:
    """The native fold keeps the limit of functions, and of files a narrower one."""
    names = tracked(".rs")
    longer = [
        f"{name}:{function[2]}"
        for name in names
        for function in RUST_FUNCTION.finditer((ROOT / name).read_text())
        if function[0].count("\n") >= LINES_PER_FUNCTION
    ]
    assert names
    assert [name for name in names if len(lines(name)) > LINES_PER_RUST_FILE] + longer == []


def written_lines(name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that people write, with their numbers; none of another."""
    try:
        numbered = enumerate(lines(name), 1)
    except UnicodeDecodeError:
        return
    is_transcript = name.startswith(TRANSCRIPTS) and name.endswith(".txt")
    for number, line in numbered:
        if not (is_transcript and line.startswith(PLAYED)):
            yield number, line


def test_no_line_is_too_wide() -> None:
    """A line of code, comment or document has at most 100 columns, in every text file."""
    wide = [
        f"{name}:{number}"
        for name in tracked("")
        if not name.startswith(tuple(WIDER_FILES)) and not name.endswith(tuple(WIDER_SUFFIXES))
        for number, line in written_lines(name)
        if len(PRAGMA.sub("", line)) > COLUMNS
    ]
    assert wide == []


def test_the_composition_root_only_composes() -> None:
    """`controller/bootstrap.py` is short and has no loop."""
    name = "controller/bootstrap.py"
    assert len(lines(name)) < BOOTSTRAP_LINES
    loops = ast.While | ast.For | ast.AsyncFor
    assert [node.lineno for node in ast.walk(syntax(name)) if isinstance(node, loops)] == []


def test_every_benchmark_reads_its_arguments() -> None:
    """`--help` and a misspelled option measure nothing, also where there is no option."""
    benchmarks = [
        path for path in (ROOT / "tests/benchmarks").glob("*.py") if "__main__" in path.read_text()
    ]
    assert benchmarks
    for path in benchmarks:
        assert ".parse_args()" in path.read_text(), path.name
