"""What the events of one flag were: bounded counts by class, and a few samples of each.

Belongs here: values and adding to them. Does not belong here: reading records (`event_tally.py`),
what a class means (`event_classes.py`).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

from controller.counting.event_classes import FIELD_HINTS, hint_of
from schemas.envelope import format_time, time_of
from schemas.terms import Arm, EventClass, EventRemark

#: Samples kept of each class of each flag, of the counted ones fewer.
SAMPLES: Final = 5
#: Variants of a flag that its plan does not have, which are counted by name.
_MOST_VARIANTS: Final = 20
#: Fields of a flag's events that nothing reads, which are counted by name.
_MOST_FIELDS: Final = 20
#: Characters of a context id that are shown: enough to recognize one's own, and often not all.
_CONTEXT_CHARS: Final = 8


@dataclass(frozen=True, slots=True)
class OutcomeReading:
    """How an outcome was understood."""

    has_failed: bool
    error_type: str | None  # as sent, where it can be shown; None also: it has none
    status_code: int | None  # as sent; counting does not read it
    latency_ms: float | None  # None: it has no duration
    conversions: tuple[str, ...]
    is_joined: bool  # it names no flag; its flags are the last that its context was served

    def document(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "failed": self.has_failed,
            "error_type": self.error_type,
            "status_code": self.status_code,
            "latency_ms": self.latency_ms,
            "conversions": list(self.conversions),
            "joined_by_context": self.is_joined,
        }


@dataclass(frozen=True, slots=True)
class EventSample:
    """One event and what it was for its flag."""

    event_class: EventClass
    kind: str  # evaluation or outcome
    topic: str
    partition: int
    offset: int
    time_ms: int  # the event's own; its record's where it has none
    flag_key: str  # empty: it names none
    variant: str
    context: str  # empty: unknown
    why: str
    remarks: tuple[EventRemark, ...] = ()
    arm: Arm | None = None  # None: neither, or the flag has no rollout
    outcome: OutcomeReading | None = None  # None: an evaluation, or refused
    uncounted_conversions: tuple[str, ...] = ()  # those that no guardrail of the plan names
    unread_fields: tuple[str, ...] = ()  # names of its fields that nothing reads
    meant_field: str | None = None  # the field that one of them was meant to be

    def document(self, *, has_whole_ids: bool = False) -> dict[str, Any]:
        """Return it as JSON-ready values; `has_whole_ids`: its context is not cut."""
        return {
            "class": self.event_class.value,
            "kind": self.kind,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "time": format_time(time_of(self.time_ms)),
            "variant": self.variant,
            "arm": None if self.arm is None else self.arm.value,
            "context": self.context if has_whole_ids else shortened(self.context),
            "why": self.why,
            "remarks": [remark.value for remark in self.remarks],
            "unread_fields": list(self.unread_fields),
            "outcome": None if self.outcome is None else self.outcome.document(),
        }


@dataclass(slots=True)
class EventCounts:
    """How many events of a flag there were, by class and by what looks wrong.

    Numbers are estimates where only a part of the records was read.
    """

    evaluations: dict[EventClass, float] = field(default_factory=dict)
    outcomes: dict[EventClass, float] = field(default_factory=dict)
    remarks: dict[EventRemark, float] = field(default_factory=dict)
    timed: float = 0.0  # outcomes with a duration
    read: int = 0  # events that were really read

    @property
    def classes(self) -> dict[EventClass, float]:
        """Events of both kinds by class."""
        found = dict(self.evaluations)
        for each, count in self.outcomes.items():
            found[each] = found.get(each, 0.0) + count
        return found

    @property
    def total(self) -> float:
        """All events."""
        return sum(self.evaluations.values()) + sum(self.outcomes.values())

    def add(self, sample: EventSample, weight: float, *, is_timed: bool) -> None:
        """Count one event that stands for `weight` events."""
        counts = self.evaluations if sample.kind == "evaluation" else self.outcomes
        counts[sample.event_class] = counts.get(sample.event_class, 0.0) + weight
        for remark in sample.remarks:
            self.remarks[remark] = self.remarks.get(remark, 0.0) + weight
        self.timed += weight * is_timed
        self.read += 1


@dataclass(slots=True)
class FlagTally:
    """What the events of one flag were."""

    rollout_id: str | None = None  # None: the flag has no rollout
    counts: EventCounts = field(default_factory=EventCounts)  # since the start
    window: EventCounts = field(default_factory=EventCounts)  # since it was last judged
    unknown_variants: Counter[str] = field(default_factory=Counter)
    unread_fields: Counter[str] = field(default_factory=Counter)  # events that were read, by name
    samples: dict[EventClass | EventRemark, deque[EventSample]] = field(default_factory=dict)

    def add(self, sample: EventSample, weight: float, *, is_timed: bool) -> None:
        """Count one event, and keep it as the newest sample of its class and remarks."""
        self.counts.add(sample, weight, is_timed=is_timed)
        self.window.add(sample, weight, is_timed=is_timed)
        kinds: tuple[EventClass | EventRemark, ...] = (sample.event_class, *sample.remarks)
        for each in kinds:
            kept = self.samples.get(each)
            if kept is None:
                # Events that count are many and alike: one shows that they arrive.
                most = 1 if each is EventClass.COUNTED else SAMPLES
                kept = self.samples[each] = deque(maxlen=most)
            kept.append(sample)
        if sample.event_class is EventClass.UNKNOWN_VARIANT and (
            sample.variant in self.unknown_variants or len(self.unknown_variants) < _MOST_VARIANTS
        ):
            self.unknown_variants[sample.variant] += 1
        for name in sample.unread_fields:
            if name in self.unread_fields or len(self.unread_fields) < _MOST_FIELDS:
                self.unread_fields[name] += 1

    def newest(self, found: EventClass | EventRemark) -> EventSample | None:
        """Return the newest sample of a class or remark."""
        kept = self.samples.get(found)
        return kept[-1] if kept else None

    def hint(self, found: EventClass | EventRemark, *, has_begun: bool) -> str:
        """Return what to do about a class or remark; of misnamed fields, about those of samples."""
        hint = hint_of(found, has_begun=has_begun)
        if found is not EventRemark.MISNAMED_FIELD:
            return hint
        meant = dict.fromkeys(sample.meant_field or "" for sample in self.samples.get(found, ()))
        return "; ".join([hint, *(FIELD_HINTS[name] for name in meant if name in FIELD_HINTS)])

    def misnamed(self) -> dict[str, Any] | None:
        """Return how many events have a misnamed field, and what is said of the newest."""
        newest = self.newest(EventRemark.MISNAMED_FIELD)
        if newest is None:
            return None
        return {
            "events": round(self.counts.remarks[EventRemark.MISNAMED_FIELD]),
            "newest": newest.why,
        }

    def document(self, *, has_begun: bool = False, has_whole_ids: bool = False) -> dict[str, Any]:
        """Return it as JSON-ready values, the classes with most events first.

        `has_begun`: the first stage of the flag's rollout has. `has_whole_ids`: for people who may
        read the topics; over HTTP ids of contexts are cut.
        """
        counts = self.counts
        samples = {
            each: [one.document(has_whole_ids=has_whole_ids) for one in kept]
            for each, kept in self.samples.items()
        }
        by_class = sorted(counts.classes.items(), key=lambda each: -each[1])
        return {
            "events": round(counts.total),
            "read": counts.read,
            "classes": {
                each.value: {
                    "evaluations": round(counts.evaluations.get(each, 0.0)),
                    "outcomes": round(counts.outcomes.get(each, 0.0)),
                    "hint": hint_of(each, has_begun=has_begun),
                    "samples": samples.get(each, []),
                }
                for each, _ in by_class
            },
            "remarks": {
                each.value: {
                    "events": round(count),
                    "hint": self.hint(each, has_begun=has_begun),
                    "samples": samples.get(each, []),
                }
                for each, count in counts.remarks.items()
            },
            "unknown_variants": dict(self.unknown_variants.most_common()),
            "unread_fields": dict(self.unread_fields.most_common()),
        }


def shortened(context: str) -> str:
    """Return the head of a context id: enough to recognize it, and not all of it."""
    return context if len(context) <= _CONTEXT_CHARS else f"{context[: _CONTEXT_CHARS - 1]}…"
