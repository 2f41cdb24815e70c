"""Makes the HTTP surface of a replica from the parts that know what it shows."""

from __future__ import annotations

from controller.counting.ingest import Ingest
from controller.running.notification_parts import NotificationParts
from controller.running.oversight import Oversight, Process
from controller.running.report_reader import ReportReader
from controller.running.signal_parts import SignalParts
from controller.web.flags import FlagBoard
from controller.web.surface import Surface


def make_surface(
    process: Process,
    board: FlagBoard,
    oversight: Oversight,
    ingest: Ingest,
    reports: ReportReader,
    signals: SignalParts,
    notifications: NotificationParts,
) -> Surface:
    """Return the servers of a replica; none of them listens yet."""
    return Surface(
        process.settings,
        board,
        process.health,
        process.metrics,
        process.faults,
        reports=reports,
        clock=process.clock,
        steering=oversight.direct,
        admission=oversight.admission,
        events_of=ingest.tally.document_as_json,
        uses=lambda: oversight.uses.uses,
        signals=signals if process.settings.hooks.is_on else None,
        notifications=notifications if process.settings.notifications.is_on else None,
    )
