"""The data steps of the Prefect example.

What makes the bad transforms bad, and that nothing else does.
"""

from __future__ import annotations

import pytest
from batches.steps import Batch, BatchInvalid, arrive, transform_v1, transform_v2, validate

BATCHES = [arrive(f"orders-{number:06}") for number in range(1, 301)]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept for the rates service, without the sleep."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def fails(batch: Batch, euros: list[float]) -> bool:
    """Return whether validation refuses a transformed batch."""
    try:
        validate(batch, euros)
    except BatchInvalid:
        return True
    return False


def test_a_batch_is_the_same_each_time_it_arrives() -> None:
    """A batch that is run again is the same batch."""
    assert arrive("orders-000001") == BATCHES[0]


def test_both_good_transforms_agree(asked: list[float]) -> None:
    """The good new transform gives what the old one gives, and few batches fail with either."""
    assert all(transform_v1(batch) == transform_v2(batch) for batch in BATCHES)
    assert len(asked) == 2 * len(BATCHES)
    assert 0 < sum(fails(batch, transform_v1(batch)) for batch in BATCHES) < 20


def test_the_slow_transform_asks_for_the_rates_more_than_twice_as_often(
    asked: list[float],
) -> None:
    """Its results are right; only its time is not."""
    right = transform_v2(BATCHES[0])
    once = sum(asked)
    assert transform_v2(BATCHES[0], bug="1") == right
    assert sum(asked) - once > 2 * once


def test_the_failing_transform_fails_most_batches() -> None:
    """Refusing refunds fails each batch that has some, and no other."""
    failed = 0
    for batch in BATCHES:
        try:
            transform_v2(batch, bug="errors")
        except ValueError:
            failed += 1
            assert any(order.amount < 0 for order in batch.orders)
    assert 0.6 * len(BATCHES) < failed < 0.8 * len(BATCHES)
