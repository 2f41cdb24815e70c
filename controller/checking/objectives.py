"""When a check fires and when it is over. Pure: looks and times are arguments.

    met, missed    fires when `misses` of the last `of` looks missed it
    no number      says nothing: neither met nor missed, and a gap of its own
    again          while it is missed, it fires again, so that the next flag is taken
    over           when all of the last `of` looks have met it

Belongs here: these rules. Does not belong here: asking (`checker.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from controller.checking.checks_file import Check
from schemas.terms import MeasurementGap, SignalStatus

#: Looks that are kept.
_MOST_LOOKS: Final = 100


class CheckLook(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer of a monitoring system."""

    at: datetime
    is_met: bool | None  # None: no number
    value: float | None = None
    gap: MeasurementGap | None = None
    words: str = ""  # what was found


class CheckState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a check."""

    looks: tuple[CheckLook, ...] = ()  # oldest first; those with a number
    last: CheckLook | None = None
    fires_since: datetime | None = None  # this firing; None: it does not
    missed_since: datetime | None = None  # the first of its firings
    fired_at: datetime | None = None
    unsaid: str = ""  # a signal as JSON that Kafka is not known to have; empty: none


@dataclass(frozen=True, slots=True)
class LookResult:
    """What a look leads to."""

    state: CheckState
    says: SignalStatus | None  # None: nothing new


def after_look(check: Check, state: CheckState, look: CheckLook) -> LookResult:
    """Return what is known after a look, and what is to be said."""
    if look.is_met is None:
        return LookResult(msgspec.structs.replace(state, last=look), None)
    looks = (*state.looks, look)[-check.of :][-_MOST_LOOKS:]
    known = msgspec.structs.replace(state, looks=looks, last=look)
    missed = [one for one in looks if not one.is_met]
    if state.fires_since is None:
        if len(missed) < check.misses:
            return LookResult(known, None)
        since = missed[0].at
        fires = msgspec.structs.replace(
            known, fires_since=since, missed_since=since, fired_at=look.at
        )
        return LookResult(fires, SignalStatus.FIRING)
    if not missed and len(looks) == check.of:
        over = msgspec.structs.replace(known, fires_since=None, missed_since=None, fired_at=None)
        return LookResult(over, SignalStatus.RESOLVED)
    is_due = state.fired_at is None or look.at - state.fired_at >= check.again
    if look.is_met or not is_due:
        return LookResult(known, None)
    return LookResult(
        msgspec.structs.replace(known, fires_since=look.at, fired_at=look.at), SignalStatus.FIRING
    )
