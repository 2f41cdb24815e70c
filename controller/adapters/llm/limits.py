"""Stops questions to a model while its server is away, and when the day's are used up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Final

from controller.adapters.llm.trouble import ServerTrouble
from controller.errors import AdviceUnavailableError
from controller.ports import Clock

#: Questions that no gate waits for (explanations, anomaly checks) may use one in this many of a
#: day's questions.
OPTIONAL_SHARE: Final = 2


class Circuit:
    """A circuit breaker: after failures in a row, no question goes out for a while.

    Then one question goes out as a probe. Only ServerTrouble counts. An answer that cannot be used
    proves that the server is there, and one flag's text must not stop the advice of all others.
    """

    def __init__(self, clock: Clock, *, failures: int, seconds: float) -> None:
        """The circuit opens after `failures` in a row, for `seconds`."""
        self._clock = clock
        self._limit = failures
        self._seconds = seconds
        self._failures = 0
        self._open_until: float | None = None  # monotonic; None: closed
        self._is_probing = False
        self._last_trouble = ""

    @property
    def why_open(self) -> str | None:
        """Why no question goes out now; None when one may."""
        if self._open_until is None:
            return None
        left = self._open_until - self._clock.monotonic()
        if left > 0:
            return f"no request for another {left:.0f} s after: {self._last_trouble}"
        return (
            f"one question is out to see whether it works again after: {self._last_trouble}"
            if self._is_probing
            else None
        )

    @property
    def why_failing(self) -> str | None:
        """Why the circuit opened; None once an answer has come since, or the server answers."""
        return None if self._open_until is None else self.why_open or self._last_trouble

    def note_answering(self) -> None:
        """Note that the server answers again, though no question has gone out since.

        The next failure opens the circuit at once.
        """
        if self._open_until is not None and self.why_open is None:
            self._open_until, self._failures = None, self._limit - 1

    def check(self) -> None:
        """Raise AdviceUnavailableError while no question may go out."""
        if (why := self.why_open) is not None:
            raise AdviceUnavailableError(why)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let one question out and record how it ends; a cancelled one changes nothing.

        Raises like `check`.
        """
        self.check()
        is_probe = self._open_until is not None
        self._is_probing = self._is_probing or is_probe
        try:
            yield
        except ServerTrouble as trouble:
            self._failed(trouble)
            raise
        except AdviceUnavailableError:
            self._worked()
            raise
        else:
            self._worked()
        finally:
            if is_probe:
                self._is_probing = False

    def _worked(self) -> None:
        self._failures = 0
        self._open_until = None

    def _failed(self, trouble: ServerTrouble) -> None:
        self._failures += 1
        if trouble.is_lasting or self._failures >= self._limit or self._open_until is not None:
            self._open_until = self._clock.monotonic() + self._seconds
            self._last_trouble = str(trouble)


class QuestionBudget:
    """A number of questions per UTC day and replica.

    A loop of gates must not keep a machine's CPUs busy for days.
    """

    def __init__(self, clock: Clock, questions: int) -> None:
        self._clock = clock
        self._questions = questions
        self._day: date | None = None
        self._count = 0

    def take(self, *, is_optional: bool) -> None:
        """Count one question; `is_optional`: no gate waits for it.

        Raises AdviceUnavailableError when its share of the day is used up.
        """
        today = self._clock.now().date()
        if today != self._day:
            self._day, self._count = today, 0
        limit = self._questions // OPTIONAL_SHARE if is_optional else self._questions
        if self._count >= limit:
            raise AdviceUnavailableError(
                f"the day's {limit} questions are used up; the next day begins at 00:00 UTC"
            )
        self._count += 1
