"""Logs: structured lines on standard output, which never delay the daemon.

Belongs here: how a line is written, and that the libraries' own logging ends up in the same stream.
What is logged is decided where it happens. Values go in keys; secrets, prompts and record bodies
stay out: callers do not pass them, and a key that is named like a secret is masked here.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any

import structlog

from controller.settings import MASK, LogSettings

#: Lines kept while standard output does not take them (a pipe whose reader is slow): half a minute
#: of a busy daemon.
QUEUE_LINES = 10_000

#: Libraries that log at `info` what we log ourselves. From `warning` on their lines are written.
QUIET_LIBRARIES = ("aiokafka", "asyncio", "httpcore", "httpx", "redis", "uvicorn")

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SECRET_WORDS = ("password", "secret", "api_key", "authorization", "credential")


class LogStream:
    """A text stream whose `write` never blocks.

    A thread writes. Lines for which there is no room are dropped and counted. A full pipe, a
    stopped terminal or a full disk thus costs lines, never a heartbeat or a rollback. When lines
    are written again, one of them says how many were dropped. The thread writes to the descriptor
    itself: a thread inside a buffered stream at the end of the interpreter would abort it.
    """

    def __init__(self, descriptor: int, limit: int = QUEUE_LINES) -> None:
        """Write to `descriptor`, holding back at most `limit` lines."""
        self._descriptor = os.dup(
            descriptor
        )  # ours to close: a thread caught in a write must not meet a reused number
        self._limit = limit
        self._lines: deque[str] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._unreported = 0
        self.dropped = 0
        """Lines dropped since the start."""
        self._thread = threading.Thread(target=self._drain, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue one line, or drop it."""
        with self._wake:
            if self._is_closing or len(self._lines) >= self._limit:
                self._drop(1)
            else:
                self._lines.append(text)
                self._wake.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: a flush that waits would be the block we avoid."""

    def close(self, timeout_seconds: float = 0.5) -> None:
        """Write what is queued, for at most `timeout_seconds`.

        What is left then, and further lines, are dropped.
        """
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(timeout_seconds)
        with self._wake:
            self._drop(len(self._lines))
            self._lines.clear()

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines

    def _drain(self) -> None:
        while True:
            with self._wake:
                while not self._lines and not self._is_closing:
                    self._wake.wait()
                if not self._lines:
                    os.close(self._descriptor)
                    return
                lines = list(self._lines)
                self._lines.clear()
                lost, self._unreported = self._unreported, 0
            if lost:
                lines.append(
                    f'{{"event": "log_lines_dropped", "lines": {lost}, "level": "warning"}}\n'
                )
            left = memoryview("".join(lines).encode(errors="backslashreplace"))
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except (
                BlockingIOError
            ):  # somebody made the descriptor non-blocking: what is left is late already
                with self._wake:
                    self._drop(bytes(left).count(b"\n"))
                time.sleep(0.05)
            except (
                OSError
            ):  # the reader is gone or the disk is full: there is nobody to report it to
                with self._wake:
                    self._drop(bytes(left).count(b"\n"))


def configure_logs(settings: LogSettings, descriptor: int | None = None) -> LogStream:
    """Send all logging, ours and the libraries', to `descriptor` as `settings` say.

    None means standard output. Return the stream, to be closed last.
    """
    if descriptor is None:
        descriptor = sys.stdout.fileno()
    stream = LogStream(descriptor)
    level = _LEVELS[settings.level]
    render: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if settings.format == "json"
        # repr: text from outside cannot send control codes to a person's terminal
        else [
            structlog.dev.ConsoleRenderer(
                colors=os.isatty(descriptor),
                repr_native_str=True,
                # rich would print every local variable: secrets, and megabytes for minutes
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _mask_secrets,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # The stream only writes and flushes, which is all that is used.
        logger_factory=structlog.WriteLoggerFactory(file=stream),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LibraryHandler):
            root.removeHandler(handler)
    root.addHandler(LibraryHandler())
    root.setLevel(level)
    for name in QUIET_LIBRARIES:
        library = logging.getLogger(name)
        library.setLevel(max(level, logging.WARNING))
        library.handlers.clear()  # uvicorn brings its own, which would write past the stream
        library.propagate = True
    logging.captureWarnings(capture=True)
    return stream


class LibraryHandler(logging.Handler):
    """Writes a library's log record as our line `library_logged`, with its text in `message`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a record that cannot be formatted is reported by logging itself."""
        try:
            structlog.get_logger().log(
                record.levelno,
                "library_logged",
                library=record.name,
                message=record.getMessage(),
                **({"exc_info": record.exc_info} if record.exc_info else {}),
            )
        except Exception:
            self.handleError(record)


def _mask_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask values whose key is named like a secret, should one ever be passed."""
    for key in event:
        if any(word in key.lower() for word in _SECRET_WORDS):
            event[key] = MASK
    return event
