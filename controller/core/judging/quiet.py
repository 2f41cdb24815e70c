"""For how long the same totals need not be judged again: what passing time alone changes, and when.

While nothing new is counted, a judgement changes when something becomes too old, when a gap has
lasted or has been gone for the plan's `health_grace`, when an open batch is closed by time, or when
contexts have had their time to convert. These moments can be computed in advance. What depends on
partitions is not in here: `staleness.ages` says of newer progress whether it is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.judging.batches import MAX_OPEN
from controller.core.judging.floors import MOMENTS
from controller.core.judging.gap_times import after_quiet, is_settled_gap
from controller.core.rollout import HOLD_ANNOUNCED_EVERY, Baking, Paused, Rollout

#: Phases in which nothing but the moments below follows from the same totals. At a gate a judgement
#: is asked for all the time.
_QUIET_PHASES: Final = (Baking, Paused)
#: Conditions say "longer than", so they hold just after their moment.
_JUST_AFTER: Final = timedelta(milliseconds=1)
#: However far the next moment is: how long a gap has lasted is saved so often. It is what a restart
#: forgets of a young gap at most, which then acts that much later.
LONGEST_YOUNG: Final = timedelta(seconds=120)
#: The same once that changes nothing any more: each gap has lasted for its grace time, or there is
#: none. What people read then is so old at most.
LONGEST: Final = timedelta(seconds=300)
SHORTEST: Final = timedelta(seconds=1)


def quiet_until(rollout: Rollout, tests: SequentialTests, at: datetime) -> datetime:
    """Return until when the same totals would lead to the same, but for seconds in texts.

    `tests` are those after the totals were judged in full, at `at` (UTC). Never more than `LONGEST`
    after that, and never less than `SHORTEST`.
    """
    if not isinstance(rollout.phase, _QUIET_PHASES) or not rollout.visits:
        return at + SHORTEST
    soonest = min((one for one in _moments(rollout, tests) if one >= at), default=at + LONGEST)
    return min(max(soonest + _JUST_AFTER, at + SHORTEST), at + _longest(rollout, tests))


def after_quiet_until(tests: SequentialTests, at: datetime) -> SequentialTests:
    """Return the tests after a time without a change since they were judged, as far as `at`."""
    if tests.judged_at is None or at <= tests.judged_at:
        return tests
    seconds = (at - tests.judged_at).total_seconds()
    return replace(tests, gap_times=after_quiet(tests.gap_times, seconds), judged_at=at)


def _longest(rollout: Rollout, tests: SequentialTests) -> timedelta:
    """Return `LONGEST`, or less where time alone changes what is remembered.

    Young gaps do so, contexts that become old enough for a floor, and answers of monitoring
    systems that become too old.
    """
    visit, plan = rollout.visits[-1], rollout.plan
    is_settled = all(is_settled_gap(gap, plan.health_grace) for gap in tests.gap_times.values())
    longest = LONGEST if is_settled and not plan.external_at(visit.percent) else LONGEST_YOUNG
    steps = [
        guardrail.within / MOMENTS
        for guardrail in plan.guardrails
        if guardrail.has_floor and guardrail.is_watched_at(visit.percent)
    ]
    return max(min((longest, *steps)), SHORTEST)


def _moments(rollout: Rollout, tests: SequentialTests) -> Iterator[datetime]:
    """Yield when passing time changes something; it may be in the past."""
    plan = rollout.plan
    yield rollout.visits[-1].counting_since
    yield rollout.updated_at + HOLD_ANNOUNCED_EVERY
    if tests.last_event_at is not None:
        yield tests.last_event_at + plan.fresh_within
    if tests.closed_at is not None:
        yield tests.closed_at + MAX_OPEN
    if tests.judged_at is not None:
        for gap in tests.gap_times.values():
            seconds = gap.gone or gap.lasted
            yield tests.judged_at + plan.health_grace - timedelta(seconds=seconds)
