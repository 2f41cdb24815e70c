"""How fast plans are tried and streams judged.

And false alarms of streams whose users come back. Prints one line per figure.

    python -m tests.benchmarks.planning --runs 200 --seed 1

Rollouts per minute are of the default plan, healthy and with a harm that is found late or never;
lines per second are of `rolloutctl verdict --stdin`, with and without latencies. False alarms are
held against alpha: "most" is what chance allows a test exactly at alpha in that many runs (1 in
1000). All on one core, CPU time. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from math import log

import numpy as np
from scipy import stats

from controller.cli.verdict_lines import Bench
from controller.codec.plans import to_core_plan
from controller.core.evidence import GAMMA
from controller.core.metrics.error_rate import VirtualErrors
from controller.planning.figures import simulate
from controller.planning.virtual_traffic import Effect, VirtualTraffic
from controller.plans import template
from tests.builders import T0

LOOKS = 200
PER_LOOK = 1000
ALPHA = 0.05


def looks(
    rng: np.random.Generator,
    name: str,
    shares: tuple[float, ...],
    contexts: int | None,
    rate: float,
    *,
    has_latency: bool,
) -> Iterator[bytes]:
    """Yield a stream's lines.

    Users who come back, some much more often, unluckier and slower than others; None: never back.

    The base rate drifts fourfold, and in one look of twenty it is ten times as high.
    """
    people = contexts or LOOKS * PER_LOOK * 2
    activity = np.exp(rng.normal(0, 1.5, people)) if contexts else np.ones(people)
    luck, slow = np.exp(rng.normal(0, 1.2, people)), np.exp(rng.normal(0, 0.4, people))
    lot, activity = rng.random(people), np.cumsum(activity) / activity.sum()
    fresh = 0
    for stage, share in enumerate(shares):
        treated, seen, failed = lot < share, np.zeros(people, bool), np.zeros(people, bool)
        sums = {arm: {"outcomes": 0, "errors": 0} for arm in ("treatment", "control")}
        histograms: dict[str, dict[int, int]] = {arm: {} for arm in sums}
        for step in range(LOOKS // len(shares)):
            count = int(rng.poisson(PER_LOOK))
            who = (
                np.searchsorted(activity, rng.random(count))
                if contexts
                else np.arange(fresh, fresh + count) % people
            )
            fresh += count
            base = rate * (1 + 0.6 * np.sin(step / 15)) * (10 if rng.random() < 0.05 else 1)
            is_error = rng.random(count) < np.minimum(base * luck[who], 1)
            seen[who] = True
            failed[who[is_error]] = True
            buckets = np.ceil(
                np.log(rng.lognormal(3.7, 0.6, count) * slow[who]) / log(GAMMA)
            ).astype(int)
            line: dict[str, object] = {
                "stream": name,
                "stage": stage,
                "share": share,
                "alpha": ALPHA,
                "looks_planned": LOOKS,
            }
            for arm, mine in (("treatment", treated), ("control", ~treated)):
                here = mine[who]
                sums[arm]["outcomes"] += int(here.sum())
                sums[arm]["errors"] += int((is_error & here).sum())
                told: dict[str, object] = {
                    "contexts": int((seen & mine).sum()),
                    "contexts_with_error": int((failed & mine).sum()),
                    **sums[arm],
                }
                if has_latency:
                    for bucket in buckets[here].tolist():
                        histograms[arm][bucket] = histograms[arm].get(bucket, 0) + 1
                    told["latency"] = {
                        "gamma": GAMMA,
                        "buckets": {str(key): n for key, n in histograms[arm].items()},
                    }
                line[arm] = told
            yield json.dumps(line).encode() + b"\n"


def rollouts_per_minute(runs: int, seed: int) -> None:
    """Print how many virtual rollouts of the default plan a minute of CPU holds."""
    plan = to_core_plan(template("default", "a-flag"))
    control = VirtualTraffic.of(50.0, VirtualErrors(0.001))
    for name, effects in (
        ("healthy", ()),
        ("errors x20", (Effect("errors", 20.0),)),
        ("errors x2, within limits", (Effect("errors", 2.0),)),
    ):
        began = time.process_time()
        scenario = simulate(plan, replace(control, effects=effects), runs, seed, T0)
        spent = time.process_time() - began
        said = (
            f"{60 * runs / spent:,.0f} rollouts/min; promoted {scenario.promoted.count} of {runs}"
        )
        print(f"simulate, default plan, {name}: {said}")


def lines_per_second(seed: int) -> None:
    """Print how many lines a second of CPU answers."""
    for has_latency in (False, True):
        rng = np.random.default_rng([seed, has_latency])
        text = b"".join(
            line
            for run in range(5)
            for line in looks(rng, f"s{run}", (0.1,), None, 0.005, has_latency=has_latency)
        )
        began = time.process_time()
        count = sum(1 for _ in Bench().answers(io.BytesIO(text)))
        spent = time.process_time() - began
        print(
            f"verdict, {'errors and latency' if has_latency else 'errors'}: "
            f"{count / spent:,.0f} lines/s"
        )


def false_alarms(runs: int, seed: int) -> None:
    """Print false roll backs of streams without an effect."""
    most = int(stats.binom.ppf(0.999, runs, ALPHA))
    print(
        f"false roll backs at alpha {ALPHA:.0%}, {runs} streams of {LOOKS} looks a cell, "
        f"most by chance {most}"
    )
    ramp = (0.01, 0.1, 0.5)
    for number, (name, shares, contexts, has_latency) in enumerate(
        [
            ("nobody comes back, 10 %", (0.1,), None, False),
            ("5,000 users, 1 %", (0.01,), 5000, False),
            ("5,000 users, 10 %", (0.1,), 5000, False),
            ("5,000 users, 50 %", (0.5,), 5000, False),
            ("500 users, 50 %", (0.5,), 500, False),
            ("100,000 users, 10 %", (0.1,), 100_000, False),
            ("5,000 users, ramp", ramp, 5000, False),
            ("nobody comes back, ramp, latency", ramp, None, True),
            ("5,000 users, 50 %, latency", (0.5,), 5000, True),
            ("100,000 users, 10 %, latency", (0.1,), 100_000, True),
        ]
    ):
        false = 0
        for run in range(runs):
            rng = np.random.default_rng([seed, number, run])
            bench = Bench()
            answers = (
                next(bench.answers(io.BytesIO(line)))
                for line in looks(rng, "s", shares, contexts, 0.01, has_latency=has_latency)
            )
            false += any(b'"roll_back"' in answer for answer in answers)
        print(f"  {name:<36} {false:>3}{'' if false <= most else '  TOO MANY'}", flush=True)


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(
        description="Speed of simulate and verdict, and false alarms of streams of totals."
    )
    parser.add_argument(
        "--runs", type=int, default=200, help="virtual rollouts, and streams per cell"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rollouts_per_minute(options.runs, options.seed)
    lines_per_second(options.seed)
    false_alarms(options.runs, options.seed)


if __name__ == "__main__":
    main()
