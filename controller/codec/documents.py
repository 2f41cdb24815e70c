"""Core values to documents and back: plans, rollouts, commands, and what goes out about decisions.

All knowledge of how our own records look on the wire meets the core here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from controller.core.audience import Audience, Condition
from controller.core.judging.judgement import Advice, Judgement
from controller.core.plan import (
    DEFAULT_GAP_POLICIES,
    AdvisorPolicy,
    FreezeWindow,
    Guardrail,
    Plan,
    Stage,
)
from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AnswerCommand,
    AwaitingApproval,
    Baking,
    CommandReceived,
    Completed,
    Freeze,
    Gating,
    Paused,
    Phase,
    PublishDecision,
    RaiseAlert,
    RolledBack,
    Rollout,
    Scheduled,
    Visit,
)
from controller.core.serving import percent_to_serve
from controller.errors import (
    BrokenInvariant,
    CommandRefused,
    CommandUnreadable,
    DocumentNewer,
    DocumentUnreadable,
    ForeignDocument,
)
from controller.plans import lint, unrunnable
from controller.ports import OutboxEntry
from schemas import alert, decision, result, state
from schemas.advice import AdviceRecord, ExplanationRecord
from schemas.command import TYPE as COMMAND_TYPE
from schemas.command import Command
from schemas.envelope import (
    MAX_AHEAD_MS,
    MAX_BYTES,
    Headers,
    RecordRefused,
    check_time,
    check_value,
    parse_json,
    refuse,
    write,
)
from schemas.envelope import read as open_envelope
from schemas.fields import LARGEST_INTEGER
from schemas.plan import (
    AdvisorDocument,
    Comparison,
    ConditionDocument,
    FreezeWindowDocument,
    GuardrailDocument,
    PlanDocument,
    StageDocument,
    Variants,
    VariantShare,
    Weekday,
)
from schemas.terms import ALWAYS_ACCEPTED, NAME, CommandVerb, HealthGap, Operator, QuarantineReason

#: CloudEvents `source` of what we write, as it is without an environment and was in early releases.
SOURCE = "/rolloutd"
#: Characters of a refusal that quotes from a command: enough for a handful of faults in its plan.
REASON_MAX = 2000
#: What is said of a command that made our reader fail: a mistake of ours, which no test has
#: foreseen.
UNFORESEEN = "this release cannot read it"
MAX_AHEAD = timedelta(milliseconds=MAX_AHEAD_MS)

_DAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTE = timedelta(minutes=1)

RecordT = TypeVar("RecordT", bound=BaseModel)

# --- plans
# --------------------------------------------------------------------------------------------------


def to_core_plan(document: PlanDocument) -> Plan:
    """Return the plan in the core's units, with every default filled in and its version.

    A hash of all of it.
    """
    shares_with_control = [stage.percent for stage in document.stages if stage.percent < 100]
    plan = Plan(
        name=document.name,
        version="",
        flag_key=document.flag,
        treatment=document.variants.treatment,
        control=document.variants.control,
        stages=tuple(
            Stage(
                percent=stage.percent,
                bake=stage.bake,
                settle=stage.settle,
                min_sample=stage.min_sample,
                max_bake=stage.longest_bake,
                approval=stage.approval,
                audience=stage.audience,
                control=stage.control,
            )
            for stage in document.stages
        ),
        guardrails=tuple(
            _core_guardrail(guardrail, last_with_control=max(shares_with_control, default=100.0))
            for guardrail in document.guardrails
        ),
        advisor=AdvisorPolicy(
            mode=document.advisor.mode,
            deadline=document.advisor.deadline,
            hold_rounds=document.advisor.hold_rounds,
            hold_for=document.advisor.hold_for,
        ),
        freeze_windows=tuple(_core_window(window) for window in document.freeze_windows),
        gap_policies={**DEFAULT_GAP_POLICIES, **document.health},
        alpha=document.alpha,
        beta=document.beta,
        fresh_within=document.fresh_within,
        owner=document.owner,
        description=document.description,
        expires_at=document.expires_at,
        start_at=document.start_at,
        flag_type=document.type,
        audiences=tuple(
            Audience(
                name,
                tuple(
                    tuple(_core_condition(condition) for condition in clause) for clause in clauses
                ),
            )
            for name, clauses in document.audiences.items()
        ),
        unassigned=document.variants.unassigned,
        split=tuple((share.name, share.weight) for share in document.variants.split),
        values=_of_one_type(document.variants.values),
        blind=document.blind,
    )
    return replace(plan, version=plan_version(plan))


def plan_version(plan: Plan) -> str:
    """Return 16 hex digits that name exactly this plan, whichever way it was written."""
    canonical = json.dumps(
        from_core_plan(plan).model_dump(mode="json"), sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _core_guardrail(document: GuardrailDocument, *, last_with_control: float) -> Guardrail:
    """Return one guardrail.

    One that only compares ends with the last stage that has a control, unless told otherwise.
    """
    to_percent = document.to_percent
    if to_percent is None:
        to_percent = last_with_control if document.limit is None else 100.0
    return Guardrail(
        metric=document.metric,
        role=document.role,
        limit=document.limit,
        margin=document.compare.margin if document.compare else None,
        gate_margin=document.compare.gate_margin if document.compare else None,
        in_points=document.compare is not None and document.compare.in_points,
        on_breach=document.on_breach,
        from_percent=document.from_percent,
        to_percent=to_percent,
    )


def _core_condition(document: ConditionDocument) -> Condition:
    given = next(
        operator for operator in Operator if document.operand(operator) is not None
    )  # the schema asks for one
    operand = document.operand(given)
    return Condition(
        document.attribute, given, tuple(operand) if isinstance(operand, list) else (operand,)
    )


def _of_one_type(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with all numbers as floats if one is.

    Typed clients refuse an integer for a float.
    """
    has_float = any(isinstance(value, float) for value in values.values())
    return {
        name: float(value)
        if has_float and isinstance(value, int) and not isinstance(value, bool)
        else value
        for name, value in values.items()
    }


