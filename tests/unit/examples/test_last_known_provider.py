from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from last_known_provider import LastKnownProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import (
    ErrorCode,
    FlagNotFoundError,
    GeneralError,
    OpenFeatureError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata


class Server(AbstractProvider):
    """A provider that answers what a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: FlagResolutionDetails[bool] | Exception = FlagResolutionDetails(
            True, variant="on", reason=Reason.SPLIT
        )
        self.asked = 0
        self.is_shut_down = False

    def get_metadata(self) -> Metadata:
        return Metadata(name="server")

    def shutdown(self) -> None:
        self.is_shut_down = True

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def resolve_string_details(self, *_: object) -> FlagResolutionDetails[str]:
        raise TypeMismatchError("it is a boolean")

    def resolve_integer_details(self, *_: object) -> FlagResolutionDetails[int]:
        return FlagResolutionDetails(7)

    def resolve_float_details(self, *_: object) -> FlagResolutionDetails[float]:
        return FlagResolutionDetails(0.5)

    def resolve_object_details(self, *_: object) -> FlagResolutionDetails[dict[str, str]]:
        return FlagResolutionDetails({"color": "red"})


class HandTime:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


AWAY: list[Exception] = [
    GeneralError("connection refused"),
    OpenFeatureError(ErrorCode.GENERAL, "503"),
    OpenFeatureError(ErrorCode.PARSE_ERROR, "not JSON"),
    OpenFeatureError(ErrorCode.PROVIDER_NOT_READY, "not ready"),
    KeyError("reason"),
]


def of(user: str, **attributes: str) -> EvaluationContext:
    """Return a context."""
    return EvaluationContext(user, attributes)


def ask(provider: LastKnownProvider, user: str, **attributes: str) -> FlagResolutionDetails[bool]:
    """Evaluate the flag of these tests."""
    return provider.resolve_boolean_details("checkout", False, of(user, **attributes))


@pytest.mark.parametrize("trouble", AWAY, ids=str)
def test_the_last_answer_is_given_again_while_the_server_fails(trouble: Exception) -> None:
    """With its variant, as stale; whoever was never seen gets the error, so the default."""
    server, time = Server(), HandTime()
    provider = LastKnownProvider(server, monotonic=time)
    ask(provider, "ann")
    server.answer = trouble
    time.seconds = 100.0
    again = ask(provider, "ann")
    assert (again.value, again.variant, again.reason) == (True, "on", Reason.STALE)
    for user, attributes in (("bob", {}), ("ann", {"plan": "pro"})):
        with pytest.raises(OpenFeatureError):
            ask(provider, user, **attributes)
    with pytest.raises(OpenFeatureError):
        provider.resolve_boolean_details("other", False, of("ann"))


def test_an_answer_given_as_a_detail_is_a_failure_too() -> None:
    """Some providers return their errors."""
    server = Server()
    provider = LastKnownProvider(server)
    ask(provider, "ann")
    server.answer = FlagResolutionDetails(False, error_code=ErrorCode.GENERAL)
    assert ask(provider, "ann").value is True


def test_a_server_that_fails_is_asked_once_a_second() -> None:
    """The others do not wait for one that hangs; when it answers again, all ask it."""
    server, time = Server(), HandTime()
    provider = LastKnownProvider(server, monotonic=time)
    ask(provider, "ann")
    server.answer = GeneralError("timed out")
    for tenth in range(50):
        time.seconds = tenth / 10
        ask(provider, "ann")
    assert server.asked == 1 + 5
    server.answer = FlagResolutionDetails(False, variant="off", reason=Reason.SPLIT)
    time.seconds = 10.0
    now = [ask(provider, "ann").reason for _ in range(3)]
    assert now == [Reason.SPLIT] * 3
    assert server.asked == 1 + 5 + 3


def test_what_the_server_says_is_never_replaced() -> None:
    """No such flag any more: the default, now and later; another type: the error."""
    server, time = Server(), HandTime()
    provider = LastKnownProvider(server, monotonic=time)
    ask(provider, "ann")
    server.answer = FlagNotFoundError("gone")
    with pytest.raises(FlagNotFoundError):
        ask(provider, "ann")
    server.answer = GeneralError("away")
    with pytest.raises(GeneralError):
        ask(provider, "ann")
    with pytest.raises(TypeMismatchError):
        LastKnownProvider(server).resolve_string_details("checkout", "", of("ann"))


def test_memory_and_age_are_bounded() -> None:
    """The least recently used answer goes first, and no answer is given for ever."""
    server, time = Server(), HandTime()
    provider = LastKnownProvider(
        server, capacity=2, keep_seconds=60.0, retry_seconds=0.0, monotonic=time
    )
    for user in ("ann", "bob", "ann", "cy"):
        ask(provider, user)
    server.answer = GeneralError("away")
    assert (ask(provider, "ann").value, ask(provider, "cy").value) == (True, True)
    with pytest.raises(GeneralError):
        ask(provider, "bob")
    time.seconds = 61.0
    with pytest.raises(GeneralError):
        ask(provider, "ann")


def test_every_type_passes_through() -> None:
    """Numbers and objects as well; metadata and shutdown are the wrapped provider's."""
    server = Server()
    provider = LastKnownProvider(server)
    assert provider.resolve_integer_details("a", 0).value == 7
    assert provider.resolve_float_details("a", 0.0).value == 0.5
    assert provider.resolve_object_details("a", {}).value == {"color": "red"}
    assert provider.get_metadata().name == "last known of server"
    assert provider.get_provider_hooks() == []
    provider.initialize(EvaluationContext())
    provider.shutdown()
    assert server.is_shut_down


def test_threads_share_it() -> None:
    """An outage in the middle of many evaluations harms none."""
    server = Server()
    provider = LastKnownProvider(server, retry_seconds=0.0)
    users = [f"user-{number}" for number in range(20)]
    for user in users:
        ask(provider, user)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            wrong.extend(user for user in users if ask(provider, user).value is not True)

    def flap() -> None:
        good = server.answer
        for _ in range(100):
            server.answer = GeneralError("away")
            server.answer = good

    tasks: list[Callable[[], None]] = [work, work, work, flap]
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_its_twin_for_node_does_the_same() -> None:
    """The same sentences, in JavaScript."""
    if shutil.which("node") is None:
        pytest.skip("last-known-provider.mjs NOT tried: no node on PATH")
    script = Path(__file__).parents[2] / "ofrep_js" / "last_known.mjs"
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
