"""Reads Prefect's events and runs into the two things that count: who was served, how a run ended.

A run asked for a flag (`rolloutd.evaluation`, which telemetry.py emits), or it ended (a state event
of Prefect's own). Belongs here: the form of Prefect's JSON. Does not belong here: which event was
published before (`ledger.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

EVALUATION = "rolloutd.evaluation"
#: Of these types a run never leaves again, unless somebody runs it again. A state's name may be
#: anybody's; its type is Prefect's.
TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_RUN_KINDS = ("task-run", "flow-run")  # the inner one first: it is the one that asked


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run asked for a flag and was served a variant."""

    event_id: str  # Prefect's own, so that a repeat has the same
    run: str  # such as "task-run.<uuid>"
    flow_run: str | None  # the flow run that it is part of
    context_id: str
    flag: str
    variant: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Ending:
    """A run ended."""

    run: str
    run_count: int  # grows when an ended run is run again
    state_type: str  # one of TERMINAL
    state_name: str
    seconds: float | None  # all its attempts together; None: not known yet
    at: datetime

    @property
    def failure(self) -> str | None:
        """What went wrong, for `error.type`; None: it completed."""
        return None if self.state_type == "COMPLETED" else self.state_name

    @property
    def says_nothing(self) -> bool:
        """Whether it is no result of the version: a person stopped it, or a cache answered."""
        return self.state_type == "CANCELLED" or self.state_name == "Cached"


class EventUnreadable(ValueError):
    """An event has not the form that is read here. The message says which and why."""


def read_event(event: Mapping[str, Any]) -> Evaluation | Ending | None:
    """Return what an event says, None where it is about neither.

    Raises EventUnreadable for one of ours that lacks something.
    """
    try:
        if event["event"] == EVALUATION:
            return _evaluation(event)
        resource = event["resource"]
        run = _run_of(resource)
        if run is None or resource.get("prefect.state-type") not in TERMINAL:
            return None
        task_run = (event.get("payload") or {}).get("task_run") or {}
        seconds = task_run.get("total_run_time")
        return Ending(
            run=run,
            run_count=int(resource.get("prefect.run-count") or 0),
            state_type=resource["prefect.state-type"],
            state_name=resource.get("prefect.state-name") or resource["prefect.state-type"],
            seconds=None if seconds is None else float(seconds),
            at=time_of(event["occurred"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        what = f"{event.get('event')} {event.get('id')}"
        raise EventUnreadable(f"{what}: {type(fault).__name__}: {fault}") from fault


def read_run(kind: str, run: Mapping[str, Any]) -> Ending | None:
    """Return how a run of Prefect's API ended, None while it goes on."""
    state = run.get("state") or {}
    if state.get("type") not in TERMINAL:
        return None
    return Ending(
        run=f"{kind}.{run['id']}",
        run_count=int(run.get("run_count") or 0),
        state_type=state["type"],
        state_name=state.get("name") or state["type"],
        seconds=float(run.get("total_run_time") or 0.0),
        at=time_of(state["timestamp"]),
    )


def time_of(text: str) -> datetime:
    """Return a time of Prefect's, in UTC."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _evaluation(event: Mapping[str, Any]) -> Evaluation | None:
    runs = {
        related.get("prefect.resource.role"): run
        for related in event["related"]
        if (run := _run_of(related)) is not None
    }
    inner = next((runs[kind] for kind in _RUN_KINDS if kind in runs), None)
    if inner is None:
        return None  # asked for outside of any run: nothing will end
    payload = event["payload"]
    return Evaluation(
        event_id=str(event["id"]),
        run=inner,
        flow_run=runs.get("flow-run"),
        context_id=_text(payload["context_id"]),
        flag=_text(payload["flag"]),
        variant=_text(payload["variant"]),
        at=time_of(event["occurred"]),
    )


def _run_of(resource: Mapping[str, Any]) -> str | None:
    """Return "task-run.<uuid>" or "flow-run.<uuid>", None for a resource of another kind."""
    name = str(resource.get("prefect.resource.id", "")).removeprefix("prefect.")
    return name if name.startswith(tuple(f"{kind}." for kind in _RUN_KINDS)) else None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"not a text: {value!r}")
    return value
