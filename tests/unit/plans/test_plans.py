"""Reading plans with the place of every fault, and the rules a plan must keep to work."""

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

STAGES = [
    {"percent": 1, "bake": "24h"},
    {"percent": 50, "bake": "24h"},
    {"percent": 100, "bake": "24h"},
]
PLAN: dict[str, Any] = {
    "name": "p",
    "flag": "f",
    "owner": "ada",
    "stages": STAGES,
    "guardrails": ["error_rate < 1%"],
}


def errors_of(**overrides: Any) -> list[str]:
    """Return the errors of a good plan with some fields replaced."""
    document = PlanDocument.model_validate({**PLAN, **overrides})
    return [str(finding) for finding in lint(document, T0) if finding.is_error]


def stage(**overrides: Any) -> dict[str, Any]:
    """Return a list with one stage, for `stages=`."""
    return {"percent": 10, "bake": "24h", **overrides}


def test_good_plan_has_no_findings() -> None:
    """Nothing is said about a plan that is all right."""
    assert lint(PlanDocument.model_validate(PLAN), T0) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"stages": []}, "there is no stage"),
        ({"stages": [stage(), stage()]}, "does not rise"),
        ({"stages": [stage(percent=50), stage(percent=5)]}, "stages[1].percent: 5 % does not rise"),
        ({"stages": [stage(percent=0)]}, "not in (0, 100]"),
        ({"stages": [stage(percent=100.5)]}, "not in (0, 100]"),
        ({"stages": [stage(percent=0.005)]}, "not in steps of 0.01"),
        ({"stages": [stage(percent=12.345)]}, "write 12.3"),
        ({"stages": [stage(min_sample=0)]}, "0 samples prove nothing"),
        ({"stages": [stage(min_sample=-5)]}, "-5 samples"),
        ({"stages": [stage(bake="0s")]}, "no time at all"),
        ({"stages": [stage(bake="1m", settle="1m")]}, "settle (1m) is not shorter than bake (1m)"),
        ({"stages": [stage(max_bake="23h")]}, "max_bake (23h) is shorter than bake (1d)"),
        ({"guardrails": []}, "no guardrail"),
        (
            {"guardrails": [{"metric": "error_rate", "role": "observe", "limit": 0.01}]},
            "no guardrail",
        ),
        ({"guardrails": [{"metric": "error_rate"}]}, "neither limit nor compare"),
        ({"guardrails": [{"metric": "error_rate", "limit": 1}]}, "a limit of 1 means 100 %"),
        ({"guardrails": [{"metric": "latency_p99", "limit": 0}]}, "always exceeded"),
        (
            {"guardrails": [{"metric": "error_rate", "compare": {"margin": 10}}]},
            "a margin of 10 means 1000 %",
        ),
        ({"guardrails": [{"metric": "error_rate", "compare": {"margin": 0}}]}, "a margin of 0"),
        (
            {"guardrails": ["latency_p99 < 1s and < control + 1pp"]},
            "not compared in percentage points",
        ),
        (
            {"guardrails": ["error_rate < 1%", "conversion:buy > control - 1pp"]},
            "not compared in percentage points",
        ),
        (
            {"guardrails": [{"metric": "latency", "limit": 5.0}]},
            "latency as a whole has no absolute limit",
        ),
        (
            {"guardrails": ["error_rate < 1%", "error_rate < control + 10%"]},
            "watched by guardrails[0] already",
        ),
        (
            {"guardrails": ["error_rate < 1%", "error_rate < 1%"]},
            "watched by guardrails[0] already",
        ),
        ({"guardrails": ["error_rate < control + 10%"]}, "no guardrail watches the stage of 100 %"),
        (
            {
                "guardrails": [
                    "latency_p99 < 1s",
                    {"metric": "error_rate", "compare": {"margin": 0.1}, "to_percent": 100},
                ]
            },
            "compares with control at 100 %",
        ),
        (
            {
                "guardrails": [
                    "latency_p99 < 1s",
                    {"metric": "error_rate", "compare": {"margin": 0.1}, "from_percent": 100},
                ]
            },
            "compares with control at 100 %",
        ),
        (
            {
                "guardrails": [
                    "latency_p99 < 1s",
                    {"metric": "error_rate", "limit": 0.1, "from_percent": 60, "to_percent": 70},
                ]
            },
            "watches no stage",
        ),
        (
            {
                "guardrails": [
                    {"metric": "error_rate", "limit": 0.1, "from_percent": 60, "to_percent": 50}
                ]
            },
            "0 <= from <= to",
        ),
        ({"blind": True}, "a blind plan looks at no guardrail"),
        ({"expires_at": "2026-01-05T08:00:00Z"}, "has expired"),
        ({"expires_at": "2026-01-07T08:00:00Z"}, "expires before it can be through"),
        (
            {"start_at": "2027-01-01T00:00:00Z", "expires_at": "2027-01-02T00:00:00Z"},
            "expires before it can be through",
        ),
        (
            {
                "freeze_windows": [
                    {"days": ["fri"], "from": "17:00", "to": "18:00", "timezone": "Mars/Olympus"}
                ]
            },
            "unknown time zone",
        ),
        (
            {
                "freeze_windows": [
                    {"days": ["fri"], "from": "17:00", "to": "18:00", "timezone": "../etc"}
                ]
            },
            "unknown time zone",
        ),
        (
            {
                "freeze_windows": [
                    {"days": ["fri"], "from": "17:00", "to": "18:00", "timezone": "Europe"}
                ]
            },
            "unknown time zone",
        ),
        (
            {"freeze_windows": [{"days": ["mon"], "from": "00:00", "lasts": "1w"}]},
            "freeze the whole week",
        ),
        ({"traffic": 10}, "the gate would never pass"),
        ({"variants": {"treatment": "on", "control": "on"}}, "both arms"),
        ({"advisor": {"deadline": "0s"}}, "no time to answer"),
        ({"fresh_within": "0s"}, "no event can be fresh"),
    ],
)
def test_plan_that_cannot_work_is_refused(overrides: dict[str, Any], said: str) -> None:
    """A plan that cannot work is refused, with what is wrong and how to fix it."""
    errors = errors_of(**overrides)
    assert any(said in error for error in errors), errors
    assert all("; " in error for error in errors)


