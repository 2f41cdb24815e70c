"""Which alerts that end with an all-clear are open, as the topic of alerts tells it.

The topic is the record: it has what a replica told before it was killed, also while Redis was away.
An alert is open from its first record to its all-clear, a record with the same key and severity
`info`. Whoever tells of one repeats it while it lasts.

Belongs here: reading records, and what is open. Does not belong here: who ends what nobody ended
(`all_clear.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from controller.codec.alerts import alert_from
from controller.core.rollout import Rollout
from controller.reporting.unwatched import Unwatched, open_unwatched
from schemas import alert
from schemas.alert import Alert
from schemas.terms import AlertKind, Severity

#: The kinds whose end no state tells, but the process that told of them, or nobody.
#: `AllClears._why_over` says when each is over. The others that end with an all-clear are kept with
#: their rollout, or in Redis.
KINDS: Final = (
    AlertKind.UNWATCHED,
    AlertKind.NOT_ACTUATED,
    AlertKind.FLAG_BROKEN,
    AlertKind.EVENT_FAULTS,
)
#: The alert of a fault of events is repeated so often while the fault lasts.
EVENT_FAULTS_REPEATED_SECONDS: Final = 3600.0
#: With a plane that is away, each of 10,000 flags may have one. The oldest go first.
MOST_OPEN: Final = 20_000

#: What a record of one of them has in it: most records are of others, and are not read further.
_MARKS: Final = tuple(kind.value.encode() for kind in KINDS)


class OpenAlerts:
    """Takes the records of the topic, in order within each flag."""

    def __init__(self) -> None:
        self._open: dict[str, Alert] = {}  # by key, the first alert since the last all-clear
        self._newest: dict[str, Alert] = {}  # by the same keys
        self._keys: dict[str, set[str]] = {}  # by flag

    def take(self, value: bytes) -> None:
        """Take a record; one of another kind, or that cannot be read, changes nothing."""
        if not any(mark in value for mark in _MARKS):
            return
        try:
            event: Any = msgspec.json.decode(value)
            if not isinstance(event, dict) or event.get("type") != alert.TYPE:
                return
            told = alert_from(event["data"])
        except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
            return  # of a newer release, or not ours
        if told.kind not in KINDS or told.explanation is not None:
            return
        if told.kind is AlertKind.FLAG_BROKEN and told.severity is Severity.WARNING:
            return  # what was stored was replaced: a person has to look, and nothing goes on
        if told.severity is Severity.INFO:
            self.forget(told)
            return
        self._open.setdefault(told.dedup_key, told)
        self._newest[told.dedup_key] = told
        self._keys.setdefault(told.flag, set()).add(told.dedup_key)
        if len(self._open) > MOST_OPEN:
            self.forget(next(iter(self._open.values())))

    def forget(self, told: Alert) -> None:
        """Note that an alert is over."""
        self._open.pop(told.dedup_key, None)
        self._newest.pop(told.dedup_key, None)
        keys = self._keys.get(told.flag)
        if keys is not None:
            keys.discard(told.dedup_key)
            if not keys:
                del self._keys[told.flag]

    def __contains__(self, dedup_key: object) -> bool:
        """Return whether the alert with this key is open."""
        return dedup_key in self._open

    @property
    def newest(self) -> Iterable[Alert]:
        """The newest record of each alert that is open."""
        return tuple(self._newest.values())

    def __len__(self) -> int:
        """Return how many alerts are open."""
        return len(self._newest)

    def unwatched(self, rollout: Rollout) -> Unwatched | None:
        """Return that a rollout is unwatched, None where no open alert says so."""
        told = []
        for key in self._keys.get(rollout.flag_key, ()):
            told += [self._open[key], self._newest[key]]
        return open_unwatched(rollout, told)
