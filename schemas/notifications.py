"""Documents of the HTTP API about notifications: who was told of what, and who takes it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.decision import WholeNumber
from schemas.fields import Line, Moment, OpenModel, StrictModel
from schemas.terms import Severity


class ChannelEntry(OpenModel):
    """A channel of notifications."""

    name: str
    type: str
    waiting: WholeNumber = Field(description="Messages that it has not taken yet.")
    sent: WholeNumber = Field(description="Messages that it has taken.")
    sent_at: Moment | None = Field(description="The last one; null: none.")
    trouble: str = Field(description="Why it takes none now; empty: it does.")
    since: Moment | None = Field(description="Since when it takes none; null: it does.")


class Notice(OpenModel):
    """A channel that is told of an incident."""

    channel: str
    at: Moment | None = Field(description="When it had the newest message; null: it has none yet.")


class RouteEntry(OpenModel):
    """A route of the rules that hold: `rolloutctl notify test` tries it."""

    name: str
    to: list[str] = Field(description="Its channels; empty: nobody is told by it.")


class IncidentEntry(OpenModel):
    """Something that people were told of and that is not over."""

    key: str = Field(description="The alert's dedup key; `rolloutctl notify ack` takes it.")
    flag: str
    kind: str
    severity: Severity
    summary: str
    action: str
    opened_at: Moment
    told: list[str] = Field(description="The channels that were told.")
    notices: list[Notice] = Field(description="The same with the times at which they had it.")
    taken_by: str = Field(description="Who has taken it; empty: nobody.")
    taken_at: Moment | None
    next_at: Moment | None = Field(description="When others are told of it; null: never.")
    next_to: list[str] = Field(description="The channels that are told then.")
    muted_until: Moment | None = Field(description="Nobody is told before; null: it is not muted.")


class EndedIncident(OpenModel):
    """An incident that is over."""

    incident: IncidentEntry
    at: Moment
    why: str


class MuteEntry(OpenModel):
    """News that is kept back for some time."""

    name: str = Field(description="A mute of the rules file, or the number of one by command.")
    is_by_command: bool = Field(description="`rolloutctl notify unmute` ends it.")
    route: str = Field(description="The route that is muted; empty: flags are.")
    about: str = Field(description="What is muted, in words.")
    by: str = Field(description="Who muted it; empty: the rules file.")
    reason: str
    start: Moment | None = Field(description="null: it holds.")
    until: Moment
    is_critical_too: bool = Field(description="Whether critical news is muted as well.")


class DeadLetter(OpenModel):
    """A message that its channel has refused."""

    number: WholeNumber = Field(description="`rolloutctl notify retry` takes it.")
    channel: str
    flag: str
    summary: str
    why: str
    at: Moment


class NotificationsView(OpenModel):
    """Channels, incidents, mutes and dead letters of all replicas, newest first."""

    at: Moment
    channels: list[ChannelEntry]
    routes: list[RouteEntry] | None = Field(
        default=None, description="In the order of the rules; null: an older rolloutd answered."
    )
    incidents: list[IncidentEntry]
    ended: list[EndedIncident] = Field(description="Those of the last day.")
    mutes: list[MuteEntry]
    dead_letters: list[DeadLetter]


class Acknowledgement(StrictModel):
    """That somebody takes an incident, or all of a flag."""

    key: Line = Field(default="", description="The incident's key; empty: all of the flag.")
    flag: Line = Field(default="", description="A flag; empty: the incident with the key.")
    by: Line = Field(
        default="",
        description="Whom the sender speaks for, such as who pressed a button; empty: itself.",
    )

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if bool(self.key) == bool(self.flag):
            raise ValueError("name either key or flag")
        return self


class Taken(OpenModel):
    """The incidents that somebody has taken."""

    incidents: list[IncidentEntry]


class TakePending(OpenModel):
    """That an acknowledgement was sent, and is not seen yet."""

    keys: list[str]
    status: Literal["pending"] = "pending"
    reason: str = Field(description="What is known of it, and what to do.")
