"""Random histories of records, cut and interrupted anywhere, against a naive recount."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from controller.core.evidence import bucket_of
from controller.core.rollout import Rollout
from controller.core.timeline import locate
from controller.core.visits import Closing
from controller.counting.folding.flags_to_count import CountedFlag, FlagsToCount
from controller.counting.partition_totals import ReadEvaluations, ReadOutcomes
from controller.ports import Record
from schemas.totals import ArmCounts, decode_progress
from schemas.wire import read_evaluations, read_outcomes
from tests.builders import HOUR, MINUTE, T0, make_guardrail, make_plan, make_rollout, make_visit
from tests.records import LINES, Owner, arms_in, at_ms, evaluation_value, make_record, outcome_value

VISITS = (
    make_visit(entered_at=T0, counts_from=T0 + MINUTE, left_at=T0 + HOUR),
    make_visit(
        stage=1,
        entered_at=T0 + HOUR,
        counts_from=T0 + HOUR + MINUTE,
        closings=(Closing(T0 + 90 * MINUTE, T0 + 95 * MINUTE), Closing(T0 + 3 * HOUR)),
    ),
)
LOOKED_AT = "u125"  # for repetition, by its digest
CONTEXTS = ["u0", "u1", LOOKED_AT]  # few, so that they meet themselves
FLAGS = ("new-checkout", "search", "nobody-knows")
ARM_NAMES = {"on": "treatment", "off": "control"}
CONVERSION = "paid"


def rollout_of(flag_key: str) -> Rollout:
    """Return a rollout of two visits that counts one conversion."""
    plan = make_plan(
        flag_key=flag_key,
        guardrails=(make_guardrail(), make_guardrail(metric=f"conversion:{CONVERSION}")),
    )
    return make_rollout(plan=plan, visits=VISITS, rollout_id=f"start-{flag_key}")


def directory() -> FlagsToCount:
    """Return a directory of every flag but the last."""
    found = FlagsToCount()
    for flag_key in FLAGS[:-1]:
        found.count_for(rollout_of(flag_key))
    return found


# --- the history and its naive recount ---

#: Around every edge of the timeline, and well inside both visits.
times = st.sampled_from(
    [
        T0 + edge + timedelta(milliseconds=by)
        for edge in (
            *(timedelta(0), MINUTE, 30 * MINUTE, HOUR, HOUR + MINUTE),
            *(90 * MINUTE, 95 * MINUTE, 2 * HOUR, 3 * HOUR),
        )
        for by in (-1, 0, 1)
    ]
)
flag_variants = st.tuples(
    st.sampled_from(FLAGS[:1] * 3 + FLAGS[1:]), st.sampled_from(["on", "on", "off", "off", "blue"])
)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation before it was written."""

    context: str
    flag_variant: tuple[str, str]
    at: datetime


@dataclass(frozen=True)
class Happened:
    """An outcome before it was written."""

    context: str
    flags: tuple[tuple[str, str], ...]
    at: datetime
    error: bool
    latency_ms: float | None
    conversions: tuple[str, ...]


evaluated = st.builds(Evaluated, st.sampled_from(CONTEXTS), flag_variants, times)
happened = st.builds(
    Happened,
    st.sampled_from(CONTEXTS),
    st.lists(flag_variants, min_size=1, max_size=3, unique=True).map(tuple),
    times,
    st.booleans(),
    st.none() | st.floats(0, 80_000_000, allow_nan=False),
    st.sampled_from([(), (CONVERSION,), (CONVERSION, "other")]),
)
poison = st.just(None)
#: How many offsets before each record hold nothing.
gaps = st.sampled_from([0, 0, 0, 0, 3])


def written(events: list[tuple[int, Evaluated | Happened | None]]) -> list[Record]:
    """Return the events as records, with holes before some of them."""
    records = []
    offset = 0
    for gap, event in events:
        offset += gap
        value = b"{"  # of the ones to be refused
        match event:
            case Evaluated(context, (flag, variant), at):
                value = evaluation_value(context, variant, time_ms=at_ms(at), flag=flag)
            case Happened(context, flags, at, error, latency_ms, conversions):
                value = outcome_value(
                    context,
                    time_ms=at_ms(at),
                    flags=flags,
                    error=error,
                    latency_ms=latency_ms,
                    conversions=conversions,
                )
        records.append(make_record(offset, value, timestamp_ms=at_ms(T0 + 3 * HOUR)))
        offset += 1
    return records


