"""The state of one rollout's sequential tests between two checks, and its stored bytes.

It is a few hundred numbers: how much of each visit's totals has been used, and the evidence so far
per guardrail. The bytes are stored beside the rollout document.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np

from controller.core.analysis.change_point import LEVELS, START_MASS, Bets, Floats
from controller.core.analysis.counter_marks import CounterMarks, pack_marks, unpack_marks
from controller.core.analysis.latency import Ordered
from controller.core.analysis.proportion import CURVE, NOTHING, SAFE_POINTS, Counts
from controller.core.analysis.sample_ratio import no_evidence
from controller.core.evidence import ArmTotals, Histogram, VisitTotals
from schemas.counters import TESTED_COUNTERS, Shape
from schemas.terms import Arm, HealthGap

VERSION = 2
_GAP_KINDS: Final = frozenset(HealthGap)
#: Its bets were one array, all of it begun by schedule.
_FIRST_VERSION = 1
#: In `LimitTest.used`: what a visit has at the next check is used, and adds no evidence.
NOT_MARKED = (-1, -1)
_HEADER = struct.Struct("<BI")  # version, length of the compressed JSON; float64 numbers follow


@dataclass(frozen=True, slots=True, eq=False)
class RatioTest:
    """One guardrail compared with control."""

    bets: Bets  # on harm, through the whole rollout
    safe: Floats  # log evidence of "not worse" per alternative, of the present visit
    curve: Floats  # log likelihood of the ratio, of the present visit
    counts: Counts = NOTHING  # of the present visit, as tested
    harmed: int = 0  # bad events in treatment, through the whole rollout
    #: Latency only: the bucket above which control's tail began at the last batch.
    place: int | None = None

    @classmethod
    def fresh(cls, alternatives: int) -> RatioTest:
        """Return the test before its first batch."""
        return cls(Bets.fresh(alternatives), np.zeros(SAFE_POINTS), np.zeros(len(CURVE)))

    def in_new_visit(self) -> RatioTest:
        """Return the test at the begin of a visit: harm is kept, safety has to be shown again."""
        return replace(self, safe=np.zeros(SAFE_POINTS), curve=np.zeros(len(CURVE)), counts=NOTHING)


@dataclass(frozen=True, slots=True, eq=False)
class LimitTest:
    """One guardrail against its absolute limit: treatment alone.

    The question of a gate needs no state: totals answer it.
    """

    bets: Bets  # on harm, through the whole rollout
    harmed: int = 0
    #: By visit: the trials and events that are used so far, or `NOT_MARKED`.
    used: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    #: Trials and events since the recent evidence of harm was last nothing.
    recent: tuple[int, int] = (0, 0)

    @classmethod
    def fresh(cls, alternatives: int) -> LimitTest:
        """Return the test before its first batch."""
        return cls(Bets.fresh(alternatives))

    def log_e_value(self, log_weights: Floats) -> float:
        """Return the log of what all bets and the rest are worth."""
        return self.bets.log_e_value(log_weights)


@dataclass(frozen=True, slots=True, eq=False)
class FloorTest:
    """One guardrail against the absolute floor that treatment must stay above."""

    earlier: Floats  # log evidence of a shortfall per alternative, of the visits before
    present: Floats  # log evidence per alternative of the present visit
    begun: float  # mass of the bets that have begun
    visit: int
    later_visits: int = 0  # entered since the test began
    trials: int = 0  # contexts of the present visit that have had the time to convert
    events: int = 0  # conversions counted against them
    #: (seconds since the epoch, contexts exposed by then), of contexts that still have time.
    waiting: tuple[tuple[float, int], ...] = ()
    is_reported: bool = False  # any context has converted, or there is no control to compare with
    #: Contexts and conversions of the visit that are not judged, because the floor was set after
    #: them; None: all until the next check.
    before: tuple[int, int] | None = (0, 0)
    #: Since when events of the visit count again, in seconds since the epoch, after it was closed.
    opened: float | None = None

    @classmethod
    def fresh(cls, alternatives: int, mass: float, visit: int) -> FloorTest:
        """Return the test before anything is judged, with this mass of bets begun."""
        nothing = np.zeros(alternatives)
        return cls(nothing + math.log(mass), nothing, mass, visit)

    def in_new_visit(self, visit: int, mass: float) -> FloorTest:
        """Return the test at the begin of a later visit, where more bets begin."""
        return FloorTest(
            earlier=np.logaddexp(self.earlier + self.present, math.log(mass)),
            present=np.zeros(len(self.present)),
            begun=self.begun + mass,
            visit=visit,
            later_visits=self.later_visits + 1,
        )

    def log_e_value(self, log_weights: Floats) -> float:
        """Return the log of what all bets and the rest are worth."""
        started = np.logaddexp.reduce(self.earlier + self.present + log_weights)
        return float(np.logaddexp(started, math.log(1 - self.begun)))


@dataclass(frozen=True, slots=True)
class VisitHarm:
    """The cost of one visit: its greatest totals so far, so that a recount does not shrink it."""

    exposed_contexts: int = 0
    failed_requests: int = 0
    excess_failed_requests: float = 0.0


@dataclass(frozen=True, slots=True)
class GapTime:
    """How long a kind of gap was found without a break, and how long it has been gone since."""

    lasted: float = 0.0  # seconds
    gone: float = 0.0  # seconds; 0 while it is found


class MetricLook(NamedTuple):
    """One number of an external metric, against its threshold."""

    at: datetime
    is_miss: bool


@dataclass(frozen=True, slots=True, eq=False)
class SequentialTests:
    """The sequential tests' state for one rollout; the default value is the start of each."""

    #: Rollout id and plan version: another rollout's evidence is never carried on.
    identity: str = ""
    visit: int = -1  # the visit that safety is shown for
    batches: int = 0
    closed_at: datetime | None = None  # when the last batch was closed, or the first check
    #: Raw events of the present visit at the last check, and since when it has had that many.
    event_count: int = 0
    last_event_at: datetime | None = None
    #: Per visit, how much of its totals the tests have used.
    used: Mapping[int, VisitTotals] = field(default_factory=dict)
    #: The present visit's latencies in `used`, ready for questions; None: to be made from it.
    latencies: Mapping[Arm, Ordered] | None = None
    ratios: Mapping[int, RatioTest] = field(default_factory=dict)  # by index into Plan.tested
    limits: Mapping[int, LimitTest] = field(default_factory=dict)
    floors: Mapping[int, FloorTest] = field(default_factory=dict)
    srm: Floats = field(default_factory=no_evidence)
    harm: Mapping[int, VisitHarm] = field(default_factory=dict)  # by visit
    #: Each guardrail's part of alpha, by index, once the plan was changed; empty: the plan's split.
    shares: Mapping[int, float] = field(default_factory=dict)
    #: The gaps of the present visit, and when they were last looked for.
    gap_times: Mapping[HealthGap, GapTime] = field(default_factory=dict)
    judged_at: datetime | None = None
    #: The last looks at each external metric in the present visit, by name, oldest first.
    looks: Mapping[str, tuple[MetricLook, ...]] = field(default_factory=dict)
    #: The counters of each external metric that is tested on them, in the present visit, by name.
    #: Their tests are in `ratios` and `limits`, by index into `Plan.tested`.
    counters: Mapping[str, CounterMarks] = field(default_factory=dict)

    @property
    def is_suspicious(self) -> bool:
        """Whether the recent evidence of harm has come to a level that begins a bet."""
        bets = [test.bets for test in self.ratios.values()]
        bets += [test.bets for test in self.limits.values()]
        return any(one.is_suspicious for one in bets)


