"""The state of one rollout's sequential tests between two checks, and its stored bytes.

It is a few hundred numbers: how much of each visit's totals has been used, and the evidence so far
per guardrail. The bytes are stored beside the rollout document.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from controller.core.analysis.change_point import Floats
from controller.core.analysis.latency import Ordered
from controller.core.analysis.proportion import CURVE, NOTHING, SAFE_POINTS, Counts
from controller.core.analysis.sample_ratio import no_evidence
from controller.core.evidence import ArmTotals, Histogram, VisitTotals
from schemas.counters import TESTED_COUNTERS, Shape
from schemas.terms import Arm

VERSION = 1
_HEADER = struct.Struct("<BI")  # version, length of the compressed JSON; float64 numbers follow


@dataclass(frozen=True, slots=True, eq=False)
class RatioTest:
    """One guardrail compared with control."""

    evidence: Floats  # log evidence of harm per alternative, through the whole rollout
    safe: Floats  # log evidence of "not worse" per alternative, of the present visit
    curve: Floats  # log likelihood of the ratio, of the present visit
    released: float = 0.0  # prior mass of a change that has started
    counts: Counts = NOTHING  # of the present visit, as tested
    harmed: int = 0  # bad events in treatment, through the whole rollout
    #: Latency only: the bucket above which control's tail began at the last batch.
    place: int | None = None

    @classmethod
    def fresh(cls, alternatives: int) -> RatioTest:
        """Return the test before its first batch."""
        return cls(np.full(alternatives, -np.inf), np.zeros(SAFE_POINTS), np.zeros(len(CURVE)))

    def in_new_visit(self) -> RatioTest:
        """Return the test at the begin of a visit: harm is kept, safety has to be shown again."""
        return replace(self, safe=np.zeros(SAFE_POINTS), curve=np.zeros(len(CURVE)), counts=NOTHING)


@dataclass(frozen=True, slots=True, eq=False)
class LimitTest:
    """One guardrail against its absolute limit: treatment alone.

    The question of a gate needs no state: totals answer it.
    """

    evidence: Floats  # log evidence of harm per alternative, through the whole rollout
    released: float = 0.0
    harmed: int = 0
    #: By visit: the trials and events that are used so far.
    used: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def fresh(cls, alternatives: int) -> LimitTest:
        """Return the test before its first batch."""
        return cls(np.full(alternatives, -np.inf))


@dataclass(frozen=True, slots=True)
class VisitHarm:
    """The cost of one visit: its greatest totals so far, so that a recount does not shrink it."""

    exposed_contexts: int = 0
    failed_requests: int = 0
    excess_failed_requests: float = 0.0


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
    ratios: Mapping[int, RatioTest] = field(default_factory=dict)  # by index into Plan.guardrails
    limits: Mapping[int, LimitTest] = field(default_factory=dict)
    srm: Floats = field(default_factory=no_evidence)
    harm: Mapping[int, VisitHarm] = field(default_factory=dict)  # by visit


def encode_tests(tests: SequentialTests) -> bytes:
    """Return the state as bytes.

    They are a version, compressed JSON of the integers, then the float64 arrays in JSON's order.
    """
    arrays: list[Floats] = [tests.srm]
    ratios = []
    for index, ratio in tests.ratios.items():
        arrays += [ratio.evidence, ratio.safe, ratio.curve]
        ratios.append(
            [
                index,
                len(ratio.evidence),
                ratio.released,
                list(ratio.counts),
                ratio.harmed,
                ratio.place,
            ]
        )
    limits = []
    for index, limit in tests.limits.items():
        arrays.append(limit.evidence)
        used = [[visit, *counts] for visit, counts in limit.used.items()]
        limits.append([index, len(limit.evidence), limit.released, limit.harmed, used])
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
        "harm": [
            [visit, harm.exposed_contexts, harm.failed_requests, harm.excess_failed_requests]
            for visit, harm in tests.harm.items()
        ],
    }
    packed = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 1)
    return (
        _HEADER.pack(VERSION, len(packed)) + packed + np.concatenate(arrays).astype("<f8").tobytes()
    )


def decode_tests(encoded: bytes) -> SequentialTests:
    """Return the state that `encode_tests` encoded; b"" is the start of a rollout.

    Raises ValueError for anything else, a newer version included.
    """
    if not encoded:
        return SequentialTests()
    try:
        version, length = _HEADER.unpack_from(encoded)
        if version != VERSION:
            raise ValueError(f"tests' state has version {version}, this program reads {VERSION}")
        packed = encoded[_HEADER.size : _HEADER.size + length]
        body: dict[str, Any] = json.loads(zlib.decompress(packed))
        numbers = _Numbers(encoded[_HEADER.size + length :])
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
            ratios={
                index: RatioTest(
                    evidence=numbers.take(alternatives),
                    safe=numbers.take(SAFE_POINTS),
                    curve=numbers.take(len(CURVE)),
                    released=released,
                    counts=Counts(*counts),
                    harmed=harmed,
                    place=place,
                )
                for index, alternatives, released, counts, harmed, place in body["ratios"]
            },
            limits={
                index: LimitTest(
                    evidence=numbers.take(alternatives),
                    released=released,
                    harmed=harmed,
                    used={visit: (trials, events) for visit, trials, events in used},
                )
                for index, alternatives, released, harmed, used in body["limits"]
            },
            srm=srm,
            harm={visit: VisitHarm(*costs) for visit, *costs in body["harm"]},
        )
        numbers.must_be_used_up()
    except (struct.error, zlib.error, KeyError, TypeError) as error:
        raise ValueError(f"tests' state cannot be read: {error}") from error
    return tests


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
    values: dict[str, Any] = {
        counter.name: _unpack_histogram(value) if counter.shape is Shape.BY_BUCKET else value
        for counter, value in zip(TESTED_COUNTERS, packed, strict=True)
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
