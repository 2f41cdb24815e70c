"""Outcomes that come a second time.

What is recognised, what is not, and that honest traffic never looks like it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

from controller.counting.folding.context_sets import digest_of
from controller.counting.folding.duplicates import NOT_SAMPLED, REMEMBERED, RecentRecords
from controller.counting.folding.flags_to_count import FlagsToCount
from schemas.totals import ArmCounts
from tests.builders import MINUTE, T0, make_rollout
from tests.records import LINES, Owner, arms_in, at_ms, evaluation_value, make_record, outcome_value

AT = T0 + 10 * MINUTE
LOOKED_AT = next(
    f"u{number}" for number in range(10_000) if not digest_of(f"u{number}".encode()) & NOT_SAMPLED
)
IGNORED = next(
    f"u{number}" for number in range(10_000) if digest_of(f"u{number}".encode()) & NOT_SAMPLED
)
TREATMENT, CONTROL = ("new-checkout", 0, "treatment"), ("new-checkout", 0, "control")
ON, OFF = ("new-checkout", "on"), ("new-checkout", "off")


def directory() -> FlagsToCount:
    """Return a directory of one flag."""
    flags = FlagsToCount()
    flags.count_for(make_rollout())
    return flags


def counted(
    values: list[bytes], owner: Owner | None = None
) -> dict[tuple[str, int, str], ArmCounts]:
    """Return the totals of a partition of outcomes with these values."""
    owner = owner or Owner(directory(), counts_exposures=False)
    owner.fold([make_record(offset, value) for offset, value in enumerate(values)])
    stored: dict[str, bytes] = {}
    assert owner.save(stored)
    return arms_in(stored)


def outcome(
    number: int, context: str = LOOKED_AT, *, latency_ms: float = 50.0, flag: tuple[str, str] = ON
) -> bytes:
    """Return an outcome with an id of its own, its time in whole seconds."""
    value = json.loads(
        outcome_value(context, time_ms=at_ms(AT), flags=(flag,), latency_ms=latency_ms)
    )
    return json.dumps({**value, "id": f"{number:x}"}).encode()


def test_a_replay_is_seen_in_its_arm() -> None:
    """Outcomes written again count as repeated in their arm, each time."""
    first = [outcome(number) for number in range(5)] + [
        outcome(number, flag=OFF) for number in range(5, 8)
    ]
    arms = counted([*first, *first[:3], first[0], first[7]])
    assert (arms[TREATMENT].outcomes, arms[TREATMENT].checked, arms[TREATMENT].repeated) == (
        9,
        9,
        4,
    )
    assert (arms[CONTROL].outcomes, arms[CONTROL].checked, arms[CONTROL].repeated) == (4, 4, 1)


def test_most_contexts_cost_one_test() -> None:
    """Of contexts outside the sample nothing is looked at, and about one context of 64 is in it."""
    assert counted([outcome(1, IGNORED)] * 5)[TREATMENT].checked == 0
    inside = sum(not digest_of(f"user-{number}".encode()) & NOT_SAMPLED for number in range(64_000))
    assert 900 < inside < 1100


def test_alike_is_not_the_same() -> None:
    """With whole seconds or milliseconds, 5,000 honest outcomes show no repetition."""
    chance = Random(3)
    arms = counted(
        [outcome(number, latency_ms=float(chance.randint(1, 3))) for number in range(5000)]
    )
    assert (arms[TREATMENT].checked, arms[TREATMENT].repeated) == (5000, 0)


def test_an_outcome_of_several_flags_is_looked_at_once_for_all_of_them() -> None:
    """The arms that an outcome counts for say alike whether it had come before."""
    flags = FlagsToCount()
    for flag_key in ("new-checkout", "search"):
        flags.count_for(make_rollout(flag_key=flag_key))
    value = outcome_value(
        LOOKED_AT, time_ms=at_ms(AT), flags=(ON, ("search", "off"), ("unknown", "on"))
    )
    arms = counted([value, value], Owner(flags, counts_exposures=False))
    assert [(arm.checked, arm.repeated) for arm in arms.values()] == [(2, 1), (2, 1)]


def test_a_joined_outcome_is_looked_at() -> None:
    """Outcomes that name no flags and are joined to an exposure are recognised like any other."""
    flags = directory()
    exposures = Owner(flags, counts_exposures=True)
    exposures.fold([make_record(0, evaluation_value(LOOKED_AT, "on", time_ms=at_ms(AT)))])
    outcomes = Owner(flags, counts_exposures=False)
    value = outcome_value(LOOKED_AT, time_ms=at_ms(AT))
    outcomes.fold([make_record(0, value), make_record(1, value)], partner=exposures.totals)
    stored: dict[str, bytes] = {}
    assert outcomes.save(stored)
    assert (arms_in(stored)[TREATMENT].checked, arms_in(stored)[TREATMENT].repeated) == (2, 1)


def test_events_that_share_a_record_are_none_of_them_copies() -> None:
    """In a packed format a context's outcomes stand together in one record.

    Only the record's second coming repeats them.
    """
    record = b"\n".join([outcome(1), outcome(1), outcome(2)])  # also such as look alike
    arms = counted([record], Owner(directory(), counts_exposures=False, readers=LINES))
    assert (arms[TREATMENT].checked, arms[TREATMENT].repeated) == (3, 0)
    arms = counted([record, record], Owner(directory(), counts_exposures=False, readers=LINES))
    assert (arms[TREATMENT].checked, arms[TREATMENT].repeated) == (6, 3)


def test_a_record_read_again_is_no_second_one() -> None:
    """What the log gives twice, after a rebalance or a save that failed, is one record."""
    recent = RecentRecords()
    assert [recent.came_before(make_record(7, b"x")) for _ in range(3)] == [False] * 3
    assert recent.came_before(make_record(8, b"x"))


def test_in_binary_mode_source_and_id_are_headers() -> None:
    """The same body under another id is another event; transport's own headers do not matter."""
    recent = RecentRecords()

    def came_before(offset: int, event_id: bytes, trace: bytes) -> bool:
        headers = [("ce_source", b"/app"), ("ce_id", event_id), ("traceparent", trace)]
        return recent.came_before(replace(make_record(offset, b"{}"), headers=headers))

    assert not came_before(0, b"1", b"a")
    assert not came_before(1, b"2", b"a")
    assert came_before(2, b"1", b"b")


