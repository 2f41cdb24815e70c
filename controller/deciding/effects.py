"""Writes the effects of one flag as the records by which they are published."""

from __future__ import annotations

from controller.codec.outbox import Message, outbox_entry
from controller.core.rollout import Rollout
from controller.ports import Clock, OutboxEntry


class EffectEncoder:
    """Encodes the messages of one flag, and names its effects."""

    def __init__(self, flag_key: str, clock: Clock, source: str) -> None:
        self._flag_key = flag_key
        self._clock = clock
        self._source = source

    def encode(self, message: Message, rollout: Rollout | None, effect_id: str) -> OutboxEntry:
        """Return a message as an outbox entry; `rollout` is the flag's after it."""
        now = self._clock.now()
        return outbox_entry(message, self._flag_key, rollout, effect_id, now, source=self._source)

    def effect_id(self, rollout: Rollout | None, number: int) -> str:
        """Return the id of one effect of a revision, by which receivers drop repeats."""
        return f"{self._flag_key}/{0 if rollout is None else rollout.revision}/{number}"

    def state_entry(self, rollout: Rollout) -> OutboxEntry:
        """Return the record that the state topic should end with."""
        return self.encode(rollout, rollout, self.effect_id(rollout, 0))
