"""Decides which log lines repeat earlier ones, and writes a summary in their place.

A trouble that lasts writes the same line again and again: a retry, a stalled loop, a library that
reconnects. The first line is written at once. Its repeats are counted: a summary a minute says how
many there were, and one line says when they have stopped.

Belongs here: the rule, with time as an argument. Does not belong here: how a line is written
(`logs.py`), and which lines are made.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: Time between two summaries of one trouble, and the quiet after which it counts as over.
SUMMARY_SECONDS: Final = 60.0
#: Troubles that are told apart at the same time. Beyond it, lines of one name are one trouble.
MOST_TROUBLES: Final = 1_000
#: Reasons of one trouble that are each written at once. Beyond it they count as repeats.
MOST_REASONS: Final = 16

#: Levels whose lines may repeat. What rolloutd does by design (`info`) is always written.
LIMITED_LEVELS: Final = frozenset({"warning", "error", "critical"})
#: Answers to what an operator did, which are always written.
ANSWERS: Final = frozenset({"settings_reloaded", "settings_not_reloaded"})
#: Keys that say what a line is about: lines that differ in one of them are not repeats.
SUBJECT_KEYS: Final = frozenset(
    {
        "client",
        "command_id",
        "component",
        "consumer",
        "effect_id",
        "event_id",
        "flag_key",
        "from_offset",
        "gate_id",
        "invariant",
        "library",
        "name",
        "offset",
        "part",
        "partition",
        "plane",
        "reporter",
        "revision",
        "scope",
        "step",
        "topic",
        "topic_partition",
    }
)
#: Keys that hold a reason in words. The figures in it do not count: "for 7 s", "for 8 s".
REASON_KEYS: Final = ("error", "reason", "message", "warning")
#: A line whose value here is twice the largest one before is written: it is worse.
SIZE_KEY: Final = "duration_ms"

Line = Mapping[str, Any]


@dataclass(slots=True)
class _Trouble:
    """Lines that say the same of one subject."""

    line: dict[str, Any]  # the newest one
    first_at: float
    last_at: float
    written_at: float
    lines: int = 1
    unwritten: int = 0  # since the line or summary that was written last
    suppressed: int = 0  # in all
    largest: float = 0.0
    reasons: set[str] = field(default_factory=set)


class RepeatedLines:
    """Remembers the troubles that lines have reported. Any thread may call its methods."""

    def __init__(self) -> None:
        self._troubles: dict[tuple[object, ...], _Trouble] = {}
        self._lock = threading.Lock()

    def admits(self, line: Line, now: float) -> bool:
        """Return whether a line is to be written now; if not, it is counted.

        `now` is in seconds of a monotonic clock. The line has its `level` and its name in `event`.
        """
        if line.get("level") not in LIMITED_LEVELS or line.get("event") in ANSWERS:
            return True
        reason, size = _reason(line), _size(line)
        with self._lock:
            key = self._key(line)
            trouble = self._troubles.get(key)
            if trouble is None:
                kept = _kept(line)
                self._troubles[key] = _Trouble(kept, now, now, now, largest=size, reasons={reason})
                return True
            trouble.lines += 1
            trouble.last_at = now
            is_new = reason not in trouble.reasons and len(trouble.reasons) < MOST_REASONS
            is_worse = size > 2 * trouble.largest > 0
            trouble.largest = max(trouble.largest, size)
            trouble.line = _kept(line)
            if is_new:
                trouble.reasons.add(reason)
            if is_new or is_worse:
                return True
            trouble.unwritten += 1
            trouble.suppressed += 1
            return False

    def due(self, now: float, *, is_last: bool = False) -> list[dict[str, Any]]:
        """Return the lines to write at `now`: a summary a minute, and the end of each trouble.

        `is_last`: the process ends, so all that was counted is due.
        """
        lines = []
        with self._lock:
            for key, trouble in list(self._troubles.items()):
                is_over = now - trouble.last_at >= SUMMARY_SECONDS
                if is_over:
                    del self._troubles[key]
                    if trouble.suppressed:
                        lines.append(_end(trouble))
                elif trouble.unwritten and (is_last or now - trouble.written_at >= SUMMARY_SECONDS):
                    lines.append(_summary(trouble, now))
                    trouble.written_at, trouble.unwritten = now, 0
        return lines

    def _key(self, line: Line) -> tuple[object, ...]:
        name = (line.get("event"), line.get("level"))
        key = (*name, *((part, str(line[part])) for part in sorted(SUBJECT_KEYS & line.keys())))
        return name if len(self._troubles) >= MOST_TROUBLES and key not in self._troubles else key


def _kept(line: Line) -> dict[str, Any]:
    """Return a line without its exception, whose frames would stay in memory."""
    return {key: value for key, value in line.items() if key not in ("exc_info", "stack_info")}


def _summary(trouble: _Trouble, now: float) -> dict[str, Any]:
    """Return the newest line again, with how many were not written since the last one."""
    return {
        **trouble.line,
        **_largest(trouble),
        "repeated": trouble.unwritten,
        "within_seconds": round(now - trouble.written_at),
    }


def _end(trouble: _Trouble) -> dict[str, Any]:
    """Return the line that says that a trouble has stopped."""
    about = {key: trouble.line[key] for key in sorted(SUBJECT_KEYS & trouble.line.keys())}
    return {
        "event": "repeats_ended",
        "level": "info",
        "repeats_of": trouble.line.get("event"),
        **about,
        **_largest(trouble),
        "lines": trouble.lines,
        "lasted_seconds": round(trouble.last_at - trouble.first_at),
    }


def _largest(trouble: _Trouble) -> dict[str, float]:
    return {f"largest_{SIZE_KEY}": trouble.largest} if trouble.largest else {}


def _reason(line: Line) -> str:
    """Return the words of a line's reason, without figures; empty for none."""
    words = " ".join(str(line[key]) for key in REASON_KEYS if key in line)
    if line.get("exc_info"):
        words = f"{_exception_name(line['exc_info'])} {words}"
    return re.sub(r"[0-9a-fx.,:]*[0-9][0-9a-fx.,:]*", "#", words[:300])


def _exception_name(exc_info: Any) -> str:
    """Return the type of the exception that a line reports in one of logging's three ways."""
    if isinstance(exc_info, BaseException):
        return type(exc_info).__name__
    kind = exc_info[0] if isinstance(exc_info, tuple) else sys.exc_info()[0]
    return "" if kind is None else str(kind.__name__)


def _size(line: Line) -> float:
    value = line.get(SIZE_KEY, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