@dataclass
class Recount:
    """Totals by the definitions, one after the other, from the whole history."""

    changing: dict[tuple[str, int, str], SimpleNamespace] = field(default_factory=dict)
    #: Every latency of an arm, of which batches decide how many are tested.
    latencies: dict[tuple[str, int, str], Counter[int]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    classes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("counted", "quarantined", "late", "ignored"), 0)
    )

    @property
    def arms(self) -> dict[tuple[str, int, str], ArmCounts]:
        """Return (flag key, visit, arm) -> totals."""
        return {name: ArmCounts(**vars(arm)) for name, arm in self.changing.items()}

    def arm(self, flag: str, visit: int, variant: str) -> SimpleNamespace:
        """Return an arm's totals by the variant's name, to be changed."""
        nothing = SimpleNamespace(**msgspec.structs.asdict(ArmCounts()))
        return self.changing.setdefault((flag, visit, ARM_NAMES[variant]), nothing)

    def classify(self, touched: list[tuple[str, str, datetime]]) -> list[tuple[str, int, str]]:
        """Put one record into its class and return the (flag, visit, variant) it counts for."""
        known = [
            (flag, variant, at)
            for flag, variant, at in touched
            if flag in FLAGS[:-1] and variant in ("on", "off")
        ]
        located = [(flag, locate(VISITS, at), variant) for flag, variant, at in known]
        counting = [(flag, visit, variant) for flag, visit, variant in located if visit is not None]
        self.classes["counted" if counting else "late" if known else "ignored"] += 1
        return counting


def recount(events: list[Evaluated | Happened | None]) -> Recount:
    """Count a history of one topic, naively.

    At_risk and latency depend on batches and are left at zero.
    """
    result = Recount()
    exposed: dict[tuple[str, int], dict[str, set[str]]] = {}
    failed: dict[tuple[str, int], set[str]] = {}
    paid: dict[tuple[str, int], set[str]] = {}
    for event in events:
        if event is None:
            result.classes["quarantined"] += 1
            continue
        touched = [event.flag_variant] if isinstance(event, Evaluated) else list(event.flags)
        for flag, visit, variant in result.classify(
            [(flag, variant, event.at) for flag, variant in touched]
        ):
            arm = result.arm(flag, visit, variant)
            if isinstance(event, Evaluated):
                arm.evaluations += 1
                seen = exposed.setdefault((flag, visit), {"on": set(), "off": set()})
                if event.context not in seen[variant]:
                    arm.exposures += 1
                    arm.switched += event.context in seen["off" if variant == "on" else "on"]
                    seen[variant].add(event.context)
                continue
            arm.outcomes += 1
            arm.checked += event.context == LOOKED_AT
            if event.latency_ms is not None:
                name = (flag, visit, ARM_NAMES[variant])
                result.latencies[name][bucket_of(event.latency_ms / 1000 * 1000.0)] += 1
            if event.error:
                arm.errors += 1
                if event.context not in failed.setdefault((flag, visit), set()):
                    failed[flag, visit].add(event.context)
                    arm.first_errors += 1
            if CONVERSION in event.conversions and event.context not in paid.setdefault(
                (flag, visit), set()
            ):
                paid[flag, visit].add(event.context)
                arm.converted[CONVERSION] = arm.converted.get(CONVERSION, 0) + 1
    return result


# --- interruptions ---

# : What happens between two batches. "crash": memory is lost. "zombie": another owner takes over,
# and the first one saves late.
between = st.sampled_from(["fold", "fold", "save", "save", "crash", "zombie", "reread"])


def interrupted(
    records: list[Record],
    data: st.DataObject,
    *,
    counts_exposures: bool,
    exact_limit: int,
    readers: tuple[ReadEvaluations, ReadOutcomes] = (read_evaluations, read_outcomes),
) -> dict[str, bytes]:
    """Return the hash after counting `records` in random batches through random interruptions."""
    stored: dict[str, bytes] = {}
    flags = directory()

    def owner() -> Owner:
        return Owner(
            flags,
            counts_exposures=counts_exposures,
            stored=stored,
            exact_limit=exact_limit,
            flags_with_own_fields=data.draw(st.sampled_from([0, 250])),
            readers=readers,
        )

    one = owner()
    end = records[-1].offset + 1 if records else 0
    misfortunes = 20
    while one.totals.position < end or one.expected != one.totals.position:
        step = data.draw(between) if misfortunes else "save"
        misfortunes -= 1
        left = [record for record in records if record.offset >= one.totals.position]
        one.fold(
            left[: data.draw(st.integers(0, max(1, len(left)))) if misfortunes > 0 else len(left)]
        )
        match step:
            case "save":
                assert one.save(stored)
            case "crash":
                one = owner()
            case "zombie":
                zombie, one = one, owner()
                left = [record for record in records if record.offset >= one.totals.position]
                one.fold(left[:1])
                before = dict(stored)
                if one.save(stored) and stored["next"] != before.get("next"):
                    assert not zombie.save(stored)
            case "reread":
                one.fold(records)  # the log gives what was counted already, too
    return stored


