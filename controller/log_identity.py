"""Checks that a log is still the one that was read: one rule for every reader of a topic.

A topic that was deleted and made again, or a log that was cut, has other records at the offsets
that were read. The rule is here. What follows from it is the readers': the topology announces a
topic with another id (`adapters/kafka/topology.py`), counting goes on in the other log and records
a loss (`counting/assignment.py`, `counting/log_ends.py`), the state topic is read again from its
beginning (`adapters/kafka/state_feed.py`).
"""

from __future__ import annotations


def is_other_topic(previous_id: str | None, present_id: str | None) -> bool:
    """Return whether two topic ids show two topics; an unknown id (None or empty) shows nothing."""
    return bool(previous_id and present_id) and previous_id != present_id


def why_other_log(
    position: int, end: int, *, previous_id: str | None = None, present_id: str | None = None
) -> str | None:
    """Return why a log is not the one that was read up to `position`, None when it may be.

    `end` is the offset behind its last record. A log that ends before the position may be a broker
    that has just become leader and knows less than was read, for a moment: callers for whom a wrong
    answer is costly ask again.
    """
    if is_other_topic(previous_id, present_id):
        return f"the topic was made again: its id was {previous_id} and is {present_id}"
    if end < position:
        return f"the log ends at {end}, before offset {position} that was read"
    return None
