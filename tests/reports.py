"""Reports for tests of the HTTP surface, over a store in memory."""

from __future__ import annotations

from collections.abc import Mapping

from controller.adapters.memory import ManualClock, MemoryReports
from controller.codec.reports import live_report
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.ports import PlaneStanding
from controller.running.report_reader import ReportReader
from schemas.report import LiveReport
from tests.builders import T0


def no_reports() -> ReportReader:
    """Return a reader that knows nothing of any flag."""
    return ReportReader(lambda _: None, MemoryReports(), ManualClock())


def make_report(
    rollout: Rollout, judgement: Judgement | None = None, *planes: PlaneStanding
) -> LiveReport:
    """Return a report that was written at `T0`."""
    return live_report(rollout, judgement, planes, at=T0, replica="test/1")


def reports_of(own: Mapping[str, LiveReport], store: MemoryReports | None = None) -> ReportReader:
    """Return a reader that has these reports of its own flags, and a store for all others."""
    return ReportReader(own.get, store or MemoryReports(), ManualClock())