@pytest.mark.parametrize(
    "overrides",
    [
        {
            "guardrails": [
                {"metric": "error_rate", "limit": 0.01, "to_percent": 1},
                {"metric": "error_rate", "limit": 0.005, "from_percent": 50},
            ]
        },
        {"guardrails": [], "blind": True},
        {"guardrails": ["latency_p99 < 200ms", "error_rate < control + 10%"]},
        {
            "guardrails": [
                "latency_p99 < 200ms",
                "latency < 1.1x control",
                "error_rate < control + 0.5pp",
            ]
        },
        {
            "freeze_windows": [
                {"days": ["fri"], "from": "17:00", "to": "09:00", "timezone": "Europe/Berlin"}
            ]
        },
        {"traffic": 1000},
        {"expires_at": "2026-01-08T09:03:00Z"},
        {"stages": [stage(percent=0.01), stage(percent=33.33), stage(percent=100)]},
    ],
)
def test_plan_that_can_work_is_accepted(overrides: dict[str, Any]) -> None:
    """Tighter limits, blind ramps, comparisons in some stages and 0.01 % steps are valid."""
    assert errors_of(**overrides) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"owner": ""}, "nobody is named"),
        ({"stages": STAGES[:2]}, "completes at 50 %"),
        ({"traffic": 200}, "longer than bake"),
    ],
)
def test_doubtful_plan_is_warned_about(overrides: dict[str, Any], said: str) -> None:
    """What works, but perhaps not as meant, is a warning and not an error."""
    findings = lint(PlanDocument.model_validate({**PLAN, **overrides}), T0)
    assert [said in str(finding) for finding in findings] == [True]
    assert not findings[0].is_error


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


# --- audiences and variants
# -------------------------------------------------------------------------------------------------

BETA = {"beta": [{"attribute": "plan", "in": ["pro"]}]}


