"""The written form of a plan: shorthand, units and what is refused."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from schemas.command import Command
from schemas.fields import LONGEST, format_duration, parse_duration
from schemas.guardrails import GuardrailDocument, guardrail_from_shorthand
from schemas.plan import PlanDocument
from schemas.state import RolloutState


def plan_with(**overrides: Any) -> PlanDocument:
    """Return the smallest plan document with some fields replaced."""
    fields: dict[str, Any] = {"name": "p", "flag": "f", "stages": [{"percent": 1, "bake": "24h"}]}
    return PlanDocument.model_validate({**fields, **overrides})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86_400),
        ("30s", 30),
        ("1w 2d", 9 * 86_400),
        ("1w2d", 9 * 86_400),
        ("1.5 hours", 5_400),
        ("2 weeks", 14 * 86_400),
        ("250ms", 0.25),
        ("0s", 0),
        ("P1DT12H", 36 * 3_600),
        ("PT0.5S", 0.5),
        ("P2W", 14 * 86_400),
    ],
)
def test_duration_is_read(text: str, seconds: float) -> None:
    """A duration is read in units or as ISO 8601."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        "h",
        "24 x",
        "-1h",
        "1h,2m",
        "P",
        "PT",
        "P1DT",
        "P1M",
        "P1Y",
        "1e3s",
        "99999w",
        "0.0000001s",
        "१h",
    ],
)
def test_duration_without_fixed_meaning_is_refused(text: str) -> None:
    """A duration without a unit, of no fixed length, too long or too fine is refused."""
    with pytest.raises(ValueError):
        parse_duration(text)


def test_duration_is_written_in_whole_units() -> None:
    """A duration is written in whole units, largest first."""
    assert format_duration(timedelta(hours=36, milliseconds=5)) == "1d 12h 5ms"
    assert format_duration(timedelta(0)) == "0s"


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("error_rate < 1%", {"metric": "error_rate", "limit": 0.01}),
        ("error_rate<0.5 %", {"metric": "error_rate", "limit": 0.005}),
        ("error_rate < 0.01", {"metric": "error_rate", "limit": 0.01}),
        ("error_rate < 1", None),
        ("latency_p99 < 200ms", {"metric": "latency_p99", "limit": 200.0}),
        ("latency_p999 < 1.5s", {"metric": "latency_p999", "limit": 1500.0}),
        ("latency_p99 < 200", None),
        ("error_rate < control + 10%", {"metric": "error_rate", "compare": {"margin": 0.1}}),
        (
            "error_rate < 1% and < control + 10%",
            {"metric": "error_rate", "limit": 0.01, "compare": {"margin": 0.1}},
        ),
        (
            "conversion:purchase > control - 5%",
            {"metric": "conversion:purchase", "compare": {"margin": 0.05}},
        ),
        ("conversion:purchase > 2%", {"metric": "conversion:purchase", "limit": 0.02}),
        ("error_rate < 2x control", {"metric": "error_rate", "compare": {"margin": 1.0}}),
        (
            "error_rate < 1.5 x control and < 1%",
            {"metric": "error_rate", "compare": {"margin": 0.5}, "limit": 0.01},
        ),
        ("latency < 1.1x control", {"metric": "latency", "compare": {"margin": 0.1}}),
        (
            "conversion:purchase > 0.9x control",
            {"metric": "conversion:purchase", "compare": {"margin": 0.1}},
        ),
        (
            "error_rate < control + 0.5pp",
            {"metric": "error_rate", "compare": {"margin": 0.005, "in_points": True}},
        ),
        ("error_rate < 0.9x control", None),
        ("error_rate > 1%", None),
        ("error_rate < control - 10%", None),
        ("conversion:purchase < 2%", None),
        ("error_rate < 1% and < 2%", None),
        ("error_rate <= 1%", {"metric": "error_rate", "limit": 0.01}),
        (
            "conversion:purchase >= control - 5%",
            {"metric": "conversion:purchase", "compare": {"margin": 0.05}},
        ),
        ("error_rate =< 1%", None),
        ("error_rate", None),
        ("error_rate < ", None),
        ("error_rate < control", None),
        ("errors < 1%", None),
    ],
)
def test_guardrail_shorthand(line: str, fields: dict[str, Any] | None) -> None:
    """A guardrail in one line means what it says, or is refused."""
    if fields is None:
        with pytest.raises(ValueError):
            guardrail_from_shorthand(line)
    else:
        assert guardrail_from_shorthand(line) == fields
        assert plan_with(guardrails=[line]).guardrails == [GuardrailDocument.model_validate(fields)]


