"""Summarizes the flags that run here for the inventory: their last decision and their lift.

Reports and events expire some days after the end of a rollout; a summary stays as long as the flag
has a rollout. Nothing is decided by it.

Belongs here: which summaries are new. Does not belong here: where they are noted
(`use_keeper.py`), how a lift is computed (`reporting/lift.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Protocol

from controller.codec.flag_summaries import (
    DecisionOf,
    decision_in,
    summary_from_json,
    summary_to_json,
)
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.errors import BrokenInvariant
from controller.ports import Clock, FlagSummary, Reports, Use
from controller.reporting.lift import lifts_of
from schemas.terms import UseKind

#: Flags of which the last decision is read in one beat.
MOST_READ: Final = 1_000
#: A decision is published and kept by then; a revision without one has none.
PUBLISHED: Final = timedelta(minutes=10)
#: Flags gone through between two turns of the loop.
_PER_TURN: Final = 200


class RunningFlags(Protocol):
    """The flags that run here; `deciding/worker_pool.py`."""

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The rollouts that run here."""

    def judgement_of(self, flag_key: str) -> Judgement | None:
        """Return the newest judgement of a flag's present rollout; None: none, or not here."""


class FlagSummaries:
    """Compares the flags that run here with what is noted of them."""

    def __init__(self, running: RunningFlags, reports: Reports, clock: Clock) -> None:
        self._running = running
        self._reports = reports
        self._clock = clock

    async def new(self, notes: Mapping[Use, bytes]) -> dict[Use, bytes]:
        """Return the summaries that are not noted so. Raises StoreUnavailable."""
        found: dict[Use, bytes] = {}
        reads = 0
        for place, (flag_key, rollout) in enumerate(self._running.rollouts.items(), start=1):
            use = Use(UseKind.SUMMARY, flag_key)
            noted = notes.get(use)
            before = None if noted is None else summary_from_json(noted)
            if before is None:
                before = FlagSummary(rollout.rollout_id, 0)
            summary = self._with_lift(before, rollout)
            if summary.revision != rollout.revision and reads < MOST_READ:
                reads += 1
                summary = await self._with_decision(summary, rollout)
            if (value := summary_to_json(summary)) != noted:
                found[use] = value
            if place % _PER_TURN == 0:
                await asyncio.sleep(0)
        return found

    def _with_lift(self, summary: FlagSummary, rollout: Rollout) -> FlagSummary:
        """Return a summary with the newest lift of the present rollout."""
        is_same = summary.rollout_id == rollout.rollout_id
        judgement = self._running.judgement_of(rollout.flag_key)
        lifts = () if judgement is None else lifts_of(judgement)
        if not lifts and is_same:
            lifts = summary.lifts  # a stage that has just begun has measured nothing yet
        return FlagSummary(rollout.rollout_id, summary.revision, summary.decision, lifts)

    async def _with_decision(self, summary: FlagSummary, rollout: Rollout) -> FlagSummary:
        """Return a summary with the newest decision about its flag."""
        newest = await self._newest(rollout.flag_key)
        revision, decision = summary.revision, summary.decision
        if newest is not None and newest.revision >= revision:
            revision, decision = newest
        if self._clock.now() - rollout.updated_at >= PUBLISHED:
            revision = rollout.revision
        return FlagSummary(summary.rollout_id, revision, decision, summary.lifts)

    async def _newest(self, flag_key: str) -> DecisionOf | None:
        try:
            events = await self._reports.news(flag_key, "decisions", most=1)
        except BrokenInvariant:  # somebody else wrote to the key
            return None
        return decision_in(events[0]) if events else None
