"""Tombstones of retired flags: records of the state topic without a value.

Compaction keeps nothing of such a flag. A header says which revision retired it: a record without a
value and without this header was not written by us, and ends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from schemas.state import LARGEST_REVISION, RETIRED_HEADER

#: Digits of the largest revision. A longer header was not written by us.
MAX_DIGITS: Final = len(str(LARGEST_REVISION))

#: Why a record without a value, by somebody else, cannot be used.
DELETED: Final = "deleted; what was decided last stays in force"


def tombstone_headers(revision: int) -> list[tuple[str, bytes]]:
    """Return the headers of the record that retires a flag as this revision."""
    return [(RETIRED_HEADER, b"%d" % revision)]


def retired_revision(value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> int | None:
    """Return the revision that a record retires its flag as; None for any other record."""
    if value is not None:
        return None
    for name, content in headers:
        if name == RETIRED_HEADER and content.isdigit() and len(content) <= MAX_DIGITS:
            revision = int(content)
            # Beyond it no document of the flag could follow: nobody could ever start it again.
            return revision if revision <= LARGEST_REVISION else None
    return None
