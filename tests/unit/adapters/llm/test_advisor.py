"""Who is asked, when, and what is made of what comes back: everything that needs no socket."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpcore
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controller.adapters.llm.advisor import RAW_MAX_BYTES, ModelAdvisor
from controller.adapters.llm.limits import Circuit
from controller.adapters.llm.no_advisor import NoAdvisor
from controller.adapters.llm.openai import OpenAIDialect
from controller.adapters.llm.prompts import gate_prompt
from controller.adapters.llm.trouble import ServerTrouble
from controller.adapters.memory import ManualClock
from controller.core.effects import AskAdvice, RaiseAlert
from controller.core.judging.judgement import Advice
from controller.errors import AdviceUnavailableError, ConfigInvalid
from controller.running.connections import make_advisor
from controller.settings import AdvisorSettings
from schemas.advice import ANSWER_SCHEMA
from schemas.terms import AdviceChoice, AlertKind, Severity
from tests.builders import make_judgement, make_rollout
from tests.fault_server import GOOD_ANSWER, completion

CLOCK = ManualClock()
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def make_settings(**overrides: Any) -> AdvisorSettings:
    """Return settings of a server that is never connected to."""
    return AdvisorSettings(
        **{
            "url": "http://advisor.invalid:8081",
            "model": "tiny",
            "deadline_seconds": 5.0,
            **overrides,
        }
    )


def make_question(**overrides: Any) -> AskAdvice:
    """Return a question with a minute left."""
    fields: dict[str, Any] = {
        "gate_id": "gate-1",
        "round": 1,
        "until": CLOCK.now() + timedelta(minutes=1),
        "judgement": make_judgement(),
    }
    return AskAdvice(**{**fields, **overrides})


def read(*pieces: bytes, **overrides: Any) -> Advice:
    """Return what is made of these bytes as the server's whole response."""

    async def ask() -> Advice:
        network = httpcore.AsyncMockBackend(list(pieces))
        advisor = ModelAdvisor(make_settings(**overrides), CLOCK, network=network)
        try:
            return await advisor.ask(make_rollout(), make_question())
        finally:
            await advisor.close()

    return asyncio.run(ask())


def read_body(body: bytes) -> Advice:
    """Return what is made of a JSON response with this body."""
    return read(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body)


def advice_or_none(*pieces: bytes) -> Advice | None:
    """Return what is made of a response, None for no advice; anything else is a fault of ours."""
    try:
        return read(*pieces)
    except AdviceUnavailableError as refusal:
        reason = str(refusal)
    assert reason.isprintable()
    assert 0 < len(reason) < 500
    return None


# --- what comes back ---


@pytest.mark.parametrize("choice", AdviceChoice)
def test_whole_answer_is_advice(choice: AdviceChoice) -> None:
    """Each verdict of the form is read as what it says."""
    advice = read_body(completion({**GOOD_ANSWER, "verdict": choice}).encode())
    assert advice.choice is choice
    assert advice.reasons == tuple(GOOD_ANSWER["reasons"])
    assert advice.model == "tiny"


def test_unknown_fields_around_the_answer_are_passed_over() -> None:
    """What servers add to a completion (usage, timings, reasoning) is no obstacle."""
    body = json.loads(completion())
    body |= {
        "usage": {"prompt_tokens": 600},
        "timings": {"predicted_ms": 12.5},
        "system_fingerprint": None,
    }
    body["choices"][0]["message"] |= {"reasoning": "hm", "refusal": None, "tool_calls": []}
    assert read_body(json.dumps(body).encode()).choice == "proceed"


def test_raw_answer_is_kept_short_and_harmless() -> None:
    """The answer is kept with the decision, cut, and without anything that moves a cursor."""
    reasons = ["\x1b[2J\u202e" + "\N{GRINNING FACE}" * 190] * 5
    content = "\n\n" + json.dumps({**GOOD_ANSWER, "reasons": reasons}, ensure_ascii=False)
    advice = read_body(completion(content).encode())
    assert RAW_MAX_BYTES - 4 < len(advice.raw.encode()) <= RAW_MAX_BYTES
    assert advice.raw.isprintable()
    assert all(reason.isprintable() for reason in advice.reasons)


