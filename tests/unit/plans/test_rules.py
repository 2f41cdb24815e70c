"""The rules that a plan must keep to work."""

import re
from importlib import resources
from pathlib import Path
from typing import Any
from zoneinfo import reset_tzpath

import pytest

from controller.plans import (
    advice_beyond_max_bake,
    lint,
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


def test_a_long_settle_works_and_is_asked_about() -> None:
    """The bake begins when settle ends, so that both have all their time."""
    plan = {**PLAN, "stages": [stage(percent=100, bake="1m", settle="2m")]}
    (found,) = [one for one in lint(PlanDocument.model_validate(plan), T0) if "settle" in str(one)]
    assert not found.is_error
    assert "settle (2m) is not shorter than the bake (1m) that follows it" in str(found)
    assert "of the 3m that the stage takes at least, only the bake gathers evidence" in str(found)


def test_a_bake_that_is_short_for_the_default_of_settle_says_what_to_add() -> None:
    """Nobody wrote the minute that it is told of."""
    plan = {**PLAN, "stages": [stage(percent=100, bake="20s")]}
    (found,) = [one for one in lint(PlanDocument.model_validate(plan), T0) if "settle" in str(one)]
    assert "add `settle: 5s` to this stage" in str(found)
    assert str(found).endswith("1m is the default")


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
                "stages": [stage(bake="30m"), stage(percent=100)],
                "guardrails": ["conversion:buy > 2%"],
            },
            "nothing can roll back the stage of 10 %: its first contexts have until 30m to convert",
        ),
        (
            {"guardrails": [{"metric": "error_rate", "limit": "1%", "within": "1h"}]},
            "error_rate has no time to convert",
        ),
        (
            {
                "guardrails": [
                    "error_rate < 1%",
                    {"metric": "conversion:buy", "compare": {"margin": 0.05}, "within": "1h"},
                ]
            },
            "only a `limit` needs the time",
        ),
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
        ({"ends_at": "2026-01-05T08:00:00Z"}, "end has passed"),
        (
            {"start_at": "2027-01-02T00:00:00Z", "ends_at": "2027-01-01T00:00:00Z"},
            "ends before it starts",
        ),
        ({"stages": [stage(percent=1, name="a"), stage(percent=100, name="a")]}, "is called a"),
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


@pytest.mark.parametrize("section", ["freeze_windows", "active"])
@pytest.mark.parametrize("name", ["localtime", "right/Europe/Berlin"])
def test_a_time_zone_of_one_machine_is_refused(tmp_path: Path, name: str, section: str) -> None:
    """Another replica, in a slim image, could not read the rollout, nor roll it back."""
    berlin = resources.files("tzdata").joinpath("zoneinfo/Europe/Berlin").read_bytes()
    here = tmp_path / name
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_bytes(berlin)
    reset_tzpath([tmp_path])
    try:
        window = {"days": ["fri"], "from": "08:00", "to": "18:00", "timezone": name}
        errors = errors_of(**{section: [window]})
        assert any("not the same on every machine" in error for error in errors), errors
        assert not errors_of(**{section: [{**window, "timezone": "Europe/Berlin"}]})
    finally:
        reset_tzpath()


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
        {"guardrails": ["conversion:buy > 2%"]},
        {"guardrails": [{"metric": "conversion:buy", "limit": "2%", "within": "23h"}]},
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
        ({"owner": "\u200b"}, "nobody is named"),
        ({"stages": STAGES[:2]}, "completes at 50 %"),
        ({"traffic": 200}, "longer than bake"),
    ],
)
def test_doubtful_plan_is_warned_about(overrides: dict[str, Any], said: str) -> None:
    """What works, but perhaps not as meant, is a warning and not an error."""
    findings = lint(PlanDocument.model_validate({**PLAN, **overrides}), T0)
    assert [said in str(finding) for finding in findings] == [True]
    assert not findings[0].is_error


@pytest.mark.parametrize("metric", ["latency_p99", "conversion:buy"])
def test_who_writes_percentage_points_is_shown_spellings_that_work(metric: str) -> None:
    """Each spelling in the message is accepted as it stands."""
    sign = "> control -" if metric.startswith("conversion") else "< control +"
    plan = {**PLAN, "guardrails": ["error_rate < 1%", f"{metric} {sign} 1pp"]}
    (finding,) = lint(PlanDocument.model_validate(plan))
    spellings = re.findall(r"`([^`]+)`", finding.fix)
    assert spellings
    for spelling in spellings:
        document = PlanDocument.model_validate(
            {**PLAN, "guardrails": ["error_rate < 1%", spelling]}
        )
        assert not any(found.is_error for found in lint(document)), spelling


# --- audiences and variants ---

BETA = {"beta": [{"attribute": "plan", "in": ["pro"]}]}


def test_time_that_advice_adds_to_max_bake_is_told() -> None:
    """A limit in the plan that a model makes longer is named with what it adds."""
    plan = {**PLAN, "stages": [stage(percent=100, bake="1m", settle="1s", max_bake="2m")]}
    assert not lint(PlanDocument.model_validate(plan)), "nobody speaks of a model"
    asks = {**plan, "advisor": {"mode": "can_hold"}}
    (finding,) = lint(PlanDocument.model_validate(asks))
    (by_settings,) = advice_beyond_max_bake(PlanDocument.model_validate(plan))
    assert by_settings == finding
    assert finding.path == ("stages", 0, "max_bake")
    assert "may stay open for 30m 30s longer than max_bake" in finding.message
    assert "without a model max_bake is kept" in finding.fix
    assert not lint(PlanDocument.model_validate({**plan, "advisor": {"mode": "off"}}))


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
