"""Logs: structured lines on standard output, which never delay the daemon.

Belongs here: how a line is written, and that the libraries' own logging ends up in the same stream.
What is logged is decided where it happens, and which lines are repeats in `repeated_lines.py`.
Values go in keys; secrets, prompts and record bodies stay out: callers do not pass them, and a key
that is named like a secret is masked here.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from enum import Enum
from typing import Any, Final

import structlog

from controller.repeated_lines import RepeatedLines
from controller.settings import MASK, LogSettings

#: Lines kept while standard output does not take them (a pipe whose reader is slow): half a minute
#: of a busy daemon.
QUEUE_LINES = 10_000

#: How a line's moment is written: always to the microsecond, so that lines sort by it as text.
#: `isoformat` leaves the fraction out in a whole second, and "00Z" sorts behind "00.02Z".
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"

#: Time between two questions whether a summary of repeated lines is due.
TICK_SECONDS: Final = 1.0

#: Libraries that log at `info` what we log ourselves. From `warning` on their lines are written.
QUIET_LIBRARIES = ("aiokafka", "asyncio", "httpcore", "httpx", "redis", "uvicorn")

#: Errors by which a broker says that it is not ready yet, or not the one to ask any more.
PASSING_ERRORS: Final = frozenset(
    {
        "CoordinatorLoadInProgressError",
        "CoordinatorNotAvailableError",
        "GroupCoordinatorNotAvailableError",
        "GroupLoadInProgressError",
        "LeaderNotAvailableError",
        "NotCoordinatorError",
        "NotCoordinatorForGroupError",
        "NotLeaderForPartitionError",
        "UnknownTopicOrPartitionError",
    }
)
#: A broker elects a leader, or loads a group, within a second or two.
PASSING_SECONDS: Final = 10.0
_ERROR_NAME: Final = re.compile(r"\[Error \d+\] (\w+)")

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

    def __init__(
        self,
        descriptor: int,
        limit: int = QUEUE_LINES,
        *,
        due: Callable[[bool], Iterable[str]] = lambda _: (),
    ) -> None:
        """Write to `descriptor`, holding back at most `limit` lines.

        `due` returns lines to write besides, and is called once a second by the thread that writes;
        its argument is True for the last call.
        """
        self._due = due
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

    def _drop_unwritten(self, left: memoryview, unreported: int) -> None:
        """Drop what could not be written; its last line would have said how many were before."""
        with self._wake:
            self._drop(bytes(left).count(b"\n") - bool(unreported))
            self._unreported += unreported

    def _drain(self) -> None:
        is_cut = False  # whether the last line in the stream is without its end
        while True:
            with self._wake:
                if not self._lines and not self._is_closing:
                    self._wake.wait(TICK_SECONDS)
                is_closing = self._is_closing
                lines = list(self._lines)
                self._lines.clear()
                lost, self._unreported = self._unreported, 0
            lines += self._due(is_closing)
            if is_closing and not lines:
                os.close(self._descriptor)
                return
            if lost:
                lines.append(
                    f'{{"event": "log_lines_dropped", "lines": {lost}, "level": "warning"}}\n'
                )
            left = memoryview("".join(lines).encode(errors="backslashreplace"))
            try:
                if is_cut and left:
                    is_cut = os.write(self._descriptor, b"\n") == 0
                while left:
                    written = os.write(self._descriptor, left)
                    is_cut = left[written - 1] != ord("\n")
                    left = left[written:]
            except (
                BlockingIOError
            ):  # somebody made the descriptor non-blocking: what is left is late already
                self._drop_unwritten(left, lost)
                time.sleep(0.05)
            except (
                OSError
            ):  # the reader is gone or the disk is full: there is nobody to report it to
                self._drop_unwritten(left, lost)


class _LevelFilter:
    """Drops lines below a level that can be changed while the process runs.

    A logger that was bound with `bind` keeps its class, so the class cannot hold the level.
    """

    def __init__(self) -> None:
        self.level = logging.INFO

    def __call__(
        self, _logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Pass the line on, or drop it."""
        if _LEVELS.get(method, logging.CRITICAL) < self.level:
            raise structlog.DropEvent
        return event


_level_filter = _LevelFilter()


