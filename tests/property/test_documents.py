"""Documents and parsers against whole domains.

Exact round trips, and arbitrary bytes that never get further than a refusal.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.codec.command_records import read_command
from controller.codec.commands import to_command_received
from controller.codec.plans import from_core_plan, plan_version, to_core_plan
from controller.codec.rollouts import read_state, rollout_from_json, rollout_to_json, state_event
from controller.core.judging.judgement import Advice
from controller.core.plan import AdvisorPolicy, Guardrail, Plan, Stage, Window
from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.core.visits import Closing, Visit
from controller.errors import CommandRefused, CommandUnreadable, ConfigInvalid, DocumentUnreadable
from controller.plans import lint, load_plan
from schemas.advice import AdviceAnswer, parse_form
from schemas.fields import LONGEST, format_duration, parse_duration
from schemas.guardrails import LARGEST_LIMIT
from schemas.metric_names import METRICS
from schemas.plan import PlanDocument
from schemas.terms import (
    AdviceChoice,
    AdvisorMode,
    Approval,
    FlagType,
    GapPolicy,
    HealthGap,
    HoldReason,
    MetricRole,
    OnBreach,
)
from tests.audiences import ringed_plans

pytestmark = pytest.mark.property

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
lines = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), max_size=50)
utc = st.just(UTC)
moments = st.datetimes(datetime(1970, 1, 2), datetime(2900, 1, 1), timezones=utc)  # noqa: DTZ001
dates = st.datetimes(datetime(2000, 1, 1), datetime(2199, 12, 31), timezones=utc)  # noqa: DTZ001
durations = st.timedeltas(timedelta(0), LONGEST)
finite = st.floats(allow_nan=False, allow_infinity=False)
at_most_ten = st.floats(max_value=10, allow_nan=False, allow_infinity=False)
shares = st.floats(0, 100)
maybe_moments = st.none() | moments

stages = st.builds(
    Stage,
    percent=shares,
    bake=durations,
    settle=durations,
    min_sample=st.integers(0, 10**9),
    max_bake=durations,
    approval=st.sampled_from(Approval),
    given_name=st.just("") | names,
)


@st.composite
def guardrails(draw: st.DrawFn) -> Guardrail:
    """Draw a guardrail; a gate's margin exists only beside a margin, as in the document."""
    margin = draw(st.none() | at_most_ten)
    return Guardrail(
        metric=draw(st.sampled_from(METRICS) | names.map("conversion:{}".format)),
        role=draw(st.sampled_from(MetricRole)),
        limit=draw(st.none() | finite.filter(lambda limit: limit <= LARGEST_LIMIT)),
        margin=margin,
        gate_margin=None if margin is None else draw(st.none() | at_most_ten),
        on_breach=draw(st.sampled_from(OnBreach)),
        from_percent=draw(shares),
        to_percent=draw(shares),
    )


