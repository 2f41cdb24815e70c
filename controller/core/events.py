"""What happens to a rollout: events, in the past tense. `decide` is given the time beside them.

Does not belong here: the events of apps (`schemas/events.py`), and what follows from one
(`effects.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from controller.core.judging.judgement import Advice, Judgement
from controller.core.plan import Plan
from schemas.terms import CommandVerb


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""


@dataclass(frozen=True, slots=True)
class EvidenceJudged:
    """New totals were judged."""

    judgement: Judgement


@dataclass(frozen=True, slots=True)
class AdviceReceived:
    """The model answered in time and in the schema."""

    gate_id: str
    round: int
    advice: Advice


@dataclass(frozen=True, slots=True)
class AdviceUnavailable:
    """No advice for this round: late, absent, unparsable, or the circuit is open."""

    gate_id: str
    round: int
    why: str


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """An operator sent a command."""

    command_id: str
    verb: CommandVerb
    issuer: str
    reason: str
    issued_at: datetime
    expected_revision: int | None = None
    #: For `start` and `apply`; for `restart` it may replace the pinned one.
    plan: Plan | None = None
    #: True: the command was in the log before this replica began to read there, so it may have been
    #: read before. False: it was sent just now, whatever its issuer's clock says.
    is_backlog: bool = False
    #: For a start: what the rollout will need and is not there, one phrase each.
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # what is against the rules for flags
    refusals: tuple[str, ...] = ()  # what is against those that refuse a start
    #: Why the evidence of the stage cannot be judged at this moment, one phrase for each gap. An
    #: approval is refused for it, the answers to other commands tell it.
    gaps: tuple[str, ...] = ()
    has_advisor: bool = True  # whether a model is configured on this replica
    to_stage: str | None = None  # for `promote` and `step_back`: the name of the stage to enter
    for_rollout: str = ""  # the id of the one rollout that it is meant for; empty: not known
    last_revision: int = 0  # for the start of a new flag: the highest that it may have had before


@dataclass(frozen=True, slots=True)
class CommandUnusable:
    """A command that cannot be carried out as it is written: it is answered and nothing else."""

    command_id: str
    verb: CommandVerb | None  # None: not a verb we know
    why: str
    digest: str = ""  # of a usable command that is refused; empty: the digest follows from `why`
    issuer: str = ""  # empty: it does not say


@dataclass(frozen=True, slots=True)
class Restarted:
    """A process took the flag over, perhaps this one again; advice went to the one before."""


Event = (
    Ticked
    | Restarted
    | EvidenceJudged
    | AdviceReceived
    | AdviceUnavailable
    | CommandReceived
    | CommandUnusable
)
