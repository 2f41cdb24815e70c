"""Totals that another system counted, judged by the same tests.

The input is what each arm had counted at successive checks ("looks" in the input lines).

The tests' unit is a context that had an outcome since the last check and has not failed before in
its visit. Totals do not name contexts, so contexts are assigned by what totals do tell:

- Contexts that are new since the last check had an outcome. If no user comes back, this is exact.
- Outcomes beyond one per new context came from earlier contexts: as many as outcomes, at most all
  that have not failed. They are assigned to the arms in proportion to those. Without outcomes, all
  of them may have had one.

A context's first error counts once per visit, and chance decided its arm. So the test keeps its
level however often and unevenly users come back. At most one latency per context and visit is used,
evenly from the sorted values, because one user's latencies are alike and totals do not tell which
belong together. That costs speed where users come back often.

Belongs here: the way from such totals to the gate. Does not belong here: lines and what is wrong
with them (`cli/verdict_lines.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import floor
from typing import NamedTuple

from controller.core.analysis import sample_ratio
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.evidence import ArmTotals, Evidence, Histogram, VisitTotals
from controller.core.judging.gate import HarmSignal, check_harm, judge
from controller.core.judging.judgement import Judgement
from controller.core.plan import Guardrail, Plan, Stage
from controller.core.rollout import Baking, Rollout
from controller.core.visits import Visit
from schemas.metric_names import DISTRIBUTION, ERROR_RATE
from schemas.terms import Arm

#: Both are compared with control at the strictest margin, which leaves the engine's own smallest
#: harm. Nothing absolute: a stream names no limits.
_ERRORS = Guardrail(ERROR_RATE.names[0], margin=0.0)
_LATENCY = Guardrail(DISTRIBUTION, margin=0.0)

#: Virtual time between two checks. The tests close a batch that is too small after a minute: here
#: after six checks.
LOOK = timedelta(seconds=10)
_BEGAN = datetime(2000, 1, 1, tzinfo=UTC)  # any moment does

#: The first value that is used in a step of the sorted values moves by this at each check, so that
#: no quantile is left out.
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class ArmSums:
    """One arm's totals since its stage began; None where they are unknown."""

    contexts: int | None = None  # distinct contexts exposed
    contexts_with_error: int | None = None  # of them those that had an error
    outcomes: int | None = None  # requests
    errors: int | None = None
    latency: Histogram | None = None  # in the buckets of `evidence.bucket_of`


@dataclass(frozen=True, slots=True)
class Watched:
    """What a stream's tests watch; fixed at its first check, because alpha is divided over it."""

    units: str | None  # "contexts", "outcomes", None: errors are not known
    has_latency: bool

    @classmethod
    def among(cls, sums: Mapping[Arm, ArmSums]) -> Watched:
        """Return what both arms have."""
        arms = sums.values()
        units = None
        if all(arm.contexts is not None and arm.contexts_with_error is not None for arm in arms):
            units = "contexts"
        elif all(arm.outcomes is not None and arm.errors is not None for arm in arms):
            units = "outcomes"
        return cls(units, all(arm.latency is not None for arm in arms))

    @property
    def guardrails(self) -> tuple[Guardrail, ...]:
        """The guardrails of a plan that watches this."""
        return (*((_ERRORS,) if self.units else ()), *((_LATENCY,) if self.has_latency else ()))


