"""What a query string asks: its type, why it is refused, and reading numbers and states of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from controller.reporting.views import Urgency

Query = Mapping[str, Sequence[str]]
#: Characters of a search; what follows is not looked for.
LONGEST_SEARCH: Final = 200
#: Pages of a list that can be asked for; beyond the last one, the last is shown.
MOST_PAGES: Final = 999_999
_STATES: Final[Mapping[str, Urgency]] = {state.name.lower(): state for state in Urgency}


class QuestionRefused(Exception):
    """A question that has no answer: its status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def digits(text: str, most: int) -> int | None:
    """Return a whole number of at most so many decimal digits; None: it is none."""
    is_one = text.isascii() and text.isdigit() and len(text) <= most
    return int(text) if is_one else None


def number(query: Query, name: str, default: int, least: int, most: int) -> int:
    """Return a whole number of the question. Raises QuestionRefused for anything else."""
    asked = digits(query.get(name, [str(default)])[-1], 8)
    if asked is None or not least <= asked <= most:
        raise QuestionRefused(400, f"{name} is a whole number from {least} to {most}")
    return asked


def state_of(text: str) -> Urgency | None:
    """Return the state that is asked for, None for none. Raises QuestionRefused for another."""
    if text and text not in _STATES:
        raise QuestionRefused(400, f"state is one of {', '.join(_STATES)}")
    return _STATES.get(text)
