"""Plans from text: the place of every fault, JSON beside YAML, and the templates."""

import json
from itertools import pairwise
from typing import Any

import pytest

from controller.errors import ConfigInvalid
from controller.plans import (
    MAX_BYTES,
    lint,
    lint_text,
    load_plan,
    template,
    template_text,
    templates,
)
from schemas.plan import PlanDocument
from tests.builders import T0

PLAN: dict[str, Any] = {
    "name": "p",
    "flag": "f",
    "owner": "ada",
    "stages": [
        {"percent": 1, "bake": "24h"},
        {"percent": 50, "bake": "24h"},
        {"percent": 100, "bake": "24h"},
    ],
    "guardrails": ["error_rate < 1%"],
}

FAULTY = """\
name: x
flag: 12
stagess: []
stages:
  - {percent: 5, bake: 24, min_sample: 100}
  - {percent: 1, bake: 1h, bake: 2h, settle: 3x, approval: maybe}
guardrails:
  - error_rte < 1%
  - {metric: latency_p99, limit: 2%}
freeze_windows: [{days: [fri], from: 22:00, to: 6:00}]
expires_at: 2026-12-31
advisor: {deadlin: 5s}
"""


def test_every_fault_is_told_at_once_with_its_place() -> None:
    """All faults are told together, each with line and column, what is wrong and how to fix it."""
    with pytest.raises(ConfigInvalid) as refusal:
        load_plan(FAULTY, "plan.yaml")
    assert str(refusal.value).splitlines() == [
        "plan.yaml:2:1: error: flag: 12 is read as a number; put it in quotes",
        "plan.yaml:3:1: error: stagess: unknown key; did you mean stages?",
        (
            "plan.yaml:5:18: error: stages[0].bake: a duration needs a unit; write it as in "
            "30s, 24h, 1w 2d or P1DT12H"
        ),
        (
            "plan.yaml:6:28: error: stages[1].bake: is given twice, first on line 6; keep one: "
            "YAML would drop the first"
        ),
        (
            "plan.yaml:6:38: error: stages[1].settle: '3x' is no duration; write it as in 30s, "
            "24h, 1w 2d or P1DT12H"
        ),
        (
            'plan.yaml:6:50: error: stages[1].approval: "maybe" is not known; write '
            "'not_required' or 'required'"
        ),
        "plan.yaml:8:5: error: guardrails[0]: unknown metric 'error_rte'; did you mean error_rate?",
        "plan.yaml:9:5: error: guardrails[1]: '2%' is no latency; write it as in 200ms or 1.5s",
        'plan.yaml:10:45: error: freeze_windows[0].to: "6:00" does not fit; write it as in 18:30',
        (
            "plan.yaml:11:1: error: expires_at: has no offset from UTC; write it as in "
            "2026-11-21T03:00:00Z"
        ),
        "plan.yaml:12:11: error: advisor.deadlin: unknown key; did you mean deadline?",
    ]


def test_rules_are_told_with_their_line() -> None:
    """A broken rule names the line of the key that breaks it."""
    stages = "stages:\n  - percent: 5\n    bake: 1h\n  - percent: 5\n    bake: 1h\n"
    text = f"name: x\nflag: f\nowner: ada\n{stages}guardrails:\n  - error_rate < 1%\n"
    _, findings = lint_text(text)
    assert [(finding.line, finding.column) for finding in findings] == [(7, 5), (7, 5)]
    assert "does not rise" in findings[0].located("p.yaml") + findings[1].located("p.yaml")


def test_yaml_words_are_not_read_as_something_else() -> None:
    """`on`, `off`, `no` and `22:00` are words, as their author meant.

    Not truth values and numbers.
    """
    text = (
        "name: no\nflag: f\nvariants: {treatment: on, control: off}\nstages: [{percent: 1, "
        "bake: 1h}]\n"
    )
    text += (
        "guardrails: [error_rate < 1%]\nfreeze_windows: [{days: [fri], from: 22:00, to: 23:00}]\n"
    )
    plan = load_plan(text, "plan.yaml")
    assert (plan.name, plan.variants.treatment, plan.variants.control) == ("no", "on", "off")
    assert plan.freeze_windows[0].begins == "22:00"


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_is_read_too(indent: Any) -> None:
    """A plan in JSON is the same plan, however it is indented."""
    assert load_plan(json.dumps(PLAN, indent=indent), "plan.json") == PlanDocument.model_validate(
        PLAN
    )


