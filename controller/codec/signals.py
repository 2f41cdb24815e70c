"""Signals as they are published."""

from __future__ import annotations

import re
from typing import Final

from controller.codec.cloud_events import write_event
from schemas.signal import TYPE, Signal

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')


def signal_key(signal: Signal) -> str:
    """Return the record's key, so that what is told of one condition stays in order."""
    return f"{signal.hook}|{signal.condition}"


def signal_event(signal: Signal, source: str) -> bytes:
    """Return the signal as a CloudEvent; its subject is the record's key.

    Brackets in texts of strangers are escaped: readers refuse records with very many of them, and
    a signal that was accepted must be read.
    """
    event = write_event(TYPE, signal.id, signal_key(signal), signal.received_at, signal, source)
    return _STRING.sub(_without_brackets, event)


def _without_brackets(string: re.Match[bytes]) -> bytes:
    return string[0].replace(b"[", rb"\u005b").replace(b"{", rb"\u007b")