def _core_window(document: FreezeWindowDocument) -> FreezeWindow:
    """Return one freeze window; an end that is not after the start lies on the next day."""
    start = _minute_of_day(document.begins)
    if document.lasts is not None:
        minutes = document.lasts // _MINUTE
    else:
        assert document.ends is not None  # the schema asks for one of the two
        minutes = (_minute_of_day(document.ends) - start) % (24 * 60) or 24 * 60
    return FreezeWindow(
        weekdays=frozenset(_DAYS.index(day) + 1 for day in document.days),
        start_minute=start,
        minutes=minutes,
        timezone=document.timezone,
    )


def _minute_of_day(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)


def from_core_plan(plan: Plan) -> PlanDocument:
    """Return the plan as a document with nothing left to defaults.

    `to_core_plan` of it is the same plan again.
    """
    return PlanDocument(
        name=plan.name,
        flag=plan.flag_key,
        description=plan.description,
        owner=plan.owner,
        type=plan.flag_type,
        variants=Variants(
            treatment=plan.treatment,
            control=plan.control,
            unassigned=plan.unassigned,
            split=[VariantShare(name=name, weight=weight) for name, weight in plan.split],
            values=dict(plan.values),
        ),
        audiences={
            audience.name: [
                [_condition_document(condition) for condition in conditions]
                for conditions in audience.any_of
            ]
            for audience in plan.audiences
        },
        stages=[
            StageDocument(
                percent=stage.percent,
                bake=stage.bake,
                settle=stage.settle,
                min_sample=stage.min_sample,
                max_bake=stage.max_bake,
                approval=stage.approval,
                audience=stage.audience,
                control=stage.control,
            )
            for stage in plan.stages
        ],
        guardrails=[
            GuardrailDocument(
                metric=guardrail.metric,
                role=guardrail.role,
                limit=guardrail.limit,
                compare=None
                if guardrail.margin is None
                else Comparison(
                    margin=guardrail.margin,
                    gate_margin=guardrail.gate_margin,
                    in_points=guardrail.in_points,
                ),
                on_breach=guardrail.on_breach,
                from_percent=guardrail.from_percent,
                to_percent=guardrail.to_percent,
            )
            for guardrail in plan.guardrails
        ],
        advisor=AdvisorDocument(
            mode=plan.advisor.mode,
            deadline=plan.advisor.deadline,
            hold_rounds=plan.advisor.hold_rounds,
            hold_for=plan.advisor.hold_for,
        ),
        freeze_windows=[_window_document(window) for window in plan.freeze_windows],
        # In the order of the word list, so that equal plans are equal bytes.
        health={gap: plan.gap_policies[gap] for gap in HealthGap if gap in plan.gap_policies},
        alpha=plan.alpha,
        beta=plan.beta,
        fresh_within=plan.fresh_within,
        start_at=plan.start_at,
        expires_at=plan.expires_at,
        blind=plan.blind,
    )