@pytest.mark.parametrize(
    ("line", "rewrite"),
    [
        ("latency_p99 < 300", "300 has no unit: write 300ms"),
        ("error_rate < 1", "1 has no unit: write 1%"),
        ("error_rate < control", "write `error_rate < control + 10%`"),
        ("conversion:bought > control", "write `conversion:bought > control - 10%`"),
        ("conversion:bought ~ 2%", "`conversion:bought > control - 5%`"),
        ("conversion:bought > some", "write it as in `conversion:bought > 2%`"),
        ("latency_p99 < fast", "write it as in `latency_p99 < 200ms`"),
        (
            "conversion:bought < 2%",
            "is better when higher: write it as in `conversion:bought > 2%`",
        ),
        ("p99_latency < 300ms", "did you mean latency_p99?"),
        ("latency.P95 < 300ms", "did you mean latency_p95?"),
        ("error-rate < 1%", "did you mean error_rate?"),
    ],
)
def test_a_refused_guardrail_says_what_to_write(line: str, rewrite: str) -> None:
    """What could mean two things is refused with the text that means one."""
    with pytest.raises(ValueError) as refusal:
        guardrail_from_shorthand(line)
    assert rewrite in str(refusal.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"percent": "5%"}, {"percent": 5}),
        ({"percent": "0.5 %"}, {"percent": 0.5}),
        ({"approval": True}, {"approval": "required"}),
        ({"approval": "Yes"}, {"approval": "required"}),
        ({"approval": False}, {"approval": "not_required"}),
        ({"approval": "no"}, {"approval": "not_required"}),
    ],
)
def test_what_is_unambiguous_is_accepted_in_a_stage(
    written: dict[str, Any], meant: dict[str, Any]
) -> None:
    """A percentage with its sign, and yes and no to an approval, mean one thing each."""
    stage = {"percent": 5, "bake": "1h"}
    plans = [plan_with(stages=[{**stage, **fields}]) for fields in (written, meant)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("day", ["friday", "Friday", "FRI", "fri"])
def test_a_day_is_named_in_full_or_short(day: str) -> None:
    """The name of a weekday means that day, however it is written."""
    window = {"days": [day], "from": "17:00", "to": "18:00"}
    assert plan_with(freeze_windows=[window]).freeze_windows[0].days == ["fri"]


@pytest.mark.parametrize(
    "stage", [{"percent": "5"}, {"percent": "five"}, {"approval": "maybe"}, {"approval": 1}]
)
def test_what_is_ambiguous_is_refused_in_a_stage(stage: dict[str, Any]) -> None:
    """What is not clearly a percentage, yes or no is not guessed at."""
    with pytest.raises(ValidationError):
        plan_with(stages=[{"percent": 5, "bake": "1h", **stage}])


def test_a_metric_of_ones_own_has_a_way() -> None:
    """There are no numeric metrics of one's own; the refusal says what works instead."""
    with pytest.raises(ValidationError, match="Use a metric of your own"):
        GuardrailDocument.model_validate({"metric": "queue_time", "limit": "1%"})


def test_unknown_metric_names_the_near_one() -> None:
    """A mistyped metric is refused with the one that was probably meant."""
    with pytest.raises(ValidationError, match="did you mean error_rate"):
        plan_with(guardrails=[{"metric": "eror_rate", "limit": 0.01}])


def test_limits_and_margins_may_carry_units() -> None:
    """Limits and margins of the long form may be written with their units."""
    plan = plan_with(
        guardrails=[
            {
                "metric": "error_rate",
                "limit": "1%",
                "compare": {"margin": "10%", "gate_margin": "50 %"},
            },
            {"metric": "latency_p99", "limit": "0.2s"},
        ]
    )
    rate, latency = plan.guardrails
    assert rate.limit == 0.01
    assert rate.compare is not None
    assert (rate.compare.margin, rate.compare.gate_margin) == (0.1, 0.5)
    assert latency.limit == 200.0


@pytest.mark.parametrize(
    "overrides",
    [
        {"stagess": []},
        {"name": "has space"},
        {"flag": "a/b"},
        {"stages": [{"percent": "5", "bake": "1h"}]},
        {"stages": [{"percent": True, "bake": "1h"}]},
        {"stages": [{"percent": 5, "bake": 3600}]},
        {"stages": [{"percent": float("nan"), "bake": "1h"}]},
        {"blind": "yes"},
        {"expires_at": 1_800_000_000},
        {"expires_at": "2027-01-01"},
        {"alpha": 0},
        {"health": {"srmm": "pause"}},
        {"freeze_windows": [{"days": ["fri"], "from": "17:00"}]},
        {"freeze_windows": [{"days": ["fri"], "from": "17:00", "to": "18:00", "lasts": "1h"}]},
        {"freeze_windows": [{"days": ["fri"], "from": "24:00", "to": "18:00"}]},
        {"freeze_windows": [{"days": ["fri"], "from": "17:00", "lasts": "90s"}]},
        {"freeze_windows": [{"days": [], "from": "17:00", "to": "18:00"}]},
    ],
)
def test_what_may_have_been_meant_otherwise_is_refused(overrides: dict[str, Any]) -> None:
    """Unknown keys, wrong types and half-told windows are refused, never guessed at."""
    with pytest.raises(ValidationError):
        plan_with(**overrides)


def test_written_plan_reads_back() -> None:
    """A plan written as JSON reads back as the same plan."""
    plan = plan_with(
        guardrails=["error_rate < 1%"],
        freeze_windows=[
            {"days": ["fri"], "from": "17:00", "to": "09:00", "timezone": "Europe/Berlin"}
        ],
        expires_at="2027-01-01T00:00:00+01:00",
    )
    assert PlanDocument.model_validate_json(plan.model_dump_json()) == plan


_BOUNDS: dict[str, tuple[set[str], ...]] = {
    "number": ({"minimum", "enum", "exclusiveMinimum"}, {"maximum", "enum"}),
    "integer": ({"minimum", "enum"}, {"maximum", "enum"}),
    "string": ({"maxLength", "pattern", "enum", "const", "format"},),
    "array": ({"maxItems"},),
}


def unbounded(node: Any, kinds: set[str], at: str = "") -> Iterator[str]:
    """Yield the places of a JSON schema where a value may be of any size."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from unbounded(item, kinds, f"{at}[{index}]")
    elif isinstance(node, dict):
        kind = str(node.get("type"))
        if kind in kinds and not all(bounds & set(node) for bounds in _BOUNDS[kind]):
            yield at
        for key, item in node.items():
            if key not in ("default", "examples"):
                yield from unbounded(item, kinds, f"{at}.{key}")


@pytest.mark.parametrize("model", [PlanDocument, Command])
def test_nothing_in_a_plan_or_a_command_is_of_any_size(model: type[BaseModel]) -> None:
    """Every number has both bounds, every text and list a longest: what is new needs them too."""
    assert not list(unbounded(model.model_json_schema(), set(_BOUNDS)))


def test_no_number_in_a_stored_rollout_is_of_any_size() -> None:
    """A damaged document must not bring a number that arithmetic fails on."""
    assert not list(unbounded(RolloutState.model_json_schema(), {"number", "integer"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"traffic": 9e-7}, "traffic"),
        ({"traffic": 1.1e12}, "traffic"),
        ({"stages": [{"percent": 1, "bake": "1h", "min_sample": 10**9 + 1}]}, "min_sample"),
        ({"advisor": {"hold_rounds": 1001}}, "hold_rounds"),
        ({"advisor": {"hold_for": "30d 1us"}}, "longer than 30d"),
        ({"advisor": {"deadline": "61m"}}, "longer than 1h"),
        ({"fresh_within": "31d"}, "longer than 30d"),
        ({"alpha": 1e-10}, "alpha"),
        ({"beta": 0.51}, "beta"),
        ({"start_at": "1999-12-31T23:59:59Z"}, "1999 is not a year from 2000 to 2199"),
        ({"expires_at": "2200-01-01T00:00:00Z"}, "2200 is not a year from 2000 to 2199"),
        ({"guardrails": [{"metric": "error_rate", "compare": {"margin": 10.1}}]}, "margin"),
        ({"guardrails": ["error_rate < 1" + " " * 200]}, "at most 200 characters"),
        ({"variants": {"values": {"on": "x" * 65_536, "off": ""}}}, "more than 64 KiB"),
        ({"variants": {"values": {"on": 2**53 + 1, "off": 0}}}, "beyond 2.53"),
        ({"variants": {"values": {"on": {"a": "\ud800"}, "off": {}}}}, "surrogates not allowed"),
    ],
)
def test_what_is_beyond_a_bound_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    """The message says which value, and where it ends."""
    with pytest.raises(ValidationError, match=said):
        plan_with(**change)


def test_the_longest_bake_has_a_default_within_its_bound() -> None:
    """Three times a bake of four years is more than ten, which no reader takes."""
    stages = [{"percent": 1, "bake": bake} for bake in ("1h", "1217d", "3650d")]
    longest = [stage.longest_bake for stage in plan_with(stages=stages).stages]
    assert longest == [timedelta(hours=3), LONGEST, LONGEST]