#: Made again at every look: by time alone, from others, or with equal contents.
_MADE_ANEW: Final = frozenset({"judged_at", "gap_times", "latencies", "harm"})


def differ_in_times_alone(tests: SequentialTests, later: SequentialTests) -> bool:
    """Return whether nothing but time has passed between two states of the same tests.

    Which gaps there are is the same then, and how long they have lasted is not.
    """
    return (
        all(
            _is_same(getattr(tests, one.name), getattr(later, one.name))
            for one in fields(SequentialTests)
            if one.name not in _MADE_ANEW
        )
        and tests.harm == later.harm
        and {kind: gap.gone > 0 for kind, gap in tests.gap_times.items()}
        == {kind: gap.gone > 0 for kind, gap in later.gap_times.items()}
    )


def _is_same(one: object, other: object) -> bool:
    """Return whether nothing has changed: a test that has not is the same object."""
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(other[key] is one[key] for key in one)
    return isinstance(one, str | int | datetime) and one == other


def encode_tests(tests: SequentialTests) -> bytes:
    """Return the state as bytes.

    They are a version, compressed JSON of the integers, then the float64 arrays in JSON's order.
    """
    arrays: list[Floats] = [tests.srm]
    ratios = []
    for index, ratio in tests.ratios.items():
        arrays += [ratio.bets.evidence, ratio.bets.recent, ratio.safe, ratio.curve]
        ratios.append(
            [index, _pack_bets(ratio.bets), list(ratio.counts), ratio.harmed, ratio.place]
        )
    limits = []
    for index, limit in tests.limits.items():
        arrays += [limit.bets.evidence, limit.bets.recent]
        used = [[visit, *counts] for visit, counts in limit.used.items()]
        limits.append([index, _pack_bets(limit.bets), limit.harmed, used, list(limit.recent)])
    floors = []
    for index, floor in tests.floors.items():
        arrays += [floor.earlier, floor.present]
        floors.append([index, len(floor.earlier), *_pack_floor(floor)])
    body = {
        "identity": tests.identity,
        "visit": tests.visit,
        "batches": tests.batches,
        "closed_at": _seconds(tests.closed_at),
        "heard": tests.event_count,
        "heard_at": _seconds(tests.last_event_at),
        "seen": [
            [visit, _pack_arm(totals.treatment), _pack_arm(totals.control)]
            for visit, totals in tests.used.items()
        ],
        "ratios": ratios,
        "limits": limits,
        "floors": floors,
        "harm": [
            [visit, harm.exposed_contexts, harm.failed_requests, harm.excess_failed_requests]
            for visit, harm in tests.harm.items()
        ],
        "shares": list(tests.shares.items()),
        "gaps": [[kind, time.lasted, time.gone] for kind, time in tests.gap_times.items()],
        "judged_at": _seconds(tests.judged_at),
        "looks": [
            [name, [[look.at.timestamp(), look.is_miss] for look in looks]]
            for name, looks in tests.looks.items()
        ],
        "counters": [[name, pack_marks(marks)] for name, marks in tests.counters.items()],
    }
    packed = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 1)
    return (
        _HEADER.pack(VERSION, len(packed)) + packed + np.concatenate(arrays).astype("<f8").tobytes()
    )


