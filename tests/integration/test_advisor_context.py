"""A question that is longer than the model's context: no advice, and no reason to ask no more."""

from __future__ import annotations

import json

import pytest

from controller.errors import AdviceUnavailableError
from tests import fault_server as faults
from tests.builders import make_rollout
from tests.integration.advisor_helpers import PROTOCOLS, ask, make_advisor, make_question


async def test_ollama_that_cut_the_question_is_no_advice() -> None:
    """An answer to a prompt that filled the context may be one to half a question."""
    async with faults.fault_server(
        faults.answering(faults.chat_response(prompt_eval_count=4090))
    ) as server:
        with pytest.raises(AdviceUnavailableError, match="context of 4096 tokens is full"):
            await ask(server, protocol="ollama")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_server_that_read_half_the_question_is_no_advice(protocol: str) -> None:
    """Servers cut a long prompt and answer 200; that few tokens cannot be the whole question.

    A server that counts no tokens, or 0, is believed.
    """

    def script(tokens: int) -> faults.Script:
        usage = {"usage": {"prompt_tokens": tokens, "completion_tokens": 40}}
        if protocol == "ollama":
            return faults.answering(faults.chat_response(prompt_eval_count=tokens))
        return faults.answering(json.dumps(json.loads(faults.completion()) | usage))

    async with faults.fault_server(script(300)) as server:
        advisor = make_advisor(server.url, protocol=protocol, breaker_failures=1)
        with pytest.raises(AdviceUnavailableError, match="cut the question: it read 300 tokens"):
            await advisor.ask(make_rollout(), make_question())
        assert advisor.trouble is None, "the next flag's question may fit"
        for tokens in (0, 700):
            server.script = script(tokens)
            assert (await advisor.ask(make_rollout(), make_question())).choice == "proceed"
        await advisor.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("400 Bad Request", "the request exceeds the available context size, try increasing it"),
        ("400 Bad Request", "the prompt is longer than the context length currently available"),
        ("400 Bad Request", "This model's maximum context length is 4096 tokens. However, …"),
        ("500 Error", "rpc error: code = Internal desc = exceeds the available context size"),
    ],
)
async def test_a_question_that_does_not_fit_stops_no_others(
    protocol: str, status: str, words: str
) -> None:
    """A refusal for its length says what to do, and does not open the circuit for other flags."""
    refusal = json.dumps({"error": {"message": words}})
    async with faults.fault_server(faults.answering(refusal, status=status)) as server:
        advisor = make_advisor(server.url, protocol=protocol, breaker_failures=1)
        with pytest.raises(AdviceUnavailableError, match="longer than the model's context"):
            await advisor.ask(make_rollout(), make_question())
        assert advisor.trouble is None
        await advisor.close()