plain_plans = st.builds(
    Plan,
    name=names,
    version=st.text("0123456789abcdef", min_size=16, max_size=16),
    flag_key=names,
    treatment=names,
    control=names,
    stages=st.lists(stages, max_size=4).map(tuple),
    guardrails=st.lists(guardrails(), max_size=3).map(tuple),
    advisor=st.builds(
        AdvisorPolicy,
        mode=st.sampled_from(AdvisorMode),
        deadline=st.timedeltas(timedelta(0), timedelta(hours=1)),
        hold_rounds=st.integers(0, 1000),
        hold_for=st.timedeltas(timedelta(0), timedelta(days=30)),
    ),
    freeze_windows=st.lists(
        st.builds(
            Window,
            weekdays=st.frozensets(st.integers(1, 7), min_size=1),
            start_minute=st.integers(0, 1439),
            minutes=st.integers(1, 7 * 24 * 60),
            timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
        ),
        max_size=2,
    ).map(tuple),
    gap_policies=st.fixed_dictionaries({gap: st.sampled_from(GapPolicy) for gap in HealthGap}),
    alpha=st.floats(1e-9, 0.5),
    beta=st.floats(1e-9, 0.5),
    fresh_within=st.timedeltas(timedelta(0), timedelta(days=30)),
    owner=texts,
    description=texts,
    ends_at=st.none() | dates,
    expires_at=st.none() | dates,
    start_at=st.none() | dates,
    blind=st.booleans(),
)
payloads = st.dictionaries(
    names, st.booleans() | lines | finite | st.dictionaries(lines, lines, max_size=2), max_size=3
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan, with audiences or without."""
    plan = draw(plain_plans)
    if draw(st.booleans()):
        ringed = draw(ringed_plans())
        plan = replace(plan, stages=ringed.stages, audiences=ringed.audiences, split=ringed.split)
    return replace(
        plan,
        flag_type=draw(st.sampled_from(FlagType)),
        unassigned=draw(names),
        values=draw(payloads),
    )


advice = st.builds(
    Advice,
    choice=st.sampled_from(AdviceChoice),
    confidence=st.integers(0, 100),
    reasons=st.lists(lines, max_size=5).map(tuple),
    model=lines,
    prompt_sha256=lines,
    latency_ms=st.integers(0, 10**9),
    raw=lines,
)
reasons = st.sampled_from(HoldReason)
answers = st.none() | advice
rounds = st.builds(AdviceRound, st.integers(1, 9), moments, answers, st.booleans(), maybe_moments)


def phases(stages: int) -> st.SearchStrategy[Phase]:
    """Draw any phase of a plan of so many stages."""
    indexes = st.integers(0, stages - 1)
    interruptible = st.one_of(
        st.builds(Scheduled, moments),
        st.builds(Baking, indexes, moments),
        st.builds(Gating, indexes, lines, moments, moments, st.none() | rounds),
        st.builds(AwaitingApproval, indexes, lines, moments, reasons),
    )
    return st.one_of(
        interruptible,
        st.builds(Paused, moments, reasons, interruptible),
        st.builds(Completed, moments),
        st.builds(RolledBack, moments, lines),
        st.builds(Aborted, moments, lines),
    )


@st.composite
def runnable_plans(draw: st.DrawFn) -> Plan:
    """Draw a plan that a rollout can have: stages that rise, and guardrails with a bound."""
    plan = draw(plans())
    if not plan.audiences:
        weights = draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=4, unique=True))
        bakes = [draw(st.timedeltas(timedelta(seconds=1), LONGEST)) for _ in weights]
        rising = tuple(
            Stage(
                weight / 100,
                bake,
                draw(st.timedeltas(timedelta(0), bake - timedelta(microseconds=1))),
                draw(st.integers(1, 10**9)),
                draw(st.timedeltas(bake, LONGEST)),
            )
            for weight, bake in zip(sorted(weights), bakes, strict=True)
        )
        plan = replace(plan, stages=rising)
    sound = tuple(
        Guardrail("error_rate", guardrail.role, limit=draw(st.floats(1e-6, 0.999)))
        for guardrail in plan.guardrails
    )
    return replace(plan, guardrails=sound)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    """Draw a rollout in any phase; its flag is its plan's."""
    plan = draw(runnable_plans())
    indexes = st.integers(0, len(plan.stages) - 1)
    closings = st.lists(st.builds(Closing, moments, maybe_moments), max_size=2).map(tuple)
    visits = st.builds(Visit, indexes, shares, moments, moments, maybe_moments, closings)
    return Rollout(
        flag_key=plan.flag_key,
        rollout_id=draw(lines),
        revision=draw(st.integers(0, 2**52)),
        plan=plan,
        phase=draw(phases(len(plan.stages))),
        percent=draw(shares),
        visits=tuple(draw(st.lists(visits, min_size=1, max_size=3))),
        started_at=draw(moments),
        updated_at=draw(moments),
        hold=draw(st.none() | reasons),
        freeze=draw(st.none() | st.builds(Freeze, moments, lines, lines)),
    )


@given(rollouts())
def test_rollout_round_trips_exactly(rollout: Rollout) -> None:
    """Any rollout is read back equal, and written again byte for byte."""
    written = rollout_to_json(rollout)
    assert rollout_from_json(written) == rollout
    assert rollout_to_json(rollout_from_json(written)) == written
    assert read_state(state_event(rollout, "f/1/0", rollout.updated_at)) == rollout


@given(plans())
def test_plan_round_trips_and_its_version_is_stable(plan: Plan) -> None:
    """Any plan becomes a document and the same plan again, under one version."""
    document = from_core_plan(plan)
    again = to_core_plan(PlanDocument.model_validate_json(document.model_dump_json()))
    assert again.version == plan_version(plan) == plan_version(again)
    assert from_core_plan(again) == document


@given(plans())
def test_lint_never_fails_on_a_plan_of_the_right_form(plan: Plan) -> None:
    """Whatever numbers a plan holds, its author gets findings, not a traceback."""
    for finding in lint(from_core_plan(plan), datetime(2026, 1, 5, tzinfo=UTC)):
        assert finding.message
        assert finding.fix


@given(plans())
def test_plan_file_round_trips(plan: Plan) -> None:
    """A document written as JSON is read from a file as the same document.

    Unless its rules refuse it.
    """
    document = from_core_plan(plan)
    try:
        assert load_plan(document.model_dump_json(indent=1), "plan.json") == document
    except ConfigInvalid:
        assert any(finding.is_error for finding in lint(document))


@given(durations)
def test_duration_round_trips(duration: timedelta) -> None:
    """Any duration is read back as it was written."""
    assert parse_duration(format_duration(duration)) == duration


@given(st.text())
def test_duration_parser_refuses_or_reads(text: str) -> None:
    """Any text is a duration or a ValueError."""
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert timedelta(0) <= duration <= LONGEST


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)


