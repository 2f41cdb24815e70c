"""Better Stack's API: availability of today, newest response times, open incidents.

Source: betterstack.com/docs/uptime/api. Its availability is of whole days.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from controller.adapters.measuring.asking import MeasuringSystem, document_in, finite
from controller.errors import NotMeasured
from schemas.terms import MeasurementGap

#: A monitor is checked every half hour at the slowest: an older response time says nothing of now.
_OLD_AFTER: Final = timedelta(hours=1)


async def ask_better_stack(
    server: MeasuringSystem,
    monitor: str,
    what: Literal["availability", "response_seconds", "open_incidents"],
    now: Callable[[], datetime],
) -> float:
    """Return percent, seconds or a count. Raises NotMeasured."""
    if what == "availability":
        day = now().date().isoformat()
        path = f"/api/v2/monitors/{monitor}/sla"
        document = document_in(await server.get(path, {"from": day, "to": day}), server)
        return finite(_attributes(document, server.name).get("availability"), server)
    if what == "response_seconds":
        path = f"/api/v2/monitors/{monitor}/response-times"
        document = document_in(await server.get(path, {}), server)
        return _slowest(_attributes(document, server.name), server, now())
    query = {"monitor_id": monitor, "resolved": "false", "per_page": "50"}
    document = document_in(await server.get("/api/v3/incidents", query), server)
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


def _slowest(attributes: Mapping[str, Any], server: MeasuringSystem, now: datetime) -> float:
    """Return the newest response time of the slowest region that has one of late."""
    name, regions = server.name, attributes.get("regions")
    newest: list[tuple[datetime, float]] = []
    for region in regions if isinstance(regions, list) else ():
        times = region.get("response_times") if isinstance(region, dict) else None
        if isinstance(times, list) and times and isinstance(times[-1], dict):
            last = times[-1]
            newest.append((_time(last.get("at"), name), finite(last.get("response_time"), server)))
    if not newest:
        raise NotMeasured(MeasurementGap.NO_DATA, f"{name} has no response times yet")
    age = now - max(at for at, _ in newest)
    if age > _OLD_AFTER:
        why = f"{name}: the newest response time is {age.total_seconds():,.0f} s old"
        raise NotMeasured(MeasurementGap.LATE, why)
    return max(value for at, value in newest if now - at <= _OLD_AFTER)


def _time(value: object, name: str) -> datetime:
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        why = f"{name}: a response time has no time (`at`)"
        raise NotMeasured(MeasurementGap.REFUSED, why) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
