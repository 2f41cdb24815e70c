from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.chaos.rounds import run

pytestmark = pytest.mark.real_kafka


@pytest.mark.parametrize(
    ("zombies", "seed", "longest_seconds"),
    [
        pytest.param(4, 1, 120.0, marks=pytest.mark.rare),
        pytest.param(50, 2, math.inf, marks=pytest.mark.long),
    ],
)
async def test_zombies_change_nothing(
    kafka: str, tmp_path: Path, zombies: int, seed: int, longest_seconds: float
) -> None:
    """A replica frozen until another took over wakes, goes on.

    And has no effect on any total, answer, decision or percent.
    """
    [(_, figures, findings)] = await run(
        kafka,
        kills=0,
        zombies=zombies,
        seed=seed,
        directory=tmp_path,
        longest_seconds=longest_seconds,
    )
    assert not findings.faults, "\n".join([findings.summary(), *findings.faults[:30]])
    assert figures.take_over_seconds, "nobody took over: the test has lost its teeth"
    assert findings.exact_arms > 0