def rings(*stages: tuple[float, str | None]) -> list[dict[str, Any]]:
    """Return stages of these percentages and audiences."""
    return [stage(percent=percent, audience=audience) for percent, audience in stages]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"stages": rings((100, "bta"))},
            "stages[0].audience: there is no audience 'bta'; did you mean beta?",
        ),
        (
            {"stages": rings((50, "beta"), (50, "beta"))},
            "stages[1].percent: 50 % of beta does not rise above the 50 %",
        ),
        (
            {"stages": rings((50, "beta"), (10, None), (20, "beta"))},
            "stages[2].percent: 20 % of beta does not rise",
        ),
        (
            {"stages": rings((50, None), (20, "beta"))},
            "20 % of beta reaches nobody: 50 % of everybody have it",
        ),
        (
            {"stages": [stage(percent=51, control="equal")]},
            "stages[0].control: beside 51 % no control arm of equal size",
        ),
        ({"variants": {"treatment": "off"}}, "both arms are 'off'"),
        (
            {"stages": rings((9, "beta")), "variants": {"unassigned": "on"}},
            "two variants are called 'on'",
        ),
        (
            {"stages": rings((9, "beta")), "variants": {"control": "on-earlier"}},
            "two variants are called 'on-earlier'",
        ),
        (
            {"stages": rings((9, "beta")), "variants": {"treatment": "x" * 128}},
            "a variant's name is too long",
        ),
        ({"variants": {"split": [{"name": "a"}, {"name": "b"}]}}, "a, b would all be served true"),
        (
            {"variants": {"split": [{"name": "a"}, {"name": "a"}], "values": {"off": 1, "a": 2}}},
            "two variants are called 'a'",
        ),
        ({"variants": {"values": {"on": 1}}}, "variants.values: there is no value for off"),
        (
            {"variants": {"values": {"on": 1, "off": 2, "of": 3}}},
            "variants.values.of: no such variant is served",
        ),
        ({"variants": {"values": {"on": 1, "off": "1"}}}, "the values are a number and a string"),
        ({"variants": {"values": {"on": True, "off": 0}}}, "the values are a boolean and a number"),
        ({"variants": {"values": {"on": [1], "off": [2]}}}, "a list is no flag's value"),
        ({"variants": {"values": {"on": None, "off": None}}}, "null is no flag's value"),
        (
            {
                "audiences": {
                    "beta": [{"attribute": "age", "gte": 5}, {"attribute": "age", "lte": 4}]
                }
            },
            "nobody belongs to it: age would be at least 5",
        ),
        (
            {
                "audiences": {
                    "beta": [
                        {"attribute": "since", "after": "2026-02-01"},
                        {"attribute": "since", "before": "2026-01-01"},
                    ]
                }
            },
            "since would be after 2026-02-01 and before 2026-01-01",
        ),
        (
            {
                "audiences": {
                    "beta": [{"attribute": "a", "eq": 1}, {"attribute": "a", "in": ["1", True]}]
                }
            },
            "a would be two different values at once",
        ),
    ],
)
def test_faults_of_audiences_and_variants(overrides: dict[str, Any], said: str) -> None:
    """What no plane could serve as it is meant is told before it starts."""
    assert any(said in error for error in errors_of(**{"audiences": BETA, **overrides}))


def test_rings_from_the_inside_out_have_no_findings() -> None:
    """Each audience rises on its own; one that is everybody's percentage already may not follow."""
    stages = rings((100, "beta"), (10, None), (50, None), (100, None))
    guardrails = ["error_rate < 1%"]
    document = PlanDocument.model_validate(
        {**PLAN, "stages": stages, "audiences": BETA, "guardrails": guardrails}
    )
    assert lint(document, T0) == []


def test_audience_that_no_stage_names_is_told() -> None:
    """It is no fault, but perhaps a stage was to name it."""
    findings = lint(PlanDocument.model_validate({**PLAN, "audiences": BETA}), T0)
    assert [str(finding) for finding in findings] == [
        (
            "audiences.beta: no stage names this audience; name it in a stage, as in "
            "`audience: beta`, or remove it"
        )
    ]


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


def test_both_forms_of_an_audience_are_one() -> None:
    """Conditions side by side are one list of conditions that all must hold."""
    condition = {"attribute": "plan", "in": ["pro"]}
    one, other = (
        PlanDocument.model_validate({**PLAN, "audiences": {"b": form}})
        for form in ([condition], [[condition]])
    )
    assert one == other


def test_windows_that_freeze_the_whole_week_together_are_refused() -> None:
    """No zone's windows do so alone: Sunday to Wednesday in one, the rest in another."""
    first = {"days": ["sun"], "from": "00:00", "lasts": "4d", "timezone": "UTC"}
    second = {"days": ["wed"], "from": "12:00", "lasts": "4d 12h", "timezone": "Europe/Berlin"}
    (said,) = errors_of(freeze_windows=[first, second])
    assert "the windows in UTC, Europe/Berlin together freeze whole weeks" in said
    assert not errors_of(freeze_windows=[first, {**second, "lasts": "2d"}])


@pytest.mark.parametrize("lasts", ["6d 23h 59m", "7d"])
def test_one_window_may_not_be_as_long_as_a_week(lasts: str) -> None:
    """A window that begins again when it ends leaves no minute; one minute is enough."""
    errors = errors_of(freeze_windows=[{"days": ["mon"], "from": "00:00", "lasts": lasts}])
    assert ["freeze the whole week" in error for error in errors] == [True] * (lasts == "7d")