def test_more_than_one_response_is_not_read() -> None:
    """What a server sends after its answer is never looked at."""
    body = completion().encode()
    advice = read(
        JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"HTTP/1.1 500 E\r\n\r\n"
    )
    assert advice.choice == "proceed"


@given(st.binary(max_size=300))
@example(b"")
@example(b"null")
@example(b'{"choices": null}')
@example(b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}')
@example(b'{"choices": [{"message": {"content": 1e999}, "finish_reason": "stop"}]}')
@example(b"[" * 300)
def test_any_body_is_advice_or_no_advice(body: bytes) -> None:
    """Any bytes in place of a completion are refused politely."""
    assert advice_or_none(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body) is None


@given(st.text(max_size=200), st.sampled_from(["stop", "length", None, "tool_calls"]))
def test_any_content_is_advice_or_no_advice(content: str, finish_reason: str | None) -> None:
    """Any text in place of an answer is refused politely."""
    body = completion(content, finish_reason=finish_reason).encode()
    assert advice_or_none(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body) is None


@given(
    st.fixed_dictionaries(
        {
            "verdict": st.sampled_from([*AdviceChoice, "advance", "PROCEED"])
            | st.none()
            | st.integers(),
            "confidence": st.integers(-1, 101) | st.floats() | st.booleans() | st.text(max_size=3),
            "reasons": st.lists(st.text(max_size=210) | st.integers(), max_size=6)
            | st.text(max_size=3),
        },
        optional={"percent": st.integers()},
    )
)
def test_any_object_is_advice_only_within_the_form(answer: dict[str, Any]) -> None:
    """An object near the form is advice with bounded, printable content, or none."""
    body = completion(json.dumps(answer)).encode()
    advice = advice_or_none(JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body)
    if advice is not None:
        assert "percent" not in answer
        assert advice.choice == answer["verdict"]
        assert 0 <= advice.confidence <= 100
        assert len(advice.reasons) <= 5
        assert all(len(reason) <= 200 and reason.isprintable() for reason in advice.reasons)