def mangled(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Draw a good object with some of its values replaced by anything."""
    return st.dictionaries(st.sampled_from(sorted(good)), json_values, max_size=2).map(
        lambda change: json.dumps({**good, **change}).encode()
    )


ANSWER = {"verdict": "hold", "confidence": 80, "reasons": ["a"]}


@given(st.binary(max_size=200) | json_values.map(json.dumps) | mangled(ANSWER))
def test_any_answer_is_advice_or_a_refusal(answer: bytes | str) -> None:
    """Whatever a model answers is advice within bounds, or a ValueError."""
    try:
        parsed = parse_form(answer, AdviceAnswer)
    except ValueError:
        return
    assert isinstance(parsed, AdviceAnswer)
    assert 0 <= parsed.confidence <= 100
    assert all(reason.isprintable() and len(reason) <= 200 for reason in parsed.reasons)


COMMAND = {
    "id": "c",
    "flag": "f",
    "verb": "start",
    "issuer": "a",
    "issued_at": "2026-01-05T09:00:00Z",
    "plan": {
        "name": "p",
        "flag": "f",
        "stages": [{"percent": 1, "bake": "1h"}],
        "guardrails": ["error_rate < 1%"],
    },
}


@given(
    value=st.none() | st.binary(max_size=200) | mangled(COMMAND),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["content-type", "ce_id", "ce_type", "ce_specversion", "x"]),
            st.none() | st.binary(max_size=9),
        ),
        max_size=3,
    ),
    key=st.none() | st.binary(max_size=9) | st.just(b"f"),
    timestamp_ms=st.integers(-(2**63), 2**63 - 1),
)
def test_any_command_record_is_a_command_or_a_refusal(
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    key: bytes | None,
    timestamp_ms: int,
) -> None:
    """Whatever stands in the command topic is a command, or refused with a printable reason."""
    told = ""
    try:
        command = read_command(value, headers, key, timestamp_ms)
        to_command_received(command)
    except CommandRefused as refusal:
        told = f"{refusal.verb} {refusal.reason}"
    except CommandUnreadable as refusal:
        told = refusal.detail
    assert told.isprintable()


MANGLED_PLANS = mangled(COMMAND["plan"])  # type: ignore[arg-type]


@given(st.text(max_size=200) | json_values.map(json.dumps) | MANGLED_PLANS.map(bytes.decode))
def test_any_text_is_a_plan_or_a_refusal(text: str) -> None:
    """Whatever stands in a plan file is a plan, or one kind of error."""
    told = "error: "
    try:
        load_plan(text, "plan.yaml")
    except ConfigInvalid as refusal:
        told = str(refusal)
    assert "error: " in told


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_stored_bytes_are_a_rollout_or_a_refusal(value: bytes) -> None:
    """Whatever is stored as a document is a rollout, or one kind of error."""
    for reader in (rollout_from_json, read_state):
        with pytest.raises(DocumentUnreadable):
            reader(value)
