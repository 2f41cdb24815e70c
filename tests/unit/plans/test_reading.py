"""Plans from text: the place of every fault, JSON beside YAML, and the templates."""

import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
            "plan.yaml:6:6: error: stages[1].percent: 1 % does not rise above the 5 % of an "
            "earlier stage; order the stages by rising percent"
        ),
        (
            "plan.yaml:6:28: error: stages[1].bake: is given twice, first on line 6; keep one: "
            "YAML would drop the first"
        ),
        (
            "plan.yaml:6:38: error: stages[1].settle: '3x' is not a duration; write it as in 30s, "
            "24h, 1w 2d or P1DT12H"
        ),
        (
            'plan.yaml:6:50: error: stages[1].approval: "maybe" is not known; write '
            "'not_required' or 'required'"
        ),
        "plan.yaml:8:5: error: guardrails[0]: unknown metric 'error_rte'; did you mean error_rate?",
        "plan.yaml:9:5: error: guardrails[1]: '2%' is not a latency; write it as in 200ms or 1.5s",
        'plan.yaml:10:45: error: freeze_windows[0].to: "6:00" does not fit; write "06:00"',
        (
            "plan.yaml:11:1: error: expires_at: has no offset from UTC; write it as in "
            "2026-11-21T03:00:00Z"
        ),
        "plan.yaml:12:11: error: advisor.deadlin: unknown key; did you mean deadline?",
    ]


MIXED = """name: x
flag: f
owner: ada
stages:
  - {percent: 10, bake: 1h, min_sample: 0}
  - {percent: 5, bake: 2h, max_bake: 1h}
  - {percent: 3x, bake: 1h}
  - {percent: 100, bake: 1h, audience: beta}
guardrails:
  - queue_time < 5s
  - error_rate < control + 10%
  - error_rate < control + 20%
audiences:
  staff: [{attribute: age, gte: 5, lte: many}]
"""


def test_faults_of_form_hide_no_fault_of_substance() -> None:
    """Rules judge what can be read, and say nothing about the parts that cannot."""
    _, findings = lint_text(MIXED)
    assert [(finding.line, finding.path, finding.message) for finding in findings] == [
        (5, ("stages", 0, "min_sample"), "0 samples prove nothing"),
        (6, ("stages", 1, "percent"), "5 % does not rise above the 10 % of an earlier stage"),
        (6, ("stages", 1, "max_bake"), "max_bake (1h) is shorter than bake (2h)"),
        (7, ("stages", 2, "percent"), "'3x' is not a percentage"),
        (8, ("stages", 3, "audience"), "there is no audience 'beta'"),
        (10, ("guardrails", 0), "unknown metric 'queue_time'"),
        (
            12,
            ("guardrails", 2),
            "error_rate is watched by guardrails[1] already, in the same stage",
        ),
        (14, ("audiences", "staff", 0, "lte"), '"many" is not a number'),
    ]


TIMES = """
name: x
flag: f
owner: ada
traffic: 10
ends_at: 2026-01-01T00:00:00Z
stages:
  - {percent: 10, bake: 1x, max_bake: 1m, min_sample: 0}
  - {percent: 5, bake: 1h, settle: 2x, min_sample: 5}
  - {percent: 5, bak: 1h}
  - {percent: 50, bake: 1h, audence: beta}
  - {percent: 60, bake: 2h, max_bake: 1h, colour: red}
guardrails: [error_rate < 1%]
"""


def test_a_fault_in_the_times_of_a_stage_hides_nothing_else() -> None:
    """Neither the rest of its stage, nor rules about all stages; only what compares times waits."""
    _, findings = lint_text(TIMES, datetime(2026, 2, 1, tzinfo=UTC))
    assert [(finding.line, finding.path, finding.message) for finding in findings] == [
        (6, ("ends_at",), "the plan's end has passed"),
        (8, ("stages", 0, "bake"), "'1x' is not a duration"),
        (8, ("stages", 0, "min_sample"), "0 samples prove nothing"),
        (9, ("stages", 1, "percent"), "5 % does not rise above the 10 % of an earlier stage"),
        (9, ("stages", 1, "settle"), "'2x' is not a duration"),
        (10, ("stages", 2, "bake"), "is missing"),
        (10, ("stages", 2, "percent"), "5 % does not rise above the 10 % of an earlier stage"),
        (10, ("stages", 2, "bak"), "unknown key"),
        (11, ("stages", 3, "audence"), "unknown key"),
        (12, ("stages", 4, "max_bake"), "max_bake (1h) is shorter than bake (2h)"),
        (12, ("stages", 4, "colour"), "unknown key"),
    ]


