"""The state document: round trips, and what is refused with the reason."""

import gc
import json
from datetime import date
from typing import Any
from weakref import ref

import pytest

from controller.codec.cloud_events import source_of
from controller.codec.outbox import outbox_entry
from controller.codec.rollouts import (
    read_state,
    rollout_from_json,
    rollout_to_json,
    state_event,
)
from controller.core.machine import decide
from controller.core.plan import Window
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
    Scheduled,
)
from controller.core.serving import percent_to_serve
from controller.errors import (
    DocumentUnreadable,
    ForeignDocument,
)
from schemas.state import LARGEST_REVISION
from schemas.terms import CommandVerb, HoldReason
from tests.builders import (
    HOUR,
    T0,
    make_advice,
    make_command,
    make_plan,
    make_rollout,
    make_visit,
)

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


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: str(phase.name))
def test_rollout_survives_its_document(phase: Phase) -> None:
    """A rollout in any phase is read back as it was written, from store and state topic."""
    rollout = make_rollout(
        phase=phase, freeze=Freeze(T0, "ada", "incident"), hold=HoldReason.FROZEN
    )
    assert rollout_from_json(rollout_to_json(rollout)) == rollout
    assert read_state(state_event(rollout, "new-checkout/1/0", T0)) == rollout


def test_another_environments_document_is_refused() -> None:
    """A record says which environment wrote it; only its own is read, and what says nothing."""
    rollout = make_rollout()
    source = source_of("staging")
    entry = outbox_entry(rollout, rollout.flag_key, rollout, "f/1/0", T0, source=source)
    assert json.loads(entry.value)["source"] == "/rolloutd/staging"
    assert read_state(entry.value) == rollout
    assert read_state(entry.value, ("live", "staging")) == rollout
    with pytest.raises(ForeignDocument, match="staging") as refusal:
        read_state(entry.value, ("production",))
    assert refusal.value.environment == "staging"
    early = state_event(rollout, "f/1/0", T0)
    assert read_state(early, ("production",)) == rollout


def test_a_document_from_before_active_windows_is_read() -> None:
    """Version 3 has neither windows nor closings: such a rollout is always active."""
    fields = json.loads(rollout_to_json(make_rollout()))
    fields["schema_version"] = 3
    del fields["closed_since"], fields["plan"]["active"]
    for visit in fields["visits"]:
        del visit["closings"]
    assert rollout_from_json(json.dumps(fields).encode()) == make_rollout()


def test_a_closed_rollout_is_published_with_0_percent_and_read_back() -> None:
    """Followers see since when it is closed; what was decided stays in its visit."""
    visit = make_visit().closed(T0 + HOUR).opened(T0 + 9 * HOUR).closed(T0 + 10 * HOUR)
    window = Window(frozenset({1}), 540, 60, "UTC", date(2026, 1, 5), date(2026, 2, 5))
    rollout = make_rollout(plan=make_plan(active=(window,)), percent=0.0, visits=(visit,))
    fields = json.loads(rollout_to_json(rollout))
    assert (fields["percent"], fields["visits"][0]["percent"]) == (0, 10)
    assert fields["closed_since"] == "2026-01-05T19:00:00Z"
    assert rollout_from_json(rollout_to_json(rollout)) == rollout


def test_pinned_version_outlives_a_change_of_the_hash() -> None:
    """The version a rollout started with is read back, whatever this release would compute."""
    rollout = make_rollout(plan=make_plan(version="of-an-old-release"))
    assert rollout_from_json(rollout_to_json(rollout)).plan.version == "of-an-old-release"


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 6},
        {"schema_version": None},
        {"schema_version": "1"},
        {"percent": "all"},
        {"visits": None},
        {"plan": {}},
    ],
)
def test_unknown_or_damaged_document_is_refused(change: dict[str, Any]) -> None:
    """A newer or damaged document is refused, never guessed at."""
    fields = {**json.loads(rollout_to_json(make_rollout())), **change}
    with pytest.raises(DocumentUnreadable):
        rollout_from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"type":"io.rolloutd.alert.v1"}',
        b"[" * 100_000,
        b'{"type":"io.rolloutd.state.v1","source":"/rolloutd","data":' + b"[" * 100_000,
    ],
)
def test_record_that_is_no_document_is_refused(value: bytes) -> None:
    """What is no document is refused with one kind of error."""
    with pytest.raises(DocumentUnreadable):
        rollout_from_json(value)
    with pytest.raises(DocumentUnreadable):
        read_state(value)


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
    fields = {**json.loads(rollout_to_json(make_rollout())), **change}
    with pytest.raises(DocumentUnreadable, match=said):
        rollout_from_json(json.dumps(fields).encode())


def test_a_rollback_is_read_at_any_revision() -> None:
    """What follows a document of the last revision would be refused, and that document serve again.

    Only somebody else can have written such a document.
    """
    last = make_rollout(revision=LARGEST_REVISION)
    assert rollout_from_json(rollout_to_json(last)).percent > 0
    command = make_command(CommandVerb.ROLL_BACK)
    after, _ = decide(last, command, T0 + HOUR)
    assert after is not None
    assert after.revision > LARGEST_REVISION
    assert percent_to_serve(rollout_from_json(rollout_to_json(after))) == 0


def test_the_plan_of_a_stored_rollout_can_be_run() -> None:
    """No stage, an unknown audience or zone, a guardrail without a bound: each ends its worker."""
    fields = json.loads(rollout_to_json(make_rollout()))
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
            rollout_from_json(json.dumps(document).encode())


def test_the_same_bytes_are_decoded_once_wherever_they_are_read() -> None:
    """A start reads each document in a file, in the state topic and in Redis."""
    rollout = make_rollout(authors=("ada@example.org",))
    document = rollout_to_json(rollout)
    from_file = rollout_from_json(document)
    assert rollout_from_json(document) is from_file
    assert read_state(state_event(rollout, "new-checkout/1/0", T0)) is from_file
    assert read_state(state_event(rollout, "new-checkout/1/7", T0, "/rolloutd/live")) is from_file
    assert rollout_from_json(document + b" ") is not from_file
    assert rollout_from_json(document + b" ") == from_file


def test_what_was_decoded_is_kept_only_while_somebody_has_it() -> None:
    """Ten thousand flags change a hundred times a day each."""
    document = rollout_to_json(make_rollout(authors=("grace@example.org",)))
    kept = ref(rollout_from_json(document))
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    "change",
    [
        (b"/rolloutd/live", b"/rolloutd/test"),
        (b"io.rolloutd.state.v1", b"io.rolloutd.state.v9"),
        (b"new-checkout/1/0", b"\\ud800"),
        (b"new-checkout/1/0", b"\xff"),
        (b'"percent":10.0', b'"percent":"all"'),
        (b'"data":', b'"payload":'),
    ],
)
def test_a_document_that_is_known_makes_no_other_record_good(change: tuple[bytes, bytes]) -> None:
    """Whose record it is, that it is text, and every byte of the document are checked as before."""
    record = state_event(make_rollout(), "new-checkout/1/0", T0, "/rolloutd/live")
    known = read_state(record, ("live",))
    assert known == make_rollout()
    altered = record.replace(*change)
    assert altered != record
    with pytest.raises(DocumentUnreadable):
        read_state(altered, ("live",))
