"""Metrics in Prometheus' text format, as an exporter serves them: Uptime Kuma, blackbox exporter.

Source: louislam/uptime-kuma `monitor_status` (0 down, 1 up, 2 pending, 3 maintenance) and
`monitor_response_time` in milliseconds, -1 without a ping; prometheus/blackbox_exporter
`probe_success`, `probe_duration_seconds`, which answers 200 also for a probe that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Literal

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from controller.adapters.measuring.asking import MeasuringSystem, finite
from controller.errors import NotMeasured
from controller.text import excerpt
from schemas.terms import MeasurementGap

_UP: Final = 1.0
#: Uptime Kuma's words for what is neither up nor down.
_WAITING: Final = {2.0: "is pending", 3.0: "is in maintenance"}


async def ask_uptime_kuma(
    server: MeasuringSystem, monitor: str, what: Literal["up", "response_seconds"]
) -> float:
    """Return 1 or 0 for up, or seconds. Raises NotMeasured, also while it is in maintenance.

    What is down has no response time: the number that is given with it is none.
    """
    samples = await _samples(server, "/metrics", {}, "monitor_")
    status = _of(samples, "monitor_status", monitor, server)
    if status in _WAITING:
        why = f"{server.name}: {monitor} {_WAITING[status]}"
        raise NotMeasured(MeasurementGap.PAUSED, why)
    if what == "up":
        return 1.0 if status == _UP else 0.0
    if status != _UP:
        why = f"{server.name}: {monitor} is down, so it has no response time"
        raise NotMeasured(MeasurementGap.NO_DATA, why)
    milliseconds = _of(samples, "monitor_response_time", monitor, server)
    if milliseconds < 0:
        why = f"{server.name}: {monitor} has no response time yet"
        raise NotMeasured(MeasurementGap.NO_DATA, why)
    return milliseconds / 1000


async def ask_blackbox(
    server: MeasuringSystem, target: str, module: str, what: Literal["success", "duration_seconds"]
) -> float:
    """Return 1 or 0 for success, or seconds of a probe that is made now. Raises NotMeasured.

    How long a failed probe took says nothing: a refused connection fails at once.
    """
    samples = await _samples(server, "/probe", {"target": target, "module": module}, "probe_")
    success = _probed(samples, "success", server)
    if what == "success":
        return success
    if success != _UP:
        why = f"{server.name}: the probe of {excerpt(target, 100)} failed, so it has no duration"
        raise NotMeasured(MeasurementGap.NO_DATA, why)
    return _probed(samples, what, server)


def _probed(samples: list[Sample], what: str, server: MeasuringSystem) -> float:
    name = f"probe_{what}"
    found = [one.value for one in samples if one.name == name]
    if not found:
        raise NotMeasured(MeasurementGap.NO_DATA, f"{server.name} gives no {name}")
    return finite(found[0], server)


def _of(samples: list[Sample], name: str, monitor: str, server: MeasuringSystem) -> float:
    found = [
        one.value
        for one in samples
        if one.name == name and one.labels.get("monitor_name") == monitor
    ]
    if not found:
        raise NotMeasured(MeasurementGap.NO_DATA, f"{server.name} has no monitor {monitor}")
    if len(found) > 1:
        why = f"{server.name} has {len(found)} monitors {monitor}: rename one"
        raise NotMeasured(MeasurementGap.SEVERAL_SERIES, why)
    return finite(found[0], server)


async def _samples(
    server: MeasuringSystem, path: str, query: Mapping[str, str], prefix: str
) -> list[Sample]:
    """Return the samples whose names begin so. Raises NotMeasured.

    They are read in a thread: the longest answer takes a second, and heartbeats would wait.
    """
    body = await server.get(path, query)
    try:
        return await asyncio.to_thread(_read, body, prefix)
    except (ValueError, KeyError, IndexError) as error:  # also text that is not UTF-8
        why = f"{server.name} answers no metrics: {server.words(error) or type(error).__name__}"
        raise NotMeasured(MeasurementGap.REFUSED, why) from None


def _read(body: bytes, prefix: str) -> list[Sample]:
    families = text_string_to_metric_families(body.decode())
    return [one for family in families for one in family.samples if one.name.startswith(prefix)]
