"""Makes the HTTP surface of a replica from the parts that know what it shows."""

from __future__ import annotations

from controller.counting.ingest import Ingest
from controller.ports import Clock
from controller.running.connections import Connections
from controller.running.outside_parts import OutsideParts
from controller.running.oversight import Oversight, Process
from controller.running.report_reader import ReportReader
from controller.running.report_writer import ReportWriter
from controller.web.flags import FlagBoard
from controller.web.surface import Surface


def make_reports(
    own: ReportWriter, connections: Connections, clock: Clock, oversight: Oversight
) -> ReportReader:
    """Return what is known of the flags of all replicas."""
    return ReportReader(own.own_report, connections.reports, clock, oversight.unwatched)


def make_surface(
    process: Process,
    board: FlagBoard,
    oversight: Oversight,
    ingest: Ingest,
    reports: ReportReader,
    outside: OutsideParts,
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
        signals=outside.signals if process.settings.hooks.is_on else None,
        notifications=(outside.notifications if process.settings.notifications.is_on else None),
    )