def decode_tests(encoded: bytes) -> SequentialTests:
    """Return the state that `encode_tests` encoded; b"" is the start of a rollout.

    The bytes of the first version are read too. Raises ValueError for anything else, a newer
    version included.
    """
    if not encoded:
        return SequentialTests()
    try:
        version, length = _HEADER.unpack_from(encoded)
        if version not in (_FIRST_VERSION, VERSION):
            raise ValueError(f"tests' state has version {version}, this program reads {VERSION}")
        packed = encoded[_HEADER.size : _HEADER.size + length]
        body: dict[str, Any] = json.loads(zlib.decompress(packed))
        numbers = _Numbers(encoded[_HEADER.size + length :])
        if version == _FIRST_VERSION:
            body = _as_version_2(body)
        srm = numbers.take(len(no_evidence()))
        tests = SequentialTests(
            identity=body["identity"],
            visit=body["visit"],
            batches=body["batches"],
            closed_at=_moment(body["closed_at"]),
            event_count=body["heard"],
            last_event_at=_moment(body["heard_at"]),
            used={
                visit: VisitTotals(treatment=_unpack_arm(treatment), control=_unpack_arm(control))
                for visit, treatment, control in body["seen"]
            },
            ratios={index: _unpack_ratio(rest, numbers) for index, *rest in body["ratios"]},
            limits={index: _unpack_limit(rest, numbers) for index, *rest in body["limits"]},
            floors={
                index: _unpack_floor(alternatives, rest, numbers)
                for index, alternatives, *rest in body.get("floors", ())
            },
            srm=srm,
            harm={visit: VisitHarm(*costs) for visit, *costs in body["harm"]},
            shares=dict(body.get("shares", ())),  # earlier releases wrote none
            gap_times=_gap_times(body.get("gaps", ())),
            judged_at=_moment(body.get("judged_at")),
            looks={name: tuple(map(_look, looks)) for name, looks in body.get("looks", ())},
            counters={name: unpack_marks(marks) for name, marks in body.get("counters", ())},
        )
        numbers.must_be_used_up()
    except (struct.error, zlib.error, KeyError, TypeError) as error:
        raise ValueError(f"tests' state cannot be read: {error}") from error
    return tests


def _gap_times(stored: Iterable[list[Any]]) -> Mapping[HealthGap, GapTime]:
    """Return how long gaps have lasted; a later release may know kinds that this one does not."""
    return {HealthGap(kind): GapTime(*seconds) for kind, *seconds in stored if kind in _GAP_KINDS}


def _look(stored: list[Any]) -> MetricLook:
    seconds, is_miss = stored
    return MetricLook(datetime.fromtimestamp(seconds, UTC), is_miss)


class _Numbers:
    """Splits a float64 array into its pieces."""

    def __init__(self, encoded: bytes) -> None:
        self._values = np.frombuffer(encoded, dtype="<f8")
        self._next = 0

    def take(self, count: int) -> Floats:
        end = self._next + count
        if end > len(self._values):
            raise ValueError("tests' state is cut off")
        values: Floats = self._values[self._next : end].astype(np.float64)
        self._next = end
        return values

    def must_be_used_up(self) -> None:
        if self._next != len(self._values):
            raise ValueError("tests' state has numbers left over")


