"""Summaries of flags as bytes, as they are noted for the inventory; and the decisions in them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec

from controller.ports import FlagSummary, LastDecision
from schemas.terms import DecisionKind


def summary_to_json(summary: FlagSummary) -> bytes:
    """Return a summary as it is noted."""
    return msgspec.json.encode(summary)


def summary_from_json(noted: bytes) -> FlagSummary | None:
    """Return a summary that `summary_to_json` wrote; None for anything else."""
    try:
        return _decode_summary(noted)
    except (ValueError, RecursionError):
        return None


class DecisionOf(NamedTuple):
    """A published decision, and the revision that it led to."""

    revision: int
    decision: LastDecision


class _Data(msgspec.Struct):
    kind: DecisionKind
    at: datetime
    revision: int


class _Event(msgspec.Struct):
    data: _Data


def decision_in(event: bytes) -> DecisionOf | None:
    """Return the decision in a record of `rollout.decisions`; None for anything else."""
    try:
        data = _decode_event(event).data
    except (ValueError, RecursionError):
        return None
    return DecisionOf(data.revision, LastDecision(data.kind, data.at))


_decode_summary = msgspec.json.Decoder(FlagSummary).decode
_decode_event = msgspec.json.Decoder(_Event).decode
