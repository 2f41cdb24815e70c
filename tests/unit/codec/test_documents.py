"""Core values to documents and back, and reading commands in every form they come in."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.codec import documents
from controller.core.rollout import (
    CONTROLLER,
    Aborted,
    AdviceRound,
    AnswerCommand,
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    Phase,
    PublishDecision,
    RolledBack,
    Scheduled,
)
from controller.errors import (
    BrokenInvariant,
    CommandRefused,
    CommandUnreadable,
    DocumentUnreadable,
    ForeignDocument,
)
from controller.plans import template, templates
from schemas.command import CONTROLLER_NAME, Command
from schemas.decision import Decision
from schemas.plan import PlanDocument
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb, DecisionKind, HoldReason
from tests.builders import (
    HOUR,
    T0,
    make_advice,
    make_breach,
    make_command,
    make_judgement,
    make_plan,
    make_rollout,
)

T0_MS = int(T0.timestamp() * 1000)
PLAN = {
    "name": "p",
    "flag": "f",
    "stages": [{"percent": 1, "bake": "24h"}],
    "guardrails": ["error_rate < 1%"],
}
GATING = Gating(
    1,
    "gate-1",
    T0,
    T0 + HOUR,
    AdviceRound(1, T0, make_advice("hold"), is_closed=True, held_until=T0 + HOUR),
)
PHASES: list[Phase] = [
    Scheduled(T0),
    Baking(0, T0),
    GATING,
    AwaitingApproval(1, "gate-1", T0, HoldReason.APPROVAL),
    Paused(T0, HoldReason.OPERATOR, GATING),
    Paused(T0, HoldReason.EXPIRED, Scheduled(T0)),
    Completed(T0),
    RolledBack(T0, "error_rate 10 % × control"),
    Aborted(T0, "not wanted"),
]

# --- plans
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(templates()))
def test_template_survives_the_core(name: str) -> None:
    """A plan becomes the core's.

    And the core's becomes a document that gives the same plan and version again.
    """
    plan = documents.to_core_plan(template(name, "f"))
    assert documents.to_core_plan(documents.from_core_plan(plan)) == plan


def test_version_names_the_plan_and_not_its_spelling() -> None:
    """Two spellings of one plan have one version; another limit has another."""
    short = PlanDocument.model_validate(PLAN)
    long = PlanDocument.model_validate(
        {
            **PLAN,
            "stages": [{"percent": 1.0, "bake": "1d", "max_bake": "72h"}],
            "guardrails": [{"metric": "error_rate", "limit": 0.01}],
        }
    )
    other = PlanDocument.model_validate({**PLAN, "guardrails": ["error_rate < 2%"]})
    version = documents.to_core_plan(short).version
    assert version == documents.to_core_plan(long).version
    assert version != documents.to_core_plan(other).version
    assert len(version) == 16


def test_guardrail_that_only_compares_ends_with_control() -> None:
    """A guardrail without a limit is watched while there is a control.

    Unless the plan says where it ends.
    """
    document = PlanDocument.model_validate(
        {
            **PLAN,
            "stages": [{"percent": percent, "bake": "1h"} for percent in (1, 50, 100)],
            "guardrails": ["error_rate < control + 10%", "latency_p99 < 200ms and < control + 10%"],
        }
    )
    plan = documents.to_core_plan(document)
    assert [guardrail.metric for guardrail in plan.guardrails_at(50)] == [
        "error_rate",
        "latency_p99",
    ]
    assert [guardrail.metric for guardrail in plan.guardrails_at(100)] == ["latency_p99"]


@pytest.mark.parametrize(
    ("window", "start", "minutes"),
    [
        ({"from": "17:00", "to": "18:30"}, 1020, 90),
        ({"from": "22:00", "to": "06:00"}, 1320, 480),
        ({"from": "22:00", "to": "24:00"}, 1320, 120),
        ({"from": "09:00", "to": "09:00"}, 540, 1440),
        ({"from": "17:00", "lasts": "64h"}, 1020, 3840),
    ],
)
def test_freeze_window_in_minutes(window: dict[str, str], start: int, minutes: int) -> None:
    """An end that is not after the start lies on the next day.

    Longer windows say how long they last.
    """
    document = PlanDocument.model_validate(
        {**PLAN, "freeze_windows": [{"days": ["fri", "sun"], **window}]}
    )
    core = documents.to_core_plan(document).freeze_windows[0]
    assert (core.weekdays, core.start_minute, core.minutes) == (frozenset({5, 7}), start, minutes)


# --- rollouts
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: str(phase.name))
def test_rollout_survives_its_document(phase: Phase) -> None:
    """A rollout in any phase is read back exactly as it was written, from the store and from the state topic."""
    rollout = make_rollout(
        phase=phase, freeze=Freeze(T0, "ada", "incident"), hold=HoldReason.FROZEN
    )
    assert documents.rollout_from_json(documents.rollout_to_json(rollout)) == rollout
    assert documents.read_state(documents.state_bytes(rollout, "new-checkout/1/0", T0)) == rollout


def test_another_environments_document_is_refused() -> None:
    """A record says which environment wrote it; only its own is read, and what says nothing."""
    rollout = make_rollout()
    source = documents.source_of("staging")
    entry = documents.encode(rollout, rollout.flag_key, rollout, "f/1/0", T0, source=source)
    assert json.loads(entry.value)["source"] == "/rolloutd/staging"
    assert documents.read_state(entry.value) == rollout
    assert documents.read_state(entry.value, ("live", "staging")) == rollout
    with pytest.raises(ForeignDocument, match="staging") as refusal:
        documents.read_state(entry.value, ("production",))
    assert refusal.value.environment == "staging"
    early = documents.state_bytes(rollout, "f/1/0", T0)
    assert documents.read_state(early, ("production",)) == rollout


def test_pinned_version_outlives_a_change_of_the_hash() -> None:
    """The version a rollout started with is read back, whatever this release would compute."""
    rollout = make_rollout(plan=make_plan(version="of-an-old-release"))
    assert (
        documents.rollout_from_json(documents.rollout_to_json(rollout)).plan.version
        == "of-an-old-release"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 3},
        {"schema_version": None},
        {"schema_version": "1"},
        {"percent": "all"},
        {"visits": None},
        {"plan": {}},
    ],
)
def test_unknown_or_damaged_document_is_refused(change: dict[str, Any]) -> None:
    """A newer or damaged document is refused, never guessed at."""
    fields = {**json.loads(documents.rollout_to_json(make_rollout())), **change}
    with pytest.raises(DocumentUnreadable):
        documents.rollout_from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"null", b'{"type":"io.rolloutd.alert.v1"}', b"[" * 100_000]
)
def test_record_that_is_no_document_is_refused(value: bytes) -> None:
    """What is no document is refused with one kind of error."""
    with pytest.raises(DocumentUnreadable):
        documents.rollout_from_json(value)
    with pytest.raises(DocumentUnreadable):
        documents.read_state(value)


# --- commands
# --------------------------------------------------------------------------------------------------

FIELDS = {
    "id": "c-1",
    "flag": "f",
    "verb": "pause",
    "issuer": "ada",
    "reason": "why",
    "issued_at": "2026-01-05T08:59:59Z",
}


def read(
    fields: Any, headers: Any = (), key: bytes | None = None, timestamp_ms: int = T0_MS
) -> Command:
    """Return the command in a record with these fields as its value."""
    value = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return documents.read_command(value, headers, key, timestamp_ms)


def test_command_in_every_form_is_the_same_command() -> None:
    """Structured, binary and bare records of one command are read alike."""
    event = {"specversion": "1.0", "type": "io.rolloutd.command.v1", "source": "/ada", "id": "e-1"}
    structured = read(
        {**event, "data": FIELDS}, [("content-type", b"application/cloudevents+json")], b"f"
    )
    binary = read(FIELDS, [(f"ce_{name}", value.encode()) for name, value in event.items()], b"f")
    without_headers = read({**event, "data": FIELDS})
    bare = read(FIELDS)
    bare_as_json = read(FIELDS, [("content-type", b"application/json")])
    assert (
        structured
        == binary
        == without_headers
        == bare
        == bare_as_json
        == Command.model_validate(FIELDS)
    )


def test_event_lends_its_id_and_time() -> None:
    """A command event need not say its id and time twice."""
    event = {
        "specversion": "1.0",
        "type": "io.rolloutd.command.v1",
        "source": "/ada",
        "id": "e-1",
        "time": "2026-01-05T08:59:00Z",
        "data": {"verb": "resume", "issuer": "ada"},
    }
    command = read(event, key=b"f")
    assert (command.id, command.flag, command.issued_at) == ("e-1", "f", T0 - timedelta(minutes=1))


def test_shortest_emergency_command_works_and_keeps_its_id_when_replayed() -> None:
    """`{"verb": "roll_back"}` keyed by the flag is enough.

    And the same record has the same id again.
    """
    command = read({"verb": "roll_back"}, key=b"f")
    assert (command.flag, command.issuer, command.issued_at) == ("f", "unnamed", T0)
    assert command == read({"verb": "roll_back"}, key=b"f")
    assert command.id != read({"verb": "roll_back"}, key=b"f", timestamp_ms=T0_MS + 1).id


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({**FIELDS, "verb": "resume", "issuer": None}, "issuer"),
        ({**FIELDS, "verb": "approve"}, "expected_revision"),
        ({**FIELDS, "verb": "start"}, "plan"),
        ({**FIELDS, "verb": "start", "plan": {**PLAN, "stages": []}}, "there is no stage"),
        ({**FIELDS, "verb": "start", "plan": {**PLAN, "stagess": []}}, "stagess"),
        ({**FIELDS, "verb": "start", "plan": {**PLAN, "guardrails": []}}, "no guardrail"),
        (
            {**FIELDS, "verb": "start", "plan": {**PLAN, "expires_at": "2026-01-01T00:00:00Z"}},
            "expired",
        ),
        ({**FIELDS, "flag": "g"}, "key"),
        ({**FIELDS, "verb": "explode"}, "verb.*roll_back"),
        ({**FIELDS, "verb": ["pause"]}, "verb"),
        ({**FIELDS, "verb": None}, "verb"),
        ({**FIELDS, "\u202eevil\x1b": 1}, "evil"),
    ],
)
def test_command_that_can_be_answered_is_refused_by_an_answer(
    fields: dict[str, Any], said: str
) -> None:
    """A command with an id and a flag is refused with a printable reason to answer it by.

    Also when its verb is unknown.
    """
    with pytest.raises(CommandRefused, match=said) as refusal:
        read(fields, key=b"f")
    known = fields["verb"] if fields["verb"] in list(CommandVerb) else None
    assert (refusal.value.command_id, refusal.value.verb) == ("c-1", known)
    assert refusal.value.reason.isprintable()


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"verb": "explode", "flag": "f", "id": "c d"}',
        b'{"verb": "pause"}',
        b'{"verb": "pause", "flag": "a b"}',
        b'{"verb": "pause", "flag": "f", "id": 7}',
        (
            b'{"specversion": "1.0", "type": "io.rolloutd.result.v1", "source": "x", "id": '
            b'"1", "data": {}}'
        ),
        (
            b'{"specversion": "1.0", "type": "io.rolloutd.command.v1", "source": "x", "id": '
            b'"1", "data": "text"}'
        ),
    ],
)
def test_record_that_names_no_command_is_unreadable(value: bytes | None) -> None:
    """A record without id and flag can only be quarantined."""
    with pytest.raises(CommandUnreadable):
        documents.read_command(value, (), None, T0_MS)


@pytest.mark.parametrize("timestamp_ms", [-1, 2**62])
def test_bare_command_without_a_usable_time_is_unreadable(timestamp_ms: int) -> None:
    """A bare command needs the record's timestamp.

    Because its age decides whether it is still meant.
    """
    with pytest.raises(CommandUnreadable):
        read({"verb": "roll_back", "flag": "f"}, timestamp_ms=timestamp_ms)


@pytest.mark.parametrize("verb", ["resume", "unfreeze", "freeze", "reject"])
def test_a_command_from_the_future_is_refused(verb: str) -> None:
    """Its age would never count: it could be sent again for ever."""
    fields = {**FIELDS, "verb": verb, "issued_at": "2026-01-05T09:05:01Z"}
    value = json.dumps(fields).encode()
    with pytest.raises(CommandRefused, match="issued 301 s in the future: set the clock"):
        documents.read_command(value, (), None, T0_MS, T0)
    late = documents.read_command(value, (), None, T0_MS, T0 + timedelta(seconds=1))
    assert late.issued_at == T0 + timedelta(seconds=301)
    assert documents.read_command(value, (), None, T0_MS) == late  # nobody's clock to compare with


@pytest.mark.parametrize("verb", ["roll_back", "pause", "abort"])
def test_what_always_works_takes_the_records_time_for_one_in_the_future(verb: str) -> None:
    """No clock stands before a roll back; its age counts from its record, whenever it is read."""
    fields = {**FIELDS, "verb": verb, "issued_at": "2036-01-05T09:00:00Z"}
    value = json.dumps(fields).encode()
    for now in (T0, T0 + 400 * HOUR):
        assert documents.read_command(value, (), None, T0_MS, now).issued_at == T0
    assert documents.read_command(value, (), None, T0_MS + 3_600_000, T0).issued_at == T0


@pytest.mark.parametrize("verb", ["resume", "promote", "roll_back", "abort"])
def test_a_time_before_1970_stops_no_order_that_lowers(verb: str) -> None:
    """Forwarded to its partition it would be no event.

    What raises is refused, the rest gets the record's time.
    """
    value = json.dumps({**FIELDS, "verb": verb, "issued_at": "0001-01-01T00:00:00Z"}).encode()
    for now in (None, T0):
        if verb in ("resume", "promote"):
            with pytest.raises(CommandRefused, match="issued before 1970: set the clock"):
                documents.read_command(value, (), None, T0_MS, now)
            continue
        command = documents.read_command(value, (), None, T0_MS, now)
        assert command.issued_at == T0
        assert (
            documents.read_command(documents.command_bytes(command), (), None, T0_MS, now)
            == command
        )


@pytest.mark.parametrize(
    "issuer",
    [
        *("rolloutd", "ROLLOUTD", " rolloutd ", "rollout\u200bd", "\uff52olloutd", "rolloutd:gate"),
        *("Rolloutd/gate", "rolloutd\n", "rolloutd : x"),
    ],
)
def test_the_controllers_own_name_is_nobody_elses(issuer: str) -> None:
    """The audit log and the figures on advice tell by it what was decided without a person."""
    assert CONTROLLER_NAME == CONTROLLER
    for verb in ("roll_back", "pause", "resume"):
        with pytest.raises(CommandRefused, match="is the controller's own name; give yours"):
            read({**FIELDS, "verb": verb, "issuer": issuer})


@pytest.mark.parametrize(
    "issuer",
    [
        *("rolloutd demo", "rolloutd-ci", "rolloutd@host", "rolloutdx"),
        *("ada", "\u0430da", "\U0001f916"),
    ],
)
def test_other_names_are_the_issuers_business(issuer: str) -> None:
    """A name that begins alike is another one."""
    assert read({**FIELDS, "issuer": issuer}).issuer == issuer


def test_an_issuer_has_a_name() -> None:
    """Blanks are none."""
    with pytest.raises(CommandRefused, match="issuer is blank"):
        read({**FIELDS, "issuer": " \u3000 "})


def test_text_that_could_forge_output_is_read_without_it() -> None:
    """Line ends, colors and marks that turn the direction do not get into logs and alerts."""
    hostile = "ok\n[31m\x1b\u202egnp\u200f\x00\u2028end\tof"
    plain = "ok [31m??gnp?? end of"
    plan = {**PLAN, "description": hostile, "owner": hostile}
    command = read({**FIELDS, "verb": "start", "issuer": hostile, "reason": hostile, "plan": plan})
    assert command.plan is not None
    texts = (command.issuer, command.reason, command.plan.description, command.plan.owner)
    assert texts == (plain,) * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"flag": "other"}, "its plan of new-checkout"),
        ({"visits": []}, "a stage that it has not visited"),
        (
            {"phase": {"name": "baking", "stage": 7, "until": "2026-01-05T09:00:00Z"}},
            "beyond the last of 3",
        ),
        ({"updated_at": "9999-12-31T23:59:59Z"}, "9999 is not a year from 1970 to 2999"),
        ({"revision": 2**53 + 1}, "less than or equal to 9007199254740992"),
        ({"revision": 2**53}, "leaves no room for the next ones"),
    ],
)
def test_a_document_whose_parts_do_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    """The machine relies on it that stages exist and times can be added to."""
    fields = {**json.loads(documents.rollout_to_json(make_rollout())), **change}
    with pytest.raises(DocumentUnreadable, match=said):
        documents.rollout_from_json(json.dumps(fields).encode())


def test_the_plan_of_a_stored_rollout_can_be_run() -> None:
    """No stage, an unknown audience or zone, a guardrail without a bound: each ends its worker."""
    fields = json.loads(documents.rollout_to_json(make_rollout()))
    window = {"days": ["mon"], "from": "00:00", "to": "01:00", "timezone": "Mars/Base"}
    stage = fields["plan"]["stages"][0]
    for change, said in (
        ({"stages": []}, "there is no stage"),
        ({"stages": [{**stage, "audience": "gone"}]}, "there is no audience 'gone'"),
        ({"stages": [{**stage, "percent": 5e-324 - 1}]}, "not in \\(0, 100\\]"),
        ({"guardrails": [{"metric": "error_rate"}]}, "neither limit nor compare"),
        ({"freeze_windows": [window]}, "unknown time zone 'Mars/Base'"),
    ):
        document = {**fields, "plan": {**fields["plan"], **change}}
        with pytest.raises(DocumentUnreadable, match=said):
            documents.rollout_from_json(json.dumps(document).encode())


def test_command_becomes_the_cores_event() -> None:
    """A command reaches the core with its plan in the core's units."""
    command = Command.model_validate({**FIELDS, "verb": "start", "plan": PLAN})
    event = documents.to_command_event(command)
    assert event.plan == documents.to_core_plan(PlanDocument.model_validate(PLAN))
    assert replace(event, plan=None) == make_command(
        "start", command_id="c-1", reason="why", issued_at=T0 - timedelta(seconds=1)
    )


