"""A call that ends by a deadline, whatever the other side does.

httpx bounds each read. A server that sends a byte now and then, and a name server that is silent,
are bound by nothing: a person in an emergency waits for ever, and sees nothing else.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns, and raise what it raises; TimeoutError past the deadline.

    The call goes on in a thread that does not keep the process from its end.
    """
    ended: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run() -> None:
        try:
            result = call()
        except BaseException as raised:  # it is the caller's
            error = raised

            def again() -> T:
                raise error

            ended.put(again)
        else:
            ended.put(lambda: result)

    threading.Thread(target=run, name="call within a deadline", daemon=True).start()
    try:
        outcome = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no complete answer within {seconds:g} s") from None
    return outcome()
