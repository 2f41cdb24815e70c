"""How long a fault lasts until the flag is at 0 %, by traffic and by how many requests fail.

    python -m tests.benchmarks.fault_to_zero [--runs 40] [--clean 600] [--seed 1]

The real gate in virtual time: drawn requests, `check_harm` and `judge` as the daemon calls them,
at looks a tenth of a second apart (later 2 % of the time since the fault began). A stage of 50 %
has been healthy for ten minutes when a part of treatment's requests begins to fail. Printed is the
median time until a guardrail's harm is certain, and the time that nine of ten faults are found in.
What follows takes the daemon some 50 ms (`tests.benchmarks.breach`), and is not in it.
"""

from __future__ import annotations

import argparse
import copy
import time
from datetime import timedelta

import numpy as np

from controller.core.judging.gate import check_harm, judge
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from tests.builders import HOUR, T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched

TRAFFIC = (5, 20, 57, 200, 1000)  # treatment requests a second, each of a context of its own
BASE = 0.005
FAULTS = {"2x": 2 * BASE, "5x": 5 * BASE, "8 %": 0.08, "100 %": 1.0}
GUARDRAILS = (
    Guardrail("error_rate", limit=0.01, margin=0.1),
    Guardrail("latency_p99", limit=1000.0, margin=0.2),
)
#: Seconds after which a fault is given up.
LONGEST = 4 * 3600.0


def watch() -> Watched:
    """Return a rollout in a stage of 50 % that was entered just now."""
    stages = make_stages(50, 100, bake=24 * HOUR, max_bake=48 * HOUR, settle=timedelta(0))
    plan = make_plan(guardrails=GUARDRAILS, stages=stages)
    phase = Baking(stage=0, until=T0 + 24 * HOUR)
    visits = (make_visit(percent=50.0, entered_at=T0, counts_from=T0),)
    return Watched(make_rollout(plan=plan, phase=phase, visits=visits, percent=50.0), at=T0)


def is_found(watched: Watched, rng: np.random.Generator, rate: float, per_look: float) -> bool:
    """Draw one look's requests, and return whether harm is certain after it."""
    for arm, failing in ((watched.treatment, rate), (watched.control, BASE)):
        requests = int(rng.poisson(per_look))
        arm.add(requests, int(rng.binomial(requests, failing)))
    evidence = watched.evidence()
    signals, watched.tests = check_harm(watched.rollout, evidence, watched.tests, watched.at)
    if not any(signal.is_possible for signal in signals):
        return False
    judgement, watched.tests = judge(watched.rollout, evidence, watched.tests, watched.at)
    return judgement.breach is not None


def seconds_to_find(
    healthy: Watched, rng: np.random.Generator, rate: float, per_second: float
) -> float:
    """Return how long a fault lasts that begins now."""
    watched, elapsed = copy.deepcopy(healthy), 0.0
    while elapsed < LONGEST:
        step = max(0.1, 0.02 * elapsed)
        elapsed += step
        watched.at += timedelta(seconds=step)
        if is_found(watched, rng, rate, per_second * step):
            return elapsed
    return float("inf")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--clean", type=float, default=600.0, help="healthy seconds before")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"control fails {BASE:.1%}; guardrails error_rate < 1% and < control + 10%, latency_p99")
    print(f"{'treatment requests/s':22}" + "".join(f"{fault:>22}" for fault in FAULTS))
    began = time.process_time()
    for per_second in TRAFFIC:
        found: dict[str, list[float]] = {fault: [] for fault in FAULTS}
        for run in range(options.runs):
            rng = np.random.default_rng([options.seed, per_second, run])
            healthy = watch()
            for _ in range(round(options.clean)):
                healthy.at += timedelta(seconds=1)
                is_found(healthy, rng, BASE, per_second)
            for fault, rate in FAULTS.items():
                found[fault].append(seconds_to_find(healthy, rng, rate, per_second))
        cells = [
            f"{np.median(seconds):.3g} s (90 %: {np.quantile(seconds, 0.9):.3g})"
            for seconds in found.values()
        ]
        print(f"{per_second:<22}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
    print(f"{time.process_time() - began:.0f} s of CPU")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
