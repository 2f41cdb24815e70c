"""Absurd numbers: what a plan, a command or a stored document says is refused or can be run."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from controller.codec.command_records import UNFORESEEN, read_command
from controller.codec.commands import command_event, to_command_received
from controller.codec.decisions import to_judgement_record
from controller.codec.plans import from_core_plan, to_core_plan
from controller.codec.rollouts import read_state, rollout_from_json, rollout_to_json, state_event
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.events import AdviceUnavailable, EvidenceJudged, Ticked
from controller.core.evidence import ArmTotals, Evidence, PartitionProgress, VisitTotals
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Judgement
from controller.core.machine import decide, is_frozen, next_deadline
from controller.core.plan import Plan
from controller.core.rollout import Gating, Rollout
from controller.core.serving import serving
from controller.errors import CommandRefused, CommandUnreadable, DocumentUnreadable
from controller.plans import lint
from schemas.command import TYPE as COMMAND_TYPE
from schemas.plan import PlanDocument
from tests.builders import HOUR, T0, make_command, make_judgement, make_plan, make_rollout
from tests.examples import examples

pytestmark = pytest.mark.property

T0_MS = int(T0.timestamp() * 1000)
SCHEMA = Draft202012Validator(PlanDocument.model_json_schema())


class Token(str):
    """Text that is put into JSON as it is: numbers that no Python value stands for."""


def render(value: Any) -> str:
    """Return JSON, or what pretends to be."""
    if isinstance(value, Token):
        return str(value)
    if isinstance(value, dict):
        inner = (f"{json.dumps(name)}:{render(item)}" for name, item in value.items())
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(render(item) for item in value) + "]"
    return json.dumps(value)


NUMBERS: list[Any] = [
    *(0, -0.0, 1, -1, 5e-324, -5e-324, 1e-300, 1e-9, 1e-6, 0.0049, 0.01, 0.5, 0.999, 1 - 2**-53),
    *(99.99, 100, 100.00000000000001, 1000, 999_999_999, 10**9, 10**9 + 1, 1e12, 2**53, 2**53 + 1),
    *(2**63, 2**64, 1e308, -1e308, True, None, "1", "x"),
    *(Token("9" * 300), Token("-" + "9" * 300), Token("9" * 4000)),
    *(Token("1e999"), Token("0." + "0" * 400 + "1")),
]
DURATIONS: list[Any] = [
    *("0s", "1us", "1ms", "1s", "59s", "1m", "1h", "1d", "7d", "30d"),
    *("1217d", "3649d", "3650d", "3651d"),
    *("999999999999w", "P999999999W", "P3650D", "0.000001s", "1e3s", "1d" * 60, 5, None),
]
DATES: list[Any] = [
    *("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999Z"),
    *("9999-12-31T23:59:59-23:59", "1999-12-31T23:59:59Z", "2000-01-01T00:00:00+23:59"),
    *("2199-12-31T23:59:59-23:59", "2026-01-05T09:00:00Z", "2026-03-05T09:00:00+14:00", 0, None),
]
LIMITS: list[Any] = ["1%", "0.000000001%", "999999999%", "200ms", "3650d", "1us", *NUMBERS]
ZONES = [
    *("UTC", "Europe/Berlin", "Pacific/Apia", "Asia/Kolkata"),
    *("Africa/Monrovia", "Antarctica/Troll"),
    *("../../etc/passwd", "Europe", "\x00", "", "x" * 64),
]

numbers, spans, dates = (st.sampled_from(values) for values in (NUMBERS, DURATIONS, DATES))
SOUND_STAGES: list[dict[str, Any]] = [{"percent": each, "bake": "1h"} for each in (1, 50, 100)]


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw an object with up to three of these fields."""
    names = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}),
    )


