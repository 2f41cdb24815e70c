"""Once a second collects how every part does, and gives it to the reporter."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.adapters.llm.no_advisor import NoAdvisor
from controller.adapters.redis.connection import RedisConnection
from controller.clock import AgreedClock
from controller.counting.ingest import Ingest
from controller.deciding.deciding import Deciding
from controller.health import Health
from controller.running.flag_faults import LargeStates, RefusedStates, TimesAhead
from controller.running.redis_heartbeat import RedisHeartbeat
from controller.running.refused_shares import RefusedShares
from controller.running.reporter import REPORT_EVERY_SECONDS, STATE_TOPIC, Reporter, Signs
from controller.web.flags import FlagBoard

if TYPE_CHECKING:
    from controller.adapters.llm.advisor import ModelAdvisor


@dataclass(frozen=True, slots=True)
class WatchedParts:
    """The parts whose state is reported."""

    clock: AgreedClock
    redis: RedisConnection
    heartbeat: RedisHeartbeat
    events: KafkaEventLog
    commands: KafkaEventLog
    feed: KafkaStateFeed
    ingest: Ingest
    deciding: Deciding
    reconciler: FlagReconciler
    board: FlagBoard
    advisor: ModelAdvisor | NoAdvisor


class HealthWatch:
    """Reports once a second."""

    def __init__(
        self,
        parts: WatchedParts,
        health: Health,
        reporter: Reporter,
        times_ahead: TimesAhead,
        refused_states: RefusedStates,
        large_states: LargeStates,
        refused_shares: RefusedShares,
    ) -> None:
        self._parts = parts
        self._health = health
        self._reporter = reporter
        self._times_ahead = times_ahead
        self._refused_states = refused_states
        self._large_states = large_states
        self._refused_shares = refused_shares

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            counters = self._parts.ingest.counters
            self._reporter.count_troubles(counters.save_troubles, counters.fetch_troubles)
            self._reporter.report_brokers(self._parts.feed.silent_seconds)
            self._large_states.measure()
            if self._health.is_running:  # before, the steps at the start say what they wait for
                self._reporter.report(self.signs())
                self._refused_shares.judge()
                self._times_ahead.report(self._parts.deciding.pool.rollouts)
                self._refused_states.report(self._parts.feed.corrupt)
            await asyncio.sleep(REPORT_EVERY_SECONDS)

    def signs(self) -> Signs:
        """Return how everything is now."""
        parts, deciding = self._parts, self._parts.deciding
        now = parts.clock.monotonic()
        heard_at = parts.redis.heard_at
        return Signs(
            brokers={
                STATE_TOPIC: parts.feed.silent_seconds,
                "events": _silence(parts.events, now),
                "commands": _silence(parts.commands, now),
            },
            unassigned={
                subject: now - log.heard_before
                for subject, log in (("events", parts.events), ("commands", parts.commands))
                if not log.assignment and log.heard_before is not None
            },
            store_seconds=None if heard_at is None else now - heard_at,
            store_trouble=parts.heartbeat.trouble,
            partitions=parts.ingest.views(),
            topics=deciding.totals.partitions.topics,
            expected=deciding.totals.partitions.counts,
            owned_commands=deciding.follower.owned,
            commands_lag=deciding.follower.lag,
            effects=deciding.pool.pending_effects,
            effects_seconds=deciding.pool.outbox_seconds,
            broken={**self._large_states.reasons, **deciding.pool.broken},
            unsaved=deciding.pool.unsaved,
            mismatches=parts.reconciler.mismatches,
            not_served=parts.board.why_not or parts.board.why_stale,
            clocks=parts.clock.why_not(),
            advisor=parts.advisor.trouble,
        )


def _silence(log: KafkaEventLog, now: float) -> float | None:
    """Return for how long the brokers have not answered for some partition of a consumer's."""
    times = [at for at in map(log.heard_at, log.assignment) if at is not None]
    return now - min(times) if times else None
