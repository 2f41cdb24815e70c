"""Computes from a rollout what flag planes have to serve: the same for every plane.

A stage opens a *ring*: a share of an audience, or of all contexts. Rings of earlier stages stay as
they are, and each audience keeps the newest percentage it was given. So widening a rollout takes no
context out of treatment, and stepping back takes out those that came last. Every context falls into
one of `WEIGHT_TOTAL` buckets by its targeting key, the same bucket for every ring. It is in
treatment when the number of its bucket is below the number of buckets of a ring that it belongs to.

Only the ring of the present stage is compared. Contexts outside of this comparison are served under
variant names of their own, because contexts that were not randomized must not be counted:

| served as | value | counts as | which contexts |
|---|---|---|---|
| `treatment`, or one of `split` | its own | treatment | in the stage's audience: lowest buckets |
| `control` | control's | control | in the stage's audience: the rest, or the highest buckets |
| `unassigned` | control's | nothing | in no ring, or between two arms of equal size |
| `<treatment>-earlier` | treatment's | nothing | in treatment by a wider ring of an earlier stage |

A plan without audiences and without control arms of equal size uses the first two lines alone. How
a bucket is computed depends on the plane (flagd's hash: `controller/web/bucketing.py`). Which ring
applies, and what it serves, is decided here, in `assign`.
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
from controller.core.rollout import Rollout
from controller.core.visits import Visit
from schemas.terms import ControlArm

#: Buckets: steps of 0.01 %.
WEIGHT_TOTAL = 10_000
#: End of the variant names for contexts that are in treatment by an earlier ring, and so in no arm.
EARLIER_SUFFIX = "-earlier"


def weight_of(percent: float) -> int:
    """Return how many of the `WEIGHT_TOTAL` buckets are in treatment at `percent`.

    `percent` is in [0, 100], to the nearest 0.01. Raises ValueError outside.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentage lies in [0, 100], not at {percent}")
    return round(percent * (WEIGHT_TOTAL / 100))


class Part(StrEnum):
    """The role of a context in the comparison; `Serving.name` gives the variant for it."""

    TREATMENT = "treatment"
    CONTROL = "control"
    UNASSIGNED = "unassigned"
    EARLIER = "earlier"


@dataclass(frozen=True, slots=True)
class Ring:
    """A share of an audience that gets treatment."""

    audience: Audience | None  # None: all contexts
    percent: float
    is_compared: bool  # it is the ring of the present stage
    control: ControlArm = ControlArm.REST

    @property
    def slices(self) -> tuple[tuple[Part, int], ...]:
        """(part, number of buckets) from the lowest bucket up, `WEIGHT_TOTAL` together.

        Treatment grows at its upper end alone. A control arm of equal size has the highest buckets:
        so it too only grows while treatment does, and is the last to lose contexts to it.
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
    """What every plane must serve for one flag now."""

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
        """Whether it is a plain share of all contexts, which every plane can serve."""
        return self.rings[0].audience is None and self.rings[0].slices[1][0] is Part.CONTROL

    @property
    def is_off(self) -> bool:
        """Whether no context gets treatment."""
        return all(ring.percent == 0 for ring in self.rings)

    @property
    def beyond_share(self) -> str | None:
        """What goes beyond a plain share of all contexts, in words; None for nothing.

        A plane that can only serve such a share cannot serve it.
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

        `lot` is an even 32-bit hash of the targeting key that does not depend on the bucket. It
        selects one of the variants that treatment is divided among.
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
    """Return the name of the variant that a context is served.

    The rules of every plane are tested against this function. `bucket` is the context's bucket in
    [0, `WEIGHT_TOTAL`), `attributes` are its attributes with its id as `targetingKey`; for `lot`
    see `Serving.name`.
    """
    part = chooser(serving)(bucket, attributes)
    return serving.name(part, lot)


def chooser(serving: Serving) -> Callable[[int, Attributes], Part]:
    """Return the function from bucket and attributes to part: `assign` for many calls."""
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

    Before the start and after a roll back that is control for all contexts. It is enforced here
    again: this is the last place where a mistake elsewhere can be kept from users.
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
    """Return the percentage, in [0, 100], for planes that can serve nothing but percentages.

    It is that of the ring of all contexts, and 0 while there is none: otherwise all contexts would
    get what only an audience should.
    """
    if rollout.serves_nothing:
        return 0.0
    if not rollout.plan.audiences:
        return rollout.percent
    return next((ring.percent for ring in serving(rollout).rings if ring.audience is None), 0.0)


def beyond_share_of(plan: Plan) -> str | None:
    """Return in words what of a plan goes beyond a share of all contexts; None for nothing."""
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
    """Return the share of treatment among the contexts that count in a visit, in (0, 1).

    None where there is no control.
    """
    if visit.percent >= 100:
        return None
    if plan.stages[visit.stage].control is ControlArm.REST:
        return visit.percent / 100
    weight = weight_of(visit.percent)
    return weight / (weight + _control_weight(weight, ControlArm.EQUAL))


def share_before(plan: Plan, visits: Sequence[Visit]) -> float | None:
    """Return the share of treatment that planes would still serve from the visit before.

    None in the first visit, where it could also be a treatment that is too broken to report, and
    where the decision left the share as it was.
    """
    if len(visits) < 2:
        return None
    before, present = (decided_share(plan, visit) or 1.0 for visit in visits[-2:])
    return None if before == present else before


def counted_as_treatment(plan: Plan) -> tuple[str, ...]:
    """Return the variants whose contexts are the treatment arm."""
    return tuple(name for name, _ in plan.split) or (plan.treatment,)


def uncounted_variants(plan: Plan) -> tuple[str, ...]:
    """Return the variants that a plan may serve and that are in neither arm; perhaps none."""
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

    The widest is first; of two equals the compared one is. In this order the first ring that a
    context belongs to is the one with the most buckets. A context counts for the present stage only
    if no wider ring has it. Rings after one of all contexts decide nothing and are left out.
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