_LISTED = frozenset({Operator.IN, Operator.STARTS_WITH, Operator.ENDS_WITH})


def _condition_document(condition: Condition) -> ConditionDocument:
    operand = list(condition.values) if condition.operator in _LISTED else condition.values[0]
    return ConditionDocument.model_validate(
        {"attribute": condition.attribute, condition.operator.value: operand}
    )


def _window_document(window: FreezeWindow) -> FreezeWindowDocument:
    is_within_a_day = window.minutes <= 24 * 60
    return FreezeWindowDocument(
        days=[_DAYS[day - 1] for day in sorted(window.weekdays)],
        begins=_clock(window.start_minute),
        ends=_clock((window.start_minute + window.minutes) % (24 * 60))
        if is_within_a_day
        else None,
        lasts=None if is_within_a_day else window.minutes * _MINUTE,
        timezone=window.timezone,
    )


def _clock(minute_of_day: int) -> str:
    return f"{minute_of_day // 60:02}:{minute_of_day % 60:02}"


# --- rollouts
# --------------------------------------------------------------------------------------------------

_PHASES: dict[str, type[Phase]] = {
    phase.name.value: phase
    for phase in (
        Scheduled,
        Baking,
        Gating,
        AwaitingApproval,
        Paused,
        Completed,
        RolledBack,
        Aborted,
    )
}
_PHASE_RECORD: TypeAdapter[state.PhaseRecord] = TypeAdapter(state.PhaseRecord)


def to_state(rollout: Rollout) -> state.RolloutState:
    """Return the rollout as the public document."""
    return state.RolloutState(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        percent=percent_to_serve(rollout),
        stage_percent=rollout.percent,
        phase=_PHASE_RECORD.validate_python(rollout.phase, from_attributes=True),
        hold=rollout.hold,
        freeze=_of(state.FreezeRecord, rollout.freeze),
        visits=[
            state.VisitRecord.model_validate(visit, from_attributes=True)
            for visit in rollout.visits
        ],
        started_at=rollout.started_at,
        updated_at=rollout.updated_at,
        plan_version=rollout.plan.version,
        plan=from_core_plan(rollout.plan),
    )


def from_state(document: state.RolloutState) -> Rollout:
    """Return the rollout that the document describes."""
    return Rollout(
        flag_key=document.flag,
        rollout_id=document.rollout_id,
        revision=document.revision,
        plan=replace(to_core_plan(document.plan), version=document.plan_version),
        phase=_phase(document.phase),
        percent=document.percent if document.stage_percent is None else document.stage_percent,
        visits=tuple(Visit(**_fields(visit)) for visit in document.visits),
        started_at=document.started_at,
        updated_at=document.updated_at,
        hold=document.hold,
        freeze=Freeze(**_fields(document.freeze)) if document.freeze else None,
    )


