"""The one answer to a command id, on `rollout.results`, keyed by flag."""

from __future__ import annotations

from pydantic import Field

from schemas.fields import Count, Moment, Name, OpenModel
from schemas.terms import CommandStatus, CommandVerb

TYPE = "io.rolloutd.result.v1"


class Result(OpenModel):
    """Whether a command was carried out, and why not.

    The event's id is the command's id, so that repeats are the same answer.
    """

    command_id: Name
    flag: Name
    verb: CommandVerb | None = Field(description="null: the command had no known verb.")
    status: CommandStatus
    reason: str
    revision: Count = Field(
        description="Of the rollout after the command; 0 when the flag has none."
    )
    at: Moment
    issuer: str | None = Field(
        default=None,
        description="Who sent the command. null: not known, or an earlier release answered.",
    )
