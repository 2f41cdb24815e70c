"""Every system whose deliveries are understood, with the reader of its form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Final

import msgspec

from controller.web.hooks import (
    alertmanager,
    better_stack,
    datadog,
    own_form,
    pagerduty,
    sentry,
    uptime_kuma,
)
from controller.web.hooks.heard import Document, Heard, NotUnderstood
from schemas.signal import Signal

Reader = Callable[[Document], Iterator[Heard]]

#: By the first part of an endpoint's path.
READERS: Final[Mapping[str, Reader]] = {
    "alertmanager": alertmanager.read,
    "better_stack": better_stack.read,
    "cloudevents": own_form.read_cloud_event,
    "datadog": datadog.read,
    "grafana": alertmanager.read,
    "pagerduty": pagerduty.read,
    "sentry": sentry.read,
    "standard_webhooks": own_form.read,
    "uptime_kuma": uptime_kuma.read,
}
#: Opening brackets of a delivery. Parsers recurse; a group of a thousand alerts has some thousand.
_MOST_OPENINGS: Final = 20_000


def read_signals(
    source: str,
    name: str,
    body: bytes,
    received_at: datetime,
    delivery: str = "",
    attributes: Mapping[str, str] | None = None,
) -> list[Signal]:
    """Return what a delivery of a source says, one signal for each condition.

    `delivery` is the id that the request itself has, empty for none. `attributes` are those of a
    CloudEvent that came as headers: the body is its data then. Raises NotUnderstood.
    """
    decoded = _decoded(body)
    if attributes is not None:
        decoded = {**attributes, "data": decoded}
    if not isinstance(decoded, dict):
        raise NotUnderstood("the body is no JSON object")
    heard = READERS[source](Document(decoded))
    return [one.signal(f"{source}/{name}", received_at, delivery) for one in heard]


def _decoded(body: bytes) -> object:
    """Return a body's JSON, also where a system wrote texts of strangers into it badly.

    Half of an emoji in a title, `NaN` among the values, or bytes of another encoding must not hide
    that something fires. Raises NotUnderstood.
    """
    if body.count(b"[") + body.count(b"{") > _MOST_OPENINGS:
        raise NotUnderstood(f"the body has more than {_MOST_OPENINGS:,} brackets")
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise NotUnderstood("the body is nested too deeply") from None
    except ValueError as error:  # also text that is not UTF-8
        fault = str(error)
    try:
        return json.loads(body.decode("utf-8-sig", errors="replace"), strict=False)
    except RecursionError:
        raise NotUnderstood("the body is nested too deeply") from None
    except ValueError:
        raise NotUnderstood(f"the body is no JSON: {fault}") from None
