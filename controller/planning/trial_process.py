"""A process that tries one plan: for the page, which must not wait for it, nor be slowed down.

It reads a `TrialOrder` from standard input and writes a `TrialAnswer` to standard output. It is the
same code as `rolloutctl simulate`, and limits itself: it has the lowest priority, rests as long as
it works, and is ended by the system after `CPU_SECONDS`.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from controller.errors import BadInput
from controller.planning.trial import request_of, simulated
from controller.planning.trial_words import tried_plan
from controller.planning.typed_traffic import TypedTraffic
from controller.plans import lint_text
from controller.reporting.tried_plan import CPU_SECONDS, RUNS, TrialAnswer, TrialOrder

_LOWEST_PRIORITY = 19
_SEED = 1


def main() -> None:
    """Try the plan of standard input."""
    # At the first limit the system sends SIGXCPU, which says why; at the second it kills.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    os.nice(_LOWEST_PRIORITY)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=TrialOrder)
    sys.stdout.buffer.write(msgspec.json.encode(answer(order, datetime.now(UTC), _rested)))


def answer(
    order: TrialOrder, now: datetime, rested: Callable[[], Callable[[int], None]]
) -> TrialAnswer:
    """Return what rollouts of a plan came to, or why what was typed cannot be meant."""
    document, findings = lint_text(order.plan, now)
    if document is None or any(one.is_error for one in findings):
        return TrialAnswer(refused="the plan would be refused: fix it first")
    conversions = tuple(filter(None, (order.conversion,)))
    effects = tuple(filter(None, (order.effect,)))
    typed = TypedTraffic(
        order.traffic or None, order.error_rate or None, order.latency or None, conversions
    )
    try:
        request = request_of(document, typed, effects, RUNS, _SEED, now)
    except BadInput as refused:
        return TrialAnswer(refused=str(refused))
    return TrialAnswer(tried=tried_plan(request, simulated(request, lambda _: rested())))


def _rested() -> Callable[[int], None]:
    """Return what rests after each rollout as long as it worked.

    A container's share of the processors is one for all its processes: without a rest, the daemon
    beside this one would be held back. While others have the processor it need not rest as well.
    """
    began = time.process_time()

    def rest(_done: int) -> None:
        nonlocal began
        time.sleep(time.process_time() - began)
        began = time.process_time()

    return rest


if __name__ == "__main__":
    main()
