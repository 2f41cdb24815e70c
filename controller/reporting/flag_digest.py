"""The weekly digest of flags to tidy up, as an alert.

Pure. An alert is about a flag, so the digest is an alert about the first one that it names. Does
not belong here: who gives it, and when (`running/digest_watch.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from controller.core.effects import RaiseAlert
from controller.reporting.inventory import ListedFlag, counted
from controller.text import plural
from schemas.terms import WEEKDAYS, AlertKind, Severity, Weekday

#: Flags that the digest names.
NAMED: Final = 5
#: In UTC: before the working day of most, so that it is there when they look.
HOUR: Final = 8


def due_since(now: datetime, day: Weekday) -> datetime:
    """Return when the newest digest was due, at most a week before `now`."""
    today = now.replace(hour=HOUR, minute=0, second=0, microsecond=0)
    found = today - timedelta(days=(now.weekday() - WEEKDAYS.index(day)) % 7)
    return found if found <= now else found - timedelta(days=7)


def digest_of(flags: Sequence[ListedFlag], due: datetime) -> RaiseAlert:
    """Return the digest of flags with findings, of which there is at least one."""
    counts = ", ".join(
        f"{count} {kind.value.replace('_', ' ')}" for kind, count in counted(flags).items() if count
    )
    first = "; ".join(f"{one.rollout.flag_key}: {one.findings[0].why}" for one in flags[:NAMED])
    more = f"; and {len(flags) - NAMED} more" if len(flags) > NAMED else ""
    flags_words = plural(len(flags), "flag")
    return RaiseAlert(
        AlertKind.FLAG_DIGEST,
        Severity.INFO,
        f"{flags_words} to tidy up ({counts}). {first}{more}",
        "`rolloutctl flags --stale`, or /ui/flags, says what resolves each",
        f"{AlertKind.FLAG_DIGEST}/{due.date().isoformat()}",
    )
