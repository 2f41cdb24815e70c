"""What `rolloutctl events` says of an event is what counting makes of it."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from controller.counting.event_classes import RECORD_CLASS
from controller.counting.event_tally import EventTally
from controller.counting.folding.context_sets import digest_of
from controller.counting.folding.flags_to_count import FlagsToCount
from schemas.terms import RecordClass
from schemas.wire import read_evaluations, read_outcomes
from tests.builders import HOUR, MINUTE, T0, make_plan, make_rollout, make_visit
from tests.records import ARRIVAL_MS, Owner, at_ms, evaluation_value, make_record, outcome_value

#: Two stages, the second of which was left; and one that lasts.
ENDED = (
    make_visit(entered_at=T0, counts_from=T0 + MINUTE, left_at=T0 + HOUR),
    make_visit(
        stage=1,
        entered_at=T0 + HOUR,
        counts_from=T0 + HOUR + MINUTE,
        left_at=T0 + 2 * HOUR,
    ),
)
LASTING = (make_visit(entered_at=T0 + HOUR, counts_from=T0 + HOUR + MINUTE),)
#: Open, closed, open again, and closed.
WINDOWS = (
    make_visit(entered_at=T0, counts_from=T0)
    .closed(T0 + MINUTE)
    .opened(T0 + HOUR + MINUTE)
    .closed(T0 + 2 * HOUR),
)
FLAGS = {"ended": ENDED, "lasting": LASTING, "scheduled": (), "windows": WINDOWS}

EDGES = (timedelta(0), MINUTE, HOUR, HOUR + MINUTE, 2 * HOUR)
times = st.sampled_from(
    [T0 + edge + timedelta(milliseconds=by) for edge in EDGES for by in (-1, 0, 1)]
)
flags = st.sampled_from([*FLAGS, "nobody-knows"])
variants = st.sampled_from(["on", "off", "treatment"])


def directory() -> FlagsToCount:
    """Return a directory of every flag but the last."""
    known = FlagsToCount()
    for flag_key, visits in FLAGS.items():
        plan = make_plan(flag_key=flag_key)
        known.count_for(make_rollout(plan=plan, visits=visits, rollout_id=f"start-{flag_key}"))
    return known


def class_counted(owner: Owner) -> RecordClass:
    """Return the class of the one record that was folded."""
    records = owner.totals.progress
    found = {
        RecordClass.COUNTED: records.counted,
        RecordClass.LATE: records.late,
        RecordClass.IGNORED: records.ignored,
        RecordClass.QUARANTINED: records.quarantined,
    }
    assert sum(found.values()) == 1
    return next(each for each, count in found.items() if count)


@given(flags, variants, times)
def test_an_evaluation_has_the_class_of_its_record(
    flag_key: str, variant: str, at: datetime
) -> None:
    """At every edge of every stage, for each variant and flag."""
    known = directory()
    owner = Owner(known, counts_exposures=True)
    record = make_record(0, evaluation_value("u1", variant, time_ms=at_ms(at), flag=flag_key))
    owner.fold([record])
    (sample,) = EventTally(known, read_evaluations, read_outcomes).add_evaluations(("t", 0), record)
    assert RECORD_CLASS[sample.event_class] is class_counted(owner)


@given(flags, variants, times, st.booleans(), times)
def test_an_outcome_has_the_class_of_its_record(
    flag_key: str, variant: str, at: datetime, is_joined: bool, evaluated_at: datetime
) -> None:
    """Also when its flag comes from an earlier evaluation of its context."""
    known = directory()
    exposed = Owner(known, counts_exposures=True)
    evaluated = evaluation_value("u1", variant, time_ms=at_ms(evaluated_at), flag=flag_key)
    exposed.fold([make_record(0, evaluated)])
    exposed.totals.flags.fold.index_exposures()
    named = () if is_joined else ((flag_key, variant),)
    record = make_record(0, outcome_value("u1", time_ms=at_ms(at), flags=named))
    owner = Owner(known, counts_exposures=False)
    owner.fold([record], partner=exposed.totals)

    def flags_of(context: str, time_ms: int) -> list[tuple[str, str]]:
        return list(exposed.totals.flags.fold.exposures(digest_of(context.encode()), time_ms))

    tally = EventTally(known, read_evaluations, read_outcomes)
    (sample,) = tally.add_outcomes(("t", 0), record, flags_of=flags_of)
    assert RECORD_CLASS[sample.event_class] is class_counted(owner)


@given(st.binary(max_size=40))
def test_a_record_of_anything_is_refused_alike(value: bytes) -> None:
    """Counting refuses it, and so does the tally, with a reason."""
    known = directory()
    owner = Owner(known, counts_exposures=True)
    record = make_record(0, value)
    owner.fold([record])
    (sample,) = EventTally(known, read_evaluations, read_outcomes).add_evaluations(
        ("t", 0), record, latest_ms=ARRIVAL_MS
    )
    assert RECORD_CLASS[sample.event_class] is class_counted(owner) is RecordClass.QUARANTINED
    assert sample.why
