"""Rollouts: the state document that is stored, published and served, and back.

Reading is strict: a document that this release cannot act on safely is refused with the reason.

A start reads each document several times: in the file of this replica, in the state topic, and in
Redis. They are the same bytes, so they are decoded once: what was decoded is kept by the digest of
its bytes, for as long as somebody else holds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from datetime import datetime
from functools import cache
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from controller.codec.cloud_events import SOURCE, optional_record, write_event
from controller.codec.plans import from_core_plan, to_core_plan
from controller.core.judging.judgement import Advice
from controller.core.rollout import PHASE_TYPES, AdviceRound, Freeze, Phase, Rollout
from controller.core.serving import percent_to_serve
from controller.core.visits import Closing, Visit
from controller.errors import DocumentNewer, DocumentUnreadable, ForeignDocument
from controller.plans import unrunnable
from controller.text import describe_faults
from schemas import state
from schemas.advice import AdviceRecord

#: Characters of the reason why a document cannot be read.
MAX_REASON_CHARS: Final = 500

_PHASES: Final[dict[str, type[Phase]]] = {phase.name.value: phase for phase in PHASE_TYPES}

#: Rollouts by the digest of the document that they were read from. Nobody can forge the digest:
#: other bytes never pass for a document that was checked.
_decoded: Final[WeakValueDictionary[bytes, Rollout]] = WeakValueDictionary()

#: What numbers and nesting that no test has foreseen can raise. The flag stops, and no other flag.
_DAMAGE = (ArithmeticError, LookupError, RecursionError, MemoryError, TypeError, ValueError)


# --- writing ---


@cache
def _phase_record() -> TypeAdapter[state.PhaseRecord]:
    """Return what writes a phase; it is made when the first is written, for a tool's fast start."""
    return TypeAdapter(state.PhaseRecord)


def to_state(rollout: Rollout) -> state.RolloutState:
    """Return the rollout as the public document."""
    return state.RolloutState(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        percent=percent_to_serve(rollout),
        stage_percent=rollout.percent,
        phase=_numbered(_phase_record().validate_python(rollout.phase, from_attributes=True), 1),
        hold=rollout.hold,
        freeze=optional_record(state.FreezeRecord, rollout.freeze),
        closed_since=rollout.closed_since,
        told_gaps=sorted(rollout.told_gaps),
        told_breaches=sorted(rollout.told_breaches),
        visits=[
            _numbered(state.VisitRecord.model_validate(visit, from_attributes=True), 1)
            for visit in rollout.visits
        ],
        started_at=rollout.started_at,
        updated_at=rollout.updated_at,
        plan_version=rollout.plan.version,
        plan=from_core_plan(rollout.plan),
        has_advisor=rollout.has_advisor,
        authors=list(rollout.authors),
    )


def rollout_to_json(rollout: Rollout) -> bytes:
    """Return the public document as JSON; `rollout_from_json` gives exactly this rollout back."""
    return to_state(rollout).model_dump_json().encode()


def state_event(rollout: Rollout, effect_id: str, at: datetime, source: str = SOURCE) -> bytes:
    """Return the document as an event for the compacted topic; `read_state` reads it."""
    return write_event(state.TYPE, effect_id, rollout.flag_key, at, to_state(rollout), source)


RecordT = TypeVar("RecordT", bound=BaseModel)


def _numbered(record: RecordT, shift: int) -> RecordT:
    """Return a phase or a visit with its stage's number moved: documents count from 1."""
    changes: dict[str, Any] = {}
    if (stage := getattr(record, "stage", None)) is not None:
        changes["stage"] = stage + shift
    if (held := getattr(record, "held", None)) is not None:
        changes["held"] = _numbered(held, shift)
    return record.model_copy(update=changes) if changes else record


# --- reading ---


def rollout_from_json(document: bytes) -> Rollout:
    """Return the rollout of a stored document.

    Raises DocumentNewer for the version of a newer release, and DocumentUnreadable for everything
    else that is no such document.
    """
    digest = _digest_of(document)
    known = _decoded.get(digest)
    if known is None:
        # The file is read in a thread of its own: what it has decoded meanwhile is the one to keep.
        known = _decoded.setdefault(digest, _read_fields(_parse_json(document, "rollout document")))
    return known


def is_as_written_now(document: bytes) -> bool:
    """Return whether a document that can be read has the version that this release writes."""
    return document.startswith(b'{"schema_version":%d,' % state.SCHEMA_VERSION)


def _digest_of(document: bytes) -> bytes:
    return hashlib.blake2b(document, digest_size=32).digest()


def read_state(value: bytes, environments: Collection[str] | None = None) -> Rollout:
    """Return the rollout of a record of `rollout.state`, as written by `state_event`.

    `environments` are the names that its writer may have; None accepts any. A record without a name
    is accepted: early releases wrote none. Raises DocumentUnreadable, and ForeignDocument for
    another environment's name.
    """
    envelope = _envelope(value)
    if envelope is not None:
        _check_writer(envelope.source, environments)
        return rollout_from_json(bytes(envelope.data))
    event = _parse_json(value, "state record")
    if not isinstance(event, dict) or event.get("type") != state.TYPE:
        raise DocumentUnreadable(f"state record is no event of type {state.TYPE}")
    _check_writer(str(event.get("source")), environments)
    return _read_fields(event.get("data"))


