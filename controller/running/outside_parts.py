"""What connects a replica to people and to their monitoring: signals, notifications and checks.

None of it decides: signals and checks end in commands, notifications in messages. Each reads a
linted file of its operator again on SIGHUP.

Belongs here: the three together. Does not belong here: how each is made (`signal_parts.py`,
`notification_parts.py`, `check_parts.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from controller.adapters.redis.shared_hash import SharedHash
from controller.deciding.registry import RolloutRegistry
from controller.running.check_parts import CheckParts
from controller.running.claims import replica_name
from controller.running.connections import Connections
from controller.running.notification_parts import NotificationParts
from controller.running.oversight import Oversight, Process
from controller.running.report_reader import ReportReader
from controller.running.rule_agreement import BUCKETING, RuleAgreement, digest_of
from controller.running.signal_parts import SignalParts
from controller.running.supervisor import Loop


class OutsideParts:
    """Signals, notifications and checks of a replica."""

    def __init__(
        self,
        process: Process,
        connections: Connections,
        registry: RolloutRegistry,
        reports: ReportReader,
        oversight: Oversight,
    ) -> None:
        """Raises ConfigInvalid for a file that cannot be used."""
        self.signals = SignalParts(process, connections, registry, reports, oversight)
        self.notifications = NotificationParts(process, connections, registry)
        self.checks = CheckParts(process, connections)
        self._bucketing = process.settings.http.bucketing
        self._agreement = RuleAgreement(
            SharedHash(connections.redis, "rules"),
            replica_name(),
            lambda: self._rules,
            process.clock,
            process.faults,
        )

    @property
    def _rules(self) -> Mapping[str, str]:
        """The hash of each file in use, by its setting, and how users are assigned."""
        parts = (self.signals, self.notifications, self.checks)
        files = {one.setting: digest_of(one.file) for one in parts if one.loops}
        return {**files, BUCKETING: self._bucketing}

    @property
    def loops(self) -> Sequence[Loop]:
        """What listens, tells and checks, as far as the settings ask for it; and the agreement."""
        loops = (*self.signals.loops, *self.notifications.loops, *self.checks.loops)
        return (*loops, ("rule_agreement", self._agreement.run))

    @property
    def closers(self) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
        """What closes the connections to channels."""
        return self.notifications.closers

    def reload(self) -> None:
        """Read every file again."""
        self.signals.reload()
        self.notifications.reload()
        self.checks.reload()
