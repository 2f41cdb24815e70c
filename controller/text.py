"""Text from outside, made fit for people: bounded, on one line, without control characters.

Belongs here: functions on text that several packages need. Does not belong here: sentences about
rollouts, and anything that knows a format.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Faults of a document that are described one by one; the rest is counted.
FAULTS_DESCRIBED = 3


def printable(text: str, placeholder: str = " ") -> str:
    """Return `text` with `placeholder` for each character that could forge a log or a terminal."""
    return "".join(char if char.isprintable() else placeholder for char in text)


def one_line(text: str) -> str:
    """Return `text` as one line, white space as single spaces, `?` for what cannot be printed."""
    return printable(" ".join(text.split()), "?")


def is_blank(text: str) -> bool:
    """Return whether nothing of `text` can be seen: it is empty, or spaces and fillers alone."""
    return all(char in _FILLERS or unicodedata.category(char)[0] in "CMZ" for char in text)


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun, as `1 flag` and `1,200 flags`.

    `many` is the plural where it is not `one` with an s, also of more than a noun, as in
    `partition is` and `partitions are`.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def file_trouble(error: OSError | UnicodeDecodeError) -> str:
    """Return why a file cannot be read or written, without its name, which stands before it."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is no text in {error.encoding.upper()} (byte {error.start + 1})"
    return error.strerror or str(error)


@lru_cache(maxsize=100_000)
def key_letters(key: str) -> str:
    """Return a key without separators, in one letter case; keys with equal ones look alike.

    Remembered, because each start of a rollout compares its flag with thousands.
    """
    return key.casefold().translate(_SEPARATORS)


def excerpt(text: str, max_chars: int) -> str:
    """Return the first `max_chars` characters of `text`, printable and trimmed."""
    return printable(text[:max_chars]).strip()


_SEPARATORS: Final = str.maketrans("", "", "._:-")

#: Letters and symbols by their category that show nothing: of Hangul, and of Braille.
_FILLERS: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800")

#: What to write, by pydantic's name of a fault of form.
_TO_WRITE: Final[dict[str, str]] = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "write a whole number"),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "write a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "write true or false"),
    "string_type": "write text, in quotes where it looks like something else",
    **dict.fromkeys(("list_type", "tuple_type"), "write a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "write a mapping"),
    **dict.fromkeys(
        ("datetime_parsing", "datetime_type", "datetime_from_date_parsing", "timezone_aware"),
        "write a time with its offset from UTC, as in 2026-11-21T03:00:00Z",
    ),
    "missing": "is missing",
}


def fault_words(kind: str, message: str) -> str:
    """Return one of pydantic's messages in plain words; `kind` is its name of the fault."""
    if kind in _TO_WRITE:
        return _TO_WRITE[kind]
    said = message.removeprefix("Value error, ")
    if kind in ("enum", "literal_error"):
        return said.replace("Input should be", "write", 1)
    return said.replace("Input should be", "must be", 1)


def describe_faults(error: ValidationError) -> str:
    """Return what is wrong with a document in one line: place and message of the first faults."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    described = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'document'}: "
        f"{fault_words(fault['type'], fault['msg'])}"
        for fault in faults[:FAULTS_DESCRIBED]
    ]
    hidden = len(faults) - len(described)
    more = f" (and {hidden} more)" if hidden else ""
    return "; ".join(described) + more
