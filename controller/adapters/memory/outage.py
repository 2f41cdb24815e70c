"""Outages of the systems that the memory adapters stand for."""

from __future__ import annotations

from dataclasses import dataclass

from controller.errors import (
    OperatingTrouble,
)


@dataclass(slots=True)
class Outage:
    """What is wrong with another system just now.

    `trouble` is raised while it `is_down` and for each lost reply.
    """

    trouble: type[OperatingTrouble]
    is_down: bool = False  # calls do nothing and raise
    lost_replies: int = 0  # so many next calls do their work and raise nevertheless

    def before(self) -> None:
        """Raise when the call is to do nothing."""
        if self.is_down:
            raise self.trouble("down, because an outage was set")

    def after(self) -> None:
        """Raise when the call is done and its reply is to be lost."""
        if self.lost_replies > 0:
            self.lost_replies -= 1
            raise self.trouble("reply lost, because an outage was set")
