"""Signals of monitoring systems, on `rollout.signals`, keyed by endpoint and condition."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from schemas.envelope import without_control_characters
from schemas.fields import Line, Moment, Name, OpenModel
from schemas.terms import NotificationRequest, SignalStatus

TYPE = "io.rolloutd.signal.v1"

#: What is kept of the labels of a signal.
MOST_LABELS: Final = 50
LONGEST_LABEL: Final = 200

_Label = Annotated[str, Field(max_length=LONGEST_LABEL), AfterValidator(without_control_characters)]


class MuteRequest(OpenModel):
    """How somebody wants a route or flags to be muted."""

    until: Moment
    reason: Line
    is_flag: bool = Field(
        default=False, description="`request_about` names flags, also where a route is called so."
    )
    is_critical_too: bool = Field(default=False, description="Critical news is muted as well.")


class Signal(OpenModel):
    """What one system says of one condition, in the form that rules match.

    The event's id is the signal's, so that a repeated delivery is the same signal.
    """

    id: Name = Field(description="Made of the endpoint and what the delivery is about.")
    hook: str = Field(
        pattern=r"^[a-z_]{1,30}/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The endpoint: source and name, as in `alertmanager/prod`.",
    )
    status: SignalStatus
    condition: Line = Field(
        description="What fires: the same while it fires again and again, and when it is over."
    )
    title: Line = Field(description="For people.")
    service: Line = Field(default="", description="What it is about, empty where not told.")
    severity: Line = Field(default="", description="As the system writes it, in lower case.")
    labels: dict[_Label, _Label] = Field(default={}, max_length=MOST_LABELS)
    link: Line = Field(default="", description="Where people see more, empty where not told.")
    started_at: Moment | None = Field(
        default=None, description="Since when it fires, as its system says; null: not told."
    )
    received_at: Moment
    request: NotificationRequest | None = Field(
        default=None, description="What is asked of the notifications; null: nothing."
    )
    request_about: Line = Field(
        default="", description="The dedup key, flag, route or channel that the request is about."
    )
    issuer: Line = Field(default="", description="Who makes the request; empty: not told.")
    mute: MuteRequest | None = Field(default=None, description="For the request mute; else null.")