def without_batches(arm: ArmCounts) -> ArmCounts:
    """Return the totals that do not depend on where batches were cut, and check the others."""
    assert arm.first_errors <= arm.at_risk <= arm.outcomes
    assert sum(arm.latency.values()) <= arm.outcomes
    assert arm.repeated <= max(
        arm.checked - 1, 0
    )  # what is remembered of copies does not outlive a crash
    return ArmCounts(
        evaluations=arm.evaluations,
        exposures=arm.exposures,
        switched=arm.switched,
        outcomes=arm.outcomes,
        errors=arm.errors,
        first_errors=arm.first_errors,
        converted=arm.converted,
        checked=arm.checked,
    )


def check(events: list[tuple[int, Evaluated | Happened | None]], stored: dict[str, bytes]) -> None:
    """Compare a hash with the naive recount."""
    expected = recount([event for _, event in events])
    arms = arms_in(stored)
    assert {name: without_batches(arm) for name, arm in arms.items()} == expected.arms
    for name, arm in arms.items():
        assert Counter(arm.latency) <= expected.latencies[name]
        assert bool(arm.latency) == bool(expected.latencies[name])
    if not events:
        return
    progress = decode_progress(stored)
    classes = {name: getattr(progress, name) for name in expected.classes}
    assert classes == expected.classes
    assert progress.holes == sum(gap for gap, _ in events)
    assert progress.adds_up(int(stored["next"]))


@given(
    st.lists(st.tuples(gaps, evaluated | poison), max_size=40),
    st.sampled_from([1000, 3]),
    st.data(),
)
def test_evaluations_are_counted_exactly_once(
    events: list[tuple[int, Evaluated | None]], exact_limit: int, data: st.DataObject
) -> None:
    """Through any batches, crashes and repeats, evaluations add up to the naive recount."""
    stored = interrupted(written([*events]), data, counts_exposures=True, exact_limit=exact_limit)
    check([*events], stored)


@given(
    st.lists(st.tuples(gaps, happened | poison), max_size=40), st.sampled_from([1000, 3]), st.data()
)
def test_outcomes_are_counted_exactly_once(
    events: list[tuple[int, Happened | None]], exact_limit: int, data: st.DataObject
) -> None:
    """Through any batches, crashes and repeats, outcomes add up to the naive recount."""
    stored = interrupted(written([*events]), data, counts_exposures=False, exact_limit=exact_limit)
    check([*events], stored)


@given(
    st.lists(st.tuples(gaps, st.lists(evaluated | poison, max_size=6)), max_size=12)
    | st.lists(st.tuples(gaps, st.lists(happened | poison, max_size=6)), max_size=12),
    st.data(),
)
def test_records_of_many_events_are_counted_exactly_once(
    bundles: list[tuple[int, list[Evaluated | Happened | None]]], data: st.DataObject
) -> None:
    """Events add up to the same totals however they are packed.

    And each record falls in one class: its worst event's.
    """
    records, offset = [], 0
    classes = dict.fromkeys(("counted", "quarantined", "late", "ignored"), 0)
    for gap, events in bundles:
        value = b"\n".join(
            record.value or b"" for record in written([(0, event) for event in events])
        )
        records.append(make_record(offset + gap, value, timestamp_ms=at_ms(T0 + 3 * HOUR)))
        offset += gap + 1
        alone = recount(events).classes
        name = next((name for name in ("quarantined", "counted", "late") if alone[name]), "ignored")
        classes[name] += 1
    counts_exposures = any(
        isinstance(event, Evaluated) for _, events in bundles for event in events
    )
    stored = interrupted(
        records, data, counts_exposures=counts_exposures, exact_limit=3, readers=LINES
    )
    expected = recount([event for _, events in bundles for event in events])
    assert {name: without_batches(arm) for name, arm in arms_in(stored).items()} == expected.arms
    if bundles:
        progress = decode_progress(stored)
        assert {name: getattr(progress, name) for name in classes} == classes
        assert progress.adds_up(int(stored["next"]))


@given(times)
def test_intervals_say_what_the_timeline_says(at: datetime) -> None:
    """The precomputed intervals give each event the visit that core.timeline gives it."""
    watched = CountedFlag.of(rollout_of("new-checkout"))
    found = [visit for begin, until, visit in watched.intervals if begin <= at_ms(at) < until]
    assert found == [visit for visit in [locate(VISITS, at)] if visit is not None]
