from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from controller.adapters.memory import MemoryStateFeed
from controller.core.rollout import (
    Aborted,
    Completed,
    Paused,
    Phase,
    Retired,
    RolledBack,
    Scheduled,
)
from controller.core.serving import percent_to_serve
from controller.ports import FlagPlane, Served
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard, WhenStale
from schemas.terms import HoldReason
from tests.builders import HOUR, T0, make_plan, make_rollout, make_visit
from tests.unit.web.conftest import HandClock, Surface


def make_board() -> FlagBoard:
    """Return an empty board that is not trusted yet, and whose clock stands."""
    return FlagBoard(generation=Generation.V3, monotonic=HandClock())


async def test_it_is_a_flag_plane() -> None:
    """The board serves what it is told and says so, and does not know other flags."""
    board = make_board()
    plane: FlagPlane = board
    rollout = make_rollout(percent=25.0)
    assert (await plane.look(rollout)).difference == "does not know the flag, decided is 25 %"
    await plane.serve(rollout)
    assert plane.name == "ofrep"
    assert await plane.look(rollout) == Served(25.0, None)


async def test_a_look_is_repeated_only_after_a_change() -> None:
    """Each decision looks at all flags again: only what was served or decided since is compared."""
    board = make_board()
    rollout = make_rollout(percent=25.0)
    board.update(rollout)
    first = await board.look(rollout)
    assert await board.look(rollout) is first
    lower = make_rollout(revision=2, percent=10.0)
    assert (await board.look(lower)).difference == "serves 25 %, decided is 10 %"
    board.update(lower)
    assert (await board.look(lower)).difference is None
    assert (await board.look(rollout)).difference == "serves 10 %, decided is 25 %"
    board.drop(lower.flag_key, 3)
    assert (await board.look(lower)).difference == "does not know the flag, decided is 10 %"


def test_an_older_revision_changes_nothing() -> None:
    """A document that was overtaken, by the worker or by the state topic, is ignored."""
    board = make_board()
    assert board.update(make_rollout(revision=7, percent=10.0))
    assert not board.update(make_rollout(revision=6, percent=0.0))
    assert not board.update(make_rollout(revision=7, percent=10.0))
    assert board.percents() == {"new-checkout": 10.0}


@pytest.mark.parametrize(("first", "second"), [(10.0, 50.0), (50.0, 10.0)])
def test_of_two_documents_of_one_revision_the_lower_percentage_is_served(
    first: float, second: float
) -> None:
    """Both cannot be right; while it is unknown which one is, nobody gets more than either says."""
    board = make_board()
    board.update(make_rollout(revision=7, percent=first))
    board.update(make_rollout(revision=7, percent=second))
    assert board.percents() == {"new-checkout": 10.0}


@pytest.mark.parametrize(
    ("phase", "served"),
    [
        (Scheduled(T0), 0.0),
        (Paused(T0, HoldReason.OPERATOR, Scheduled(T0)), 0.0),
        (RolledBack(T0, "guardrail"), 0.0),
        (Aborted(T0, "changed our mind"), 0.0),
        (Completed(T0), 100.0),
    ],
)
def test_nothing_is_served_before_the_start_and_after_a_rollback(
    phase: Phase, served: float
) -> None:
    """Even a document that says otherwise does not expose anybody outside a stage.

    A completed one stays up.
    """
    assert percent_to_serve(make_rollout(phase=phase, percent=100.0)) == served


def test_only_what_cannot_become_worse_may_be_kept_by_clients() -> None:
    """STATIC lets a client cache.

    That is said of control after the end, never of a stage, 0 % before it or 100 % after it.
    """
    board = make_board()
    reasons = []
    for revision, (phase, percent) in enumerate(
        [(Scheduled(T0), 0.0), (Completed(T0), 100.0), (RolledBack(T0, "guardrail"), 0.0)], start=1
    ):
        board.update(make_rollout(revision=revision, phase=phase, percent=percent))
        flag = board.get("new-checkout")
        assert flag is not None
        reasons.append(json.loads(flag.evaluate("user-1"))["reason"])
    assert reasons == ["SPLIT", "SPLIT", "STATIC"]


