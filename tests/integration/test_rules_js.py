"""Our rules in flagd's evaluator for JavaScript, which hashes as generation 2.

The same variants as the reference gives.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.codec.flagd import definition_of
from controller.codec.plans import to_core_plan
from controller.core.audience import Audience, Condition, Scalar, matcher
from controller.core.serving import assign, serving
from controller.plans import template
from controller.web.bucketing import Generation, bucketer, lot_drawer
from schemas.terms import Operator
from tests import npm_packages
from tests.audiences import MOMENTS, NUMBERS, TEXTS, VERSIONS, at_stage
from tests.builders import make_plan, make_stage

SOURCE = Path(__file__).parents[1] / "flagd_js"
VALUES: tuple[Any, ...] = (
    *TEXTS,
    *NUMBERS,
    *VERSIONS,
    *MOMENTS,
    True,
    False,
    None,
    [],
    [1],
    ["DE"],
    {},
    {"DE": 1},
    "10",
    "-1",
    "0x10",
    "1e3",
)
OPERANDS: dict[Operator, list[tuple[Scalar, ...]]] = {
    Operator.EQ: [("DE",), ("1",), (1,), (0,), (True,), (False,), (17.5,), ("true",)],
    Operator.IN: [("DE", "pro"), (1, "1"), (True, "x", 0)],
    Operator.GTE: [(1.0,), (0.0,), (17.5,)],
    Operator.LTE: [(1.0,), (0.0,)],
    Operator.STARTS_WITH: [("p",), ("1", "🦊")],
    Operator.ENDS_WITH: [("E",), ("0", "\u0301")],
    Operator.SEM_VER: [
        (f"{sign} {version}",)
        for sign in ("=", "!=", "<", ">=", "^", "~")
        for version in ("1", "1.2.3-rc.1")
    ],
    Operator.BEFORE: [("2026-03-01",), ("2026-03-01T12:00:00Z",)],
    Operator.AFTER: [("2026-03-01",), ("2026-03-01T12:00:00Z",)],
}


@pytest.fixture(scope="session")
def evaluator() -> Path:
    """The directory that has the evaluator installed, kept between runs.

    Skips, saying why, where it cannot be had.
    """
    return npm_packages.installed(
        SOURCE, "flagd-js", "rules NOT tried in flagd's evaluator for JavaScript"
    )


def evaluate(
    evaluator: Path, flags: dict[str, Any], cases: list[tuple[str, dict[str, Any]]]
) -> list[str]:
    """Return the variant of each (flag, context)."""
    program = shutil.copy(SOURCE / "evaluate.mjs", evaluator / "evaluate.mjs")
    asked = json.dumps({"document": {"flags": flags}, "cases": cases})
    done = subprocess.run(
        ["node", program],
        cwd=evaluator,
        input=asked,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    variants: list[str] = json.loads(done.stdout)
    return variants


def test_every_operator_means_the_same_there(evaluator: Path) -> None:
    """Each operator on texts, numbers, versions, dates, lists and nothing at all.

    Two thousand answers as ours.
    """
    flags, cases, expected = {}, [], []
    for operator, operands in OPERANDS.items():
        for number, values in enumerate(operands):
            audience = Audience("a", ((Condition("it", operator, values),),))
            plan = make_plan(
                stages=(make_stage(percent=100.0, audience="a"),), audiences=(audience,)
            )
            flag = f"{operator}-{number}"
            flags[flag] = definition_of(at_stage(plan, 0))
            for context in ({}, *({"it": value} for value in VALUES)):
                cases.append((flag, {"targetingKey": "user-1", **context}))
                expected.append("on" if matcher(audience)(context) else "unassigned")
    found = evaluate(evaluator, flags, cases)
    wrong = [
        (case, ours, theirs)
        for case, ours, theirs in zip(cases, expected, found, strict=True)
        if ours != theirs
    ]
    # It will not compare a list or an object with a number: the app gets the default of its code.
    assert [
        one
        for one in wrong
        if not (one[0][0][:3] in ("gte", "lte") and isinstance(one[0][1]["it"], list | dict))
    ] == []
    assert {theirs[:6] for _, _, theirs in wrong} <= {"error:"}


def test_rings_and_divided_treatment_are_dealt_the_same_there(evaluator: Path) -> None:
    """300 users of all kinds, every stage of the audiences template, treatment in two parts."""
    plan = replace(to_core_plan(template("audiences", "rings")), split=(("red", 1), ("blue", 3)))
    bucket, lot = (make("rings", Generation.V2) for make in (bucketer, lot_drawer))
    kinds: list[dict[str, Any]] = [
        {},
        {"email": "ann@example.com"},
        {"beta": True, "app_version": "2.1"},
        {"beta": True, "app_version": "1.9.9"},
        {"email": "bob@example.com", "beta": True, "app_version": "10.0.0"},
    ]
    for stage in range(len(plan.stages)):
        rollout = at_stage(plan, stage)
        contexts = [{"targetingKey": f"user-{n}", **kinds[n % len(kinds)]} for n in range(300)]
        keys = [context["targetingKey"] for context in contexts]
        expected = [
            assign(serving(rollout), bucket(key), context, lot(key))
            for key, context in zip(keys, contexts, strict=True)
        ]
        assert (
            evaluate(
                evaluator, {"rings": definition_of(rollout)}, [("rings", each) for each in contexts]
            )
            == expected
        )