stages = st.tuples(
    st.sampled_from(SOUND_STAGES),
    some(
        percent=numbers,
        bake=spans,
        settle=spans,
        max_bake=spans,
        min_sample=numbers,
        approval=st.just("required"),
        control=st.just("equal"),
    ),
).map(lambda parts: {**parts[0], **parts[1]})
guardrails = st.tuples(
    st.sampled_from(
        [
            {"metric": "error_rate", "limit": 0.01},
            {"metric": "error_rate", "compare": {"margin": 0.1}},
            {"metric": "error_rate", "compare": {"margin": 0.005, "in_points": True}},
            {"metric": "latency_p99", "limit": 200},
            {"metric": "latency", "compare": {"margin": 0.1}},
            {"metric": "conversion:buy", "compare": {"margin": 0.1}},
        ]
    ),
    some(
        limit=st.sampled_from(LIMITS),
        compare=some(margin=st.sampled_from(LIMITS), gate_margin=numbers, in_points=st.booleans()),
        from_percent=numbers,
        to_percent=numbers,
    ),
).map(lambda parts: {**parts[0], **parts[1]})
nested = st.recursive(
    numbers | st.text(max_size=5),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)
deep = st.integers(0, 90).map(lambda depth: Token('{"a":' * depth + "1" + "}" * depth))
values = st.fixed_dictionaries({"on": nested | deep, "off": nested | deep})
windows = st.fixed_dictionaries(
    {
        "days": st.lists(st.sampled_from(["mon", "tue", "sat", "sun"]), min_size=1, max_size=4),
        "from": st.sampled_from(["00:00", "23:59", "17:00"]),
        "timezone": st.sampled_from(ZONES),
    }
).flatmap(
    lambda window: st.one_of(
        spans.map(lambda lasts: {**window, "lasts": lasts}),
        st.sampled_from(["00:00", "24:00", "06:00"]).map(lambda to: {**window, "to": to}),
    )
)
hostile_plans = st.tuples(
    st.just(
        {
            "name": "p",
            "flag": "new-checkout",
            "stages": SOUND_STAGES,
            "guardrails": ["error_rate < 1%"],
        }
    ),
    some(
        stages=st.lists(stages, min_size=1, max_size=3) | stages.map(lambda one: [one]),
        guardrails=st.lists(guardrails, min_size=1, max_size=3),
        advisor=some(
            deadline=spans,
            hold_rounds=numbers,
            hold_for=spans,
            mode=st.sampled_from(["off", "can_hold", "required"]),
        ),
        freeze_windows=st.lists(windows, max_size=3),
        variants=st.fixed_dictionaries({"values": values}),
        alpha=numbers,
        beta=numbers,
        traffic=numbers,
        fresh_within=spans,
        start_at=dates,
        expires_at=dates,
        description=st.text(max_size=20),
        owner=st.sampled_from(["\u202eeve", "a\x1b[31m", "\ud800", "ada"]),
    ),
).map(lambda parts: {**parts[0], **parts[1]})

#: What people wrote that ended the daemon, or a worker.
KNOWN: list[dict[str, Any]] = [
    {"traffic": 5e-324},
    {"stages": [{"percent": 1, "bake": "1h", "min_sample": Token("9" * 300)}], "traffic": 1e-6},
    {"stages": [{"percent": 5e-324, "bake": "1h"}], "traffic": 1},
    {"stages": [{"percent": 10, "bake": "1217d"}]},
    {"stages": [{"percent": 10, "bake": "3650d", "settle": "3649d"}]},
    {"advisor": {"hold_rounds": 999_999_999}},
    {"advisor": {"hold_rounds": 1000, "hold_for": "3650d"}},
    {"advisor": {"hold_rounds": 1000, "hold_for": "30d", "deadline": "1h"}},
    {"start_at": "9999-12-31T23:59:59Z"},
    {"alpha": 5e-324, "guardrails": ["error_rate < 1%", "latency_p99 < 200ms"]},
    {"guardrails": [{"metric": "error_rate", "compare": {"margin": 5e-324, "in_points": True}}]},
    {"guardrails": [{"metric": "conversion:buy", "compare": {"margin": 1 - 2**-53}}]},
    {"variants": {"values": {"on": Token("1" + "0" * 299 + ".0"), "off": Token("9" * 300)}}},
]
BASE: dict[str, Any] = {
    "name": "p",
    "flag": "new-checkout",
    "stages": SOUND_STAGES,
    "guardrails": ["error_rate < 1%"],
}


