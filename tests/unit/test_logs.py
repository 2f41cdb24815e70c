"""Logs: what a line holds, what it never holds, and that writing one never waits."""

import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timezone, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import structlog
from aiokafka import errors as kafka_errors

from controller.logs import (
    PASSING_ERRORS,
    QUIET_LIBRARIES,
    LibraryHandler,
    LogStream,
    configure_logs,
    set_level,
)
from controller.settings import LogSettings
from schemas.terms import DecisionKind, HealthGap, Verdict

Lines = Callable[[], list[dict[str, Any]]]


class Pipe:
    """A pipe whose ends are closed once each.

    A number that is closed twice may be somebody else's by then.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = {self.reading, self.writing}

    def close(self, end: int) -> None:
        """Close one end unless it is."""
        if end in self._open:
            self._open.remove(end)
            os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe, closed after the test."""
    made = Pipe()
    yield made
    made.close(made.reading)
    made.close(made.writing)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Undo what a test does to the process's logging."""
    root = logging.getLogger()
    level = root.level
    yield
    set_level("info")
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.setLevel(level)
    for handler in list(root.handlers):
        if isinstance(handler, LibraryHandler):
            root.removeHandler(handler)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET)


def written(settings: LogSettings, pipe: Pipe, say: Callable[[], None]) -> str:
    """Return what stands in the pipe after `say`."""
    stream = configure_logs(settings, pipe.writing)
    say()
    stream.close()
    pipe.close(pipe.writing)
    with os.fdopen(pipe.reading, closefd=False) as reader:
        return reader.read()


def test_a_line_is_one_json_object(pipe: Pipe) -> None:
    """Name, level, UTC time and the values in their keys, on one line, whatever the values hold."""

    def say() -> None:
        log = structlog.get_logger("somewhere").bind(flag_key="new-checkout")
        log.info("stage_advanced", stage=2, reason="line\nbreak \x1b[31m", path=Exception("odd"))

    [line] = written(LogSettings(), pipe, say).splitlines()
    found = json.loads(line)
    assert found["event"] == "stage_advanced"
    assert (found["level"], found["flag_key"], found["stage"], found["reason"]) == (
        "info", "new-checkout", 2, "line\nbreak \x1b[31m"
    )  # fmt: skip
    assert found["timestamp"].endswith("Z")
    assert "\x1b" not in line