@dataclass(frozen=True, slots=True)
class AssignedTotals:
    """One arm's totals in the present visit, in the tests' units."""

    exposures: int = 0
    at_risk: int = 0
    first_errors: int = 0
    latency: Histogram = field(default_factory=dict)
    #: Nothing was left out so far, so the totals can be used as they are.
    has_all_latency: bool = True
    standing: float = 0.0  # contexts so far that have not failed
    remainder: float = 0.0  # the part of a returning context that is still to be assigned
    spare: int = 0  # contexts without a used latency

    def totals(self) -> ArmTotals:
        """Return what the tests are given."""
        return ArmTotals(
            exposures=self.exposures,
            at_risk=self.at_risk,
            first_errors=self.first_errors,
            latency=self.latency,
        )


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream after some checks."""

    watched: Watched
    rollout: Rollout
    stage: int
    looks: int = 0
    sums: Mapping[Arm, ArmSums] = field(
        default_factory=lambda: dict.fromkeys(Arm, ArmSums())
    )  # as of the last look
    assigned: Mapping[Arm, AssignedTotals] = field(
        default_factory=lambda: dict.fromkeys(Arm, AssignedTotals())
    )
    tests: SequentialTests = field(default_factory=SequentialTests)

    @property
    def has_wrong_share(self) -> bool:
        """Whether the observed share of treatment is surely not the decided one."""
        return sample_ratio.is_mismatch(self.tests.srm, len(self.rollout.visits))


def begin(
    name: str, watched: Watched, stage: int, share: float, alpha: float, looks_planned: int
) -> Stream:
    """Return a stream before its first look.

    `share` is the decided one of treatment, in (0, 1]. `looks_planned` is how many are planned over
    all stages: when trouble may begin is spread over that many; more may come. Raises ValueError
    when nothing is watched.
    """
    if not watched.guardrails:
        raise ValueError(f"stream {name}: neither errors nor latency are known in both arms")
    planned = looks_planned * LOOK
    plan = Plan(
        name="stream",
        version="1",
        flag_key=name,
        treatment="treatment",
        control="control",
        stages=(
            Stage(
                percent=100 * share,
                bake=planned,
                settle=timedelta(0),
                min_sample=1,
                max_bake=planned,
            ),
        ),
        guardrails=watched.guardrails,
        alpha=alpha,
    )
    visit = Visit(stage=0, percent=100 * share, entered_at=_BEGAN, counts_from=_BEGAN)
    rollout = Rollout(
        flag_key=name,
        rollout_id=name,
        revision=1,
        plan=plan,
        phase=Baking(0, _BEGAN + planned),
        percent=100 * share,
        visits=(visit,),
        started_at=_BEGAN,
        updated_at=_BEGAN,
    )
    return Stream(watched, rollout, stage)


def add_totals(
    stream: Stream, stage: int, share: float, sums: Mapping[Arm, ArmSums]
) -> tuple[Stream, tuple[HarmSignal, ...], Judgement | None]:
    """Return the stream after one more look, how near each metric is to a breach.

    And where one is possible the judgement.

    `sums` never fall within a stage. Another `stage` begins a new visit, its totals at zero; so
    does another `share`, from where the totals stand. Lowering the share begins the tests again, as
    it does in the daemon.
    """
    if stage != stream.stage:
        stream = replace(
            _in_new_visit(stream, share),
            stage=stage,
            sums=dict.fromkeys(Arm, ArmSums()),
            assigned=dict.fromkeys(Arm, AssignedTotals()),
        )
    elif 100 * share != stream.rollout.percent:
        standing = sum(arm.standing for arm in stream.assigned.values())
        # Some have changed arms, and totals do not say who: the lot that is drawn now is the best
        # guess.
        assigned = {
            Arm.TREATMENT: AssignedTotals(standing=standing * share, has_all_latency=False),
            Arm.CONTROL: AssignedTotals(standing=standing * (1 - share), has_all_latency=False),
        }
        stream = replace(_in_new_visit(stream, share), assigned=assigned)

    looks = stream.looks + 1
    before = stream.sums
    known = {arm: _filled(before[arm], sums[arm]) for arm in Arm}
    if stream.watched.units == "contexts":
        observed = _assign_contexts(stream.assigned, before, known)
    elif stream.watched.units == "outcomes":
        observed = {
            arm: _Observed(
                _gained(before[arm].outcomes, known[arm].outcomes),
                _gained(before[arm].errors, known[arm].errors),
                0.0,
            )
            for arm in Arm
        }
    else:
        observed = dict.fromkeys(Arm, _Observed(0, 0, 0.0))
    start = _GOLDEN * looks % 1
    assigned = {
        arm: _add_look(stream.assigned[arm], observed[arm], before[arm], known[arm], start)
        for arm in Arm
    }
    totals = VisitTotals(assigned[Arm.TREATMENT].totals(), assigned[Arm.CONTROL].totals())
    at = _BEGAN + looks * LOOK
    evidence = Evidence(at, {stream.rollout.visit_index: totals}, (), 0)
    signals, tests = check_harm(stream.rollout, evidence, stream.tests, at)
    judgement = None
    if any(signal.is_possible for signal in signals):
        judgement, tests = judge(stream.rollout, evidence, tests, at)
    return (
        replace(stream, looks=looks, sums=known, assigned=assigned, tests=tests),
        signals,
        judgement,
    )


def _in_new_visit(stream: Stream, share: float) -> Stream:
    """Return the stream in a visit that begins at its last look."""
    at = _BEGAN + stream.looks * LOOK
    *earlier, left = stream.rollout.visits
    visit = Visit(stage=0, percent=100 * share, entered_at=at, counts_from=at)
    visits = (*earlier, replace(left, left_at=at), visit)
    return replace(stream, rollout=replace(stream.rollout, percent=visit.percent, visits=visits))


def _filled(before: ArmSums, now: ArmSums) -> ArmSums:
    """Return the totals with what is missing now as it was: not known is not fallen."""
    if None not in (now.contexts, now.contexts_with_error, now.outcomes, now.errors, now.latency):
        return now
    return ArmSums(
        contexts=before.contexts if now.contexts is None else now.contexts,
        contexts_with_error=before.contexts_with_error
        if now.contexts_with_error is None
        else now.contexts_with_error,
        outcomes=before.outcomes if now.outcomes is None else now.outcomes,
        errors=before.errors if now.errors is None else now.errors,
        latency=before.latency if now.latency is None else now.latency,
    )


def _gained(before: int | None, now: int | None) -> int:
    return (now or 0) - (before or 0)


class _Observed(NamedTuple):
    """What one check adds to an arm."""

    at_risk: int
    first_errors: int
    remainder: float  # the part of a returning context that is left over


def _assign_contexts(
    assigned: Mapping[Arm, AssignedTotals],
    before: Mapping[Arm, ArmSums],
    now: Mapping[Arm, ArmSums],
) -> dict[Arm, _Observed]:
    """Return the contexts of this look, assigned to both arms as the module's first lines say."""
    new = {arm: _gained(before[arm].contexts, now[arm].contexts) for arm in Arm}
    failed = {
        arm: _gained(before[arm].contexts_with_error, now[arm].contexts_with_error) for arm in Arm
    }
    standing = sum(assigned[arm].standing for arm in Arm)
    returned = standing
    if all(now[arm].outcomes is not None for arm in Arm):
        outcomes = sum(_gained(before[arm].outcomes, now[arm].outcomes) for arm in Arm)
        returned = min(max(outcomes - sum(new.values()), 0), standing)
    observed = _with_returned(assigned, new, failed, returned / standing if standing else 0.0)
    if any(one.first_errors > one.at_risk for one in observed.values()):
        observed = _with_returned(
            assigned, new, failed, 1.0
        )  # more have failed than were thought to be there
    return {
        arm: one._replace(at_risk=max(one.at_risk, one.first_errors))
        for arm, one in observed.items()
    }


