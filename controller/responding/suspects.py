"""Ranks the flags that may have caused what a signal says, the most suspect first.

Three things make a flag suspect: its evidence looks worse in treatment, its percentage rose shortly
before, and it is of the service that the signal names. Each is told in words, so that people see
why a flag stands where it does.

Pure: times and evidence are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controller.core.rollout import Rollout
from controller.core.visits import Visit
from schemas.decision import JudgementRecord
from schemas.terms import Verdict

#: A rise longer ago than this says nothing.
_LATELY: Final = timedelta(hours=2)
#: Clocks of monitors differ from ours by so much.
_CLOCKS: Final = timedelta(seconds=30)
#: What each reason weighs: evidence outweighs a rise, and a rise a name.
_EVIDENCE_WEIGHT: Final = 2.0
_RISE_WEIGHT: Final = 1.0
_SERVICE_WEIGHT: Final = 0.5
#: Share of the way to certain harm from which evidence is told: with alpha of 1 %, an e-value of 4.
_TOLD: Final = 0.3


@dataclass(frozen=True, slots=True)
class Rise:
    """When a percentage rose last, and from what to what."""

    at: datetime
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Suspect:
    """A flag that may have caused it."""

    rollout: Rollout
    score: float
    reasons: tuple[str, ...]

    @property
    def words(self) -> str:
        """The flag and why it is suspect, for people."""
        why = "; ".join(self.reasons) or "named by the rule alone"
        return f"{self.rollout.flag_key} ({why})"


def last_rise(rollout: Rollout) -> Rise | None:
    """Return when a rollout's percentage rose last; None: it never did."""
    rises = [
        Rise(at, before, visit.percent)
        for before, visit in _with_before(rollout.visits)
        for at in (visit.entered_at,)
        if visit.percent > before
    ]
    visit = rollout.present_visit
    if visit is not None:  # an active window that opens raises from 0 %
        opened = [one.counts_from for one in visit.closings if one.counts_from is not None]
        rises += [Rise(at, 0.0, visit.percent) for at in opened[-1:]]
    return max(rises, key=lambda one: one.at, default=None)


def _with_before(visits: Sequence[Visit]) -> Iterable[tuple[float, Visit]]:
    before = 0.0
    for visit in visits:
        yield before, visit
        before = visit.percent


def rose_within(rollout: Rollout, within: timedelta, began_at: datetime) -> bool:
    """Return whether a percentage rose in this time before something began."""
    rise = last_rise(rollout)
    return rise is not None and began_at - within <= rise.at <= began_at + _CLOCKS


def suspect(
    rollout: Rollout, began_at: datetime, service: str, judgement: JudgementRecord | None
) -> Suspect:
    """Return how suspect a flag is of what began at a time; `judgement` None: nothing is known."""
    score, reasons = 0.0, list[str]()
    worst, metric = _worst(judgement)
    if worst >= _TOLD:
        score += _EVIDENCE_WEIGHT * worst
        found = "is worse in treatment" if worst >= 1 else "looks worse in treatment"
        reasons.append(f"its {metric} {found}")
    rise = last_rise(rollout)
    if rise is not None and began_at - _LATELY <= rise.at <= began_at + _CLOCKS:
        ago = max(began_at - rise.at, timedelta(0))
        score += _RISE_WEIGHT * (1 - ago / _LATELY)
        reasons.append(f"rose from {rise.before:g} to {rise.after:g} % {_ago(ago)} before")
    if service and _is_of(rollout, service):
        score += _SERVICE_WEIGHT
        reasons.append(f"is of {service}")
    return Suspect(rollout, score, tuple(reasons))


def ranked(suspects: Iterable[Suspect]) -> list[Suspect]:
    """Return the most suspect first; of equals the one that was changed last."""
    return sorted(
        suspects,
        key=lambda one: (-one.score, -one.rollout.updated_at.timestamp(), one.rollout.flag_key),
    )


def newest_first(suspects: Iterable[Suspect]) -> list[Suspect]:
    """Return those whose percentage rose last first; of equals the more suspect."""

    def key(one: Suspect) -> tuple[float, float, str]:
        rise = last_rise(one.rollout)
        rose = 0.0 if rise is None else rise.at.timestamp()
        return -rose, -one.score, one.rollout.flag_key

    return sorted(suspects, key=key)


def _worst(judgement: JudgementRecord | None) -> tuple[float, str]:
    """Return how far the worst metric is on the way to certain harm, in [0, 1], and its name.

    The way is that of its e-value to the test's threshold, in logarithms.
    """
    worst, name = 0.0, ""
    for one in () if judgement is None else judgement.metrics:
        share = 0.0
        if one.harm is Verdict.FAIL:
            share = 1.0
        elif one.e_value is not None and one.threshold is not None and one.threshold > 1:
            share = math.log(max(one.e_value, 1.0)) / math.log(one.threshold)
        if share > worst:
            worst, name = min(share, 1.0), one.metric
    return worst, name


def _is_of(rollout: Rollout, service: str) -> bool:
    """Return whether a flag's key or owner names a service."""
    wanted = service.casefold()
    names = (rollout.flag_key.casefold(), (rollout.plan.owner or "").casefold())
    return any(name and (wanted in name or name in wanted) for name in names)


def _ago(ago: timedelta) -> str:
    minutes = round(ago / timedelta(minutes=1))
    return f"{minutes} min" if minutes else f"{round(ago.total_seconds())} s"
