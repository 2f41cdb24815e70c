"""A million hostile cases against the edges, in slices; and a short siege of a real daemon.

For longer, by command: `python -m tests.hostile.siege --minutes 20`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.edges import EDGES, RECORDS_OF, Ofrep, run
from tests.hostile.servers import SERVERS
from tests.hostile.siege import Siege, problems

#: Cases of each edge in `make test-all`. A batch of records counts as many cases as it has records.
CASES = {
    "evaluations": 300_000,
    "outcomes": 300_000,
    "otlp logs": 60_000,
    "otlp spans": 60_000,
    "go feature flag": 60_000,
    "commands": 50_000,
    "plans": 6_000,
    "rollout documents": 50_000,
    "stored totals": 20_000,
    "model answers": 100_000,
}
SLICES = 4
#: `make test` runs this part of each number: 10,000 cases.
QUICK_PART = 0.01


def test_the_slices_are_a_million_cases() -> None:
    """What is promised is what is run."""
    assert sum(CASES.values()) >= 1_000_000
    assert CASES.keys() == EDGES.keys()


@pytest.mark.parametrize("edge", EDGES)
def test_no_hostile_case_gets_further_than_a_refusal(edge: str) -> None:
    """Nothing is raised, nothing stands still, and what is honest beside it is counted."""
    cases = max(round(CASES[edge] * QUICK_PART / RECORDS_OF.get(edge, 1)), 100)
    check(edge, cases, seed=SLICES)


@pytest.mark.rare
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("edge", EDGES)
def test_none_of_a_million_hostile_cases_gets_further(edge: str, part: int) -> None:
    """What holds for ten thousand cases holds for a million."""
    check(edge, CASES[edge] // RECORDS_OF.get(edge, 1) // SLICES, seed=part)


def check(edge: str, cases: int, seed: int) -> None:
    """Put so many cases to an edge; some must be refused and some accepted."""
    report = run(edge, EDGES[edge], seed=seed, cases=cases)
    print(report)
    assert any("refused" in word for word in report.outcomes), (
        f"{report}: cases without a refusal have lost their teeth"
    )
    assert report.outcomes.keys() - {"refused", "all refused but the honest one"}, (
        f"{report}: nothing gets in at all"
    )


@pytest.fixture
def ofrep() -> Iterator[Ofrep]:
    """OFREP without a socket."""
    edge = Ofrep()
    yield edge
    edge.close()


@pytest.mark.parametrize("cases", [500, pytest.param(4_000, marks=pytest.mark.rare)])
def test_no_hostile_request_gets_further_than_an_error_answer(ofrep: Ofrep, cases: int) -> None:
    """Every evaluation request is answered in OFREP's own words."""
    report = run("ofrep", ofrep, seed=1, cases=cases)
    assert report.outcomes["200"]
    assert report.outcomes["400"]


@pytest.mark.parametrize("cases", [150, pytest.param(1_500, marks=pytest.mark.rare)])
@pytest.mark.parametrize("name", SERVERS)
def test_no_hostile_answer_gets_further_than_an_adapter(name: str, cases: int) -> None:
    """What a model or a flag plane answers is used, or it is that server's own trouble."""
    edge = SERVERS[name]()
    try:
        report = run(name, edge, seed=1, cases=cases)
    finally:
        edge.close()
    print(report)
    assert len(report.outcomes) > 1, (
        f"{report}: every answer was refused: these cases have lost their teeth"
    )


@pytest.mark.real_kafka
@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.rare)])
async def test_a_short_siege(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path, seconds: int
) -> None:
    """Under fire from all sides the process lives, counts what is honest exactly.

    And rolls back.
    """
    figures = await Siege(kafka, redis_url, tmp_path, seed=1, prefix=topic_prefix).run(seconds)
    print(figures)
    assert not problems(figures, is_timed=False), str(figures)
