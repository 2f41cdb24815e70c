"""A Prefect flow whose steps are chosen by flags, batch by batch.

`python -m batches.flow` runs it until SIGTERM.

The targeting key is the batch's id: a share of the *batches* goes through the new transform, and a
batch that is run again goes the same way. How each batch's run ended and how long it took, the
bridge reads from Prefect.

Reads ROLLOUTD_URL (where OFREP is served), BAD=1 for a new transform that takes too long,
BAD=errors for one that refuses refunds, and Prefect's own PREFECT_API_URL. Now and then it prints a
JSON line: what ran so far.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from itertools import count
from typing import Any

from last_known_provider import LastKnownProvider
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from batches import steps
from batches.telemetry import EvaluationHook

_AT_ONCE = 6
_ARRIVES_EVERY_SECONDS = 0.12  # more than a small Prefect server keeps up with is no example
_TOLD_EVERY = 10  # batches
_BUG = "" if os.environ.get("BAD", "0") == "0" else os.environ["BAD"]

ran: Counter[str] = Counter()  # "new completed", "old failed" and so on
warm: dict[str, list[float]] = {}  # what caching keeps


def is_on(flag: str, batch_id: str) -> bool:
    """Return whether a step is switched on for a batch.

    Off while nobody rolls its flag out, and for a new batch when nobody answers.
    """
    return api.get_client().get_boolean_value(
        flag, False, EvaluationContext(targeting_key=batch_id)
    )


@task(task_run_name="{batch_id}", cache_policy=NO_CACHE)
def process(batch_id: str) -> None:
    """Take one batch through the steps its flags switch on.

    Raises BatchInvalid for one that does not add up.
    """
    is_new = is_on("transform-v2", batch_id)
    ending = f"{'new' if is_new else 'old'} failed"
    try:
        batch = steps.arrive(batch_id)
        euros = steps.transform_v2(batch, bug=_BUG) if is_new else steps.transform_v1(batch)
        if is_on("batch-validation", batch_id):
            steps.validate(batch, euros)
        if is_on("batch-caching", batch_id):
            warm[batch_id] = euros
        if is_on("batch-notification", batch_id):
            print(f"{batch_id}: {len(euros)} orders, {sum(euros):.2f} EUR")
        ending = ending.replace("failed", "completed")
    finally:
        ran[ending] += 1


@flow(name="nightly-orders", task_runner=ThreadPoolTaskRunner(max_workers=_AT_ONCE))
def nightly_orders() -> None:
    """Process batches as they arrive; one that fails costs none of the others."""
    under_way: deque[Any] = deque()
    for number in count(1):
        under_way.append(process.submit(f"orders-{number:06}"))
        if len(under_way) > _AT_ONCE:
            under_way.popleft().wait()
        time.sleep(_ARRIVES_EVERY_SECONDS)
        if number % _TOLD_EVERY == 0:
            print(json.dumps({"ran": ran}), flush=True)


def main() -> None:
    """Run the flow."""
    api.set_provider(LastKnownProvider(OFREPProvider(os.environ["ROLLOUTD_URL"], timeout=1.0)))
    api.add_hooks([EvaluationHook()])
    nightly_orders()


if __name__ == "__main__":
    main()
