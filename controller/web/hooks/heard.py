"""What a delivery says, in one form for all systems, and reading documents of strangers.

Belongs here: values of any type become bounded text, or "not told". Does not belong here: the form
of one system's documents (the files beside this one), and what is done about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from schemas.envelope import without_control_characters
from schemas.signal import LONGEST_LABEL, MOST_LABELS, Signal
from schemas.terms import NotificationRequest, SignalStatus

#: Characters of a text that is kept.
LONGEST_TEXT: Final = 300
#: Conditions of one delivery that are read. Alertmanager sends a group as a whole.
MOST_CONDITIONS: Final = 1_000
#: An event that was told so long after it happened is a copy: no system tries for so long. It is as
#: old as what is remembered of signals, so that what has been acted on is not news again.
OLDEST_EVENT: Final = timedelta(days=7)
#: Years of a moment that is believed.
_YEARS: Final = range(2000, 2200)


class NotUnderstood(Exception):
    """A delivery that is not in its system's form; the text says where and what."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a delivery says of one condition."""

    status: SignalStatus
    condition: str
    title: str
    service: str = ""
    severity: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    link: str = ""
    started_at: datetime | None = None
    #: When it happened, where no proof tells when it was sent.
    happened_at: datetime | None = None
    #: What makes the delivery one of its own where the rest is not enough, such as an event's id.
    delivery: str = ""
    #: Dedup key of ours that somebody took there, and who.
    acknowledges: str = ""
    taken_by: str = ""

    def signal(self, hook: str, received_at: datetime, delivery: str = "") -> Signal:
        """Return it as the record that is stored; `delivery` is the id that its request has.

        The same delivery has the same id, whenever it is received. Where nothing in it tells one
        delivery from another, each is one of its own: whether it is news is known by whether its
        condition fires already. What happened too long ago is a note.
        """
        status = self.status
        if self.happened_at is not None and received_at - self.happened_at >= OLDEST_EVENT:
            status = SignalStatus.NOTE
        began = "" if self.started_at is None else self.started_at.isoformat()
        own = self.delivery or delivery
        if not (own or began):
            own = received_at.isoformat()
        parts = (hook, own, self.condition, status.value, began)
        digest = hashlib.sha256("\x00".join(parts).encode(errors="replace")).hexdigest()
        return Signal(
            id=digest[:32],
            hook=hook,
            status=status,
            condition=self.condition or digest[:16],
            title=self.title or self.condition or "without a title",
            service=self.service,
            severity=self.severity.lower(),
            labels=dict(self.labels),
            link=self.link,
            started_at=self.started_at,
            received_at=received_at,
            request=NotificationRequest.ACKNOWLEDGE if self.acknowledges else None,
            request_about=self.acknowledges,
            issuer=self.taken_by,
        )


class Document:
    """A part of a decoded document, whatever types its values have."""

    def __init__(self, values: object, place: str = "the body") -> None:
        self._values: Mapping[str, Any] = values if isinstance(values, dict) else {}
        self._place = place
        self._inside = place.removeprefix("the ")

    def __bool__(self) -> bool:
        return bool(self._values)

    def part(self, name: str) -> Document:
        """Return an object in it; an empty one where there is none."""
        return Document(self._values.get(name), f"{self._inside}.{name}")

    def parts(self, name: str) -> list[Document]:
        """Return the objects of a list in it. Raises NotUnderstood where there is no list."""
        values = self._values.get(name)
        if not isinstance(values, list):
            raise NotUnderstood(f"{self._inside}.{name} is not a list")
        return [Document(one, f"{self._inside}.{name}[{at}]") for at, one in enumerate(values)]

    def text(self, *names: str) -> str:
        """Return the first of these values that is told, as text; empty where none is."""
        return next((told for name in names if (told := plain(self._values.get(name)))), "")

    def required(self, *names: str) -> str:
        """Return a text as `text` does. Raises NotUnderstood where none is told."""
        if told := self.text(*names):
            return told
        raise NotUnderstood(f"{self._place} has no {' and no '.join(names)}")

    def texts(self) -> dict[str, str]:
        """Return what it has of plain values, each as text."""
        told = {
            plain(name)[:LONGEST_LABEL]: plain(value)[:LONGEST_LABEL]
            for name, value in list(self._values.items())[: 2 * MOST_LABELS]
        }
        return bounded({name: value for name, value in told.items() if name and value})

    def moment(self, name: str) -> datetime | None:
        """Return a moment in RFC 3339, or in Unix seconds or milliseconds; None: not told."""
        return moment(self._values.get(name))


def bounded(labels: Mapping[str, str]) -> dict[str, str]:
    """Return as many labels as are kept."""
    return dict(list(labels.items())[:MOST_LABELS])


def labels_of(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return labels of names and values of our own, without those that are not told."""
    return {name: value[:LONGEST_LABEL] for name, value in pairs if value}


def plain(value: object) -> str:
    """Return a text, a number or a truth value as one line of bounded text; else an empty one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        try:
            return str(value)[:LONGEST_TEXT]
        except ValueError:  # an integer of thousands of digits
            return ""
    if not isinstance(value, str):
        return ""
    readable = value[: 2 * LONGEST_TEXT].encode(errors="replace").decode()
    return without_control_characters(" ".join(readable.split()))[:LONGEST_TEXT]


def moment(value: object) -> datetime | None:
    """Return a moment in RFC 3339, or in Unix seconds or milliseconds; None for anything else."""
    try:
        if isinstance(value, bool):
            return None
        if isinstance(value, str) and value.isdigit() and len(value) <= 16:
            value = int(value)
        if isinstance(value, int | float):
            found = datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)
        elif isinstance(value, str) and len(value) <= 40:
            found = datetime.fromisoformat(value)
            if found.tzinfo is None:
                found = found.replace(tzinfo=UTC)
            found = found.astimezone(UTC)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return found if found.year in _YEARS else None
