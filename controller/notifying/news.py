"""News: one thing that happened to a rollout, made of a record on the decisions or alerts topic.

Belongs here: which records are news, and what of them is kept. Does not belong here: who hears of
it (`planner.py`), and in which words (`words.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from controller.codec.alerts import alert_from
from controller.codec.decisions import decision_from
from schemas.alert import TYPE as ALERT
from schemas.alert import Alert
from schemas.decision import TYPE as DECISION
from schemas.decision import Decision
from schemas.terms import AlertKind, DecisionKind, Severity

#: Decisions of which no alert tells, by the kind of news that they are. All others raise an alert.
DECISIONS: Final[Mapping[DecisionKind, str]] = {
    DecisionKind.START: "started",
    DecisionKind.ADVANCE: "advanced",
    DecisionKind.RESUME: "resumed",
    DecisionKind.APPLY: "plan_changed",
    DecisionKind.RETRY: "retried",
    DecisionKind.CLOSE: "window_closed",
    DecisionKind.OPEN: "window_opened",
}
TEST: Final = "test"  # sent by a person, to try a route
KINDS: Final = frozenset({*AlertKind, *DECISIONS.values(), TEST})

#: Decisions by which a rollout goes on, so that what it waited for before is over.
_MOVES: Final = frozenset(DecisionKind) - {DecisionKind.HOLD, DecisionKind.PAUSE}
#: Decisions that end everything told of the flag's rollout so far.
_NEW_CHAPTERS: Final = frozenset({DecisionKind.START, DecisionKind.RETIRE})

_LONGEST_TEXT: Final = 2_000
_URGENCIES: Final = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)


def urgency(severity: Severity) -> int:
    """Return a number that is higher for what is more urgent."""
    return _URGENCIES.index(severity)


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that people may hear of."""

    id: str  # of its record: the same when the record is read again
    kind: str  # of KINDS
    severity: Severity
    flag: str
    rollout_id: str
    revision: int
    at: datetime
    key: str  # news with the same key is about one incident
    summary: str
    action: str  # what to do now
    phase: str
    percent: float
    owner: str = ""
    stage: str = ""
    cause: str = ""  # a model's guess, or who ordered it and why
    exposed: int | None = None  # distinct contexts that were served treatment
    failed: int | None = None  # their failed requests

    @property
    def is_of_one_flag(self) -> bool:
        """Whether it is about one rollout; else `flag` is its kind."""
        return self.kind not in (TEST, AlertKind.FLAG_DIGEST)


class DecisionStep(msgspec.Struct, frozen=True):
    """A decision by which a rollout went on, whether it is news or not."""

    flag: str
    rollout_id: str
    revision: int
    is_new_chapter: bool  # everything told of the flag is over


def read_alert(event_id: str, alert: Alert, owner: str) -> News:
    """Return an alert as news."""
    harm, told = alert.harm, alert.explanation
    cause = ""
    if told is not None:
        steps = "; ".join(told.next_steps)
        cause = f"{told.model} guesses: {told.likely_cause}" + (f" Next: {steps}" if steps else "")
    if alert.kind is AlertKind.FLAG_DIGEST:
        return _digest(event_id, alert)
    return News(
        id=event_id,
        kind=alert.kind.value,
        severity=alert.severity,
        flag=alert.flag,
        rollout_id=alert.rollout_id,
        revision=alert.revision,
        at=alert.at,
        key=alert.dedup_key,
        summary=alert.summary[:_LONGEST_TEXT],
        action=alert.action[:_LONGEST_TEXT],
        phase=alert.phase.value,
        percent=alert.percent,
        owner=owner,
        stage=alert.stage_name or "",
        cause=cause[:_LONGEST_TEXT],
        exposed=None if harm is None else harm.exposed_contexts,
        failed=None if harm is None else harm.failed_requests,
    )


def _digest(event_id: str, alert: Alert) -> News:
    """Return the digest as news of no flag: that of its record is the first that it names.

    So it goes to those who ask for digests, and not to the owner of whichever flag comes first.
    """
    return News(
        id=event_id,
        kind=alert.kind.value,
        severity=alert.severity,
        flag=alert.kind.value,
        rollout_id=alert.dedup_key,
        revision=0,
        at=alert.at,
        key=alert.dedup_key,
        summary=alert.summary[:_LONGEST_TEXT],
        action=alert.action[:_LONGEST_TEXT],
        phase="",
        percent=0.0,
    )


def read_decision(event_id: str, made: Decision, owner: str) -> News | None:
    """Return a decision as news; None where an alert tells of it, or nobody needs to hear."""
    kind = DECISIONS.get(made.kind)
    if kind is None:
        return None
    share = f"from {made.from_percent:g} % to {made.to_percent:g} %"
    if made.from_percent == made.to_percent:
        share = f"at {made.to_percent:g} %"
    if made.audience is not None:
        share += f" of {made.audience}"
    harm = None if made.judgement is None else made.judgement.harm
    return News(
        id=event_id,
        kind=kind,
        severity=Severity.INFO,
        flag=made.flag,
        rollout_id=made.rollout_id,
        revision=made.revision,
        at=made.at,
        key=f"{made.flag}/{made.rollout_id}/{kind}",
        summary=f"{made.flag} {kind.replace('_', ' ')}, {share}"[:_LONGEST_TEXT],
        action="",
        phase=made.phase.value,
        percent=made.to_percent,
        owner=owner,
        stage=made.stage_name or "",
        cause=f"{made.issuer}: {made.reason}"[:_LONGEST_TEXT],
        exposed=None if harm is None else harm.exposed_contexts,
        failed=None if harm is None else harm.failed_requests,
    )


def read_step(made: Decision) -> DecisionStep | None:
    """Return what a decision ends; None: nothing."""
    if made.kind not in _MOVES:
        return None
    is_new_chapter = made.kind in _NEW_CHAPTERS
    return DecisionStep(made.flag, made.rollout_id, made.revision, is_new_chapter)


def read_event(
    event: Mapping[str, Any], owner_of: Callable[[str], str]
) -> tuple[News | None, DecisionStep | None]:
    """Return what a CloudEvent tells; (None, None) for one of another type.

    Raises pydantic.ValidationError for one that no release of ours has written.
    """
    kind, event_id = event.get("type"), str(event.get("id", ""))
    data = event.get("data")
    values = data if isinstance(data, Mapping) else {}
    if kind == ALERT:
        alert = alert_from(values)
        return read_alert(event_id, alert, owner_of(alert.flag)), None
    if kind == DECISION:
        made = decision_from(values)
        return read_decision(event_id, made, owner_of(made.flag)), read_step(made)
    return None, None
