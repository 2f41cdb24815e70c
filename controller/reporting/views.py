"""Rollouts as the HTTP API and the page show them: in one line, and whole.

Pure. Words are those of `situation.py`, so that terminal, page and API say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import IntEnum
from typing import Final

from controller.core.machine import next_deadline
from controller.core.rollout import AwaitingApproval, Paused, RolledBack, Rollout
from controller.reporting.fitting import fitting_commands
from controller.reporting.situation import Situation
from controller.reporting.unwatched import Unwatched
from controller.text import one_line
from schemas.api import (
    RolloutSummary,
    RolloutView,
    SafeToAdvance,
    StageView,
    UnwatchedRecord,
)
from schemas.decision import JudgementRecord, PlanReference
from schemas.report import LiveReport
from schemas.terms import Approval

#: A sign for what became of a stage.
MARKS_OF_STAGES: Final = {"done": "✓", "present": "●", "ahead": "○", "skipped": "–", "back": "▲"}


class Urgency(IntEnum):
    """The order in which people look at rollouts."""

    ATTENTION = 0  # nothing goes on without a person
    ACTIVE = 1
    ENDED = 2


def urgency(rollout: Rollout) -> Urgency:
    """Return who has to look at a rollout first."""
    if needs_person(rollout):
        return Urgency.ATTENTION
    is_over = rollout.has_ended and not rollout.may_open_again
    return Urgency.ENDED if is_over else Urgency.ACTIVE


def needs_person(rollout: Rollout) -> bool:
    """Return whether nothing goes on by itself: it is paused, or waits for approval."""
    return isinstance(rollout.phase, Paused | AwaitingApproval)


def summary(
    rollout: Rollout,
    now: datetime,
    judgement: JudgementRecord | None = None,
    unwatched: Unwatched | None = None,
) -> RolloutSummary:
    """Return a rollout in one line; `judgement` is the newest evidence, where it is at hand.

    `unwatched`: that nobody sees what it does.
    """
    situation = Situation(rollout, (), now, judgement)
    safe, why = situation.safe_to_advance
    stage = rollout.stage
    return RolloutSummary(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        phase=rollout.phase.name,
        since=situation.since,
        stage=situation.stage_number,
        stages=[one.percent for one in rollout.plan.stages],
        reached=rollout.visits[-1].stage + 1 if rollout.visits else 0,
        percent=rollout.percent,
        audience=None if stage is None else stage.audience,
        needs_person=needs_person(rollout),
        has_ended=rollout.has_ended,
        waits_for=one_line(situation.waits_for),
        hold=rollout.hold,
        hold_words=None if situation.hold is None else one_line(situation.hold),
        next_deadline=next_deadline(rollout, now),
        safe_to_advance=SafeToAdvance(answer=safe, why=one_line(why)),
        plan=PlanReference(name=rollout.plan.name, version=rollout.plan.version),
        owner=rollout.plan.owner,
        flag_type=rollout.plan.flag_type,
        started_at=rollout.started_at,
        updated_at=rollout.updated_at,
        unwatched=unwatched_record(unwatched),
    )


def unwatched_record(unwatched: Unwatched | None) -> UnwatchedRecord | None:
    """Return that nobody sees what a rollout does, as machines read it."""
    if unwatched is None:
        return None
    why, action = one_line(unwatched.why), one_line(unwatched.action)
    return UnwatchedRecord(why=why, action=action, since=unwatched.since)


def rollout_view(
    rollout: Rollout,
    now: datetime,
    report: LiveReport | None,
    trouble: str | None = None,
    unwatched: Unwatched | None = None,
) -> RolloutView:
    """Return everything that is known of a rollout.

    `report` is the newest that its replica wrote, None for none; `trouble` says why there may be a
    newer one that cannot be had. `unwatched`: that nobody sees what it does.
    """
    judgement = None if report is None else report.judgement
    gaps = () if judgement is None else tuple(f"{gap.kind}: {gap.detail}" for gap in judgement.gaps)
    return RolloutView(
        summary=summary(rollout, now, judgement, unwatched),
        ladder=stage_views(rollout),
        evidence=judgement,
        evidence_at=None if report is None else report.written_at,
        evidence_trouble=trouble,
        planes=[] if report is None else list(report.planes),
        commands=fitting_commands(rollout, now, gaps),
        at=now,
    )


def stage_views(rollout: Rollout) -> list[StageView]:
    """Return each stage of the plan with what became of it."""
    newest = {visit.stage: visit for visit in rollout.visits}
    last = rollout.visits[-1].stage if rollout.visits else -1
    stages = []
    for index, stage in enumerate(rollout.plan.stages):
        visit = newest.get(index)
        if index == rollout.stage_index:
            state = "present"
        elif visit is not None:
            state = "done"
        else:
            state = "skipped" if index < last else "ahead"
        stages.append(
            StageView(
                number=index + 1,
                name=stage.name,
                percent=stage.percent,
                audience=stage.audience,
                needs_approval=stage.approval is Approval.REQUIRED,
                state=state,
                entered_at=None if visit is None else visit.entered_at,
                left_at=None if visit is None else visit.left_at,
            )
        )
    return stages


def ladder(rollout: Rollout) -> Iterator[tuple[str, float]]:
    """Yield what became of each stage, and its percentage; `back`: it was rolled back there."""
    last = rollout.visits[-1].stage + 1 if rollout.visits else 0
    for stage in stage_views(rollout):
        is_back = isinstance(rollout.phase, RolledBack) and stage.number == last
        yield "back" if is_back else stage.state, stage.percent
