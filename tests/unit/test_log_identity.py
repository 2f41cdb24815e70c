"""One rule says whether a log is still the one that was read."""

from __future__ import annotations

import pytest

from controller.log_identity import is_other_topic, why_other_log


@pytest.mark.parametrize("previous", [None, "", "one"])
@pytest.mark.parametrize("present", [None, "", "one"])
def test_an_unknown_or_equal_id_is_no_other_topic(
    previous: str | None, present: str | None
) -> None:
    """Only two known ids that differ show that a topic was made again."""
    assert not is_other_topic(previous, present)
    assert is_other_topic("one", "two")


def test_a_log_that_ends_at_the_position_is_the_same() -> None:
    """A log may be read to its end, and only one that ends earlier is another."""
    assert why_other_log(5, 5) is None
    assert why_other_log(5, 4) == "the log ends at 4, before offset 5 that was read"


def test_another_id_counts_before_the_end() -> None:
    """A topic that was made again is named as such, however many records it has."""
    for end in (0, 5, 9):
        why = why_other_log(5, end, previous_id="one", present_id="two")
        assert why == "the topic was made again: its id was one and is two"