def test_a_completed_rollout_that_is_closed_may_not_be_kept_by_clients() -> None:
    """It serves 0 % outside its active windows, and opens again in the morning."""
    board = make_board()
    visits = (make_visit(left_at=T0, percent=100.0).closed(T0),)
    closed = make_rollout(phase=Completed(T0), percent=0.0, visits=visits)
    board.update(closed)
    flag = board.get("new-checkout")
    assert flag is not None
    answer = json.loads(flag.evaluate("user-1"))
    assert (answer["variant"], answer["reason"]) == ("off", "SPLIT")


@pytest.mark.parametrize(("percent", "variant"), [(3.75, "off"), (3.76, "on")])
def test_a_bucket_is_in_once_the_weight_passes_it(percent: float, variant: str) -> None:
    """Bucket 375 is the 376th of 10,000: at 3.75 % it is out, at 3.76 % in, as for flagd."""
    board = make_board()
    board.update(make_rollout(percent=percent))
    flag = board.get("new-checkout")
    assert flag is not None
    assert json.loads(flag.evaluate("user-3"))["variant"] == variant


def test_the_flagd_document_keeps_the_sum_of_the_weights() -> None:
    """Weights are integers, treatment first, and add up to 10,000 at every percentage."""
    board = make_board()
    weights = []
    for revision, percent in enumerate([0.0, 0.01, 33.33, 100.0], start=1):
        board.update(make_rollout(revision=revision, percent=percent))
        flags = json.loads(board.flagd_document()[0])["flags"]
        weights.append(flags["new-checkout"]["targeting"]["fractional"])
    assert weights == [[["on", n], ["off", 10_000 - n]] for n in (0, 1, 3_333, 10_000)]


def test_the_flagd_document_is_one_flagd_accepts() -> None:
    """A flag has what flagd requires and nothing it refuses.

    What is ours stands in the metadata, as strings.
    """
    board = make_board()
    board.update(make_rollout(revision=17, rollout_id="start-9"))
    assert json.loads(board.flagd_document()[0])["flags"] == {
        "new-checkout": {
            "state": "ENABLED",
            "variants": {"on": True, "off": False},
            "defaultVariant": "off",
            "targeting": {"fractional": [["on", 1_000], ["off", 9_000]]},
            "metadata": {"version": "17", "rolloutd.rollout_id": "start-9"},
        }
    }


def test_the_flagd_documents_tag_changes_with_its_content() -> None:
    """The same flags have the same tag, in whatever order they came.

    Another revision has another.
    """
    one, other = make_board(), make_board()
    rollouts = [make_rollout(flag_key=key, plan=make_plan(flag_key=key)) for key in ("b", "a", "c")]
    for rollout in rollouts:
        one.update(rollout)
    for rollout in reversed(rollouts):
        other.update(rollout)
    assert one.flagd_document() == other.flagd_document()
    other.update(make_rollout(flag_key="a", plan=make_plan(flag_key="a"), revision=2))
    assert one.flagd_document()[1] != other.flagd_document()[1]


def test_it_answers_only_once_trusted() -> None:
    """Before the state topic is read to its end, a document may be outdated."""
    board = make_board()
    board.update(make_rollout())
    assert board.why_not is not None
    board.trust()
    assert board.why_not is None


def test_a_process_that_stood_still_is_not_trusted(surface: Surface) -> None:
    """Frozen for longer than allowed, the board doubts itself at the first look.

    And a late heartbeat does not hide it.
    """
    surface.board.beat()
    surface.clock.seconds += 4.9
    surface.board.beat()
    surface.clock.seconds += 4.9
    before = surface.board.why_not
    surface.clock.seconds += 5.1
    surface.board.beat()
    frozen = surface.board.why_not
    surface.board.trust()
    after = surface.board.why_not
    assert (before, after) == (None, None)
    assert frozen is not None
    assert "stood still for 10.0 s" in frozen


