"""Failures of a model server, and the guarantee that nothing else escapes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from controller.errors import AdviceUnavailableError
from controller.text import excerpt

#: Characters of a server's own text in a reason.
MAX_EXCERPT_CHARS: Final = 200


class ServerTrouble(AdviceUnavailableError):
    """The server gave no completion at all.

    The fault of the server or of the network, not of the model. The circuit counts these.
    """

    def __init__(self, reason: str, *, is_lasting: bool = False) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting  # it will not pass by itself


def quoted(text: str) -> str:
    """Return the beginning of a server's text, fit for a log line and a reason."""
    return excerpt(text, MAX_EXCERPT_CHARS)


@contextmanager
def only_advice_errors() -> Iterator[None]:
    """Turn every failure in the block into AdviceUnavailableError.

    No answer, and no mistake of ours in reading it, may end a gate. A cancellation that did not
    come from outside, as libraries raise now and then, is such a mistake too.
    """
    task = asyncio.current_task()
    cancels_before = 0 if task is None else task.cancelling()
    try:
        yield
    except AdviceUnavailableError:
        raise
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > cancels_before:
            raise
        raise ServerTrouble("the question was broken off from within") from error
    except Exception as error:
        raise ServerTrouble(
            f"asking failed unexpectedly: {type(error).__name__}: {quoted(str(error))}"
        ) from error
