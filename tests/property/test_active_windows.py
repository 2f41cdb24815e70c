"""Rollouts with random active windows: 0 % outside of them, inside what was decided, never more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.events import Event, EvidenceJudged, Ticked
from controller.core.invariants import Step, violations
from controller.core.judging.judgement import Judgement
from controller.core.machine import decide, next_deadline
from controller.core.plan import Window
from controller.core.rollout import Baking, Gating, Rollout
from controller.core.timeline import locate
from controller.core.windows import closes_at, is_active, opens_at
from controller.counting.folding.flags_to_count import countable_intervals
from tests.builders import MINUTE, make_command, make_judgement, make_plan, make_stages
from tests.examples import examples

pytestmark = pytest.mark.property

DAY = timedelta(days=1)
ZONES = ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns")
windows = st.lists(
    st.builds(
        Window,
        weekdays=st.frozensets(st.integers(1, 7), min_size=1),
        start_minute=st.integers(0, 1439),
        minutes=st.integers(5, 1440) | st.sampled_from([60, 1440, 2880]),
        timezone=st.sampled_from(ZONES),
    ),
    min_size=1,
    max_size=3,
)
#: Around days on which clocks change, and on which they do not.
starts = st.builds(
    lambda day, minutes: day + minutes * MINUTE,
    st.sampled_from(
        [
            datetime(2026, 3, 27, tzinfo=UTC),
            datetime(2026, 10, 2, tzinfo=UTC),
            datetime(2026, 10, 23, tzinfo=UTC),
            datetime(2026, 6, 1, tzinfo=UTC),
        ]
    ),
    st.integers(0, 1440),
)


def is_shown(window: Window, at: datetime) -> bool:
    """Return whether an occurrence covers `at`, each found by walking the local clock."""
    zone = ZoneInfo(window.timezone)
    today = at.astimezone(zone).date()
    for back in range(-1, window.minutes // 1440 + 3):
        day = today - timedelta(days=back)
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - local
        begin = midnight + window.start_minute * MINUTE
        end = begin + window.minutes * MINUTE
        if day.isoweekday() in window.weekdays and first_at(begin, zone) <= at < first_at(
            end, zone
        ):
            return True
    return False


def first_at(local: datetime, zone: ZoneInfo) -> datetime:
    """Return the first minute, UTC, at which the clock of `zone` shows `local` or later."""
    at = local.replace(tzinfo=zone).astimezone(UTC) - 3 * timedelta(hours=1)
    while at.astimezone(zone).replace(tzinfo=None) < local:
        at += MINUTE
    return at


@examples(150)
@given(windows, starts, st.integers(0, 10_000))
def test_a_moment_is_active_when_a_local_clock_says_so(
    drawn: list[Window], start: datetime, minutes: int
) -> None:
    """Fortnights worked out together say the same as each moment by itself, and agree on edges."""
    at = start + minutes * MINUTE
    expected = any(is_shown(window, at) for window in drawn)
    assert is_active(drawn, at) is expected
    closing, opening = closes_at(drawn, at), opens_at(drawn, at)
    assert opening is not None
    assert (opening == at, closing == at) == (expected, not expected)
    assert is_active(drawn, opening)
    assert closing is None or not is_active(drawn, closing)
    edge = closing if expected else opening
    assert edge is None or is_active(drawn, edge - timedelta(seconds=1)) is expected


def judged(rollout: Rollout, at: datetime) -> Judgement:
    """Return evidence that passes."""
    return make_judgement(visit=rollout.visit_index, at=at)


@examples(150)
@given(windows, starts, st.lists(st.booleans(), min_size=1, max_size=40))
def test_outside_windows_0_percent_inside_what_was_decided(
    drawn: list[Window], start: datetime, passes: Sequence[bool]
) -> None:
    """A rollout that is woken at its deadlines, and sometimes judged, for up to three weeks.

    No event from a closed time counts, and what counts is as long as the bakes were.
    """
    plan = make_plan(stages=make_stages(10, 50), active=tuple(drawn))
    rollout, _ = decide(None, make_command("start", issued_at=start, plan=plan), start)
    assert rollout is not None
    now = start
    for is_judged in passes:
        due = next_deadline(rollout)
        if due is None or due > start + 21 * DAY:
            break
        now = max(now, due)
        events: list[Event] = [Ticked()]
        if is_judged:
            events.append(EvidenceJudged(judged(rollout, now)))
        for event in events:
            before = rollout
            rollout, effects = decide(before, event, now)
            assert rollout is not None
            step = Step(before, event, now, rollout, effects)
            assert not violations(step, outbox=0, outbox_limit=10, bake_left_seconds=None)
            check(before, rollout, now)
        deadline = next_deadline(rollout)
        assert deadline is None or deadline > now or isinstance(rollout.phase, Gating)


def check(before: Rollout, after: Rollout, now: datetime) -> None:
    """Check one transition of a rollout that nobody steers."""
    visits = after.visits
    if not visits:
        assert after.percent == 0
        assert not is_active(after.plan.active, now)
        return
    active = is_active(after.plan.active, now)
    assert after.percent == (visits[-1].percent if active else 0)
    assert after.decided_percent == visits[-1].percent
    assert (after.closed_since is None) is active
    if isinstance(before.phase, Baking) and isinstance(after.phase, Gating):
        assert visits[-1].counted_until(now) >= after.plan.stages[after.phase.stage].bake
    intervals = countable_intervals(visits)
    for visit in visits:
        for closing in visit.closings:
            for at in (closing.since, (closing.counts_from or now) - timedelta(seconds=1)):
                milliseconds = round(at.timestamp() * 1000)
                located = locate(visits, at)
                counted = [one[2] for one in intervals if one[0] <= milliseconds < one[1]]
                assert counted == ([] if located is None else [located])
                assert located is None or at < closing.since or visits[located] is not visit
