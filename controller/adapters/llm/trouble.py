"""Failures of a model server, and the guarantee that nothing else escapes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from controller.cancellation import Cancellation
from controller.errors import AdviceUnavailableError
from controller.text import excerpt

#: Characters of a server's own text in a reason.
MAX_EXCERPT_CHARS: Final = 200

#: What to do about each kind of failure, in terms of settings.
NOT_REACHED_FIX: Final = "start the server, or correct advisor.url"
BROKEN_OFF_FIX: Final = "see the server's log, and whether advisor.url must be http or https"
CERTIFICATE_FIX: Final = (
    "let advisor.ca_file name the authority of the server's certificate, or correct advisor.url"
)
TOO_SLOW_FIX: Final = (
    "ask again, as the first question may wait for the model to be loaded; then raise "
    "advisor.deadline_seconds, or take a smaller advisor.model"
)
NO_MODEL_SERVER_FIX: Final = "let advisor.url and advisor.protocol be those of a model server"
NOT_THERE_FIX: Final = (
    "give a model of the server as advisor.model, and its own advisor.protocol and advisor.url"
)
_FORM_FIXES: Final = {
    "openai": "set advisor.protocol to localai for LocalAI and llama.cpp's server, to ollama for "
    "Ollama: they then bound every answer by a grammar. Else take another advisor.model",
}
_STATUS_FIXES: Final = {
    400: "see the server's log, and whether it speaks advisor.protocol",
    401: "let advisor.api_key_file name a file with a key that the server takes",
    403: "let advisor.api_key_file name a file with a key that the server takes",
    404: NOT_THERE_FIX,
    408: TOO_SLOW_FIX,
    429: "ask again when the server is less busy",
    503: "ask again when the server has loaded the model",
}


def form_fix(protocol: str) -> str:
    """Return what to do where a model does not keep the form of the answer."""
    return _FORM_FIXES.get(protocol, "take another advisor.model")


def cut_off_fix(protocol: str, max_tokens: int) -> str:
    """Return what to do where an answer is cut off before its end."""
    return f"raise advisor.max_tokens ({max_tokens} now), or {form_fix(protocol)}"


def status_fix(status: int) -> str:
    """Return what to do where a server refuses with an HTTP status."""
    if 300 <= status < 400:
        return "let advisor.url be the address that the server redirects to"
    return _STATUS_FIXES.get(status, "see the server's log")


class ServerTrouble(AdviceUnavailableError):
    """The server gave no completion at all.

    The fault of the server or of the network, not of the model. The circuit counts these.
    """

    def __init__(self, reason: str, *, fix: str = "", is_lasting: bool = False) -> None:
        super().__init__(reason, fix=fix)
        self.is_lasting = is_lasting  # it will not pass by itself


def server_words(text: str) -> str:
    """Return the beginning of a server's text, fit for a log line and a reason."""
    return excerpt(text, MAX_EXCERPT_CHARS)


@contextmanager
def only_advice_errors() -> Iterator[None]:
    """Turn every failure in the block into AdviceUnavailableError.

    No answer, and no mistake of ours in reading it, may end a gate. A cancellation that did not
    come from outside, as libraries raise now and then, is such a mistake too.
    """
    cancellation = Cancellation()
    try:
        yield
    except AdviceUnavailableError:
        raise
    except asyncio.CancelledError as error:
        if cancellation.has_come:
            raise
        raise ServerTrouble("the question was broken off from within") from error
    except Exception as error:
        raise ServerTrouble(
            f"asking failed unexpectedly: {type(error).__name__}: {server_words(str(error))}"
        ) from error