def _check_writer(source: str, environments: Collection[str] | None) -> None:
    """Raise ForeignDocument for a record that rolloutd wrote for none of these environments."""
    writer, _, environment = source.rpartition("/")
    if environments is not None and writer == SOURCE and environment not in environments:
        raise ForeignDocument(environment)


class _Envelope(msgspec.Struct):
    type: str
    source: str
    data: msgspec.Raw


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode


def _envelope(value: bytes) -> _Envelope | None:
    """Return a state record's envelope as we write it; None: it has to be read with all care."""
    try:
        value.decode()  # what is no text is refused, also outside the document
        envelope = _decode_envelope(value)
    except (ValueError, RecursionError):
        return None
    return envelope if envelope.type == state.TYPE else None


def _parse_json(text: bytes, subject: str) -> Any:
    """Return JSON that is Unicode text throughout. Raises DocumentUnreadable.

    Half a surrogate pair is refused: it cannot be served or stored again.
    """
    try:
        fields = json.loads(text.decode())
        if b"\\ud" in text.lower():  # an escape that may be half of a pair
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DocumentUnreadable(f"{subject} is not JSON: {str(error)[:200]}") from None
    return fields


def _read_fields(fields: Any) -> Rollout:
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if isinstance(version, bool) or version not in state.READ_VERSIONS:
        is_newer = isinstance(version, int) and version > state.SCHEMA_VERSION
        raise (DocumentNewer if is_newer else DocumentUnreadable)(
            f"rollout document has schema_version {repr(version)[:40]}, this release reads up to "
            f"{state.SCHEMA_VERSION}: run the release that wrote it, or a newer one"
        )
    try:
        document = _with_indexes(state.RolloutState.model_validate(fields))
        _check_coherent(document)
        return _from_indexed(document)
    except ValidationError as error:
        raise DocumentUnreadable(f"rollout document is damaged: {describe_faults(error)}") from None
    except _DAMAGE as error:
        why = f"rollout document is damaged: {type(error).__name__}: {error}"
        raise DocumentUnreadable(why[:MAX_REASON_CHARS]) from error


def _with_indexes(document: state.RolloutState) -> state.RolloutState:
    """Return the document with stages as indexes, which versions before 3 had."""
    if document.schema_version < state.STAGES_FROM_1:
        return document
    changes = {
        "phase": _numbered(document.phase, -1),
        "visits": [_numbered(visit, -1) for visit in document.visits],
    }
    return document.model_copy(update=changes)


def _check_coherent(document: state.RolloutState) -> None:
    """Raise DocumentUnreadable for a document whose parts do not fit: the machine relies on it."""
    problems = [str(finding) for finding in unrunnable(document.plan)[:3]]
    stages = len(document.plan.stages)
    phase = document.phase.held if isinstance(document.phase, state.PausedPhase) else document.phase
    stage = getattr(phase, "stage", None)
    # A rollback is read at any revision: refused, the document before it would serve again.
    if document.revision > state.LARGEST_REVISION and document.percent > 0:
        problems.append(f"revision {document.revision} leaves no room for the next ones")
    if document.flag != document.plan.flag:
        problems.append(f"it is of {document.flag}, its plan of {document.plan.flag}")
    if stage is not None and not document.visits:
        problems.append("it is in a stage that it has not visited")
    indexes = (stage or 0, *(visit.stage for visit in document.visits))
    if not all(0 <= index < stages for index in indexes):
        problems.append(f"it names a stage before the first or beyond the last of {stages}")
    if problems:
        why = f"rollout document is damaged: {'; '.join(problems)}"
        raise DocumentUnreadable(why[:MAX_REASON_CHARS])


def _from_indexed(document: state.RolloutState) -> Rollout:
    return Rollout(
        flag_key=document.flag,
        rollout_id=document.rollout_id,
        revision=document.revision,
        plan=to_core_plan(document.plan, version=document.plan_version),
        phase=_core_phase(document.phase),
        percent=document.percent if document.stage_percent is None else document.stage_percent,
        visits=tuple(map(_core_visit, document.visits)),
        started_at=document.started_at,
        updated_at=document.updated_at,
        hold=document.hold,
        freeze=Freeze(**_fields_of(document.freeze)) if document.freeze else None,
        has_advisor=document.has_advisor,
        told_gaps=frozenset(document.told_gaps),
        told_breaches=frozenset(document.told_breaches),
        authors=tuple(document.authors),
    )


def _core_visit(record: state.VisitRecord) -> Visit:
    closings = tuple(Closing(**_fields_of(closing)) for closing in record.closings)
    return Visit(**{**_fields_of(record), "closings": closings})


def _core_phase(record: state.PhaseRecord) -> Phase:
    fields = _fields_of(record)
    phase_type = _PHASES[fields.pop("name")]
    if isinstance(record, state.PausedPhase):
        fields["held"] = _core_phase(record.held)
    elif isinstance(record, state.GatingPhase) and record.advice is not None:
        answer = record.advice.answer
        fields["advice"] = AdviceRound(
            **{
                **_fields_of(record.advice),
                "answer": None if answer is None else _core_advice(answer),
            }
        )
    return phase_type(**fields)


def _core_advice(record: AdviceRecord) -> Advice:
    return Advice(**{**_fields_of(record), "reasons": tuple(record.reasons)})


def _fields_of(record: BaseModel) -> dict[str, Any]:
    """Return a record's fields by name, one level deep."""
    return {name: getattr(record, name) for name in type(record).model_fields}
