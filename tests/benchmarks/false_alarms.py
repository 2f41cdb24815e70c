"""False alarms and power of the gate over many seeded streams, through `judge` itself; prints one line per cell.

    python -m tests.benchmarks.false_alarms --runs 2000 --seed 1

Every stream is looked at after each of 200 batches. "false" is the part of healthy streams rolled back, to be held against
alpha; "most" is what chance allows a test exactly at alpha in that many runs (1 in 1000). "looks" is the median look at which
harm was found. Not collected by pytest: 2,000 runs a cell take about half an hour on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import numpy as np
from scipy import stats

from controller.core.gate import decode_tests, encode_tests, judge
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from tests.builders import T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched, looks_until_breach

LOOKS = 200
ALPHA = 0.01

OneRun = Callable[[np.random.Generator], int | None]


def watch(percent: float, *guardrails: Guardrail) -> Watched:
    """Return a rollout under watch at the default alpha."""
    plan = make_plan(guardrails=guardrails, stages=make_stages(percent, 100, bake=timedelta(seconds=LOOKS)), alpha=ALPHA)
    phase = Baking(stage=0, until=T0 + timedelta(hours=1))
    return Watched(make_rollout(plan=plan, phase=phase, visits=(make_visit(percent=percent),), percent=percent))


def errors(percent: float, rate: float, worse: float, begins: int, rng: np.random.Generator) -> int | None:
    """Return the look that found a breach in a stream whose treatment fails `worse` times as often from look `begins` on."""
    watched = watch(percent, Guardrail("error_rate", margin=0.0))

    def rates(look: int) -> tuple[float, float]:
        return (rate * worse if look >= begins else rate), rate

    found = looks_until_breach(watched, rng, LOOKS, 2000, rates)
    return found if found is None or worse == 1 else max(found - begins, 0)


def ramp(worse: float, rng: np.random.Generator) -> int | None:
    """Return the look that found a breach in a ramp over 1, 10 and 50 % while the base rate grows fivefold."""
    watched = watch(1.0, Guardrail("error_rate", margin=0.0))
    for stage, percent in enumerate((1.0, 10.0, 50.0)):
        if stage:
            watched.go_on(percent, 0)

        def rates(look: int, stage: int = stage) -> tuple[float, float]:
            rate = 0.004 * 5 ** ((stage + look / 67) / 3)
            return rate * worse, rate

        found = looks_until_breach(watched, rng, 67, 2000, rates)
        if found is not None:
            return 67 * stage + found
    return None


def latency(percent: float, slow_part: float, factor: float, rng: np.random.Generator) -> int | None:
    """Return the look that found a breach where a part of treatment's requests takes `factor` times as long."""
    watched = watch(percent, Guardrail("latency_p99", margin=0.0))
    for look in range(LOOKS):
        n_t = int(rng.binomial(300, percent / 100))
        slow = np.where(rng.random(n_t) < slow_part, factor, 1.0)
        watched.treatment.add(n_t)
        watched.treatment.add_latencies(rng.lognormal(3.7, 0.6, n_t) * slow)
        watched.control.add(300 - n_t)
        watched.control.add_latencies(rng.lognormal(3.7, 0.6, 300 - n_t))
        if watched.look().breach is not None:
            return look + 1
    return None


def speed() -> None:
    """Print what one look costs with errors and latency, limits and comparisons, as the daemon does it."""
    rng = np.random.default_rng(0)
    watched = watch(10.0, Guardrail("error_rate", limit=0.05, margin=0.1), Guardrail("latency_p99", limit=400.0, margin=0.1))
    looks, whole = [], []
    size = 0
    for _ in range(LOOKS):
        watched.treatment.add(50, int(rng.binomial(50, 0.01)))
        watched.treatment.add_latencies(rng.lognormal(3.7, 0.6, 50))
        watched.control.add(450, int(rng.binomial(450, 0.01)))
        watched.control.add_latencies(rng.lognormal(3.7, 0.6, 450))
        watched.at += timedelta(seconds=1)
        evidence = watched.evidence()
        began = time.process_time()
        tests = decode_tests(encode_tests(watched.tests))
        decoded = time.process_time()
        _, watched.tests = judge(watched.rollout, evidence, tests, watched.at)
        looks.append(time.process_time() - decoded)
        whole.append(time.process_time() - began)
        size = len(encode_tests(watched.tests))
    milliseconds = f"{1000 * statistics.median(looks):.2f} ms, with its state's bytes {1000 * statistics.median(whole):.2f} ms"
    print(f"one look, CPU, median of {LOOKS}: {milliseconds}; state {size:,} bytes")


def main() -> None:
    """Run every cell."""
    parser = argparse.ArgumentParser(description="False alarms and power of the gate on seeded streams.")
    parser.add_argument("--runs", type=int, default=2000, help="healthy streams per cell; harmful ones get a twentieth")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    speed()
    healthy: dict[str, OneRun] = {
        f"errors {rate:.1%} at {percent:g} %": partial(errors, percent, rate, 1.0, 0)
        for percent in (1.0, 10.0, 50.0)
        for rate in (0.001, 0.005, 0.02)
    }
    healthy["errors, ramp, base rate x5"] = partial(ramp, 1.0)
    healthy["latency p99 at 10 %"] = partial(latency, 10.0, 0.0, 1.0)
    most = int(stats.binom.ppf(0.999, options.runs, ALPHA))
    print(f"healthy, alpha {ALPHA:.0%}, {options.runs} runs a cell, most by chance {most}")
    for number, (name, one_run) in enumerate(healthy.items()):
        rng = np.random.default_rng([options.seed, number])
        false = sum(one_run(rng) is not None for _ in range(options.runs))
        print(f"  {name:<32} false {false:>3} of {options.runs} {'' if false <= most else '  TOO MANY'}", flush=True)
    harmful: dict[str, OneRun] = {
        f"errors 2.0% x{worse:g} at {percent:g} %": partial(errors, percent, 0.02, worse, 0)
        for percent in (1.0, 10.0, 50.0)
        for worse in (1.5, 2.0, 5.0)
    }
    harmful["errors 2.0% x2 at 10 %, half-way"] = partial(errors, 10.0, 0.02, 2.0, LOOKS // 2)
    harmful["errors x2, ramp, base rate x5"] = partial(ramp, 2.0)
    harmful["latency, 5 % take 5 x, at 10 %"] = partial(latency, 10.0, 0.05, 5.0)
    runs = max(options.runs // 20, 5)
    print(f"harmful, {runs} runs a cell")
    for number, (name, one_run) in enumerate(harmful.items()):
        rng = np.random.default_rng([options.seed, 1000 + number])
        found = [look for look in (one_run(rng) for _ in range(runs)) if look is not None]
        median = statistics.median(found) if found else float("nan")
        print(f"  {name:<34} found {len(found):>3} of {runs}, median {median:g} looks", flush=True)


if __name__ == "__main__":
    main()