def _phase(record: state.PhaseRecord) -> Phase:
    fields = _fields(record)
    kind = _PHASES[fields.pop("name")]
    if isinstance(record, state.PausedPhase):
        fields["held"] = _phase(record.held)
    elif isinstance(record, state.GatingPhase) and record.advice is not None:
        answer = record.advice.answer
        fields["advice"] = AdviceRound(
            **{**_fields(record.advice), "answer": None if answer is None else _core_advice(answer)}
        )
    return kind(**fields)


def _core_advice(record: AdviceRecord) -> Advice:
    return Advice(**{**_fields(record), "reasons": tuple(record.reasons)})


def _fields(record: BaseModel) -> dict[str, Any]:
    """Return a record's fields by name, one level deep."""
    return {name: getattr(record, name) for name in type(record).model_fields}


def rollout_to_json(rollout: Rollout) -> bytes:
    """Return the public document as JSON; `rollout_from_json` gives exactly this rollout back."""
    return to_state(rollout).model_dump_json().encode()


def rollout_from_json(document: bytes) -> Rollout:
    """Return the rollout of a stored document.

    Raises DocumentUnreadable for a version this release does not know, and for everything that is
    no such document.
    """
    return _read_state(_parsed(document, "rollout document"))


def source_of(environment: str) -> str:
    """Return the CloudEvents `source` of everything that the rolloutd of an environment writes."""
    return f"{SOURCE}/{environment}"


def read_state(value: bytes, environments: Collection[str] | None = None) -> Rollout:
    """Return the rollout of a record of `rollout.state`, as written by `state_bytes`.

    `environments` are the names that its writer may have had; None: any. A record that names none
    is taken: early releases wrote so. Raises DocumentUnreadable, ForeignDocument for another name.
    """
    event = _parsed(value, "state record")
    if not isinstance(event, dict) or event.get("type") != state.TYPE:
        raise DocumentUnreadable(f"state record is no event of type {state.TYPE}")
    writer, _, environment = str(event.get("source")).rpartition("/")
    if environments is not None and writer == SOURCE and environment not in environments:
        raise ForeignDocument(environment)
    return _read_state(event.get("data"))


def _parsed(written: bytes, what: str) -> Any:
    """Return JSON that is Unicode text throughout.

    Half a surrogate pair cannot be served or stored again.

    Raises DocumentUnreadable.
    """
    try:
        fields = json.loads(written.decode())
        if b"\\ud" in written.lower():  # an escape that may be half of a pair
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DocumentUnreadable(f"{what} is not JSON: {str(error)[:200]}") from None
    return fields


def _read_state(fields: Any) -> Rollout:
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if isinstance(version, bool) or version not in state.READ_VERSIONS:
        is_newer = isinstance(version, int) and version > state.SCHEMA_VERSION
        raise (DocumentNewer if is_newer else DocumentUnreadable)(
            f"rollout document has schema_version {repr(version)[:40]}, this release reads up to "
            f"{state.SCHEMA_VERSION}: run the release that wrote it, or a newer one"
        )
    try:
        document = state.RolloutState.model_validate(fields)
        _check_coherent(document)
        return from_state(document)
    except ValidationError as error:
        raise DocumentUnreadable(f"rollout document is damaged: {explain(error)}") from None
    except _UNREADABLE as error:
        # Numbers and nesting that no test has foreseen: its flag stops, and no other.
        why = f"rollout document is damaged: {type(error).__name__}: {error}"
        raise DocumentUnreadable(why[:500]) from error


#: Each transition adds one, and no reader of JSON may take two revisions for the same.
LARGEST_REVISION = LARGEST_INTEGER // 2

_UNREADABLE = (ArithmeticError, LookupError, RecursionError, MemoryError, TypeError, ValueError)


