"""Hypothesis strategies around audiences.

Conditions, contexts that are near them, and rollouts that open ring after ring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from controller.core.audience import Audience, Condition
from controller.core.plan import Plan, Stage
from controller.core.rollout import Baking, Rollout
from schemas.terms import ControlArm, Operator
from tests.builders import T0, make_plan, make_rollout, make_stage

ATTRIBUTES = ("country", "plan", "app", "registered", "age", "beta", "targetingKey")
#: Few, so that values meet; some that one language or another takes for equal, empty or a number.
TEXTS = (
    "DE",
    "de",
    "pro",
    "prö",
    "",
    " ",
    "1",
    "1.0",
    "true",
    "null",
    "0",
    "NaN",
    "Infinity",
    "🦊",
    "é",
    "e\u0301",
    "[object Object]",
)
NUMBERS = (0, 1, 1.0, -1, 17, 18, 17.5, 1e15, -0.0)
VERSIONS = (
    "1",
    "1.2",
    "v1.2.3",
    "1.2.3-rc.1",
    "1.2.3-rc.2",
    "1.2.3-1",
    "1.2.3+build.5",
    "2.0.0",
    "10.0.0",
    "01.2.3",
    "1.2.3.4",
    "v",
)
MOMENTS = (
    "2026-03-01",
    "2026-02-28T23:59:59Z",
    "2026-03-01T00:00:00Z",
    "2026-03-01T00:00:00.5Z",
    "2026-03-01T00:00:00+00:00",
    "2026-03-01T12:00:00Z",
    "2026-03-02",
    "1772323200",
    "n/a",
    "Mar 1st",
)
edges = st.sampled_from(["2026-03-01", "2026-03-01T12:00:00Z", "2026-03-01T00:00:00Z"])
ranges = st.builds(
    "{} {}".format,
    st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "^", "~"]),
    st.sampled_from((*VERSIONS[:6], "2.0.0")),
)
scalars = st.sampled_from(TEXTS[:4] + TEXTS[5:]) | st.sampled_from(NUMBERS) | st.booleans()
operands: Mapping[Operator, st.SearchStrategy[tuple[Any, ...]]] = {
    Operator.EQ: st.tuples(scalars),
    Operator.IN: st.lists(scalars, min_size=1, max_size=4).map(tuple),
    Operator.GTE: st.tuples(st.sampled_from(NUMBERS).map(float)),
    Operator.LTE: st.tuples(st.sampled_from(NUMBERS).map(float)),
    Operator.STARTS_WITH: st.lists(
        st.sampled_from(["p", "D", "1", "e", "🦊"]), min_size=1, max_size=2
    ).map(tuple),
    Operator.ENDS_WITH: st.lists(
        st.sampled_from(["ro", "E", "0", "\u0301", "🦊"]), min_size=1, max_size=2
    ).map(tuple),
    Operator.SEM_VER: st.tuples(ranges),
    Operator.BEFORE: st.tuples(edges),
    Operator.AFTER: st.tuples(edges),
}
conditions = st.sampled_from(Operator).flatmap(
    lambda operator: st.builds(
        Condition, st.sampled_from(ATTRIBUTES), st.just(operator), operands[operator]
    )
)
clauses = st.lists(
    st.lists(conditions, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3
).map(tuple)
values = st.one_of(
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.sampled_from(VERSIONS),
    st.sampled_from(MOMENTS),
    st.booleans(),
    st.none(),
    st.sampled_from([[], [1], ["DE"], {}, {"DE": 1}]),
    st.text(max_size=5),
)
# : Half of the contexts belong to the half of the audiences that ask for little: rings that do not
# meet show nothing.
_MEMBER = {"beta": True, "country": "DE"}
_easy = st.sampled_from(
    [
        ((Condition("beta", Operator.EQ, (True,)),),),
        ((Condition("country", Operator.STARTS_WITH, ("D",)),),),
    ]
)
contexts = st.builds(
    lambda base, drawn: base | drawn,
    st.sampled_from([{}, {"beta": True}, _MEMBER, _MEMBER]),
    st.dictionaries(st.sampled_from(ATTRIBUTES[2:-1]), values, max_size=6)
    | st.dictionaries(st.sampled_from(ATTRIBUTES[:-1]), values, max_size=6),
)
splits = st.just(()) | st.lists(st.integers(1, 5), min_size=1, max_size=3).map(
    lambda weights: tuple((f"red-{number}", weight) for number, weight in enumerate(weights))
)


@st.composite
def audiences(draw: st.DrawFn) -> tuple[Audience, ...]:
    """Draw up to three audiences."""
    return tuple(
        Audience(f"ring-{number}", draw(_easy | clauses))
        for number in range(draw(st.integers(0, 3)))
    )


@st.composite
def ringed_plans(draw: st.DrawFn) -> Plan:
    """Draw a plan whose stages open rings, each audience's percentage rising.

    Treatment may be divided.
    """
    known = draw(audiences())
    reached: dict[str | None, float] = {}
    stages: list[Stage] = []
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from([None, *(audience.name for audience in known)]))
        lowest = round(reached.get(name, 0.0) * 100) + 1
        if lowest > 10_000:
            continue
        percent = draw(st.integers(lowest, 10_000) | st.just(10_000)) / 100
        control = draw(st.sampled_from(ControlArm)) if percent <= 50 else ControlArm.REST
        reached[name] = percent
        stages.append(make_stage(percent=percent, audience=name, control=control))
    return make_plan(stages=tuple(stages), audiences=known, split=draw(splits))


def at_stage(plan: Plan, stage: int) -> Rollout:
    """Return the plan's rollout, baking in one of its stages."""
    return make_rollout(plan=plan, phase=Baking(stage, T0))