# --- what goes out
# --------------------------------------------------------------------------------------------------


def test_decision_is_an_event_with_all_its_evidence() -> None:
    """A decision goes out as a CloudEvent with its effect's id, the evidence and the advice."""
    effect = PublishDecision(
        kind=DecisionKind.ROLL_BACK,
        reason="guardrail error_rate",
        from_percent=10.0,
        to_percent=0.0,
        stage=0,
        issuer="rolloutd",
        judgement=make_judgement(metrics=(make_breach(),)),
        advice=make_advice("roll_back"),
    )
    rollout = make_rollout(phase=RolledBack(T0, "guardrail error_rate"), revision=2)
    entry = documents.encode(effect, "new-checkout", rollout, "new-checkout/2/1", T0)
    event = json.loads(entry.value)
    decision = Decision.model_validate(event["data"])
    assert (entry.topic, entry.key, entry.effect_id) == (
        "decisions",
        "new-checkout",
        "new-checkout/2/1",
    )
    assert (event["id"], event["type"], event["subject"]) == (
        "new-checkout/2/1",
        "io.rolloutd.decision.v1",
        "new-checkout",
    )
    assert (decision.revision, decision.phase, decision.plan.version) == (
        2,
        "rolled_back",
        rollout.plan.version,
    )
    assert decision.judgement is not None
    assert decision.judgement.metrics[0].arms["treatment"].events == 100  # type: ignore[index]
    assert decision.advice is not None
    assert decision.advice.model == "tiny"


