"""A flag plane's failure that nobody expected, in words for faults and logs."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

from controller.text import excerpt

#: Characters of an exception's text that are repeated: the text may come from another system.
WHY_MAX_CHARS: Final = 200


def in_words(error: BaseException) -> str:
    """Return an exception that nobody expected as one printable line."""
    why = excerpt(str(error), WHY_MAX_CHARS)
    return f"failed unexpectedly: {type(error).__name__}: {why}".removesuffix(": ")


def where(error: BaseException) -> str:
    """Return the innermost places that an exception came through.

    No traceback: one with megabytes of an answer in it takes a console minutes to print.
    """
    frames = list(traceback.walk_tb(error.__traceback__))[-3:]
    return " < ".join(
        f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
        for frame, line in reversed(frames)
    )