def _with_returned(
    assigned: Mapping[Arm, AssignedTotals],
    new: Mapping[Arm, int],
    failed: Mapping[Arm, int],
    part: float,
) -> dict[Arm, _Observed]:
    """Return what there was if `part` of the contexts that have not failed came back."""
    observed = {}
    for arm in Arm:
        returned = assigned[arm].remainder + part * assigned[arm].standing
        observed[arm] = _Observed(
            new[arm] + floor(returned), failed[arm], returned - floor(returned)
        )
    return observed


def _add_look(
    had: AssignedTotals, observed: _Observed, before: ArmSums, now: ArmSums, start: float
) -> AssignedTotals:
    """Return an arm after a look.

    Of its new latencies no more are taken than there are contexts without one.

    `start`, in [0, 1), says where in the first step of the sorted values the first is taken.
    """
    new = _gained(before.contexts, now.contexts)
    latency, has_all, spare = had.latency, had.has_all_latency, had.spare + new
    if now.latency is not None and now.latency is not before.latency:
        was = before.latency or {}
        count = sum(now.latency.values()) - sum(was.values())
        most = count if now.contexts is None else spare
        if count <= most and has_all:
            latency = now.latency
        else:
            gained = {
                bucket: more
                for bucket, values in now.latency.items()
                if (more := values - was.get(bucket, 0))
            }
            latency, has_all, count = (
                _thinned_onto(latency, gained, most, start),
                False,
                min(count, most),
            )
        spare = max(spare - count, 0)
    return AssignedTotals(
        exposures=had.exposures + new,
        at_risk=had.at_risk + observed.at_risk,
        first_errors=had.first_errors + observed.first_errors,
        latency=latency,
        has_all_latency=has_all,
        standing=max(had.standing + new - observed.first_errors, 0.0),
        remainder=observed.remainder,
        spare=spare,
    )


def _thinned_onto(
    latency: Histogram, gained: Mapping[int, int], most: int, start: float
) -> Histogram:
    """Return `latency` with `most` of the gained values.

    Or one more or less, evenly from the sorted ones; all if fewer.
    """
    count = sum(gained.values())
    taken = dict(latency)
    passed = chosen = 0
    for bucket in sorted(gained):
        passed += gained[bucket]
        up_to = min(passed, floor(passed * most / count + start)) if count > most else passed
        if up_to > chosen:
            taken[bucket] = taken.get(bucket, 0) + up_to - chosen
            chosen = up_to
    return taken
