"""An advisor in memory: `controller.ports.Advisor`."""

from __future__ import annotations

from dataclasses import replace

from controller.adapters.memory.outage import Outage
from controller.core.effects import AskAdvice
from controller.core.judging.judgement import Advice
from controller.core.rollout import Rollout
from controller.errors import (
    AdviceUnavailableError,
)


class MemoryAdvisor:
    """Gives prepared answers, one per question, the last one forever; None is no advice."""

    def __init__(self, *answers: Advice | None) -> None:
        self.outage = Outage(AdviceUnavailableError)
        self.asked: list[AskAdvice] = []
        self._answers = list(answers)

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        self.outage.before()
        self.asked.append(question)
        answer = (
            self._answers[min(len(self.asked), len(self._answers)) - 1] if self._answers else None
        )
        self.outage.after()
        if answer is None:
            raise AdviceUnavailableError("no advice was prepared")
        return replace(answer)
