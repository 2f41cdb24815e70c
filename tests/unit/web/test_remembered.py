"""The board before the state topic was read: what a file or Redis remembers is served."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

from controller.adapters.memory import MemoryStateFeed
from controller.core.rollout import RolledBack, Rollout
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard, WhenStale
from tests.builders import T0, make_plan, make_rollout
from tests.unit.web.conftest import HandClock


def answered(board: FlagBoard) -> dict[str, Any]:
    """Return the answer for one user."""
    flag = board.get("new-checkout")
    assert flag is not None
    answer: dict[str, Any] = json.loads(flag.evaluate("user-1"))
    return answer


def starting(when_stale: WhenStale = "serve_last") -> FlagBoard:
    """Return a board at 50 % by a file, revision 7, before the state topic was read."""
    board = FlagBoard(
        generation=Generation.V3, monotonic=HandClock(), when_stale=when_stale, now=lambda: T0
    )
    board.remember([make_rollout(percent=50.0, revision=7)], T0)
    return board


def test_an_old_document_of_the_topic_never_replaces_what_is_remembered() -> None:
    """While the topic is read it may say any percentage; only a newer and lower one is served."""
    board = starting()
    served = []
    for revision, percent in [(3, 0.0), (5, 100.0), (7, 50.0), (8, 100.0), (9, 10.0), (10, 60.0)]:
        board.update(make_rollout(percent=percent, revision=revision))
        served.append(board.percents()["new-checkout"])
    assert served == [50.0, 50.0, 50.0, 50.0, 10.0, 10.0]
    board.trust()
    assert board.percents() == {"new-checkout": 60.0}


def test_what_was_lowered_while_redis_was_read_stays_lowered() -> None:
    """A command over HTTP may come between the reading of Redis and its end."""
    board = FlagBoard(generation=Generation.V3, monotonic=HandClock(), now=lambda: T0)
    board.update(make_rollout(percent=0.0, revision=8, phase=RolledBack(T0, "5xx")))
    board.remember([make_rollout(percent=50.0, revision=7)], T0)
    assert board.percents() == {"new-checkout": 0.0}
    board.remember([make_rollout(percent=10.0, revision=9)], T0)
    assert board.percents() == {"new-checkout": 10.0}


def test_a_flag_that_is_not_remembered_waits_for_the_end_of_the_topic() -> None:
    """Its document may be an old one."""
    board = starting()
    board.update(make_rollout(flag_key="other", plan=make_plan(flag_key="other"), percent=100.0))
    before = board.get("other")
    board.trust()
    assert before is None
    assert board.get("other") is not None


def test_what_the_topic_lacks_is_served_until_all_is_known() -> None:
    """Saved, and not published yet: it is served until Redis says otherwise, and no longer."""
    board = starting()
    other = make_rollout(flag_key="other", plan=make_plan(flag_key="other"), percent=100.0)
    board.remember([other], T0)
    older = make_rollout(percent=10.0, revision=6)
    board.update(older)
    board.trust()
    trusted = board.percents()
    board.settle({"new-checkout": older})
    assert trusted == {"new-checkout": 50.0, "other": 100.0}
    assert board.percents() == {"new-checkout": 10.0}


def test_what_all_sources_agree_about_is_settled_without_a_word() -> None:
    """The usual restart; what was decided meanwhile is left alone."""
    board = starting()
    other = make_rollout(flag_key="other", plan=make_plan(flag_key="other"), percent=100.0)
    board.remember([other], T0)
    same = make_rollout(percent=50.0, revision=7)
    board.update(same)
    board.trust()
    changed = make_rollout(
        flag_key="other", plan=make_plan(flag_key="other"), percent=0.0, revision=2
    )
    board.update(changed)
    board.settle({"new-checkout": same, "other": changed})
    assert board.percents() == {"new-checkout": 50.0, "other": 0.0}


def test_a_roll_back_of_this_replica_outlives_what_is_remembered() -> None:
    """Lowered here before anything was read, and not saved yet: no source raises it again."""
    board = starting()
    board.update(make_rollout(percent=0.0, revision=8, phase=RolledBack(T0, "by hand")))
    at_once = board.percents()
    stored = make_rollout(percent=50.0, revision=7)
    board.update(stored)
    board.trust()
    board.settle({"new-checkout": stored})
    assert at_once == board.percents() == {"new-checkout": 0.0}


def test_trust_ends_the_mark_of_what_was_remembered() -> None:
    """The brokers have just said what is the newest."""
    board = starting()
    assert answered(board)["reason"] == "STALE"
    assert "has not been read since the start" in (board.why_stale or "")
    board.trust()
    assert (board.stale_since, answered(board)["reason"]) == (None, "SPLIT")
    board.remember([make_rollout(percent=100.0, revision=99)], T0)
    assert board.percents() == {"new-checkout": 50.0}


def test_two_memories_give_the_newer_revision_and_of_one_revision_the_lower() -> None:
    """A file and Redis; the newer of both times counts."""
    board = starting()
    board.remember([make_rollout(percent=100.0, revision=6)], T0 - timedelta(hours=1))
    assert (board.percents(), board.stale_since) == ({"new-checkout": 50.0}, T0)
    board.remember([make_rollout(percent=40.0, revision=7)], T0 + timedelta(hours=1))
    assert board.percents() == {"new-checkout": 40.0}
    assert board.stale_since == T0 + timedelta(hours=1)


def test_memory_is_served_as_a_stale_lease_is() -> None:
    """`refuse` refuses it, `serve_control` gives control, and nothing remembered is no answer."""
    assert "has not been read since the start" in (starting("refuse").why_not or "")
    cautious = starting("serve_control")
    assert (answered(cautious)["value"], cautious.why_not) == (False, None)
    empty = FlagBoard(generation=Generation.V3)
    empty.remember([], T0)
    assert empty.why_not is not None


async def test_after_standing_still_in_an_outage_it_answers_as_stale() -> None:
    """No broker will say anything for long: after one lease the last decision is served again."""
    clock = HandClock()
    board = FlagBoard(generation=Generation.V3, monotonic=clock, now=lambda: T0)
    feed = MemoryStateFeed([make_rollout(percent=100.0)])
    heard_at = clock.seconds

    async def read() -> None:
        async for rollout in feed.documents():
            board.update(rollout)

    tasks = [
        asyncio.create_task(read()),
        asyncio.create_task(
            board.keep_trust(feed, silent_seconds=lambda: clock.seconds - heard_at, beat_seconds=0)
        ),
    ]
    async with asyncio.timeout(60):
        while board.why_not is not None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first beat
        clock.seconds += 20
        frozen = board.why_not
        while board.why_not is None or clock.seconds == heard_at + 20:
            await asyncio.sleep(0)
            clock.seconds += 1
        doubted = board.why_not
        while board.why_not is not None:
            await asyncio.sleep(0)
            clock.seconds += 1
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (frozen is not None, doubted is not None) == (True, True)
    assert clock.seconds - heard_at >= 50, "it did not wait for a lease"
    assert (answered(board)["value"], answered(board)["reason"]) == (True, "STALE")


# --- a decision that was lowered here before it was saved ---


def lowered_at(minutes: int) -> Rollout:
    """Return revision 8, rolled back some minutes after `T0`."""
    at = T0 + timedelta(minutes=minutes)
    phase = RolledBack(at, "5xx")
    return make_rollout(percent=0.0, revision=8, phase=phase, updated_at=at)


def since(board: FlagBoard) -> float:
    """Return how many minutes after `T0` the flag was rolled back, as every page shows it."""
    rollout = board.rollout("new-checkout")
    assert rollout is not None
    return (rollout.phase_since - T0).total_seconds() / 60


def test_what_was_saved_replaces_what_was_lowered_before_that() -> None:
    """Both serve 0 % of one revision; all replicas show the time that was saved."""
    board = FlagBoard(generation=Generation.V3, monotonic=HandClock(), now=lambda: T0)
    board.update(make_rollout(percent=50.0, revision=7))
    board.trust()
    board.lower_unsaved(lowered_at(1))
    assert since(board) == 1
    assert board.update(lowered_at(3))
    assert not board.update(lowered_at(3))
    assert since(board) == 3
    board.lower_unsaved(lowered_at(4))
    assert since(board) == 3


def test_what_a_restart_lowered_again_shows_the_saved_time_while_it_is_remembered() -> None:
    """Kafka may stay away long after Redis is back."""
    board = starting()
    board.remember([lowered_at(2)], T0)
    assert board.update(lowered_at(3))
    assert since(board) == 3


def test_what_a_restart_lowered_again_shows_the_saved_time_once_all_is_known() -> None:
    """The topic may lack what Redis has."""
    board = starting()
    board.remember([lowered_at(2)], T0)
    board.trust()
    board.settle({"new-checkout": lowered_at(3)})
    assert since(board) == 3
