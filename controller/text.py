"""Text from outside, made fit for people: bounded, on one line, without control characters.

Belongs here: functions on text that several packages need. Does not belong here: sentences about
rollouts, and anything that knows a format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def excerpt(text: str, max_chars: int) -> str:
    """Return the first `max_chars` characters of `text`, printable and trimmed."""
    return printable(text[:max_chars]).strip()


def describe_faults(error: ValidationError) -> str:
    """Return what is wrong with a document in one line: place and message of the first faults."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    described = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'document'}: {fault['msg']}"
        for fault in faults[:FAULTS_DESCRIBED]
    ]
    hidden = len(faults) - len(described)
    more = f" (and {hidden} more)" if hidden else ""
    return "; ".join(described).replace("Value error, ", "") + more
