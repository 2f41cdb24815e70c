"""Better Stack's API: availability of today, newest response times, open incidents.

Source: betterstack.com/docs/uptime/api. Its availability is of whole days.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from controller.adapters.measuring.asking import Asked, document_in, finite
from controller.errors import NotMeasured
from schemas.terms import MeasurementGap


async def ask_better_stack(
    server: Asked,
    monitor: str,
    what: Literal["availability", "response_seconds", "open_incidents"],
    now: Callable[[], datetime],
) -> float:
    """Return percent, seconds or a count. Raises NotMeasured."""
    if what == "availability":
        day = now().date().isoformat()
        path = f"/api/v2/monitors/{monitor}/sla"
        document = document_in(await server.get(path, {"from": day, "to": day}), server.name)
        return finite(_attributes(document, server.name).get("availability"), server.name)
    if what == "response_seconds":
        path = f"/api/v2/monitors/{monitor}/response-times"
        document = document_in(await server.get(path, {}), server.name)
        return _slowest(_attributes(document, server.name), server.name)
    query = {"monitor_id": monitor, "resolved": "false", "per_page": "50"}
    document = document_in(await server.get("/api/v3/incidents", query), server.name)
    incidents = document.get("data")
    if not isinstance(incidents, list):
        raise NotMeasured(MeasurementGap.REFUSED, f"{server.name} answers no list of incidents")
    return float(len(incidents))


def _attributes(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    data = document.get("data")
    attributes = data.get("attributes") if isinstance(data, dict) else None
    if not isinstance(attributes, dict):
        raise NotMeasured(MeasurementGap.NO_DATA, f"{name} answers without attributes")
    return attributes


def _slowest(attributes: Mapping[str, Any], name: str) -> float:
    """Return the newest response time of the slowest region."""
    regions: Sequence[Any] = attributes.get("regions") or ()
    newest = []
    for region in regions:
        times = region.get("response_times") if isinstance(region, dict) else None
        if isinstance(times, list) and times and isinstance(times[-1], dict):
            newest.append(finite(times[-1].get("response_time"), name))
    if not newest:
        raise NotMeasured(MeasurementGap.NO_DATA, f"{name} has no response times yet")
    return max(newest)
