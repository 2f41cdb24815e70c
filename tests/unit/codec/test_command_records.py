"""Commands are read in every form they come in, and refused with the reason."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.codec import command_records
from controller.codec.command_records import read_command
from controller.codec.commands import command_event, peek_command, to_command_received
from controller.codec.plans import to_core_plan
from controller.core.rollout import (
    CONTROLLER,
)
from controller.errors import (
    CommandRefused,
    CommandUnreadable,
)
from schemas.command import CONTROLLER_NAME, Command
from schemas.plan import PlanDocument
from schemas.terms import CommandVerb
from tests.builders import (
    HOUR,
    T0,
    make_command,
)

T0_MS = int(T0.timestamp() * 1000)


PLAN = {
    "name": "p",
    "flag": "f",
    "stages": [{"percent": 1, "bake": "24h"}],
    "guardrails": ["error_rate < 1%"],
}


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
    return read_command(value, headers, key, timestamp_ms)


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


@pytest.mark.parametrize("spelling", ["rollback", "roll-back", "Roll Back", "ROLL_BACK", "kill"])
def test_a_verb_by_hand_is_read_in_any_usual_spelling(spelling: str) -> None:
    """In an emergency nobody looks up whether it has a hyphen."""
    command = read({"verb": spelling}, key=b"f")
    assert command.verb is CommandVerb.ROLL_BACK
    value = json.dumps({"verb": spelling}).encode()
    assert peek_command(value, b"f") == ("f", CommandVerb.ROLL_BACK, 0)


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
        read_command(value, (), None, T0_MS)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("rolback", "the verb 'rolback' is not known; did you mean roll_back? there are: start, "),
        ("Step back!", "did you mean step_back?"),
        ("explode", "the verb 'explode' is not known; there are: start, pause, "),
        ("", "the verb '' is not known; there are: "),
        ("x" * 5_000, f"the verb '{'x' * 40}' is not known"),
    ],
)
def test_a_verb_that_is_not_known_is_named_with_the_one_that_was_meant(
    named: str, words: str
) -> None:
    """Whoever types one by hand at night gets the right word, and no other fault beside it."""
    with pytest.raises(CommandRefused) as refused:
        read({"verb": named, "id": "c"}, key=b"f")
    assert words in refused.value.reason
    assert "issuer" not in refused.value.reason
    assert len(refused.value.reason) < 400


@pytest.mark.parametrize("depth", [700, 5_000, 100_000])
@pytest.mark.parametrize("before", [b"", b'{"verb": ', b'{"verb": "pause", "reason": '])
def test_a_command_that_is_nested_too_deeply_is_refused_by_its_place(
    depth: int, before: bytes
) -> None:
    """Whatever reads it: at a glance, or in full with the place at which it gets too deep."""
    value = before + b"[" * depth + b"]" * depth + b"}" * (before != b"")
    peek_command(value, b"f")  # raises nothing
    at = 512 - before.count(b"{") + len(before)
    with pytest.raises(CommandUnreadable, match=f"512 opening brackets: one more at byte {at};"):
        read_command(value, (), b"f", T0_MS)


@pytest.mark.parametrize("timestamp_ms", [-1, 2**62])
def test_bare_command_without_a_usable_time_is_unreadable(timestamp_ms: int) -> None:
    """A bare command needs the record's timestamp.

    Because its age decides whether it is still meant.
    """
    with pytest.raises(CommandUnreadable):
        read({"verb": "roll_back", "flag": "f"}, timestamp_ms=timestamp_ms)


@pytest.mark.parametrize(
    "verb", ["promote_full", "promote", "resume", "unfreeze", "freeze", "reject"]
)
def test_a_command_from_the_future_is_refused(verb: str) -> None:
    """Its age would never count: it could be sent again for ever."""
    fields = {**FIELDS, "verb": verb, "issued_at": "2026-01-05T09:05:01Z"}
    value = json.dumps(fields).encode()
    with pytest.raises(CommandRefused, match="issued 301 s in the future: set the clock"):
        read_command(value, (), None, T0_MS, T0)
    late = read_command(value, (), None, T0_MS, T0 + timedelta(seconds=1))
    assert late.issued_at == T0 + timedelta(seconds=301)
    assert read_command(value, (), None, T0_MS) == late  # nobody's clock to compare with


@pytest.mark.parametrize("verb", ["roll_back", "pause", "abort"])
def test_what_always_works_takes_the_records_time_for_one_in_the_future(verb: str) -> None:
    """No clock stands before a roll back; its age counts from its record, whenever it is read."""
    fields = {**FIELDS, "verb": verb, "issued_at": "2036-01-05T09:00:00Z"}
    value = json.dumps(fields).encode()
    for now in (T0, T0 + 400 * HOUR):
        assert read_command(value, (), None, T0_MS, now).issued_at == T0
    assert read_command(value, (), None, T0_MS + 3_600_000, T0).issued_at == T0


@pytest.mark.parametrize("verb", ["resume", "promote", "roll_back", "abort"])
def test_a_time_before_1970_stops_no_order_that_lowers(verb: str) -> None:
    """Forwarded to its partition it would be no event.

    What raises is refused, the rest gets the record's time.
    """
    value = json.dumps({**FIELDS, "verb": verb, "issued_at": "0001-01-01T00:00:00Z"}).encode()
    for now in (None, T0):
        if verb in ("resume", "promote"):
            with pytest.raises(CommandRefused, match="issued before 1970: set the clock"):
                read_command(value, (), None, T0_MS, now)
            continue
        command = read_command(value, (), None, T0_MS, now)
        assert command.issued_at == T0
        assert read_command(command_event(command), (), None, T0_MS, now) == command


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


def test_command_becomes_the_cores_event() -> None:
    """A command reaches the core with its plan in the core's units."""
    command = Command.model_validate({**FIELDS, "verb": "start", "plan": PLAN})
    event = to_command_received(command)
    assert event.plan == to_core_plan(PlanDocument.model_validate(PLAN))
    assert replace(event, plan=None) == make_command(
        "start", command_id="c-1", reason="why", issued_at=T0 - timedelta(seconds=1)
    )


@pytest.mark.parametrize("verb", ["start", "apply"])
def test_a_plan_too_large_for_the_state_record_is_refused(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both sizes and what to shorten: the state could not be passed to other replicas."""
    fields = {**FIELDS, "verb": verb, "plan": PLAN}
    read(fields)
    monkeypatch.setattr(command_records, "MAX_PLAN_BYTES", 500)
    with pytest.raises(CommandRefused, match="bytes with its defaults, at most 500 fit") as refused:
        read(fields)
    assert "shorten variants' values" in refused.value.reason
