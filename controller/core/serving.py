"""What flag planes have to serve, as a pure function of the rollout: the same for every plane.

A stage opens a *ring*: a share of an audience, or of everybody. Rings of earlier stages stay as
they are, each audience at the newest percentage it was given, so widening a rollout never takes
anybody out, and stepping back takes out who came last. Every context falls into one of
`WEIGHT_TOTAL` buckets by its targeting key, the same bucket for every ring, and is in treatment
when a ring that it belongs to has more buckets than that.

Only the ring of the present stage is compared. All other contexts are served under another name, so
that contexts that were not randomized are never counted in an arm:

| served as | value | counts as | contexts |
|---|---|---|---|
| `treatment`, or a `split` variant | its own | treatment | the audience's lowest buckets |
| `control` | control's | control | the rest of the audience, or its highest buckets |
| `unassigned` | control's | nothing | in no ring, or between two arms of equal size |
| `<treatment>-earlier` | treatment's | nothing | in treatment by a wider ring of an earlier stage |

A plan without audiences and equal-size arms knows the first and the third line alone. How a bucket
is found is the plane's business (flagd's hash: `controller/web/bucketing.py`), which ring applies
and what it serves is said here, in `assign`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any

from controller.core.audience import Attributes, Audience, matcher
from controller.core.plan import Plan, Stage
from controller.core.rollout import Rollout, Visit
from schemas.terms import ControlArm

#: Buckets: steps of 0.01 %.
WEIGHT_TOTAL = 10_000
# : What the name of a variant ends with for contexts that are in treatment by an earlier ring, and
# so in no arm.
EARLIER_SUFFIX = "-earlier"


def weight_of(percent: float) -> int:
    """Return how many of the `WEIGHT_TOTAL` buckets are in treatment at `percent`.

    `percent` is in [0, 100]; the result is exact to the nearest 0.01 %.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentage lies in [0, 100], not at {percent}")
    return round(percent * (WEIGHT_TOTAL / 100))


class Part(StrEnum):
    """What a context is to the comparison; which variant that is, `Serving.name` says."""

    TREATMENT = "treatment"
    CONTROL = "control"
    UNASSIGNED = "unassigned"
    EARLIER = "earlier"


@dataclass(frozen=True, slots=True)
class Ring:
    """A share of an audience that gets treatment."""

    audience: Audience | None  # None: everybody
    percent: float
    is_compared: bool  # the present stage's
    control: ControlArm = ControlArm.REST

    @property
    def slices(self) -> tuple[tuple[Part, int], ...]:
        """(part, buckets) from the lowest bucket up, `WEIGHT_TOTAL` together.

        Treatment only ever grows at its upper end.

        An arm of equal size has the highest buckets, so that it too only grows as treatment does,
        and is the last to lose contexts to it.
        """
        weight = weight_of(self.percent)
        if not self.is_compared:
            return (Part.EARLIER, weight), (Part.UNASSIGNED, WEIGHT_TOTAL - weight)
        compared = _control_weight(weight, self.control)
        between = WEIGHT_TOTAL - weight - compared
        return (
            (Part.TREATMENT, weight),
            *(((Part.UNASSIGNED, between),) if between else ()),
            (Part.CONTROL, compared),
        )


@dataclass(frozen=True, slots=True)
class Serving:
    """What a plane serves for one flag now."""

    treatment: str  # variant names
    control: str
    unassigned: str
    split: tuple[
        tuple[str, int], ...
    ]  # (variant, weight) of what treatment is divided among; empty: not divided
    rings: tuple[
        Ring, ...
    ]  # by falling percentage: the first whose audience a context belongs to decides; at least one
    values: Mapping[
        str, Any
    ]  # JSON by the name of every variant that may be served, all of one type

    @property
    def is_plain(self) -> bool:
        """True when it is a share of everybody, treatment or control.

        All that a plane without audiences can do.
        """
        return self.rings[0].audience is None and self.rings[0].slices[1][0] is Part.CONTROL

    @property
    def is_off(self) -> bool:
        """True when nobody gets treatment."""
        return all(ring.percent == 0 for ring in self.rings)

    @property
    def beyond_share(self) -> str | None:
        """What a plane cannot serve that knows nothing but a share of everybody, in words.

        None when that is all there is.
        """
        if self.is_off:
            return None
        has_gap = any(
            ring.is_compared and any(part is Part.UNASSIGNED for part, _ in ring.slices)
            for ring in self.rings
        )
        more = (
            ("an audience", any(ring.audience is not None for ring in self.rings)),
            ("a control arm of equal size", has_gap),
            ("treatment divided among variants", bool(self.split)),
        )
        return ", ".join(words for words, is_there in more if is_there) or None

    def name(self, part: Part, lot: int = 0) -> str:
        """Return the variant that is served to a context of this part.

        `lot`, an even 32-bit hash of the targeting key that does not depend on the bucket, draws
        one of the variants that treatment is divided among.
        """
        if part is Part.CONTROL:
            return self.control
        if part is Part.UNASSIGNED:
            return self.unassigned
        drawn = self._drawn(lot) if self.split else self.treatment
        return drawn if part is Part.TREATMENT else drawn + EARLIER_SUFFIX

    def _drawn(self, lot: int) -> str:
        at = lot * sum(weight for _, weight in self.split) >> 32
        for variant, weight in self.split:
            at -= weight
            if at < 0:
                return variant
        raise ValueError(f"{lot} is no 32-bit hash")


def assign(serving: Serving, bucket: int, attributes: Attributes, lot: int = 0) -> str:
    """Return the name of the variant a context is served.

    The reference that every plane's rules are tested against.

    `bucket` is its bucket in [0, `WEIGHT_TOTAL`), `attributes` what is known of it, its id as
    `targetingKey` among it; `lot` see `Serving.name`.
    """
    part = chooser(serving)(bucket, attributes)
    return serving.name(part, lot)


