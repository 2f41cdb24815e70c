"""Why a monitoring system gives no number. Each reason has its name, and none is a zero."""

from __future__ import annotations

from enum import StrEnum


class MeasurementGap(StrEnum):
    """Why there is no number."""

    NO_DATA = "no_data"  # nothing was measured: no series, no monitor
    NOT_A_NUMBER = "not_a_number"  # NaN or infinite, such as zero by zero
    SEVERAL_SERIES = "several_series"  # the question is about one
    REFUSED = "refused"  # an error: a wrong query, a wrong token, a server that fails
    NO_ANSWER = "no_answer"  # none in time, or no connection
    INCOMPLETE = "incomplete"  # a part is left out, as the server warns
    PAUSED = "paused"  # the monitor is paused or in maintenance
