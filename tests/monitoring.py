"""A monitoring system for unit tests: what each query gives is set by the test."""

from __future__ import annotations

from collections.abc import Mapping

from controller.core.plan import CounterQuestion
from controller.errors import NotMeasured
from controller.ports import CounterSample, Sample
from schemas.terms import MeasurementGap


class Monitoring:
    """Answers each query with a sample or a gap; an unknown one with no data."""

    def __init__(
        self,
        answers: Mapping[str | CounterQuestion, Sample | CounterSample | MeasurementGap]
        | None = None,
    ) -> None:
        self.answers = dict(answers or {})
        self.asked: list[str | CounterQuestion] = []

    async def sample(self, query: str) -> Sample:
        """Return what was set. Raises NotMeasured."""
        self.asked.append(query)
        answer = self.answers.get(query, MeasurementGap.NO_DATA)
        if isinstance(answer, Sample):
            return answer
        assert isinstance(answer, MeasurementGap)
        raise NotMeasured(answer, f"the test says {answer}")

    async def counters(self, question: CounterQuestion) -> CounterSample:
        """Return what was set. Raises NotMeasured."""
        self.asked.append(question)
        answer = self.answers.get(question, MeasurementGap.NO_DATA)
        if isinstance(answer, CounterSample):
            return answer
        assert isinstance(answer, MeasurementGap)
        raise NotMeasured(answer, f"the test says {answer}")
