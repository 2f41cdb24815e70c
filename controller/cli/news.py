"""Puts the events together that one transition of a rollout is published as."""

from __future__ import annotations

from collections.abc import Sequence

from controller.cli.operator_client import Event

#: The events of one transition come in any order, from three topics, within this time.
TOGETHER_WITHIN_SECONDS = 0.75


class Transitions:
    """Holds each event back until those of the same transition have had time to come."""

    def __init__(self) -> None:
        #: By flag and revision: when the first event came (any clock, in seconds), and all of them.
        self._held: dict[tuple[str, int], tuple[float, list[Event]]] = {}

    def add(self, event: Event, at: float) -> None:
        """Take an event that came at `at`."""
        data = event["data"]
        key = (str(data.get("flag")), data.get("revision", -1))
        self._held.setdefault(key, (at, []))[1].append(event)

    def complete(self, now: float) -> list[Sequence[Event]]:
        """Return the events of each transition that is complete by now, oldest first."""
        due = [key for key, (at, _) in self._held.items() if now - at >= TOGETHER_WITHIN_SECONDS]
        return [self._held.pop(key)[1] for key in due]
