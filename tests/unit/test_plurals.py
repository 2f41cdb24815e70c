"""Numbers with their nouns: "1 flag" and "2 flags", by one function."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from controller.text import plural

ROOT = Path(__file__).parents[2]
#: After a number: perhaps a word or two, and a noun in the plural.
NOUN = re.compile(r" ((?!of |is |has |was )[a-z]+ ){0,2}(?!is\b|has\b|was\b)[a-z]{2,}s\b")
#: Sizes, which are large where they are told, and words with one form.
SIZES = re.compile(r" (bytes|characters|series)\b")
#: Files with such a text, and why its number is never 1, or why it may stand so.
NEVER_ONE = {
    "controller/adapters/http_plane/json_paths.py": "said of several",
    "controller/adapters/last_known_file.py": "more than fit into a file",
    "controller/adapters/llm/prompts.py": "a prompt, whose wording has a version",
    "controller/adapters/measuring/exposition.py": "said of several",
    "controller/cli/advisor_check.py": "79 cases",
    "controller/codec/merging.py": "more than a save may have",
    "controller/core/analysis/sequential_tests.py": "a fault for programmers",
    "controller/core/anomaly.py": "said of several",
    "controller/core/invariants.py": "a fault for programmers",
    "controller/core/machine/obstacles.py": "twenty or more",
    "controller/core/machine/window_transitions.py": "said from the second time on",
    "controller/counting/partition_totals.py": "a fault for programmers",
    "controller/deciding/commands/direct_commands.py": "as many as may wait",
    "controller/demo/screen.py": "the demo has three",
}


def counted_nouns(path: Path) -> list[str]:
    """Return the texts of a file in which the length of something has a noun in the plural."""
    found = []
    for text in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(text, ast.JoinedStr):
            continue
        for value, after in zip(text.values, text.values[1:], strict=False):
            is_length = isinstance(value, ast.FormattedValue) and ast.unparse(
                value.value
            ).startswith("len(")
            words = after.value if isinstance(after, ast.Constant) else ""
            if is_length and NOUN.match(str(words)) and not SIZES.match(str(words)):
                found.append(ast.unparse(text))
    return found


def test_one_is_singular_and_all_else_is_plural() -> None:
    """Also none, and with marks between thousands."""
    assert plural(1, "flag") == "1 flag"
    assert plural(0, "flag") == "0 flags"
    assert plural(12_345, "flag") == "12,345 flags"
    assert plural(1, "partition is", "partitions are") == "1 partition is"
    assert plural(2, "partition is", "partitions are") == "2 partitions are"


def test_what_is_counted_gets_its_noun_by_that_function() -> None:
    """`{len(flags)} flags` says "1 flags" one day; `plural(len(flags), "flag")` does not."""
    found = {
        path.relative_to(ROOT).as_posix(): texts
        for folder in ("controller", "schemas")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (texts := counted_nouns(path))
    }
    assert {name: found[name] for name in found.keys() - NEVER_ONE.keys()} == {}
    assert NEVER_ONE.keys() - found.keys() == set()
