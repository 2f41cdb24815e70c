"""Our own form, for systems that have none: the body of a Standard Webhook or of a CloudEvent.

A JSON object with `status` (firing, resolved or note), `condition` and `title`, and where it is
told `service`, `severity`, `labels`, `link` and `started_at`.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.web.hooks.heard import LONGEST_TEXT, Document, Heard, NotUnderstood
from schemas.terms import SignalStatus


def read(body: Document) -> Iterator[Heard]:
    """Yield what a Standard Webhook says. Raises NotUnderstood."""
    yield from _read(body, "")


def read_cloud_event(body: Document) -> Iterator[Heard]:
    """Yield what a structured CloudEvent says. Raises NotUnderstood."""
    event_id, source = body.required("id"), body.required("source")
    if not (data := body.part("data")):
        raise NotUnderstood("the event has no data: send an object with status, condition, title")
    yield from _read(data, f"{source} {event_id}")


def _read(told: Document, delivery: str) -> Iterator[Heard]:
    if key := told.text("acknowledges"):
        yield Heard(
            status=SignalStatus.NOTE,
            condition=f"acknowledged {key}"[:LONGEST_TEXT],
            title=told.text("title") or f"{key} is taken",
            link=told.text("link"),
            delivery=delivery,
            acknowledges=key,
            taken_by=told.text("taken_by"),
        )
        return
    written = told.required("status").lower()
    if written not in set(SignalStatus):
        raise NotUnderstood(f"status is {written!r}: write firing, resolved or note")
    yield Heard(
        status=SignalStatus(written),
        condition=told.required("condition"),
        title=told.text("title"),
        service=told.text("service"),
        severity=told.text("severity"),
        labels=told.part("labels").texts(),
        link=told.text("link"),
        started_at=told.moment("started_at"),
        delivery=delivery,
    )