def test_half_a_character_in_advice_does_not_stop_the_audit_log() -> None:
    """What a model server sends as text is recorded even when UTF-8 cannot say it."""
    effect = PublishDecision(
        DecisionKind.HOLD, "r", 1.0, 1.0, 0, "rolloutd", advice=make_advice(model="\ud800")
    )
    value = documents.encode(effect, "new-checkout", make_rollout(), "new-checkout/1/0", T0).value
    assert json.loads(value)["data"]["advice"]["model"] == "?"


def test_result_has_its_commands_id_and_needs_no_rollout() -> None:
    """An answer carries the command's id, also when the flag has no rollout."""
    effect = AnswerCommand(
        "c-1", CommandVerb.PAUSE, CommandStatus.REJECTED, "there is no rollout", 0
    )
    entry = documents.encode(effect, "f", None, "ignored", T0)
    event = json.loads(entry.value)
    assert (entry.topic, entry.key, entry.effect_id, event["id"]) == (
        "results",
        "f",
        "f/c-1",
        "c-1",
    )
    assert Result.model_validate(event["data"]).reason == "there is no rollout"


def test_only_answers_do_without_a_rollout() -> None:
    """A decision about no rollout is a mistake of ours, not a record."""
    effect = PublishDecision(DecisionKind.HOLD, "r", 1.0, 1.0, 0, "rolloutd")
    with pytest.raises(BrokenInvariant):
        documents.encode(effect, "f", None, "f/1/0", T0)