def _pack_bets(bets: Bets) -> list[Any]:
    """Return how many alternatives there are, and what of the bets is not in the arrays."""
    return [len(bets.evidence), bets.scheduled, bets.begun.tolist(), bets.is_armed.tolist()]


def _pack_floor(floor: FloorTest) -> list[Any]:
    counts = [floor.begun, floor.visit, floor.later_visits, floor.trials, floor.events]
    return [*counts, floor.waiting, floor.is_reported, floor.before, floor.opened]


def _unpack_ratio(packed: list[Any], numbers: _Numbers) -> RatioTest:
    bets, counts, harmed, place = packed
    return RatioTest(
        bets=_unpack_bets(bets, numbers),
        safe=numbers.take(SAFE_POINTS),
        curve=numbers.take(len(CURVE)),
        counts=Counts(*counts),
        harmed=harmed,
        place=place,
    )


def _unpack_limit(packed: list[Any], numbers: _Numbers) -> LimitTest:
    bets, harmed, used, recent = packed
    return LimitTest(
        bets=_unpack_bets(bets, numbers),
        harmed=harmed,
        used={visit: (trials, events) for visit, trials, events in used},
        recent=(recent[0], recent[1]),
    )


def _unpack_floor(alternatives: int, packed: list[Any], numbers: _Numbers) -> FloorTest:
    begun, visit, later_visits, trials, events, waiting, is_reported, before, *rest = packed
    return FloorTest(
        earlier=numbers.take(alternatives),
        present=numbers.take(alternatives),
        begun=begun,
        visit=visit,
        later_visits=later_visits,
        trials=trials,
        events=events,
        waiting=tuple((moment, exposed) for moment, exposed in waiting),
        is_reported=is_reported,
        before=None if before is None else (before[0], before[1]),
        opened=rest[0] if rest else None,  # earlier releases wrote none
    )


def _unpack_bets(packed: list[Any], numbers: _Numbers) -> Bets:
    alternatives, scheduled, begun, is_armed = packed
    evidence = numbers.take(alternatives)
    if begun is None:  # of the first version, whose schedule had begun more than ours ever does
        return replace(
            Bets.fresh(alternatives),
            evidence=evidence + math.log(START_MASS / scheduled) if scheduled else evidence,
            scheduled=START_MASS if scheduled else 0.0,
        )
    if len(begun) != len(LEVELS) or len(is_armed) != len(LEVELS):
        raise ValueError(f"tests' state has {len(begun)} levels of suspicion, not {len(LEVELS)}")
    return Bets(
        evidence,
        numbers.take(alternatives),
        scheduled,
        np.array(begun, np.int64),
        np.array(is_armed, np.bool_),
    )


def _as_version_2(body: dict[str, Any]) -> dict[str, Any]:
    """Return the integers of the first version in the order of the present one."""
    return {
        **body,
        "ratios": [
            [index, [alternatives, released, None, None], counts, harmed, place]
            for index, alternatives, released, counts, harmed, place in body["ratios"]
        ],
        "limits": [
            [index, [alternatives, released, None, None], harmed, used, (0, 0)]
            for index, alternatives, released, harmed, used in body["limits"]
        ],
    }


def _pack_arm(arm: ArmTotals) -> list[Any]:
    """Return the counters that the tests use, in the order of their table."""
    packed: list[Any] = []
    for counter in TESTED_COUNTERS:
        value = getattr(arm, counter.name)
        if counter.shape is Shape.BY_BUCKET:
            value = _pack_histogram(value)
        packed.append(dict(value) if counter.shape is Shape.BY_NAME else value)
    return packed


def _unpack_arm(packed: list[Any]) -> ArmTotals:
    """Return the counters of `_pack_arm`; an older release lacks the newest, of which none is used.

    Raises ValueError for more counters than this release has.
    """
    if len(packed) > len(TESTED_COUNTERS):
        raise ValueError(f"tests' state has {len(packed)} counters, not {len(TESTED_COUNTERS)}")
    values: dict[str, Any] = {
        counter.name: _unpack_histogram(value) if counter.shape is Shape.BY_BUCKET else value
        for counter, value in zip(TESTED_COUNTERS, packed, strict=False)
    }
    return ArmTotals(**values)


def _pack_histogram(histogram: Histogram) -> list[int]:
    """Return bucket steps and counts in turn: small numbers, which compress well."""
    steps: list[int] = []
    previous = 0
    for bucket in sorted(histogram):
        steps += (bucket - previous, histogram[bucket])
        previous = bucket
    return steps


def _unpack_histogram(steps: list[int]) -> Histogram:
    histogram: dict[int, int] = {}
    bucket = 0
    for step, count in zip(steps[::2], steps[1::2], strict=True):
        bucket += step
        histogram[bucket] = count
    return histogram


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