def test_a_whole_second_sorts_before_its_parts(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As text, too: a line's moment always has its fraction, of as many digits."""
    whole = datetime(2026, 11, 27, 15, 24, tzinfo=UTC)
    moments = iter([whole, whole.replace(microsecond=19_883)])

    class Clock(datetime):
        """A clock that tells these moments."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            """Return the next one."""
            return cls.fromtimestamp(next(moments).timestamp(), tz)

    clock = SimpleNamespace(datetime=Clock, timezone=timezone)
    monkeypatch.setattr(structlog.processors, "datetime", clock)

    def say() -> None:
        log = structlog.get_logger()
        log.info("rollout_started")
        log.info("stage_advanced")

    lines = written(LogSettings(), pipe, say).splitlines()
    first, second = (json.loads(line)["timestamp"] for line in lines)
    assert (first, second) == ("2026-11-27T15:24:00.000000Z", "2026-11-27T15:24:00.019883Z")
    assert first < second


def test_a_line_for_people_has_plain_values(pipe: Pipe) -> None:
    """The word of an enum and the time of a moment, also inside others; no Python object."""

    def say() -> None:
        log = structlog.get_logger().bind(flag_key="new-checkout")
        log.info(
            "decision_made",
            decision=DecisionKind.ROLL_BACK,
            gaps=[HealthGap.STALE],
            metrics={"error_rate": {"harm": Verdict.FAIL, "e_value": 1.5}},
            at=datetime(2026, 1, 5, tzinfo=UTC),
            advice=None,
            is_by_command=True,
        )
        try:
            int("odd")
        except ValueError:
            log.exception("it_broke")

    text = written(LogSettings(format="console"), pipe, say)
    line = text.splitlines()[0]
    assert "decision='roll_back'" in line
    assert "gaps=['stale']" in line
    assert "metrics={'error_rate': {'harm': 'fail', 'e_value': 1.5}}" in line
    assert "at='2026-01-05 00:00:00+00:00'" in line
    assert "advice=None" in line
    assert "is_by_command=True" in line
    assert "<" not in line
    assert "ValueError: invalid literal" in text


def test_only_the_asked_level_and_above(pipe: Pipe) -> None:
    """At `warning`, what is less severe is not written."""

    def say() -> None:
        log = structlog.get_logger()
        log.info("quiet")
        log.warning("loud")

    assert [
        json.loads(line)["event"]
        for line in written(LogSettings(level="warning"), pipe, say).splitlines()
    ] == ["loud"]


def test_libraries_speak_in_the_same_stream(pipe: Pipe) -> None:
    """What aiokafka, uvicorn or Python itself warn about becomes a line of ours.

    Their chatter does not.
    """

    def say() -> None:
        logging.getLogger("aiokafka.consumer").info("Setting newly assigned partitions")
        logging.getLogger("aiokafka.consumer").warning("Heartbeat failed: %s", "session expired")
        logging.getLogger("uvicorn.error").error("it broke")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)

    lines = [json.loads(line) for line in written(LogSettings(), pipe, say).splitlines()]
    assert [(line["event"], line["library"], line["level"]) for line in lines] == [
        ("library_logged", "aiokafka.consumer", "warning"),
        ("library_logged", "uvicorn.error", "error"),
        ("library_logged", "py.warnings", "warning"),
    ]
    assert lines[0]["message"] == "Heartbeat failed: session expired"


def test_what_passes_by_itself_is_an_error_only_once_it_lasts(pipe: Pipe) -> None:
    """A fresh Kafka has no coordinator and no leaders for a second; one without for long is ill."""
    clock = [0.0]
    handler = LibraryHandler(lambda: clock[0])
    library = logging.getLogger("aiokafka.consumer.group_coordinator")

    def at(seconds: float, message: str) -> None:
        clock[0] = seconds
        handler.handle(library.makeRecord(library.name, logging.ERROR, "", 0, message, (), None))

    def say() -> None:
        at(0, "Group Coordinator Request failed: [Error 15] GroupCoordinatorNotAvailableError")
        at(1, "Failed fetch offsets from 1: [Error 6] NotLeaderForPartitionError: TopicPartition()")
        at(5, "Group Coordinator Request failed: [Error 15] GroupCoordinatorNotAvailableError")
        at(6, "[Error 30] GroupAuthorizationFailedError")
        at(11, "Group Coordinator Request failed: [Error 15] GroupCoordinatorNotAvailableError")
        at(
            60,
            "Failed fetch offsets from 1: [Error 6] NotLeaderForPartitionError: TopicPartition()",
        )

    lines = [json.loads(line) for line in written(LogSettings(), pipe, say).splitlines()]
    assert [line["message"].partition("] ")[2] for line in lines] == [
        "GroupAuthorizationFailedError",
        "GroupCoordinatorNotAvailableError",
    ]


@pytest.mark.parametrize("name", sorted(PASSING_ERRORS))
def test_the_errors_that_pass_are_those_that_the_client_retries(name: str) -> None:
    """They have these names in the client library."""
    assert getattr(kafka_errors, name).retriable


def test_an_exception_is_told_with_its_trace(pipe: Pipe) -> None:
    """Ours and a library's: the trace is in `exception`, on the same line."""

    def say() -> None:
        try:
            raise ValueError("why")  # noqa: TRY301
        except ValueError:
            structlog.get_logger().exception("worker_stopped")
            logging.getLogger("redis").exception("lost")

    lines = [json.loads(line) for line in written(LogSettings(), pipe, say).splitlines()]
    assert [line["event"] for line in lines] == ["worker_stopped", "library_logged"]
    assert all("ValueError: why" in line["exception"] for line in lines)


def test_a_key_named_like_a_secret_is_masked(pipe: Pipe) -> None:
    """Should a secret ever be passed, its value is not written."""

    def say() -> None:
        structlog.get_logger().info(
            "connected", redis_password="canary", Authorization="canary", prompt_tokens=7
        )

    text = written(LogSettings(), pipe, say)
    assert "canary" not in text
    assert json.loads(text)["prompt_tokens"] == 7


def test_console_lines_carry_no_control_codes_from_outside(pipe: Pipe) -> None:
    """For people: readable, uncoloured in a pipe.

    And text from outside cannot move their cursor.
    """

    def say() -> None:
        structlog.get_logger().warning("record_refused", reason="\x1b[2J\x07 gone", flag_key="f")

    text = written(LogSettings(format="console"), pipe, say)
    assert "record_refused" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_full_pipe_costs_lines_and_no_time(pipe: Pipe) -> None:
    """While nobody reads, 20,000 lines are taken without waiting.

    Those without room are counted, and reported.
    """
    stream = LogStream(pipe.writing, limit=100)
    for number in range(20_000):
        stream.write(f'{{"event": "line", "number": {number}, "padding": "{"x" * 100}"}}\n')
    assert stream.dropped > 10_000
    written = reported = 0
    with os.fdopen(pipe.reading, closefd=False) as reader:
        while written + reported < 20_000:  # lines may follow the last report
            event = json.loads(reader.readline())
            written += event["event"] == "line"
            reported += event.get("lines", 0)
    assert (written, reported) == (20_000 - stream.dropped, stream.dropped)
    stream.close()


def test_closing_on_a_full_pipe_returns(pipe: Pipe) -> None:
    """The last lines are given some time, and are lost when nobody reads."""
    stream = LogStream(pipe.writing, limit=10_000)
    for _ in range(5_000):
        stream.write("x" * 100 + "\n")
    stream.close(0.2)
    dropped = stream.dropped
    stream.write("late\n")
    assert stream.dropped == dropped + 1


def test_a_reader_that_is_gone_ends_nothing(pipe: Pipe) -> None:
    """Writing on after the reader closed its end counts lines and raises nothing."""
    stream = LogStream(pipe.writing)
    pipe.close(pipe.reading)
    stream.write("one\n")
    stream.write("two\n")
    stream.close()
    assert stream.dropped == 2


def test_a_full_disk_costs_the_lines_of_that_time_and_their_number_is_told(tmp_path: Path) -> None:
    """A line that was cut off there takes no later one with it."""
    path, size = tmp_path / "log", 40
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with path.open("wb") as file:
            stream = LogStream(file.fileno())
            for number in range(10):
                stream.write(f'{{"event": "line", "number": {number}}}\n')
                until_dropped(stream, number)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            stream.write('{"event": "room"}\n')
            stream.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines = path.read_text().splitlines()
    assert len(lines[1]) == size - len(lines[0]) - 1
    assert [json.loads(lines[n]) for n in (0, 2)] == [
        {"event": "line", "number": 0},
        {"event": "room"},
    ]
    assert json.loads(lines[3])["lines"] == 9


def until_dropped(stream: LogStream, lines: int) -> None:
    """Return once so many lines were dropped."""
    deadline = time.monotonic() + 10
    while stream.dropped != lines:
        assert time.monotonic() < deadline, stream.dropped
        time.sleep(0.005)


def test_a_process_whose_output_is_not_read_ends(pipe: Pipe) -> None:
    """A real process with a full standard output runs to its end and exits 0."""
    program = (
        "import structlog\n"
        "from controller.logs import configure_logs\n"
        "from controller.settings import LogSettings\n"
        "stream = configure_logs(LogSettings())\n"
        "for number in range(20000): structlog.get_logger().info('line', number=number, "
        "padding='x' * 100)\n"
        "stream.close()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=pipe.writing, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, b"")


def test_repeated_lines_become_one_with_their_number(pipe: Pipe) -> None:
    """A thousand times the same warning is two lines: the first, and the number of the others."""

    def say() -> None:
        log = structlog.get_logger().bind(flag_key="f")
        for number in range(1_000):
            log.warning("store_unavailable", error=f"no answer for {number} s")

    first, last = (json.loads(line) for line in written(LogSettings(), pipe, say).splitlines())
    assert (first["event"], "repeated" in first) == ("store_unavailable", False)
    assert (last["event"], last["repeated"], last["flag_key"]) == ("store_unavailable", 999, "f")
    assert last["timestamp"] >= first["timestamp"]


def test_a_library_that_repeats_itself_is_one_line(pipe: Pipe) -> None:
    """So is what aiokafka says at every try, whatever port or number it names."""

    def say() -> None:
        for number in range(50):
            logging.getLogger("aiokafka").error("Unable to connect to 127.0.0.1:%d", 9000 + number)

    lines = [json.loads(line) for line in written(LogSettings(), pipe, say).splitlines()]
    assert [line.get("repeated") for line in lines] == [None, 49]


def test_the_level_changes_while_the_process_runs(pipe: Pipe) -> None:
    """Also for loggers that were bound before, and for libraries."""

    def say() -> None:
        log = structlog.get_logger().bind(part="somewhere")
        log.debug("too_fine")
        set_level("debug")
        log.debug("fine")
        set_level("error")
        log.warning("too_mild")
        logging.getLogger("aiokafka").warning("too mild")

    lines = written(LogSettings(), pipe, say).splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["fine"]


def test_a_terminal_gets_lines_for_people_and_a_pipe_gets_json(pipe: Pipe) -> None:
    """By default; `log.format` decides where it is set."""
    near, far = os.openpty()
    stream = configure_logs(LogSettings(), far)
    structlog.get_logger().info("daemon_started")
    stream.close()
    os.close(far)
    text = os.read(near, 10_000).decode()
    os.close(near)
    assert "daemon_started" in text
    assert not text.startswith("{")
    [line] = written(LogSettings(), pipe, lambda: structlog.get_logger().info("x")).splitlines()
    assert json.loads(line)["event"] == "x"