@given(st.lists(st.binary(max_size=60), max_size=6))
@example([b"HTTP/1.1 200 OK\r\n\r\n"])
@example([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"])
@example([b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\nContent-Length: -1\r\n\r\n"])
@example([JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"])
@example([JSON_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"{}"])
def test_any_response_is_no_advice(pieces: list[bytes]) -> None:
    """Any bytes in place of HTTP, in any pieces, are refused politely."""
    assert advice_or_none(*pieces) is None


# --- what is sent ---


@pytest.mark.parametrize(
    "base", ["http://host:8080", "http://host:8080/", "http://host:8080/v1", "http://host:8080/v1/"]
)
def test_address_may_end_in_the_version(base: str) -> None:
    """Both habits of writing a base address lead to the same place."""
    assert OpenAIDialect().address(base) == "http://host:8080/v1/chat/completions"


def test_path_before_the_version_is_kept() -> None:
    """A server behind a path of a gateway is asked there."""
    assert (
        OpenAIDialect().address("https://gateway/llm/v1")
        == "https://gateway/llm/v1/chat/completions"
    )


def test_same_question_is_the_same_request() -> None:
    """A question that is put again is put in the same words, for the same answer."""
    prompts = [gate_prompt(make_rollout(), make_question()) for _ in range(2)]
    first, second = (
        OpenAIDialect().request(make_settings(), prompt, ANSWER_SCHEMA, 512) for prompt in prompts
    )
    assert first == second
    assert (first["temperature"], first["stream"]) == (0, False)
    assert (
        json.dumps(first).count('"$') == 0
    )  # LocalAI drops definitions and then does not hold to the rest


# --- who is asked ---


async def test_without_a_model_nobody_is_asked() -> None:
    """No address means no advice, at once, and nothing to close."""
    advisor = make_advisor(AdvisorSettings(), CLOCK)
    assert isinstance(advisor, NoAdvisor)
    assert advisor.trouble is None
    with pytest.raises(AdviceUnavailableError, match="no model is configured"):
        await advisor.ask(make_rollout(), make_question())
    await advisor.close()


def test_with_an_address_the_model_is_asked() -> None:
    """An address is all that it takes."""
    assert isinstance(make_advisor(make_settings(), CLOCK), ModelAdvisor)
    with pytest.raises(ConfigInvalid):
        ModelAdvisor(AdvisorSettings(), CLOCK)
    with pytest.raises(ConfigInvalid, match="xn--"):
        make_advisor(make_settings(url="http://mod\u00e9le:8080"), CLOCK)


async def test_question_that_is_over_is_not_asked() -> None:
    """A question whose time has passed ends at once."""
    advisor = ModelAdvisor(make_settings(), CLOCK, network=httpcore.AsyncMockBackend([]))
    with pytest.raises(AdviceUnavailableError, match="was over"):
        await advisor.ask(make_rollout(), make_question(until=CLOCK.now()))
    assert advisor.trouble is None


async def test_refused_key_opens_the_circuit_at_once() -> None:
    """What only an operator fixes is not tried again and again; after a while it is."""
    clock = ManualClock()
    question = make_question(until=clock.now() + timedelta(hours=1))
    network = httpcore.AsyncMockBackend([b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"])
    advisor = ModelAdvisor(make_settings(), clock, network=network)
    with pytest.raises(AdviceUnavailableError, match="refused the key"):
        await advisor.ask(make_rollout(), question)
    with pytest.raises(
        AdviceUnavailableError, match=r"no request for another 60 s after: .*refused the key"
    ):
        await advisor.ask(make_rollout(), question)
    clock.advance(timedelta(seconds=61))
    with pytest.raises(
        AdviceUnavailableError, match=r"^http://advisor\.invalid:8081 refused the key"
    ):
        await advisor.ask(make_rollout(), question)
    await advisor.close()


async def test_useless_answers_do_not_open_the_circuit() -> None:
    """A flag whose text confuses the model does not silence the advice for others."""
    body = completion("As you wish, master.").encode()
    network = httpcore.AsyncMockBackend(
        [JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body]
    )
    advisor = ModelAdvisor(make_settings(breaker_failures=1), CLOCK, network=network)
    for _ in range(3):
        with pytest.raises(AdviceUnavailableError, match="not one JSON object"):
            await advisor.ask(make_rollout(), make_question())
    assert advisor.trouble is None
    await advisor.close()


# --- the circuit ---


def make_circuit() -> tuple[Circuit, ManualClock]:
    """Return a circuit that opens for a minute after three failures."""
    clock = ManualClock()
    return Circuit(clock, failures=3, seconds=60.0), clock


def fail(circuit: Circuit, trouble: BaseException | None = None) -> None:
    """Let one question through that ends in trouble."""
    trouble = trouble or ServerTrouble("it hangs")
    with pytest.raises(type(trouble)), circuit.attempt():
        raise trouble


def test_circuit_opens_after_failures_in_a_row() -> None:
    """A success in between starts the count again; the third in a row opens, with the reason."""
    circuit, _ = make_circuit()
    fail(circuit)
    fail(circuit)
    with circuit.attempt():
        pass
    fail(circuit)
    fail(circuit)
    circuit.check()
    fail(circuit)
    with pytest.raises(AdviceUnavailableError, match="another 60 s after: it hangs"):
        circuit.check()


def test_open_circuit_lets_one_probe_through() -> None:
    """After its time one question goes out; while it is out no other does.

    Its success closes the circuit.
    """
    circuit, clock = make_circuit()
    fail(circuit, ServerTrouble("no key", is_lasting=True))
    clock.advance(timedelta(seconds=60))
    with circuit.attempt():
        with pytest.raises(AdviceUnavailableError, match="one question is out"):
            circuit.check()
        with pytest.raises(AdviceUnavailableError, match="one question is out"), circuit.attempt():
            raise AssertionError("a second probe got through")
    assert circuit.why_open is None
    fail(circuit)
    assert circuit.why_open is None


def test_a_failing_server_is_said_until_it_answers() -> None:
    """After the circuit's time it is still not known to work: an answer to anything shows it.

    The next failure then opens the circuit at once.
    """
    circuit, clock = make_circuit()
    fail(circuit, ServerTrouble("no key", is_lasting=True))
    circuit.note_answering()
    assert circuit.why_failing == "no request for another 60 s after: no key"
    clock.advance(timedelta(seconds=60))
    assert (circuit.why_open, circuit.why_failing) == (None, "no key")
    circuit.note_answering()
    assert circuit.why_failing is None
    fail(circuit)
    assert circuit.why_failing == "no request for another 60 s after: it hangs"


def test_failed_probe_opens_again() -> None:
    """One failure of the probe is enough for another wait."""
    circuit, clock = make_circuit()
    fail(circuit, ServerTrouble("no key", is_lasting=True))
    clock.advance(timedelta(seconds=60))
    fail(circuit)
    assert circuit.why_open == "no request for another 60 s after: it hangs"


@pytest.mark.parametrize("ending", [asyncio.CancelledError(), AdviceUnavailableError("nonsense")])
def test_probe_that_teaches_nothing_does_not_block_the_next(ending: BaseException) -> None:
    """A cancelled probe leaves the way free for the next one.

    A useless answer shows that the server is there.
    """
    circuit, clock = make_circuit()
    fail(circuit, ServerTrouble("no key", is_lasting=True))
    clock.advance(timedelta(seconds=60))
    fail(circuit, ending)
    with circuit.attempt():
        pass
    assert circuit.why_open is None


def test_late_failure_of_an_earlier_question_counts_once_more() -> None:
    """With several questions out, those that fail while the circuit is open keep it open.

    And none closes it wrongly.
    """
    circuit, clock = make_circuit()
    earlier = circuit.attempt()
    earlier.__enter__()
    fail(circuit, ServerTrouble("no key", is_lasting=True))
    clock.advance(timedelta(seconds=30))
    trouble = ServerTrouble("it hangs")
    assert not earlier.__exit__(ServerTrouble, trouble, None)
    assert circuit.why_open == "no request for another 60 s after: it hangs"


class BrokenNetwork(httpcore.AsyncMockBackend):
    """Raises what no network should."""

    def __init__(self, error: BaseException) -> None:
        super().__init__([])
        self._error = error

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("x"),
        RuntimeError("\x1b[2J"),
        MemoryError(),
        RecursionError(),
        AttributeError("'NoneType' object has no attribute 'x'"),
        asyncio.CancelledError(),
        ExceptionGroup("several", [KeyError("y")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_goes_wrong_in_asking_is_no_advice(error: BaseException) -> None:
    """A mistake in our own code or a library's ends no gate.

    It is no advice, with a printable reason.
    """
    advisor = ModelAdvisor(make_settings(), CLOCK, network=BrokenNetwork(error))
    alert = RaiseAlert(AlertKind.ROLLED_BACK, Severity.CRITICAL, "x", "y", "z", make_judgement())
    for ask in (
        advisor.ask(make_rollout(), make_question()),
        advisor.explain(make_rollout(), alert),
        advisor.review({"new-checkout": (make_rollout(), make_judgement())}),
    ):
        with pytest.raises(AdviceUnavailableError) as refusal:
            await ask
        assert str(refusal.value).isprintable()
    assert advisor.trouble is not None, "the circuit counts it, too"
    await advisor.close()


async def test_a_cancelled_question_stays_cancelled() -> None:
    """Who stops the daemon stops its questions."""
    started = asyncio.Event()

    class Hanging(httpcore.AsyncMockBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
            started.set()
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    advisor = ModelAdvisor(make_settings(), CLOCK, network=Hanging([]))
    asking = asyncio.create_task(advisor.ask(make_rollout(), make_question()))
    await started.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await advisor.close()
