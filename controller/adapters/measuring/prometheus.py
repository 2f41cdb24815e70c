"""Prometheus, and whatever speaks its API: Mimir, Thanos, VictoriaMetrics.

Source: prometheus/prometheus docs/querying/api.md: the envelope, values as text, `warnings` with a
result that was cut.
"""

from __future__ import annotations

from typing import Any

from controller.adapters.measuring.asking import Asked, document_in, finite
from controller.errors import NotMeasured
from controller.text import excerpt
from schemas.terms import MeasurementGap


async def ask_prometheus(server: Asked, query: str) -> tuple[float, float]:
    """Return the one number that a query gives now, and when it was computed (seconds, UTC).

    Raises NotMeasured.
    """
    body = await server.post("/api/v1/query", {"query": query})
    document = document_in(body, server.name)
    if document.get("status") != "success":
        why = excerpt(str(document.get("error", "no reason given")), 200)
        raise NotMeasured(MeasurementGap.REFUSED, f"{server.name}: {why}")
    if warnings := document.get("warnings"):
        why = excerpt(str(warnings), 200)
        raise NotMeasured(MeasurementGap.INCOMPLETE, f"{server.name} warns: {why}")
    data = document.get("data")
    return _number(data if isinstance(data, dict) else {}, server.name)


def _number(data: dict[str, Any], name: str) -> tuple[float, float]:
    kind, result = data.get("resultType"), data.get("result")
    if not isinstance(result, list):
        raise NotMeasured(MeasurementGap.REFUSED, f"{name} answers in no form that is known")
    if kind == "scalar":
        return _value(result, name)
    if kind == "matrix":
        why = f"{name}: the query gives a range of samples: leave out the outermost [...]"
        raise NotMeasured(MeasurementGap.REFUSED, why)
    if kind != "vector":
        raise NotMeasured(MeasurementGap.REFUSED, f"{name}: the query gives no number")
    if not result:
        raise NotMeasured(MeasurementGap.NO_DATA, f"{name}: the query finds no series")
    if len(result) > 1:
        why = f"{name}: the query gives {len(result)} series: use sum(), max() or a label"
        raise NotMeasured(MeasurementGap.SEVERAL_SERIES, why)
    sample = result[0]
    if not isinstance(sample, dict) or "value" not in sample:
        raise NotMeasured(MeasurementGap.REFUSED, f"{name}: the query gives a histogram")
    return _value(sample["value"], name)


def _value(pair: object, name: str) -> tuple[float, float]:
    """Return value and time of a sample, which is written the other way round."""
    seconds, value = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
    return finite(value, name), finite(seconds, name)
