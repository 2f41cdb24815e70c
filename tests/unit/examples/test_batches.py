"""The data steps of the Prefect example.

What makes the bad transform bad, and that nothing else does.
"""

from __future__ import annotations

from batches.steps import Batch, BatchInvalid, arrive, transform_v1, transform_v2, validate

BATCHES = [arrive(f"orders-{number:06}") for number in range(1, 301)]


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


def test_both_good_transforms_agree() -> None:
    """The good new transform gives what the old one gives, and few batches fail with either."""
    assert all(transform_v1(batch) == transform_v2(batch) for batch in BATCHES)
    assert 0 < sum(fails(batch, transform_v1(batch)) for batch in BATCHES) < 20


def test_the_bad_transform_fails_most_batches() -> None:
    """Leaving refunds out spoils each batch that has some, and no other."""
    failed = sum(fails(batch, transform_v2(batch, is_bad=True)) for batch in BATCHES)
    assert 0.6 * len(BATCHES) < failed < 0.8 * len(BATCHES)