def _check_coherent(document: state.RolloutState) -> None:
    """Raise DocumentUnreadable for a document whose parts do not fit: the machine relies on it."""
    problems = [str(finding) for finding in unrunnable(document.plan)[:3]]
    stages = len(document.plan.stages)
    phase = document.phase.held if isinstance(document.phase, state.PausedPhase) else document.phase
    stage = getattr(phase, "stage", None)
    if document.revision > LARGEST_REVISION:
        problems.append(f"revision {document.revision} leaves no room for the next ones")
    if document.flag != document.plan.flag:
        problems.append(f"it is of {document.flag}, its plan of {document.plan.flag}")
    if stage is not None and not document.visits:
        problems.append("it is in a stage that it has not visited")
    if any(index >= stages for index in (stage or 0, *(visit.stage for visit in document.visits))):
        problems.append(f"it names a stage beyond the last of {stages}")
    if problems:
        raise DocumentUnreadable(f"rollout document is damaged: {'; '.join(problems)}"[:500])


def explain(error: ValidationError) -> str:
    """Return what is wrong with a document in one line.

    Where and what of the first three faults.
    """
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'document'}: {fault['msg']}"
        for fault in faults[:3]
    ]
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return "; ".join(told).replace("Value error, ", "") + more


# --- commands
# --------------------------------------------------------------------------------------------------


def read_command(
    value: bytes | None,
    headers: Headers,
    key: bytes | None,
    timestamp_ms: int,
    now: datetime | None = None,
) -> Command:
    """Return the command in one record of `rollout.commands`.

    Read are CloudEvents, structured and binary, and the bare JSON object that a person types into
    kcat. What the record says itself need not be said twice: `flag` may be left to the key, `id`
    and `issued_at` to the event's id and time, or for a bare object to a hash of the record (so a
    replay has the same id) and its timestamp. A bare `issuer` may be left out where a command
    always works: at 3 a.m. `{"verb": "roll_back"}` with the flag as key is enough.

    `now` is the reader's clock, None for none: a command from the future is refused, since its age
    would never count, and so is one from before 1970; what always works gets the record's time.
    Raises CommandRefused when the command can be answered, with the reason;
    CommandUnreadable for everything else, and nothing else, whatever the record holds.
    """
    try:
        fields = _command_fields(value, headers, key, timestamp_ms)
    except RecordRefused as refusal:
        raise CommandUnreadable(refusal.reason, refusal.detail) from None
    try:
        command = _command(fields, key)
        to_command_event(command)  # whoever obeys it need not fear its plan
    except (CommandRefused, CommandUnreadable):
        raise
    except Exception as error:  # the edge to what anybody may write: one record ends no other
        why = f"{UNFORESEEN} ({type(error).__name__}): please report it"
        raise _not_a_command(fields, why) from error
    is_ahead = now is not None and command.issued_at - now > MAX_AHEAD
    if command.issued_at >= _EPOCH and not is_ahead:
        return command
    if command.verb in ALWAYS_ACCEPTED:
        # It lowers, so a clock must not stop it, ours perhaps. The record's time is the same when
        # it is read again.
        at = _moment(timestamp_ms)
        return command.model_copy(update={"issued_at": at if now is None else min(at, now)})
    if now is None or not is_ahead:
        # As the event of a command that is forwarded it would be unreadable.
        raise _not_a_command(
            fields, "issued before 1970: set the clock of the issuer, and send it again"
        )
    ahead = int((command.issued_at - now).total_seconds())
    why = f"issued {ahead} s in the future: set the clock of the issuer, or of this controller"
    raise _not_a_command(fields, f"{why}, and send it again")


