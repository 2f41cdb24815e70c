"""What a gate says is missing, and whether its numbers are those that people can count."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from controller.core.judging.judgement import MetricReport
from controller.core.metrics.latency import ms_words
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from schemas.terms import HealthGap, Verdict
from tests.builders import HOUR, T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched


def watch(guardrail: Guardrail, percent: float = 50.0) -> Watched:
    """Return a rollout under watch, in a first stage that counts from `T0` on."""
    return Watched(
        make_rollout(
            plan=make_plan(guardrails=(guardrail,), stages=make_stages(percent, 100)),
            phase=Baking(stage=0, until=T0 + HOUR),
            visits=(make_visit(percent=percent, counts_from=T0),),
            percent=percent,
        ),
        at=T0,
    )


def feed(watched: Watched, looks: int, add: Callable[[], None]) -> MetricReport:
    """Return the only report after some looks, a second apart."""
    for _ in range(looks):
        add()
        watched.look()
    return watched.last().metrics[0]


def missing_of(reason: str) -> tuple[int, float]:
    """Return how many more observations a sentence asks for, and in how many seconds they come."""
    found = re.search(r"about ([\d,]+) more [a-z ]+ in \w+ \((\d+) (s|min|h|days) at", reason)
    assert found, reason
    number, time, unit = found.groups()
    return int(number.replace(",", "")), int(time) * {"s": 1, "min": 60, "h": 3600}[unit]


def test_users_who_are_missing_come_at_the_rate_of_the_users_so_far() -> None:
    """Of conversions a batch counts everyone who may still convert; people count users.

    100 users a second came: so many seconds bring a hundred times as many users.
    """
    watched = watch(Guardrail("conversion:bought", margin=0.05))

    def add() -> None:
        watched.treatment.add(100, converted=5)
        watched.control.add(100, converted=5)

    report = feed(watched, 30, add)
    assert report.safe is Verdict.INCONCLUSIVE
    users, seconds = missing_of(report.reason)
    assert users == pytest.approx(100 * seconds, rel=0.1)


def test_without_an_error_the_outlook_is_that_of_a_negligible_rate() -> None:
    """As many more user actions as are said are enough; a comparison would take millions."""
    watched = watch(Guardrail("error_rate", margin=0.1))

    def add() -> None:
        watched.treatment.add(100)
        watched.control.add(100)

    early = feed(watched, 30, add)
    assert early.safe is Verdict.INCONCLUSIVE
    assert "if it goes on so" in early.reason
    missing, _ = missing_of(early.reason)
    watched.treatment.add(round(0.95 * missing))
    watched.control.add(round(0.95 * missing))
    assert watched.look().metrics[0].safe is Verdict.INCONCLUSIVE
    watched.treatment.add(round(0.1 * missing))
    watched.control.add(round(0.1 * missing))
    assert watched.look().metrics[0].safe is Verdict.PASS


def test_a_tail_says_that_treatment_may_be_slower_by_the_margin() -> None:
    """Half of treatment is slower than control's p99, and within the margin: both are said."""
    watched = watch(Guardrail("latency_p99", margin=0.2))

    def add() -> None:
        watched.treatment.add(100)
        watched.treatment.add_latencies([110.0] * 50 + [100.0] * 50)
        watched.control.add(100)
        watched.control.add_latencies([100.0] * 100)

    reason = feed(watched, 30, add).reason
    assert "slower than control's p99 (99.9 ms, for treatment 20 % more): 0 % of tr" in reason


@pytest.mark.parametrize(
    ("ms", "words"), [(0.123, "0.123 ms"), (99.4, "99.4 ms"), (2894.0, "2,894 ms")]
)
def test_a_duration_has_no_exponent(ms: float, words: str) -> None:
    """2,894 ms are not written as 2.89e+03 ms."""
    assert ms_words(ms) == words


def test_one_context_is_missing() -> None:
    """One is, two are."""
    watched = watch(Guardrail("error_rate", margin=0.1))
    details = []
    for contexts in (98, 1):
        watched.treatment.add(contexts)
        watched.control.add(contexts)
        gaps = {gap.kind: gap.detail for gap in watched.look().gaps}
        details.append(gaps[HealthGap.BELOW_MIN_SAMPLE])
    assert details[0].endswith("2 are missing")
    assert details[1].endswith("1 is missing")
