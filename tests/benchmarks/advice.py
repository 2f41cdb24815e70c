"""What a faulty model server costs a gate.

How far past its deadline a fault keeps it waiting, how long it holds the loop.

`python -m tests.benchmarks.advice [--deadline 0.5]`. Every fault of
`tests/integration/test_advisor_faults.py`, in both dialects, one after another. Held is CPU time of
the loop's thread between two turns, and the fault server's work is in it: it runs in the same loop.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from controller.adapters.llm.advisor import ModelAdvisor
from controller.clock import SystemClock
from controller.errors import AdviceUnavailableError
from controller.settings import AdvisorSettings
from tests import fault_server as faults
from tests.builders import make_rollout
from tests.fault_server import Script
from tests.integration.advisor_helpers import PROTOCOLS, make_question
from tests.integration.test_advisor_faults import FAILING, SLOW


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, default=0.5, help="of the gate, in seconds")
    deadline = parser.parse_args().deadline
    worst_past, worst_held = ("", float("-inf")), ("", 0.0)
    for protocol in PROTOCOLS:
        for name, (script, _) in {**SLOW, **FAILING}.items():
            past, held = await one(script, protocol, deadline)
            print(
                f"{protocol:6} {name:40} "
                f"{'past the deadline' if past > 0 else 'within it':18} "
                f"{1000 * past:+7.1f} ms",
                end="",
            )
            print(f"  held {1000 * held:5.1f} ms")
            worst_past = max(worst_past, (f"{protocol} {name}", past), key=lambda each: each[1])
            worst_held = max(worst_held, (f"{protocol} {name}", held), key=lambda each: each[1])
    print(f"worst past the deadline: {1000 * worst_past[1]:+.1f} ms ({worst_past[0]})")
    print(f"longest held: {1000 * worst_held[1]:.1f} ms ({worst_held[0]})")


async def one(script: Script, protocol: str, deadline: float) -> tuple[float, float]:
    """Return seconds past the gate's deadline, and the longest the loop was held."""
    held = 0.0

    async def watch() -> None:
        nonlocal held
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            held = max(held, time.thread_time() - began)
            await asyncio.sleep(0.001)

    async with faults.fault_server(script) as server:
        advisor = ModelAdvisor(
            AdvisorSettings.model_validate({"url": server.url, "protocol": protocol}), SystemClock()
        )
        watching = asyncio.create_task(watch())
        began = time.perf_counter()
        try:
            await advisor.ask(make_rollout(), make_question(deadline))
            raise AssertionError("that was advice")
        except AdviceUnavailableError:
            took = time.perf_counter() - began
        watching.cancel()
        await advisor.close()
    return took - deadline, held


if __name__ == "__main__":
    asyncio.run(main())