class _RepeatFilter:
    """Drops repeated lines, and renders what is written in their place."""

    def __init__(self, finish: Sequence[Any]) -> None:
        """`finish` are the processors that make a line's text."""
        self._finish = finish
        self._repeats = RepeatedLines()

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Pass the line on, or drop it."""
        if not self._repeats.admits(event, time.monotonic()):
            raise structlog.DropEvent
        return event

    def due(self, is_last: bool) -> Iterable[str]:
        """Return the lines that are due as text; none if one cannot be rendered."""
        lines = []
        for event in self._repeats.due(time.monotonic(), is_last=is_last):
            line: Any = event
            try:
                for process in self._finish:
                    line = process(None, event["level"], line)
            except Exception:  # noqa: S112 - the thread that writes must not end
                continue
            lines.append(f"{line}\n")
        return lines


def configure_logs(settings: LogSettings, descriptor: int | None = None) -> LogStream:
    """Send all logging, ours and the libraries', to `descriptor` as `settings` say.

    None means standard output. Return the stream, to be closed last.
    """
    if descriptor is None:
        descriptor = sys.stdout.fileno()
    is_terminal = os.isatty(descriptor)
    is_json = settings.format == "json" or (settings.format == "auto" and not is_terminal)
    finish: list[Any] = [
        structlog.processors.TimeStamper(fmt=TIME_FORMAT, utc=True),
        _mask_secrets,
        *(_json_renderers() if is_json else _console_renderers(has_colors=is_terminal)),
    ]
    repeats = _RepeatFilter(finish)
    stream = LogStream(descriptor, due=repeats.due)
    structlog.configure(
        processors=[
            _level_filter,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            repeats,
            *finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        # The stream only writes and flushes, which is all that is used.
        logger_factory=structlog.WriteLoggerFactory(file=stream),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LibraryHandler):
            root.removeHandler(handler)
    root.addHandler(LibraryHandler())
    set_level(settings.level)
    for name in QUIET_LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()  # uvicorn brings its own, which would write past the stream
        library.propagate = True
    logging.captureWarnings(capture=True)
    return stream


def set_level(name: str) -> None:
    """Write lines from this level on, in the whole process: `debug`, `info`, `warning`, `error`."""
    level = _LEVELS[name]
    _level_filter.level = level
    logging.getLogger().setLevel(level)
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(level, logging.WARNING))


def _json_renderers() -> Iterable[Any]:
    """Return what makes one JSON object of a line."""
    return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str))


def _console_renderers(*, has_colors: bool) -> Iterable[Any]:
    """Return what makes a line for people."""
    return (
        _plain_values,
        structlog.dev.ConsoleRenderer(
            colors=has_colors,
            # repr: text from outside cannot send control codes to a person's terminal
            repr_native_str=True,
            # rich would print every local variable: secrets, and megabytes for minutes
            exception_formatter=structlog.dev.plain_traceback,
        ),
    )


def _plain_values(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Give a line for people the values that it would have as JSON, in place of objects."""
    for key, value in event.items():
        if key != "exc_info":
            event[key] = _plain(value)
    return event


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: an enum's member is what it stands for, others are text."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)


class LibraryHandler(logging.Handler):
    """Writes a library's log record as our line `library_logged`, with its text in `message`.

    What the Kafka client says of an error that passes by itself, and that it retries, is of level
    debug until it has lasted for `PASSING_SECONDS`: a start on a fresh Kafka, or a new leader of a
    partition, is no error.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._passing: dict[str, tuple[float, float]] = {}  # error -> first seen, last seen

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a record that cannot be formatted is reported by logging itself."""
        try:
            message = record.getMessage()
            structlog.get_logger().log(
                logging.DEBUG if self._is_passing(message) else record.levelno,
                "library_logged",
                library=record.name,
                message=message,
                **({"exc_info": record.exc_info} if record.exc_info else {}),
            )
        except Exception:
            self.handleError(record)

    def _is_passing(self, message: str) -> bool:
        """Return whether a message names an error that passes, and that has not lasted yet."""
        named = _ERROR_NAME.search(message)
        if named is None or named[1] not in PASSING_ERRORS:
            return False
        now = self._now()
        first, last = self._passing.get(named[1], (now, now))
        if now - last > PASSING_SECONDS:
            first = now
        self._passing[named[1]] = first, now
        return now - first < PASSING_SECONDS


def _mask_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask values whose key is named like a secret, should one ever be passed."""
    for key in event:
        if any(word in key.lower() for word in _SECRET_WORDS):
            event[key] = MASK
    return event
