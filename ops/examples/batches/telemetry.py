"""What a batch job reports to rolloutd, from any thread and without waiting.

Copy this file into your own.

A hook on OpenFeature says which batch was served which variant; `tell_result` says how the batch
ended. The result names the batch alone: rolloutd joins it to what that batch was served. librdkafka
keeps a bounded queue and a thread of its own; what does not fit is dropped and counted.

Needs openfeature-sdk and confluent-kafka; nothing of rolloutd, nothing of Prefect.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Producer
from openfeature.flag_evaluation import FlagEvaluationDetails
from openfeature.hook import Hook, HookContext, HookHints

_HEADERS: list[tuple[str, str | bytes | None]] = [
    ("content-type", b"application/cloudevents+json; charset=UTF-8")
]


class Telemetry(Hook):
    """Says who was served what, as OpenFeature's hook, and how it ended.

    `api.add_hooks([telemetry])`.
    """

    def __init__(self, bootstrap: str, *, source: str, capacity: int = 10_000) -> None:
        """`source` names the job, such as /nightly. `capacity` events wait at most."""
        self._source = source
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "queue.buffering.max.messages": capacity,
                "linger.ms": 10,
                # Java's, aiokafka's and rolloutd's own: a batch's evaluation and result must meet
                # in one partition.
                "partitioner": "murmur2_random",
            }
        )
        self._counting = threading.Lock()
        self.counts: Counter[str] = Counter()  # queued, sent, dropped, lost

    def after(
        self, hook_context: HookContext, details: FlagEvaluationDetails[Any], hints: HookHints
    ) -> None:
        """Report that a variant was served; the code's own default is not reported."""
        context_id = hook_context.evaluation_context.targeting_key
        if details.variant is not None and context_id:
            served = {
                "feature_flag.key": details.flag_key,
                "feature_flag.result.variant": details.variant,
            }
            self._emit("flag.evaluations", "io.rolloutd.evaluation.v1", context_id, served)

    def tell_result(self, context_id: str, seconds: float, failure: str | None) -> None:
        """Tell how something ended.

        `failure` names what went wrong, such as an exception's class.
        """
        result: dict[str, Any] = {"http.server.request.duration": seconds}
        if failure is not None:
            result["error.type"] = failure
        self._emit("request.outcomes", "io.rolloutd.outcome.v1", context_id, result)

    def flush(self, seconds: float = 2.0) -> None:
        """Wait until everything queued is sent, for at most so long: before the process ends."""
        self._producer.flush(seconds)

    def _emit(self, topic: str, event_type: str, context_id: str, data: dict[str, Any]) -> None:
        event = {
            "specversion": "1.0",
            "type": event_type,
            "source": self._source,
            "id": uuid.uuid4().hex,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "data": {"feature_flag.context.id": context_id, **data},
        }
        try:
            self._producer.produce(
                topic, json.dumps(event), context_id, headers=_HEADERS, on_delivery=self._delivered
            )
        except BufferError:
            self._count("dropped")
        else:
            self._count("queued")
        self._producer.poll(0)  # lets `_delivered` be called; returns at once

    def _delivered(self, error: object, _: object) -> None:
        self._count("sent" if error is None else "lost")

    def _count(self, fate: str) -> None:
        with self._counting:
            self.counts[fate] += 1