def test_json_faults_have_places_too() -> None:
    """A fault in JSON is reported with line and column: syntax, form or a repeated key."""
    with pytest.raises(ConfigInvalid, match=r"^p.json:2:14: error: plan: not JSON"):
        load_plan('{"name": "x",\n "flag": "f" "x"}', "p.json")
    with pytest.raises(
        ConfigInvalid, match=r"p.json:3:1: error: name: is given twice, first on line 1"
    ):
        load_plan('{"name": "x",\n"flag": "f", "stages": [],\n"name": "y"}', "p.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "just text",
        "- a list",
        "a: b: c",
        "a: [",
        "---\na: 1\n---\nb: 2\n",
        "a: &a [*a]\n",
        "a: &a [1,2]\n"
        + "".join(f"{b}: &{b} [{','.join(8 * [f'*{a}'])}]\n" for a, b in pairwise("abcdefgh")),
        "a: !!python/object/apply:os.getcwd []\n",
        "a: !!binary aGVsbG8=\n",
        "[1]: x\n",
        "\x00",
        "{" * 5000,
        "[" * 5000,
        "a: " + "x" * MAX_BYTES,
        '{"a": NaN}',
    ],
)
def test_what_is_no_plan_is_refused_not_run(text: str) -> None:
    """Text that is no plan, too large, self-referring or tagged is refused by one kind of error."""
    with pytest.raises(ConfigInvalid, match=r"^x\.yaml.*error: "):
        load_plan(text, "x.yaml")


def test_each_template_loads_and_says_what_it_does() -> None:
    """Every template is a plan without errors and tells what it does in one line."""
    assert set(templates()) == {"audiences", "blind", "canary", "default", "percentage", "ring"}
    for name, description in templates().items():
        assert description
        assert "\n" not in description
        plan = template(name, "new-checkout")
        assert plan.flag == "new-checkout"
        assert [finding for finding in lint(plan, T0) if finding.is_error] == []


def test_templates_are_the_journeys_they_are_named_for() -> None:
    """The built-in journeys have the field's steps."""
    percents = {
        name: [stage.percent for stage in template(name, "f").stages] for name in templates()
    }
    assert percents["default"] == [1, 10, 25, 50, 100]
    assert percents["percentage"] == [1, 5, 10, 25, 50, 75, 100]
    assert percents["canary"] == [1, 5, 100]
    assert percents["ring"] == [1, 5, 50, 100]
    stages = template("audiences", "f").stages
    assert [(stage.percent, stage.audience) for stage in stages] == [
        *((100, "staff"), (50, "beta"), (5, None), (50, None), (100, None))
    ]
    assert template("blind", "f").blind


def test_default_limit_tightens() -> None:
    """The default plan asks for less than 1 % errors first and less than 0.5 % later.

    And p99 below 200 ms throughout.
    """
    rate, tighter, latency = template("default", "f").guardrails
    assert (rate.limit, rate.to_percent, tighter.limit, tighter.from_percent) == (
        0.01,
        10,
        0.005,
        25,
    )
    assert (latency.metric, latency.limit) == ("latency_p99", 200)


@pytest.mark.parametrize(
    ("name", "flag"), [("nope", "f"), ("default", "a flag"), ("default", "x\nblind: true")]
)
def test_template_of_unusable_names_is_refused(name: str, flag: str) -> None:
    """An unknown template, or a flag key that is none, is refused."""
    with pytest.raises(ConfigInvalid):
        template(name, flag)


def test_template_text_keeps_its_comments() -> None:
    """The text of a template is a file to begin with: commented, and already about the flag."""
    text = template_text("default", "new-checkout")
    assert text.startswith("# ")
    assert load_plan(text, "default.yaml").flag == "new-checkout"


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            "{attribute: a, eq: 1, in: [2]}",
            "eq and in in one condition; write exactly one of eq, in,",
        ),
        ("{attribute: a}", "no operator in one condition"),
        ("{attribute: a, start_with: x}", "unknown key; did you mean"),
        ("{attribute: a.b, eq: 1}", "does not fit"),
        ("{attribute: a, before: tomorrow}", "'tomorrow' is no moment; write it as in 2026-03-01"),
        ("{attribute: a, before: 2026-02-30}", "is no moment"),
        ("{attribute: a, after: '2026-03-01T12:00:00'}", "is no moment"),
        ("{attribute: a, after: '2026-03-01T12:00:00.5Z'}", "finer than a second"),
        ("{attribute: a, sem_ver: 2.0.0}", "is no version range; write it as in `>= 2.4.0`"),
        ("{attribute: a, in: []}", "at least 1 item"),
        ("{attribute: a, gte: 'five'}", "valid number"),
    ],
)
@pytest.mark.parametrize("form", ["[{}]", "[[{}]]"])
def test_faults_of_conditions_stand_on_their_line(form: str, condition: str, said: str) -> None:
    """Whichever form an audience has, a fault is found where it is written."""
    audience = form.format(f"\n    {condition}")
    text = f"name: p\nflag: f\nstages: []\naudiences:\n  beta: {audience}\n"
    errors = [
        finding for finding in lint_text(text)[1] if finding.path[:2] == ("audiences", "beta")
    ]
    assert [finding.line for finding in errors] == [6], errors
    assert said in str(errors[0])