def test_rules_about_all_stages_do_not_wait_for_their_times() -> None:
    """A plan that ends at 50 %, and a guardrail without a stage, whatever the bake is."""
    text = (
        "{name: x, flag: f, owner: ada, stages: [{percent: 50, bake: 1x, settle: 3h}], "
        "guardrails: [error_rate < 1%, {metric: latency_p99, limit: 1s, from_percent: 80}]}"
    )
    _, findings = lint_text(text)
    assert sorted((finding.path, finding.message) for finding in findings) == [
        (("guardrails", 1), "watches no stage at all"),
        (("stages", 0, "bake"), "'1x' is not a duration"),
        (("stages", 0, "percent"), "the rollout completes at 50 %"),
    ]


@pytest.mark.parametrize(
    "fault",
    [
        "stages: []\nguardrails: [error_rate < 1%]\nstagess: 3",
        "stages: 7\nguardrails: [error_rate < 1%]",
        "stages: [7]\nguardrails: [error_rate < 1%]",
        "stages: [{percent: 100, bake: 1h}]\nguardrails: 7",
        "stages: [{percent: 100, bake: 1h}]\ngarudrails: [error_rate < 1%]",
        (
            "stages: [{percent: 100, bake: 1h, audience: a}]\nguardrails: [error_rate < 1%]\n"
            "audiences: {a: 7}"
        ),
        ("stages: [{percent: 100, bake: 1h}]\nguardrails: [error_rate < 1%]\naudiences: {a b: 7}"),
        (
            "stages: [{percent: 100, bake: 1h, audience: a b}]\nguardrails: [error_rate < 1%]\n"
            "audiences: {'a b': [{attribute: x, eq: y}]}"
        ),
        (
            "stages: [{percent: 100, bake: 1h}]\nguardrails: [error_rate < 1%]\n"
            "variants: {treatment: 7}"
        ),
    ],
)
def test_a_fault_of_form_causes_no_other_finding(fault: str) -> None:
    """Nothing is said to be missing because it could not be read."""
    _, findings = lint_text(f"name: x\nflag: f\nowner: ada\n{fault}\n")
    assert findings
    for finding in findings:
        for words in ("no stage", "no guardrail", "no audience", "nobody", "both arms"):
            assert words not in finding.message


@given(data=st.data())
def test_any_fault_of_form_leaves_the_rest_readable(data: st.DataObject) -> None:
    """Whatever stands in the place of a part, every finding is about what the author wrote."""
    plan: dict[str, Any] = json.loads(json.dumps(PLAN))
    key = data.draw(st.sampled_from([*plan, "guardrails", "variants", "health"]))
    plan[key] = data.draw(
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
    )
    _, findings = lint_text(json.dumps(plan))
    assert all("stand-in" not in str(finding) for finding in findings)


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


def test_default_asks_more_at_each_step() -> None:
    """Fewer than 1 % errors at 1 %, 0.5 % from 10 %, no regression from 25 %, p99 below 200 ms."""
    plan = template("default", "f", "purchase")
    asked = {
        stage.percent: {
            one.metric: (one.limit, one.compare.margin if one.compare else None)
            for one in plan.guardrails
            if one.from_percent <= stage.percent <= (one.to_percent or 100)
        }
        for stage in plan.stages
    }
    alone, compared = {"latency_p99": (200, None)}, {"latency_p99": (200, 0.2)}
    assert asked == {
        1: {"error_rate": (0.01, None), **alone},
        10: {"error_rate": (0.005, None), **alone},
        25: {"error_rate": (0.005, 0.1), **compared},
        50: {"error_rate": (0.005, 0.1), **compared, "conversion:purchase": (None, 0.05)},
        100: {"error_rate": (0.005, 0.1), **compared},
    }
    assert not [finding for finding in lint(plan, None) if finding.is_error]