async def test_it_answers_when_the_state_topic_was_read() -> None:
    """What was in the topic is taken before the first answer."""
    feed = MemoryStateFeed(
        [make_rollout(revision=1, percent=50.0), make_rollout(revision=2, percent=0.0)]
    )
    board = make_board()
    trusting = asyncio.create_task(board.keep_trust(feed))
    seen = []
    async with asyncio.timeout(60):
        async for rollout in feed.documents():
            seen.append(board.why_not is None)
            board.update(rollout)
            if rollout.revision == 2:
                feed.append(make_rollout(revision=3, percent=10.0))
            if rollout.revision == 3:
                break
        while board.why_not is not None:
            await asyncio.sleep(0)
    trusting.cancel()
    await asyncio.wait([trusting])
    assert seen[:2] == [False, False]
    assert board.percents() == {"new-checkout": 10.0}


async def test_after_standing_still_it_waits_for_news() -> None:
    """A frozen process answers again only when the brokers have said, after it woke.

    That it knows everything.
    """
    clock = HandClock()
    board = FlagBoard(generation=Generation.V3, monotonic=clock)
    feed = MemoryStateFeed()
    heard_at = clock.seconds

    async def read() -> None:
        async for rollout in feed.documents():
            board.update(rollout)

    reading = asyncio.create_task(read())
    trusting = asyncio.create_task(
        board.keep_trust(feed, silent_seconds=lambda: clock.seconds - heard_at, beat_seconds=0)
    )
    async with asyncio.timeout(60):
        while board.why_not is not None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first beat
        clock.seconds += 60
        frozen = board.why_not
        for _ in range(100):
            await asyncio.sleep(0)
        still = board.why_not
        clock.seconds += 1
        heard_at = clock.seconds
        while board.why_not is not None:
            await asyncio.sleep(0)
    for task in (reading, trusting):
        task.cancel()
    await asyncio.wait([reading, trusting])
    assert frozen is not None
    assert still is not None


# --- the lease ---


def leased(when_stale: WhenStale = "serve_last") -> FlagBoard:
    """Return a trusted board with one flag at 100 %, whose wall clock stands at T0."""
    board = FlagBoard(generation=Generation.V3, when_stale=when_stale, now=lambda: T0)
    board.update(make_rollout(percent=100.0))
    board.trust()
    return board


def answered(board: FlagBoard) -> dict[str, Any]:
    """Return the answer for one user."""
    flag = board.get("new-checkout")
    assert flag is not None
    answer: dict[str, Any] = json.loads(flag.evaluate("user-1"))
    return answer


def test_a_board_without_word_from_the_brokers_says_so() -> None:
    """After the lease the last decision is served, with the reason STALE and since when.

    Heard again, it is as before.
    """
    board = leased()
    before = answered(board)
    board.note_silence(30.0)
    assert answered(board) == before
    board.note_silence(30.1)
    stale = answered(board)
    assert (stale["variant"], stale["reason"]) == ("on", "STALE")
    assert stale["metadata"]["stale_since"] == "2026-01-05T08:59:29+00:00"
    assert [flag.rollout.flag_key for flag in board.flags] == ["new-checkout"]
    assert "another replica" in (board.why_stale or "")
    assert board.why_not is None
    board.note_silence(0.2)
    assert answered(board) == before
    assert board.why_stale is None


def test_staleness_changes_tags_twice_and_not_in_between() -> None:
    """A client that polls gets the document when the lease ends and when it is renewed."""
    board = leased()
    silences = [0.0, 29.0, 31.0, 32.0, 500.0, 0.1, 0.2]
    tags = []
    with board.changes() as changed:
        for seconds in silences:
            board.note_silence(seconds)
            tags.append((board.flagd_document()[1], changed.is_set()))
            changed.clear()
    first, _, stale, same, still, back, _ = [tag for tag, _ in tags]
    assert first == back != stale == same == still
    assert [is_told for _, is_told in tags] == [False, False, True, False, False, True, False]