def test_a_header_may_have_no_value() -> None:
    """Kafka's headers may be null.

    Such a record is looked at like any other, by the native fold as well as by the reference.
    """
    recent, headers = RecentRecords(), [("ce_id", b"1"), ("ce_source", None), ("baggage", None)]
    came_before = [
        recent.came_before(replace(make_record(offset, b"{}"), headers=headers))
        for offset in range(2)
    ]
    assert came_before == [False, True]


def test_memory_is_bounded_and_reaches_back_as_far_as_promised() -> None:
    """A copy after `REMEMBERED` others is still seen, one after twice as many no longer.

    And no more than that are kept.
    """
    recent = RecentRecords()
    values = [b"%d" % number for number in range(3 * REMEMBERED)]
    assert not any(
        recent.came_before(make_record(offset, value)) for offset, value in enumerate(values)
    )
    last = len(values)
    assert recent.came_before(make_record(last, values[-REMEMBERED]))
    assert not recent.came_before(make_record(last + 1, values[0]))
    assert len(recent._offsets) + len(recent._before) <= 2 * REMEMBERED


def test_copies_are_seen_whenever_they_come() -> None:
    """Any mix of copies within reach, of many contexts, is counted exactly.

    Every copy of a context that is looked at.
    """
    chance = Random(11)
    contexts = [f"u{number}" for number in range(2000)]
    values, copies, looked_at = list[bytes](), 0, 0
    for number in range(20_000):
        context = chance.choice(contexts)
        is_in_sample = not digest_of(context.encode()) & NOT_SAMPLED
        value = outcome(number, context, latency_ms=float(chance.randint(1, 100)))
        values.append(value)
        looked_at += is_in_sample
        if chance.random() < 0.1:
            values.append(value)
            copies += is_in_sample
            looked_at += is_in_sample
    arm = counted(values)[TREATMENT]
    assert (arm.outcomes, arm.checked, arm.repeated) == (len(values), looked_at, copies)
    assert copies > 10