def chooser(serving: Serving) -> Callable[[int, Attributes], Part]:
    """Return the function from bucket and attributes to part: `assign` for who asks often."""
    rings = [
        (
            None if ring.audience is None else matcher(ring.audience),
            tuple(accumulate(weight for _, weight in ring.slices)),
            tuple(part for part, _ in ring.slices),
        )
        for ring in serving.rings
    ]

    def choose(bucket: int, attributes: Attributes) -> Part:
        for matches, ends, parts in rings:
            if matches is None or matches(attributes):
                return parts[bisect_right(ends, bucket)]
        return Part.UNASSIGNED

    return choose


def serving(rollout: Rollout) -> Serving:
    """Return what every plane must serve for `rollout`.

    Before the start and after a rollback that is control for everybody. This is stated here once
    more, since it is the last place where a mistake anywhere else can be kept from the users.
    """
    plan = rollout.plan
    rings: tuple[Ring, ...] = (Ring(None, 0.0, is_compared=True),)
    if not rollout.serves_nothing:
        rings = _rings(plan, rollout.visits[-1].stage if rollout.visits else 0, rollout.percent)
    return Serving(
        treatment=plan.treatment,
        control=plan.control,
        unassigned=plan.unassigned,
        split=plan.split,
        rings=rings,
        values=variant_values(plan),
    )


def percent_to_serve(rollout: Rollout) -> float:
    """Return the percentage, in [0, 100].

    That a plane must serve which knows nothing but percentages.

    It is that of the ring of everybody, 0 while there is none: what an audience is given would
    otherwise reach all.
    """
    if rollout.serves_nothing:
        return 0.0
    if not rollout.plan.audiences:
        return rollout.percent
    return next((ring.percent for ring in serving(rollout).rings if ring.audience is None), 0.0)


def beyond_share_of(plan: Plan) -> str | None:
    """Return in words what a plane of percentages cannot serve of a plan, None for nothing."""
    more = (
        ("audiences", any(stage.audience is not None for stage in plan.stages)),
        (
            "control arms of equal size",
            any(stage.control is ControlArm.EQUAL for stage in plan.stages),
        ),
        ("treatment divided among variants", bool(plan.split)),
    )
    return ", ".join(words for words, is_there in more if is_there) or None


def decided_share(plan: Plan, visit: Visit) -> float | None:
    """Return the share of treatment among the contexts that count in a stay, in (0, 1).

    None where there is no control.
    """
    if visit.percent >= 100:
        return None
    if plan.stages[visit.stage].control is ControlArm.REST:
        return visit.percent / 100
    weight = weight_of(visit.percent)
    return weight / (weight + _control_weight(weight, ControlArm.EQUAL))


def share_before(plan: Plan, visits: Sequence[Visit]) -> float | None:
    """Return the share of treatment that planes would show if they still served the previous visit.

    None where that says nothing: in the first visit, where it cannot be told from a treatment too
    broken to report, and where the decision left the share as it was.
    """
    if len(visits) < 2:
        return None
    before, present = (decided_share(plan, visit) or 1.0 for visit in visits[-2:])
    return None if before == present else before


def counted_as_treatment(plan: Plan) -> tuple[str, ...]:
    """Return the variants whose contexts are the treatment arm."""
    return tuple(name for name, _ in plan.split) or (plan.treatment,)


def uncounted_variants(plan: Plan) -> tuple[str, ...]:
    """Return the variants that a plan may serve and that are in neither arm.

    None for a plan without need of them.
    """
    if all(stage.audience is None and stage.control is ControlArm.REST for stage in plan.stages):
        return ()
    return plan.unassigned, *(name + EARLIER_SUFFIX for name in counted_as_treatment(plan))


def variant_values(plan: Plan) -> dict[str, Any]:
    """Return the value of every variant that the plan may serve, by name."""
    control = plan.values.get(plan.control, False)
    values = {
        plan.control: control,
        **{name: plan.values.get(name, True) for name in counted_as_treatment(plan)},
    }
    for name in uncounted_variants(plan):
        values[name] = (
            control if name == plan.unassigned else values[name.removesuffix(EARLIER_SUFFIX)]
        )
    return values


def _control_weight(weight: int, control: ControlArm) -> int:
    rest = WEIGHT_TOTAL - weight
    return min(weight, rest) if control is ControlArm.EQUAL else rest


def _rings(plan: Plan, present: int, percent: float) -> tuple[Ring, ...]:
    """Return the rings of the stages up to the present one, which serves `percent`.

    Widest first, of equals the compared one.

    Sorted so, the first ring that a context belongs to is the one with the most buckets, and it
    counts for the present stage exactly when no wider ring has it already. Behind a ring of
    everybody nothing is left to decide.
    """
    if not plan.audiences:
        return (Ring(None, percent, is_compared=True, control=plan.stages[present].control),)
    newest: dict[str | None, Stage] = {}
    for stage in plan.stages[: present + 1]:
        newest[stage.audience] = stage
    compared = plan.stages[present]
    rings = [
        Ring(plan.audience(compared.audience), percent, is_compared=True, control=compared.control)
    ]
    rings += [
        Ring(plan.audience(name), stage.percent, is_compared=False)
        for name, stage in newest.items()
        if stage is not compared
    ]
    rings.sort(key=lambda ring: (-ring.percent, not ring.is_compared))
    kept: list[Ring] = []
    for ring in rings:
        kept.append(ring)
        if ring.audience is None:
            break
    return tuple(kept)
