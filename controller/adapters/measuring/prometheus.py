"""Prometheus, and whatever speaks its API: Mimir, Thanos, VictoriaMetrics.

Source: prometheus/prometheus docs/querying/api.md: the envelope, values as text, `warnings` with a
result that was cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from controller.adapters.measuring.asking import MeasuringSystem, document_in, finite
from controller.core.plan import CounterQuestion
from controller.errors import NotMeasured
from schemas.terms import Arm, MeasurementGap

#: The label that says which part of a question about counters a series is.
_TAG: Final = "rolloutd_part"
#: Series of one question. What is remembered of each is stored with every check.
MOST_SERIES: Final = 1_000


async def ask_prometheus(server: MeasuringSystem, query: str) -> tuple[float, float]:
    """Return the one number that a query gives now, and when it was computed (seconds, UTC).

    Raises NotMeasured.
    """
    return _number(await _answer(server, query), server)


async def ask_counters(
    server: MeasuringSystem, question: CounterQuestion
) -> tuple[Mapping[Arm, Mapping[str, Mapping[str, float]]], float]:
    """Return the value of each counter, and when they were computed (seconds, UTC).

    They are by arm, by part and by a digest of their labels. All are asked for in one query, which
    Prometheus computes on one state of its data: a scrape is in it with all its counters, or not at
    all. Raises NotMeasured; also where an arm has no counter of its events.
    """
    tags = {f"{arm}.{part}": (arm, part) for arm, part, _ in question}
    query = " or ".join(
        # The line break ends a comment.
        f'label_replace(({query}\n), "{_TAG}", "{arm}.{part}", "__name__", ".*")'
        for arm, part, query in question
    )
    data = await _answer(server, query)
    result = data.get("result")
    if data.get("resultType") != "vector" or not isinstance(result, list):
        raise NotMeasured(MeasurementGap.REFUSED, f"{server.name}: the counters give no vector")
    if len(result) > MOST_SERIES:
        why = f"{server.name}: {len(result):,} series of counters, at most {MOST_SERIES:,} are read"
        raise NotMeasured(MeasurementGap.SEVERAL_SERIES, f"{why}: use sum by (instance) (...)")
    found: dict[Arm, dict[str, dict[str, float]]] = {}
    for arm, part in tags.values():
        found.setdefault(arm, {})[part] = {}
    seconds = 0.0
    for sample in result:
        labels = sample.get("metric") if isinstance(sample, dict) else None
        labels = labels if isinstance(labels, dict) else {}
        tag = labels.pop(_TAG, None)
        if not isinstance(tag, str) or tag not in tags or "value" not in sample:
            raise NotMeasured(MeasurementGap.REFUSED, f"{server.name}: a counter is no number")
        arm, part = tags[tag]
        value, seconds = _value(sample["value"], server)
        if value < 0:
            why = f"{server.name}: `{part}` is {value:g}, so it is no counter"
            raise NotMeasured(MeasurementGap.NOT_A_NUMBER, why)
        series, key = found[arm][part], _digest(labels)
        if key in series:
            why = f"{server.name}: `{part}` has several series of the same labels: add them up"
            raise NotMeasured(MeasurementGap.SEVERAL_SERIES, why)
        series[key] = value
    for arm, parts in found.items():
        if not parts.get("total", True) or not any(parts.values()):
            why = f"{server.name}: {arm}'s counters have no series"
            raise NotMeasured(MeasurementGap.NO_DATA, why)
    return found, seconds


def _digest(labels: Mapping[str, Any]) -> str:
    """Return what stands for a series' labels, without the metric's name."""
    named = sorted((name, str(value)) for name, value in labels.items() if name != "__name__")
    return hashlib.blake2b(json.dumps(named).encode(), digest_size=6).hexdigest()


async def _answer(server: MeasuringSystem, query: str) -> dict[str, Any]:
    """Return the data of a complete answer. Raises NotMeasured."""
    body = await server.post("/api/v1/query", {"query": query})
    document = document_in(body, server)
    if document.get("status") != "success":
        why = server.words(document.get("error", "no reason given"), 200)
        raise NotMeasured(MeasurementGap.REFUSED, f"{server.name}: {why}")
    if warnings := document.get("warnings"):
        why = server.words(warnings, 200)
        raise NotMeasured(MeasurementGap.INCOMPLETE, f"{server.name} warns: {why}")
    data = document.get("data")
    return data if isinstance(data, dict) else {}


def _number(data: dict[str, Any], server: MeasuringSystem) -> tuple[float, float]:
    name, kind, result = server.name, data.get("resultType"), data.get("result")
    if not isinstance(result, list):
        raise NotMeasured(MeasurementGap.REFUSED, f"{name} answers in no form that is known")
    if kind == "scalar":
        return _value(result, server)
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
    return _value(sample["value"], server)


def _value(pair: object, server: MeasuringSystem) -> tuple[float, float]:
    """Return value and time of a sample, which is written the other way round."""
    seconds, value = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
    return finite(value, server), finite(seconds, server)
