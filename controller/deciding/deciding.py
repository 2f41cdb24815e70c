"""The deciding part of a replica: the flags that run here, and what reaches their workers.

The replica that Kafka gave a flag's partition of `rollout.commands` runs the flag. That is only
about who works. Two workers of one flag cannot both win, because every save is a compare-and-set.

Nothing that one record, flag or partition does ends a loop here: it is refused or set aside and
reported in `Faults`, and everything else goes on.

The way of a command:

1. `command_follower.py` fetches its record, and orders commands.
2. `command_handler.py` reads it by `command_inbox.py`, and forwards it when another replica runs
   its flag.
3. `worker_pool.py` has the flag's worker.
4. `flag_worker.py` decides, saves and acts.
5. `registry.py` passes the new rollout to the flag planes; `outbox.py` publishes the answer.
6. `command_follower.py` commits its offset.

Commands of flags that do not exist go through `unknown_flags.py`; refusals go through
`command_refusals.py`. Evidence comes from `totals_reader.py`, that of external metrics from
`external_readings.py`, the replies of gate webhooks from `gate_questions.py`. Retired flags are let
go by `retiring.py`.
"""

from __future__ import annotations

from controller.cancellation import task_group
from controller.deciding.commands.command_follower import CommandFollower
from controller.deciding.commands.command_handler import CommandHandler
from controller.deciding.commands.command_inbox import CommandInbox
from controller.deciding.commands.command_partition import OpenCommands
from controller.deciding.commands.command_refusals import CommandRefusals
from controller.deciding.commands.command_topic import CommandTopic
from controller.deciding.commands.known_flags import KnownFlags
from controller.deciding.commands.passing_faults import PassingFaults
from controller.deciding.commands.unknown_flags import UnknownFlags
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.news import NewsKeeper
from controller.deciding.retiring import LettingGo, Placing, Retiring
from controller.deciding.totals_reader import TotalsReader
from controller.ports import EventLog, RefusedRecords, Topology


class Deciding:
    """Runs the loops of deciding: commands, refusals and totals."""

    def __init__(
        self,
        dependencies: WorkerDependencies,
        totals: TotalsReader,
        log: EventLog,
        topology: Topology,
        refused_records: RefusedRecords,
        letting_go: LettingGo | None = None,
    ) -> None:
        """`log` is this replica's member of the group that decides."""
        clock, pool = dependencies.clock, totals.pool
        self.dependencies = dependencies
        self.pool = pool
        self.totals = totals
        self.topic = topic = CommandTopic(topology, dependencies.publisher)
        passing_faults = PassingFaults(dependencies.faults, clock)
        self.inbox = inbox = CommandInbox(
            log,
            dependencies.publisher,
            refused_records,
            clock=clock,
            metrics=dependencies.metrics,
            faults=passing_faults,
            source=dependencies.source,
        )
        self.commands = OpenCommands()
        is_retired = dependencies.registry.is_retired
        news = NewsKeeper(dependencies.reports, dependencies.faults, is_retired)
        self._refusals = CommandRefusals(inbox, clock, dependencies.metrics, passing_faults, news)
        known = KnownFlags(pool, self.commands, dependencies.registry, dependencies.rollouts, clock)
        handler = CommandHandler(inbox, topic, pool, self._refusals, self.commands, passing_faults)
        unknown = UnknownFlags(
            inbox, handler, self._refusals, known, self.commands, passing_faults, clock
        )
        self.follower = CommandFollower(
            inbox,
            topic,
            pool,
            handler,
            unknown,
            self._refusals,
            known,
            self.commands,
            clock=clock,
            faults=dependencies.faults,
            passing_faults=passing_faults,
        )
        placing = Placing(self._owns, lambda flag_key: self.commands[flag_key] > 0)
        self._retiring = Retiring(dependencies, pool, placing, letting_go or LettingGo())
        dependencies.registry.subscribe_own(self._retiring)
        dependencies.registry.on_overtaken(self._retiring.republish)

    def _owns(self, flag_key: str) -> bool:
        home = self.topic.home_of(flag_key)
        return any(number == home for _, number in self.follower.owned)

    async def run(self) -> None:
        """Follow the command topic and the totals until cancelled."""
        async with task_group() as group:
            self.pool.begin(group)
            self.follower.reset()
            self.totals.reset()
            group.create_task(self.follower.run(group), name="commands")
            group.create_task(self.totals.run(), name="totals")
            group.create_task(self.totals.readings.run(), name="external metrics")
            group.create_task(self.totals.gates.run(), name="gate webhooks")
            group.create_task(self._refusals.run(), name="refusals")
            group.create_task(self._retiring.run(), name="retiring")
