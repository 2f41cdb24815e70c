"""A Prefect flow whose steps are chosen by flags, batch by batch.

`python -m batches.flow` runs it until SIGTERM.

The targeting key is the batch's id: a share of the *batches* goes through the new transform, and a
batch that is run again goes the same way. What Prefect says of each batch's run, completed or
failed, goes back to rolloutd as the batch's outcome.

Reads ROLLOUTD_URL (where OFREP is served), KAFKA (bootstrap servers), BAD=1 for a new transform
that loses refunds, and Prefect's own PREFECT_API_URL. Now and then it prints a JSON line: what ran
so far.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from itertools import count
from typing import Any

from last_known_provider import LastKnownProvider
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.task_runners import ThreadPoolTaskRunner

from batches import steps
from batches.telemetry import Telemetry

_AT_ONCE = 6
_TOLD_EVERY = 10  # batches
_IS_BAD = os.environ.get("BAD", "") not in ("", "0")

telemetry = Telemetry(os.environ["KAFKA"], source="/nightly-orders")
ran: Counter[str] = Counter()  # "new completed", "old failed" and so on
served: dict[str, str] = {}  # batch id -> old or new
warm: dict[str, list[float]] = {}  # what caching keeps


def is_on(flag: str, batch_id: str, default: bool) -> bool:
    """Return whether a step is switched on for a batch.

    `default` while nobody rolls its flag out, and for a new batch when nobody answers.
    """
    return api.get_client().get_boolean_value(
        flag, default, EvaluationContext(targeting_key=batch_id)
    )


def tell_rolloutd(_task: Any, run: Any, state: Any) -> None:
    """Send how a batch ended, as Prefect saw it.

    Its type says so: a state's name may be anybody's.
    """
    failure = None
    if state.type is not StateType.COMPLETED:
        cause = state.result(raise_on_failure=False)
        failure = type(cause).__name__ if isinstance(cause, BaseException) else state.type.value
    telemetry.tell_result(run.name, run.total_run_time.total_seconds(), failure)
    ran[f"{served.pop(run.name, 'old')} {'completed' if failure is None else 'failed'}"] += 1


@task(task_run_name="transform v1 of {batch.batch_id}", cache_policy=NO_CACHE)
def transform_v1(batch: steps.Batch) -> list[float]:
    """Transform as ever."""
    return steps.transform_v1(batch)


@task(task_run_name="transform v2 of {batch.batch_id}", cache_policy=NO_CACHE)
def transform_v2(batch: steps.Batch) -> list[float]:
    """Transform the new way."""
    return steps.transform_v2(batch, is_bad=_IS_BAD)


@task(
    task_run_name="{batch_id}",
    cache_policy=NO_CACHE,
    on_completion=[tell_rolloutd],
    on_failure=[tell_rolloutd],
)
def process(batch_id: str) -> None:
    """Take one batch through the steps its flags switch on.

    Raises BatchInvalid for one that does not add up.
    """
    batch = steps.arrive(batch_id)
    is_new = is_on("transform-v2", batch_id, False)
    served[batch_id] = "new" if is_new else "old"
    euros = transform_v2(batch) if is_new else transform_v1(batch)
    if is_on("batch-validation", batch_id, True):
        steps.validate(batch, euros)
    if is_on("batch-caching", batch_id, False):
        warm[batch_id] = euros
    if is_on("batch-notification", batch_id, True):
        print(f"{batch_id}: {len(euros)} orders, {sum(euros):.2f} EUR")


@flow(name="nightly-orders", task_runner=ThreadPoolTaskRunner(max_workers=_AT_ONCE))
def nightly_orders() -> None:
    """Process batches as they arrive; one that fails costs none of the others."""
    under_way: deque[Any] = deque()
    for number in count(1):
        under_way.append(process.submit(f"orders-{number:06}"))
        if len(under_way) > _AT_ONCE:
            under_way.popleft().wait()
        if number % _TOLD_EVERY == 0:
            print(json.dumps({"ran": ran, "events": telemetry.counts}), flush=True)


def main() -> None:
    """Run the flow."""
    api.set_provider(LastKnownProvider(OFREPProvider(os.environ["ROLLOUTD_URL"], timeout=1.0)))
    api.add_hooks([telemetry])
    nightly_orders()


if __name__ == "__main__":
    main()