def test_business_metric_is_one_that_the_user_names() -> None:
    """Without its name the default plan has none; other templates have no place for one."""
    assert not [one for one in template("default", "f").guardrails if "conversion" in one.metric]
    for name, conversion in (("canary", "purchase"), ("default", "a name"), ("default", '"}')):
        with pytest.raises(ConfigInvalid, match="conversion"):
            template_text(name, "f", conversion)


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
        ("{attribute: a, gte: 'five'}", "is not a number"),
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


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("from", "9:00", '"9:00" does not fit; write "09:00"'),
        ("from", "9h", '"9h" does not fit; write it as in 06:00'),
        ("dates", "27.11.2026", '"27.11.2026" does not fit; write it as in 2026-11-27, or '),
        ("dates", "2026-02-30", "there is no 2026-02-30; write a date of the calendar"),
        ("dates", "2026-11-30..2026-11-27", "2026-11-27 lies before 2026-11-30; write the earlier"),
    ],
)
def test_a_fault_in_an_active_window_is_told_alone(key: str, value: str, said: str) -> None:
    """What stands in for the window is not judged; the words name the field and its form."""
    broken = {"days": ["mon"], "from": "09:00", "to": "10:00"} | {key: value}
    plan = {**PLAN, "active": [broken], "freeze_windows": [{**FREEZE, "from": "0:00"}]}
    found = _said(plan)
    assert len(found) == 2, found
    assert any(one.startswith(f"active[0].{key}: {said}") for one in found), found
    assert 'freeze_windows[0].from: "0:00" does not fit; write "00:00"' in found


@pytest.mark.parametrize("section", ["active", "freeze_windows"])
def test_every_fault_of_one_window_is_told(section: str) -> None:
    """Of form and of substance, of each field and of the ends together."""
    window = {"days": ["mno"], "from": "24:00", "to": "17:00", "lasts": "90s", "timezone": "Berln"}
    kind = "an active" if section == "active" else "a freeze"
    assert [one.partition(";")[0] for one in sorted(_said({**PLAN, section: [window]}))] == [
        f'{section}[0].days[0]: "mno" is not known',
        f"{section}[0].from: no window begins at 24:00",
        f"{section}[0].lasts: 1m 30s is not in whole minutes",
        f"{section}[0].timezone: unknown time zone 'Berln'",
        f"{section}[0]: {kind} window has `to` or `lasts`, not both",
    ]


FREEZE = {"days": ["mon"], "from": "00:00", "to": "06:00"}


def test_a_fault_in_a_freeze_window_freezes_nothing() -> None:
    """What stands in for it covers the minute in which this plan is active."""
    stage = {"percent": 100, "bake": "30s", "settle": "10s"}
    active = {"days": ["mon"], "to": "00:01"}
    plan = {**PLAN, "stages": [stage], "active": [active]}
    broken = {**plan, "freeze_windows": [{**FREEZE, "from": "0:00"}]}
    sound = {**plan, "freeze_windows": [FREEZE]}
    told = [any("in a freeze window" in one for one in _said(each)) for each in (sound, broken)]
    assert told == [True, False]


def test_a_window_beside_a_broken_one_is_judged_by_itself() -> None:
    """That its own dates never come is true whatever the other window is."""
    never = {"dates": "2026-11-27", "days": ["mon"]}
    said = _said({**PLAN, "active": [{"from": "9:00"}, never]})
    assert any(one.startswith("active[1].dates: it never opens") for one in said)


def _said(plan: dict[str, Any]) -> list[str]:
    """Return what lint says of a plan."""
    return [str(one) for one in lint_text(json.dumps(plan), T0)[1]]


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? "])
def test_what_is_nested_too_deeply_is_refused_where_it_is(opening: str) -> None:
    """At its place, not when the interpreter's stack is full, which takes seconds."""
    _, findings = lint_text("a: " + opening * 20_000 if opening in "[{" else opening * 20_000, T0)
    (finding,) = findings
    assert "nested deeper than 20" in finding.message
    assert (finding.line, finding.column is not None) == (1, True)


@pytest.mark.parametrize(("key", "place"), [("settle", "stages"), ("deadline", "advisor")])
def test_a_key_in_the_wrong_place_says_where_it_belongs(key: str, place: str) -> None:
    """A list of other keys would not help."""
    _, findings = lint_text(json.dumps({**PLAN, key: "5s"}), T0)
    (found,) = [one for one in findings if one.path == (key,)]
    assert (found.message, found.fix) == ("does not belong here", f"write it in `{place}`")
