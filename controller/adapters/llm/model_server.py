"""One bounded question to a model server, in any dialect.

Belongs here: turns, deadline, circuit and daily budget around one question. Does not belong here:
the HTTP exchange (`exchange.py`), how a dialect words request and completion (`openai.py`,
`ollama.py`), the question (`prompts.py`), the form of an answer (`schemas/advice.py`), and what
advice may do (the state machine).

Neither server nor model is trusted. One deadline covers waiting for a turn, connecting and the last
byte. No more than `max_answer_bytes` are read, however many are sent, and in small pieces, so that
the loop goes on. Every failure is AdviceUnavailableError with a printable reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpcore
import msgspec

from controller.adapters.llm.dialect import Dialect, has_lost_words
from controller.adapters.llm.exchange import MAX_WHITE_RUN, Exchange, has_long_white_run
from controller.adapters.llm.limits import Circuit, QuestionBudget
from controller.adapters.llm.prompts import Prompt
from controller.adapters.llm.trouble import (
    NO_MODEL_SERVER_FIX,
    ServerTrouble,
    cut_off_fix,
    form_fix,
    only_advice_errors,
    server_words,
)
from controller.errors import AdviceUnavailableError, ConfigInvalid
from controller.ports import Clock
from controller.settings import AdvisorSettings

#: What a dialect raises for a body that it cannot read.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote, whole, and what it took."""

    content: str
    latency_ms: int
    prompt_tokens: int | None
    completion_tokens: int | None
    parameters: str  # of the request, besides the prompt, as compact JSON


class ModelServer:
    """Asks one model at one server.

    At most `concurrency` questions are out; waiting for a turn uses up the deadline.
    """

    def __init__(
        self,
        settings: AdvisorSettings,
        clock: Clock,
        dialect: Dialect,
        *,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """Connect to nothing yet; `network` replaces the machine's network.

        Raises ConfigInvalid without a usable address, or with certificates that cannot be used.
        """
        if settings.url is None:
            raise ConfigInvalid("advisor.url is not set: give the address of a model server")
        if not settings.url.isascii():
            raise ConfigInvalid(
                f"advisor.url is not ASCII: {settings.url!r}; write the host name as "
                f"xn--..., escape the path"
            )
        self._settings = settings
        self._dialect = dialect
        self._base = settings.url
        self._exchange = Exchange(settings, clock, settings.url, network)
        self.name = self._exchange.name
        self._circuit = Circuit(
            clock, failures=settings.breaker_failures, seconds=settings.breaker_seconds
        )
        self._budget = QuestionBudget(clock, settings.questions_per_day)
        self._turns = asyncio.Semaphore(settings.concurrency)
        self._optional: set[asyncio.Timeout] = set()  # of questions that no gate waits for

    @property
    def trouble(self) -> str | None:
        """Why the model does not answer, as far as is known; None while it does."""
        return self._circuit.why_failing

    async def recheck(self, seconds: float) -> None:
        """See whether a server that failed answers again; one that works is left alone.

        Without it, the trouble would last until the next gate asks.
        """
        if self._circuit.why_failing is None or self._circuit.why_open is not None:
            return
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            with only_advice_errors():
                await self._exchange.send(
                    b"GET", self._dialect.models_address(self._base), None, deadline
                )
        except AdviceUnavailableError:
            return
        self._circuit.note_answering()

    async def complete(
        self,
        prompt: Prompt,
        form: Mapping[str, Any],
        *,
        seconds: float,
        max_tokens: int | None = None,
        is_optional: bool = False,
    ) -> Completion:
        """Return what the model writes within `seconds`, the settings' deadline at most.

        `form` is the JSON Schema requested; the caller checks whether the answer keeps it. An
        `is_optional` question is one that no gate waits for: it is cancelled when a gate asks and
        no other turn is free. Raises AdviceUnavailableError for every failure.
        """
        if not is_optional:
            if self._turns.locked():
                for timeout in self._optional:
                    timeout.reschedule(asyncio.get_running_loop().time())
            return await self._complete(prompt, form, seconds, max_tokens, is_optional=False)
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                self._optional.add(timeout)
                return await self._complete(prompt, form, seconds, max_tokens, is_optional=True)
        except TimeoutError:
            raise AdviceUnavailableError("gave way to a gate's question") from None
        finally:
            self._optional.discard(timeout)

    async def _complete(
        self,
        prompt: Prompt,
        form: Mapping[str, Any],
        seconds: float,
        max_tokens: int | None,
        *,
        is_optional: bool,
    ) -> Completion:
        seconds = min(seconds, self._settings.deadline_seconds)
        if seconds <= 0:
            raise AdviceUnavailableError("the deadline was over before the model could be asked")
        self._circuit.check()
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise AdviceUnavailableError(
                f"earlier questions to the model took all of the {seconds:.1f} s"
            ) from None
        try:
            # The circuit may have opened during the wait. That question costs nothing.
            self._circuit.check()
            self._budget.take(is_optional=is_optional)
            with self._circuit.attempt(), only_advice_errors():
                request = self._dialect.request(
                    self._settings, prompt, form, max_tokens or self._settings.max_tokens
                )
                return await self._ask(request, prompt, deadline)
        finally:
            self._turns.release()

    async def models(self, *, seconds: float) -> tuple[str, ...]:
        """Return the models that the server says it has. Raises AdviceUnavailableError.

        It uses neither the circuit nor the budget.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        with only_advice_errors():
            body, _ = await self._exchange.send(
                b"GET", self._dialect.models_address(self._base), None, deadline
            )
        try:
            return tuple(server_words(name) for name in self._dialect.read_models(body))
        except _UNREADABLE as error:
            raise ServerTrouble(
                f"{self.name} sent no list of models: {server_words(str(error))}",
                fix=NO_MODEL_SERVER_FIX,
            ) from None

    async def close(self) -> None:
        """Close every connection; a question still out ends in AdviceUnavailableError."""
        await self._exchange.close()

    async def _ask(self, request: Mapping[str, Any], prompt: Prompt, deadline: float) -> Completion:
        """Ask once and read the completion."""
        body, latency_ms = await self._exchange.send(
            b"POST", self._dialect.address(self._base), json.dumps(request).encode(), deadline
        )
        try:
            written = self._dialect.read(body, self._settings)
        except _UNREADABLE as error:
            raise ServerTrouble(
                f"{self.name} sent no chat completion: {server_words(str(error))}",
                fix=NO_MODEL_SERVER_FIX,
            ) from None
        if written.finish_reason != "stop":
            raise AdviceUnavailableError(
                f"the answer was cut off: finish_reason {server_words(written.finish_reason)}",
                fix=cut_off_fix(self._settings.protocol, self._settings.max_tokens),
            )
        if has_lost_words(prompt, written.prompt_tokens):
            raise AdviceUnavailableError(
                f"the server cut the question: it read {written.prompt_tokens} tokens of it, fewer "
                f"than it can have; give the model a larger context"
            )
        if written.content is None:
            raise AdviceUnavailableError(
                "the model wrote nothing", fix=form_fix(self._settings.protocol)
            )
        if has_long_white_run(written.content):
            raise AdviceUnavailableError(
                f"the answer has more than {MAX_WHITE_RUN} characters of white space in a row",
                fix=form_fix(self._settings.protocol),
            )
        parameters = {key: request[key] for key in self._dialect.parameters_in if key in request}
        return Completion(
            content=written.content,
            latency_ms=latency_ms,
            prompt_tokens=written.prompt_tokens,
            completion_tokens=written.completion_tokens,
            parameters=json.dumps(parameters, separators=(",", ":")),
        )
