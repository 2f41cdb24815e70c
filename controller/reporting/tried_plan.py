"""What virtual rollouts of a plan came to, in words, for the terminal and for the page.

Belongs here: the shape of it. Does not belong here: the rollouts and the words, which
`controller/planning/` makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Virtual rollouts of each scenario on the page: what none of 50 shows has at most 7 % (95 %).
RUNS: Final = 50
#: Of one processor, for all rollouts of a plan: most plans need 2 to 5.
CPU_SECONDS: Final = 15


@dataclass(frozen=True, slots=True)
class TriedScenario:
    """What the rollouts with one virtual traffic came to."""

    title: str
    rows: tuple[tuple[str, str], ...]  # name and value
    columns: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]  # a row for each, of as many cells as there are columns


@dataclass(frozen=True, slots=True)
class TriedPlan:
    """What all rollouts of a plan came to."""

    plan: str
    rollouts: str  # how many, and with which seed
    about: tuple[str, ...]  # control, the begin, and what is always assumed
    assumed: str  # because it was not typed; empty: nothing
    scenarios: tuple[TriedScenario, ...]


@dataclass(frozen=True, slots=True)
class TrialOrder:
    """A plan's text and what was typed for it, as for `rolloutctl simulate`; empty: nothing."""

    plan: str = ""
    traffic: str = ""
    error_rate: str = ""
    latency: str = ""
    conversion: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """What a plan came to, or why it was not tried."""

    tried: TriedPlan | None = None
    refused: str = ""
