"""The advisor where no model is configured. It loads nothing of those that ask one."""

from __future__ import annotations

from typing import NoReturn

from controller.core.effects import AskAdvice
from controller.core.rollout import Rollout
from controller.errors import AdviceUnavailableError


class NoAdvisor:
    """Implements `ports.Advisor`: it never has advice."""

    @property
    def trouble(self) -> str | None:
        """Nothing is wrong: there is no model to ask."""
        return None

    async def ask(self, rollout: Rollout, question: AskAdvice) -> NoReturn:
        raise AdviceUnavailableError("no model is configured: advisor.url is not set")

    async def close(self) -> None:
        """Do nothing: there is no connection."""
