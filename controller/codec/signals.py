"""Signals as they are published."""

from __future__ import annotations

from controller.codec.cloud_events import write_event
from schemas.signal import TYPE, Signal


def signal_key(signal: Signal) -> str:
    """Return the record's key, so that what is told of one condition stays in order."""
    return f"{signal.hook}|{signal.condition}"


def signal_event(signal: Signal, source: str) -> bytes:
    """Return the signal as a CloudEvent; its subject is the record's key."""
    return write_event(TYPE, signal.id, signal_key(signal), signal.received_at, signal, source)