def test_a_stale_document_says_so() -> None:
    """The document for flagd carries since when nothing was heard.

    Its definitions are the last known.
    """
    board = leased()
    board.note_silence(31.0)
    document = json.loads(board.flagd_document()[0])
    assert document["metadata"]["stale_since"] == "2026-01-05T08:59:29+00:00"
    assert board.why_no_document is None


def test_a_decision_taken_while_stale_is_served_and_outlives_it() -> None:
    """Our own worker may still roll back.

    That is served at once, and not marked once the brokers answer.
    """
    board = leased()
    board.note_silence(31.0)
    assert answered(board)["variant"] == "on"
    board.update(make_rollout(revision=2, phase=RolledBack(T0, "guardrail"), percent=0.0))
    assert (answered(board)["variant"], answered(board)["reason"]) == ("off", "STALE")
    board.note_silence(0.1)
    assert (answered(board)["variant"], answered(board)["reason"]) == ("off", "STATIC")


def test_control_is_served_while_stale_where_that_is_wanted() -> None:
    """With `serve_control` nobody is in treatment, with or without a key.

    Documents are kept back.
    """
    board = leased("serve_control")
    board.note_silence(31.0)
    assert (answered(board)["variant"], answered(board)["reason"]) == ("off", "STALE")
    flag = board.get("new-checkout")
    assert flag is not None
    assert not flag.needs_key
    assert board.why_not is None
    assert board.why_no_document is not None


def test_nothing_is_served_while_stale_where_that_is_wanted() -> None:
    """With `refuse` the board answers nothing until the brokers are heard again."""
    board = leased("refuse")
    board.note_silence(31.0)
    assert "another replica" in (board.why_not or "")
    board.note_silence(1.0)
    assert board.why_not is None


def test_what_is_lowered_unsaved_ends_with_its_command() -> None:
    """A refused command lowers nothing; an accepted one is served as it was saved."""
    board = FlagBoard(generation=Generation.V3)
    board.trust()
    decided = make_rollout(percent=50.0, revision=3)
    board.update(decided)
    unsaved = replace(decided, revision=4, percent=0.0, phase=RolledBack(T0, "errors"))
    board.lower_unsaved(unsaved)
    assert board.percents()[decided.flag_key] == 0
    board.end_unsaved(decided.flag_key, decided)
    assert board.percents()[decided.flag_key] == 50
    board.lower_unsaved(unsaved)
    saved = replace(unsaved, phase=RolledBack(T0 + HOUR, "errors"))
    board.update(saved)
    board.end_unsaved(decided.flag_key, saved)
    assert board.rollout(decided.flag_key) is saved
    board.end_unsaved(decided.flag_key, decided)  # nothing is unsaved any longer
    assert board.rollout(decided.flag_key) is saved


def test_a_retired_flag_is_not_found_any_more_and_clients_are_told() -> None:
    """A tombstone that comes late ends no newer rollout."""
    board = make_board()
    board.update(make_rollout(revision=7, percent=100.0))
    board.trust()
    with board.changes() as changed:
        board.drop("new-checkout", 6)
        assert not changed.is_set()
        board.drop("new-checkout", 8)
        assert changed.is_set()
    assert board.rollout("new-checkout") is None
    assert board.percents() == {}


def test_a_flag_that_redis_knows_as_retired_is_not_remembered() -> None:
    """A restart without Kafka serves nothing for it, whatever the file says."""
    board = make_board()
    board.remember([make_rollout(revision=7, percent=100.0)], T0)
    board.remember([make_rollout(revision=8, percent=0.0, phase=Retired(T0, "gone"))], T0)
    assert board.rollout("new-checkout") is None