def _command(fields: dict[str, Any], key: bytes | None) -> Command:
    """Return the command of these fields. Raises CommandRefused or CommandUnreadable."""
    if key and fields["flag"] != key.decode("utf-8", "replace"):
        raise _not_a_command(
            fields, "the command's flag is not the record's key: keep one, or make them equal"
        )
    try:
        command = Command.model_validate(fields)
    except ValidationError as error:
        raise _not_a_command(fields, explain(error)) from None
    if command.plan is not None:
        errors = [
            str(finding) for finding in lint(command.plan, command.issued_at) if finding.is_error
        ]
        if errors:
            raise _not_a_command(fields, "plan: " + "; ".join(errors))
    return command


def _command_fields(
    value: bytes | None, headers: Headers, key: bytes | None, timestamp_ms: int
) -> dict[str, Any]:
    """Return the command's fields, completed by what the record says. Raises RecordRefused."""
    document = None
    if not any(name.startswith("ce_") for name, _ in headers):
        document = parse_json(check_value(value))
    if isinstance(document, dict) and "specversion" not in document:
        check_time(timestamp_ms, timestamp_ms)
        fields = {**document}
        digest = hashlib.sha256(b"%d " % timestamp_ms + (value or b"")).hexdigest()
        fields.setdefault("id", f"record-{digest[:16]}")
        fields.setdefault("issued_at", _moment(timestamp_ms).isoformat())
        if isinstance(fields.get("verb"), str) and fields["verb"] in ALWAYS_ACCEPTED:
            fields.setdefault("issuer", "unnamed")
    else:
        envelope = open_envelope(value, timestamp_ms, headers, (COMMAND_TYPE,))
        fields = {**envelope.data}
        fields.setdefault("id", envelope.id)
        fields.setdefault("issued_at", _moment(envelope.time_ms).isoformat())
    if key:
        fields.setdefault("flag", key.decode("utf-8", "replace"))
    return fields


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(time_ms: int) -> datetime:
    """Return milliseconds since 1970 as a time.

    Raises RecordRefused beyond the year 9999, where a broken clock may be.
    """
    try:
        return _EPOCH + timedelta(milliseconds=time_ms)
    except OverflowError:
        refuse(QuarantineReason.BAD_TIME, f"{time_ms} ms is no time", "set the sender's clock")


def _not_a_command(fields: dict[str, Any], reason: str) -> CommandRefused | CommandUnreadable:
    """Return the refusal that can be answered when there is an id and a flag to answer to."""
    command_id, flag_key, verb = (fields.get(name) for name in ("id", "flag", "verb"))
    # It may quote keys of the record: nothing in it may forge a line of a log or a terminal.
    reason = "".join(char if char.isprintable() else "?" for char in reason[:REASON_MAX])
    if not all(isinstance(name, str) and NAME.match(name) for name in (command_id, flag_key)):
        return CommandUnreadable(QuarantineReason.INVALID, reason)
    known_verb = CommandVerb(verb) if isinstance(verb, str) and verb in set(CommandVerb) else None
    return CommandRefused(
        command_id=str(command_id), flag_key=str(flag_key), verb=known_verb, reason=reason
    )


def refusal_by_mistake(
    value: bytes | None, headers: Headers, key: bytes | None, timestamp_ms: int, mistake: Exception
) -> CommandRefused | CommandUnreadable:
    """Return the refusal of a command that we failed to read by a mistake of ours."""
    reason = f"the controller failed on this command: {mistake!r}"
    try:
        return _not_a_command(_command_fields(value, headers, key, timestamp_ms), reason)
    except Exception:  # it fails on that, too
        return CommandUnreadable(QuarantineReason.INVALID, reason[:REASON_MAX])


# : CloudEvents extension of a command that was published again, for its flag's own partition: how
# often.
HOPS = "rolloutdhops"


def command_bytes(command: Command, *, hops: int = 0) -> bytes:
    """Return the command as it is published.

    Its own id and time are the event's, so that a copy is recognised as one.
    """
    value = _event(COMMAND_TYPE, command.id, command.flag, command.issued_at, command)
    return _extended(value, HOPS, str(hops)) if hops else value


