"""A finding of `plan lint`: its place in the plan, the fault, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from controller.yaml_places import Path
from schemas.terms import Severity

#: What a rule needs whole that compares the times or samples of stages with something else, as a
#: section is needed.
STAGE_TIMES: Final = "times of stages"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a plan that its author should know."""

    path: Path  # keys and indexes from the top, () for the plan as a whole
    severity: Severity  # CRITICAL: the plan is refused. WARNING: it works, but perhaps not as meant
    message: str
    fix: str
    line: int | None = None  # 1-based; None when the plan was not read from text
    column: int | None = None

    @property
    def is_error(self) -> bool:
        """Whether the plan is refused because of it."""
        return self.severity is Severity.CRITICAL

    def __str__(self) -> str:
        """Return `stages[1].percent: what; how to fix it`, without the place in the file."""
        where = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path
        ).removeprefix(".")
        return f"{where or 'plan'}: {self.message}; {self.fix}"

    def located(self, source_name: str) -> str:
        """Return the finding as compilers write it: `file:line:column: severity: ...`."""
        place = source_name if self.line is None else f"{source_name}:{self.line}:{self.column}"
        return f"{place}: {'error' if self.is_error else 'warning'}: {self}"


def error(path: Path, message: str, fix: str) -> Finding:
    """Return a finding that refuses the plan."""
    return Finding(path, Severity.CRITICAL, message, fix)


def warning(path: Path, message: str, fix: str) -> Finding:
    """Return a finding about a plan that works, but perhaps not as meant."""
    return Finding(path, Severity.WARNING, message, fix)


def is_servable(percent: float) -> bool:
    """Return whether a stage can have this percent; if not, its own finding says all of it."""
    return 0 < percent <= 100


def percent_words(value: float) -> str:
    """Return a percentage for a message, as in `0.5 %`."""
    return f"{value:.10g} %"


def nearest_word(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that was probably meant, None for none.

    Only the first 40 characters are compared.
    """
    names = {name[:40]: name for name in choices}
    near = difflib.get_close_matches(word[:40], names, n=1)
    return names[near[0]] if near else None