def command_of(plan: dict[str, Any], **fields: Any) -> bytes:
    """Return a bare start command with this plan."""
    command = {"id": "c", "flag": "new-checkout", "verb": "start", "issuer": "ada", "plan": plan}
    return render({**command, **fields}).encode("utf-8", "surrogatepass")


def check_told(refusal: str) -> None:
    """Check that a refusal is one of ours, no exception that nobody foresaw, and may be shown."""
    assert UNFORESEEN not in refusal
    assert refusal.isprintable()


def plan_in(value: bytes) -> Plan | None:
    """Return the plan of a start command, None when it is refused; anything else fails the test."""
    try:
        command = read_command(value, (), None, T0_MS, T0)
    except (CommandRefused, CommandUnreadable) as refusal:
        check_told(str(refusal))
        return None
    return to_command_received(command).plan


def stored(rollout: Rollout) -> Rollout:
    """Return the rollout as it is read back, which must be the same."""
    again = rollout_from_json(rollout_to_json(rollout))
    assert again == rollout
    published = state_event(rollout, "f/1/0", rollout.updated_at)
    assert read_state(published) == rollout
    return again


def totals_at(step: int, percent: float) -> VisitTotals:
    """Return totals that grow from look to look, in the share that is served."""

    def arm(share: float) -> ArmTotals:
        contexts = round(20_000 * share) * step
        fast, slow = contexts * 3 // 4, contexts // 4
        return ArmTotals(
            evaluations=contexts,
            exposures=contexts,
            outcomes=contexts,
            at_risk=contexts,
            errors=contexts // 400,
            first_errors=contexts // 400,
            converted={"buy": contexts // 10},
            latency={100: fast, 300: slow},
        )

    return VisitTotals(arm(percent / 100), arm(1 - percent / 100))


def drive(rollout: Rollout | None, at: datetime) -> None:
    """Take a rollout through its phases as a worker does: judge, tick, miss advice, store, read."""
    tests = SequentialTests()
    for step in range(1, 16):
        if rollout is None or rollout.has_ended or at.year > 2800:
            return
        serving(rollout)
        is_frozen(rollout, at)
        if rollout.visits:
            progress = PartitionProgress("e/0", 10, 10, freshest=at, reported_at=at)
            visit = rollout.visit_index
            totals = totals_at(step, rollout.visits[visit].percent)
            evidence = Evidence(at, {visit: totals}, (progress,), 1)
            judgement, tests = judge(rollout, evidence, tests, at)
            to_judgement_record(judgement).model_dump_json()
            rollout, _ = decide(rollout, judged(judgement, at), at)
        assert rollout is not None
        rollout = stored(rollout)
        phase = rollout.phase
        if isinstance(phase, Gating) and phase.advice is not None and not phase.advice.is_closed:
            gone = AdviceUnavailable(phase.gate_id, phase.advice.number, "none")
            rollout, _ = decide(rollout, gone, at)
            assert rollout is not None
        due = next_deadline(rollout)
        if due is None:
            verb = "resume" if step % 2 else "promote"
            order = make_command(verb, issued_at=at, reason="r")
            rollout, _ = decide(rollout, order, at)
        else:
            at = max(at, min(due, datetime(2801, 1, 1, tzinfo=UTC)))
            rollout, _ = decide(rollout, Ticked(), at - HOUR)  # a clock that is set back
            assert rollout is not None
            rollout, _ = decide(rollout, Ticked(), at)


def judged(judgement: Judgement, at: datetime) -> EvidenceJudged:
    """Return a look as the machine takes it; every other one passes, so that gates close."""
    passes = make_judgement(at=at, visit=judgement.visit)
    return EvidenceJudged(judgement if judgement.batches % 2 else passes)


def has_units(written: Any) -> bool:
    """Return whether a limit or a margin is written as in `1%`: the JSON schema has no units."""
    inner = written.values() if isinstance(written, dict) else written
    for item in inner:
        if isinstance(item, dict | list):
            if has_units(item):
                return True
        elif isinstance(item, str) and item[:1].isdigit():
            return True
    return False


def try_out(plan: dict[str, Any]) -> None:
    """Check that a plan is refused, or can be run."""
    core = plan_in(command_of(plan))
    if core is None:
        return
    if not has_units(plan["guardrails"]):
        assert SCHEMA.is_valid(json.loads(render(plan)))  # the bounds that other languages read
    assert to_core_plan(from_core_plan(core)) == core
    for at in (T0, datetime(1970, 1, 1, tzinfo=UTC), datetime(2199, 12, 31, 23, 59, tzinfo=UTC)):
        rollout, _ = decide(None, make_command("start", issued_at=at, plan=core), at)
        drive(rollout, at)


@pytest.mark.parametrize("change", KNOWN, ids=[next(iter(change)) for change in KNOWN])
def test_a_plan_that_once_ended_the_daemon_is_refused_or_run(change: dict[str, Any]) -> None:
    """Each was accepted and then raised: when it was read, at its gate, or at the next start."""
    try_out({**BASE, **change})


@examples(200)
@given(hostile_plans)
def test_whatever_lint_accepts_the_core_can_run(plan: dict[str, Any]) -> None:
    """A plan with any numbers is refused with a reason.

    Or goes through every phase and document.
    """
    try_out(plan)


@given(hostile_plans)
def test_lint_of_any_numbers_ends_in_findings(plan: dict[str, Any]) -> None:
    """A plan of the right form is linted without an exception, with a clock and without."""
    try:
        document = PlanDocument.model_validate(json.loads(render(plan)))
    except (ValidationError, ValueError):
        return
    for now in (None, T0):
        for finding in lint(document, now):
            assert finding.message
            assert finding.fix


# --- stored documents ---------------------------------------------------------------------------

STORED = [
    json.loads(rollout_to_json(make_rollout())),
    json.loads(
        rollout_to_json(
            make_rollout(
                plan=make_plan(expires_at=T0 + HOUR),
                phase=Gating(0, "g", T0, T0 + HOUR),
            )
        )
    ),
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where anything stands in a document."""
    inner: Any = ()
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [at, *(path for key, item in inner for path in paths(item, (*at, key)))]


def changed(value: Any, at: tuple[Any, ...], to: Any) -> Any:
    """Return a document with another value at a path."""
    if not at:
        return to
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(value[at[0]], at[1:], to)
    return copy


others = st.sampled_from([[], {}, "baking", -7, 7])
anything = st.one_of(numbers, spans, dates, nested, deep, others)


@examples(400)
@given(st.sampled_from(STORED), st.data())
def test_a_changed_document_is_unreadable_or_can_be_run(
    document: dict[str, Any],
    data: st.DataObject,
) -> None:
    """One or two values of a real document set to anything: it is unreadable, or goes on."""
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(paths(document)[1:]))
        document = changed(document, place, data.draw(anything))
    try:
        rollout = rollout_from_json(render(document).encode())
    except DocumentUnreadable:
        return
    stored(rollout)
    drive(rollout, T0)


@pytest.mark.parametrize("depth", [200, 900, 5_000, 100_000])
@pytest.mark.parametrize("place", ["plan", "phase", "values"])
def test_a_document_of_any_depth_is_unreadable(depth: int, place: str) -> None:
    """Nesting ends in DocumentUnreadable, whether the parser meets it first or we do."""
    deep_value = Token('{"a":' * depth + "1" + "}" * depth)
    document = dict(STORED[0])
    if place == "values":
        variants = {"values": {"on": deep_value, "off": {}}}
        document["plan"] = {**document["plan"], "variants": variants}
    else:
        document[place] = deep_value
    with pytest.raises(DocumentUnreadable):
        rollout_from_json(render(document).encode())


# --- commands -----------------------------------------------------------------------------------


def guarded_by(guardrail: str) -> bytes:
    """Return a start command whose plan has this guardrail."""
    return command_of({**BASE, "guardrails": [guardrail]})


def in_stages(*written: dict[str, Any]) -> bytes:
    """Return a start command whose plan has these stages."""
    return command_of({**BASE, "stages": list(written)})


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(guarded_by("error_rate < " + "1" * 240_000), id="digits"),
        pytest.param(guarded_by("error_rate < 1" + " " * 240_000 + "<"), id="spaces"),
        pytest.param(guarded_by("1x " * 60_000), id="times"),
        pytest.param(in_stages({"percent": 1, "bake": "1w" * 120_000}), id="weeks"),
        pytest.param(
            command_of(
                {
                    **BASE,
                    "stages": [
                        {"percent": 1, "bake": "1h", "audience": "a" * 120 + str(n)}
                        for n in range(100)
                    ],
                    "audiences": {
                        "a" * 110 + f"{n:017}": [{"attribute": "x", "eq": 1}] for n in range(50)
                    },
                }
            ),
            id="audiences",
        ),
        pytest.param(
            command_of(
                {
                    **BASE,
                    "freeze_windows": [
                        {
                            "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
                            "from": f"{n % 24:02}:{n:02}",
                            "to": "24:00",
                        }
                        for n in range(50)
                    ],
                }
            ),
            id="windows",
        ),
        pytest.param(command_of({**BASE, **{f"k{n}": 1 for n in range(20_000)}}), id="keys"),
        pytest.param(in_stages(*[{"percent": 1, "bake": "1h", "x": 1}] * 5_000), id="stages"),
        pytest.param(command_of(BASE, verb=["x"] * 50_000), id="verb"),
    ],
)
def test_no_command_takes_long_to_refuse(value: bytes) -> None:
    """Patterns that try many ways, many names and long lists are bounded: the loop goes on."""
    began = time.process_time()
    assert plan_in(value) is None
    # A tenth of it on an idle machine; without bounds the first ones take minutes.
    assert time.process_time() - began < 1.0


@examples(200)
@given(
    hostile_plans,
    some(
        expected_revision=numbers,
        issued_at=dates,
        reason=st.text(max_size=9),
        issuer=st.text(max_size=9),
    ),
    st.integers(-(2**63), 2**63),
)
@example(BASE, {"expected_revision": Token("9" * 400)}, T0_MS)
def test_any_command_is_read_or_refused(
    plan: dict[str, Any],
    fields: dict[str, Any],
    timestamp_ms: int,
) -> None:
    """Nothing but the two refusals is raised, in either mode, whatever clock it is read by."""
    bare = command_of(plan, **fields)
    event = {
        "specversion": "1.0",
        "type": COMMAND_TYPE,
        "source": "/x",
        "id": "e",
        "data": Token(bare.decode("utf-8", "surrogatepass")),
    }
    for value in (bare, render(event).encode("utf-8", "surrogatepass")):
        for now in (None, T0, datetime(1, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
            try:
                command = read_command(value, (), b"new-checkout", timestamp_ms, now)
            except (CommandRefused, CommandUnreadable) as refusal:
                check_told(str(refusal))
                continue
            assert now is None or command.issued_at - now <= timedelta(minutes=5)
            command_event(command)
            to_command_received(command)