def _extended(value: bytes, name: str, text: str) -> bytes:
    """Return a CloudEvent with one extension attribute more."""
    return value[:-1] + b"," + msgspec.json.encode(name) + b":" + msgspec.json.encode(text) + b"}"


class _PeekedData(msgspec.Struct):
    flag: str | None = None
    verb: str | None = None


class _PeekedEvent(msgspec.Struct):
    flag: str | None = None
    verb: str | None = None
    data: _PeekedData | None = None
    specversion: str | None = None
    rolloutdhops: str | int | None = None


_peek = msgspec.json.Decoder(_PeekedEvent).decode


def peek_command(
    value: bytes | None, headers: Headers, key: bytes | None
) -> tuple[str, CommandVerb | None, int] | None:
    """Return (flag, verb, hops) of a command without reading it; None when that takes reading it.

    A hundredth of the price of `read_command`, and never more than a hint: what it says decides who
    goes first, not what is done. The verb is None for one that nobody knows.
    """
    if value is None or len(value) > MAX_BYTES:
        return None
    try:
        event = _peek(value)
        flag_key, verb = event.flag, event.verb
        if event.specversion is not None and event.data is not None:
            flag_key, verb = event.data.flag, event.data.verb
        if flag_key is None and key is not None:
            flag_key = key.decode()
        hops = int(event.rolloutdhops or 0)
    except ValueError:
        return None
    if flag_key is None or not NAME.match(flag_key):
        return None
    return flag_key, CommandVerb(verb) if verb in _VERBS else None, hops


_VERBS = frozenset(CommandVerb)


def to_command_event(command: Command) -> CommandReceived:
    """Return the command as the core's event."""
    return CommandReceived(
        command_id=command.id,
        verb=command.verb,
        issuer=command.issuer,
        reason=command.reason,
        issued_at=command.issued_at,
        expected_revision=command.expected_revision,
        plan=to_core_plan(command.plan) if command.plan else None,
    )


# --- what goes out
# --------------------------------------------------------------------------------------------------


def decision_bytes(
    effect: PublishDecision, rollout: Rollout, effect_id: str, at: datetime, source: str = SOURCE
) -> bytes:
    """Return a decision with all its evidence; `rollout` is the one after it."""
    record = decision.Decision(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        at=at,
        kind=effect.kind,
        reason=effect.reason,
        issuer=effect.issuer,
        phase=rollout.phase.name,
        stage=effect.stage,
        from_percent=effect.from_percent,
        to_percent=effect.to_percent,
        audience=None if effect.stage is None else rollout.plan.stages[effect.stage].audience,
        plan=decision.PlanReference(name=rollout.plan.name, version=rollout.plan.version),
        gate_id=effect.gate_id,
        command_id=effect.command_id,
        judgement=None if effect.judgement is None else to_judgement_record(effect.judgement),
        advice=_of(AdviceRecord, effect.advice),
    )
    return _event(decision.TYPE, effect_id, rollout.flag_key, at, record, source)


def to_judgement_record(judgement: Judgement) -> decision.JudgementRecord:
    """Return all the evidence of one look, with its verdict."""
    return decision.JudgementRecord(
        at=judgement.at,
        visit=judgement.visit,
        verdict=judgement.statistics,
        gaps=[
            decision.GapRecord.model_validate(gap, from_attributes=True) for gap in judgement.gaps
        ],
        metrics=[
            decision.MetricRecord.model_validate(metric, from_attributes=True)
            for metric in judgement.metrics
        ],
        harm=decision.HarmRecord.model_validate(judgement.harm, from_attributes=True),
        exposures=dict(judgement.exposures),
        srm_e_value=judgement.srm_e_value,
        observed_share=judgement.observed_share,
        offsets=dict(judgement.offsets),
        batches=judgement.batches,
    )


def judgement_to_json(judgement: Judgement) -> bytes:
    """Return one look as JSON, as decisions carry it."""
    return to_judgement_record(judgement).model_dump_json().encode()


def alert_bytes(
    effect: RaiseAlert, rollout: Rollout, effect_id: str, at: datetime, source: str = SOURCE
) -> bytes:
    """Return an alert with the harm so far."""
    record = alert.Alert(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        at=at,
        kind=effect.kind,
        severity=effect.severity,
        summary=effect.summary,
        action=effect.action,
        dedup_key=effect.dedup_key,
        phase=rollout.phase.name,
        percent=rollout.percent,
        harm=_of(decision.HarmRecord, effect.judgement and effect.judgement.harm),
        explanation=_of(ExplanationRecord, effect.explanation),
    )
    return _event(alert.TYPE, effect_id, rollout.flag_key, at, record, source)


def result_bytes(effect: AnswerCommand, flag_key: str, at: datetime, source: str = SOURCE) -> bytes:
    """Return the one result of a command.

    The event's id is the command's, unless that was used before.

    What the id is bound to goes along as the extension `rolloutddigest`.
    """
    record = result.Result(
        command_id=effect.command_id,
        flag=flag_key,
        verb=effect.verb,
        status=effect.status,
        reason=effect.reason,
        revision=effect.revision,
        at=at,
    )
    value = _event(result.TYPE, effect.event or effect.command_id, flag_key, at, record, source)
    return _extended(value, "rolloutddigest", effect.digest) if effect.digest else value


def state_bytes(rollout: Rollout, effect_id: str, at: datetime, source: str = SOURCE) -> bytes:
    """Return the rollout document as an event for the compacted topic.

    `read_state` gives the rollout back.
    """
    return _event(state.TYPE, effect_id, rollout.flag_key, at, to_state(rollout), source)


def _of(kind: type[RecordT], value: object | None) -> RecordT | None:
    return None if value is None else kind.model_validate(value, from_attributes=True)


def _event(
    event_type: str,
    event_id: str,
    flag_key: str,
    at: datetime,
    record: BaseModel,
    source: str = SOURCE,
) -> bytes:
    """Return a structured CloudEvent."""
    data = msgspec.Raw(record.model_dump_json().encode())
    value, _ = write(event_type, source=source, id=event_id, time=at, subject=flag_key, data=data)
    return value


Message = PublishDecision | RaiseAlert | AnswerCommand | Rollout


def encode(
    message: Message,
    flag_key: str,
    rollout: Rollout | None,
    effect_id: str,
    at: datetime,
    *,
    source: str = SOURCE,
) -> OutboxEntry:
    """Return a message as the record it is published by; `rollout` is the flag's after it.

    Only an answer can do without a rollout. Every value is a structured CloudEvent of `source`,
    whose id is `effect_id`, an answer's that of its command. The entry has no field yet: whoever
    saves it in the outbox names it.
    """
    if isinstance(message, AnswerCommand):
        # Ids of commands are unique per flag: the effect's id, which publishers drop repeats by,
        # has both.
        answer_id = f"{flag_key}/{message.event or message.command_id}"
        return OutboxEntry(
            "", answer_id, "results", flag_key, result_bytes(message, flag_key, at, source)
        )
    if isinstance(message, Rollout):
        state_event = state_bytes(message, effect_id, at, source)
        return OutboxEntry("", effect_id, "state", flag_key, state_event)
    if rollout is None:
        raise BrokenInvariant(f"{type(message).__name__} for {flag_key}, which has no rollout")
    if isinstance(message, PublishDecision):
        value = decision_bytes(message, rollout, effect_id, at, source)
        return OutboxEntry("", effect_id, "decisions", flag_key, value)
    value = alert_bytes(message, rollout, effect_id, at, source)
    return OutboxEntry("", effect_id, "alerts", flag_key, value)
