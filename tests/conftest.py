"""Fixtures and rules that all tests share.

Nothing here starts a server before a test asks for one.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import structlog
from hypothesis import HealthCheck, settings

from controller.counting.folding.native import ENGINE
from tests.brokers import (
    ALLOW_MOCK_VARIABLE,
    KafkaInUse,
    LocalKafka,
    RedisInUse,
    RedisServer,
    create_topics_at,
    describe_local_redis,
    docker_trouble,
    start_kafka,
    start_redis,
    why_not,
)
from tests.chromium import HOW, NOT_TRIED, describe_chromium
from tests.parallel_order import in_parallel_order
from tests.shared_kafka import kafka_of_all_workers, leave_running
from tests.shells import HOW_SHELLS, NOT_COMPLETED
from tests.unleash.server import INSTALLED_VARIABLE, UnleashServer, installed

TESTS = Path(__file__).parent
COUNTING = TESTS.parent / "controller" / "counting"

# A directory below tests/ that says what its tests need; `-m` selects by these.
MARKER_OF_DIRECTORY = {
    "unit": "unit",
    "property": "property",
    "hostile": "hostile",
    "scenarios": "unit",
    "planted": "unit",
    "spec": "spec",
    "contract": "contract",
    "browser": "browser",
    "integration": "integration",
    "e2e": "e2e",
    "chaos": "chaos",
}

# A collection takes a few milliseconds while only the test's own objects are looked at.
SLOW_COLLECTION_SECONDS = 0.03

# Their tests wait for brokers, browsers and processes; the slowest first.
SLOW_DIRECTORIES = ("chaos", "e2e", "hostile", "integration")

# An existing Kafka to use in place of one we start, as host:port. Topics are unique per test, so it
# may be shared.
GIVEN_KAFKA_VARIABLE = "ROLLOUTD_TEST_KAFKA"

# "quick" is for `make check`, `make test` and single tests, "thorough" for `make test-all`.
# CI must get the same result for the same commit twice, so its examples are fixed: "ci-quick" and
# "ci".
# No example has a deadline: a busy machine would miss it.
_no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
_fixed_examples = settings(_no_deadline, derandomize=True, database=None)
settings.register_profile("quick", _no_deadline, max_examples=50)
settings.register_profile("thorough", _no_deadline, max_examples=300)
settings.register_profile("ci-quick", _fixed_examples, max_examples=50)
settings.register_profile("ci", _fixed_examples, max_examples=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# structlog's own default draws the source around every frame of an exception, with all variables:
# half a second for each that a test lets be logged.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

CreateTopics = Callable[..., Awaitable[None]]

_in_use = pytest.StashKey[dict[str, str]]()
_has_failed = pytest.StashKey[bool]()


def _heed_signals() -> None:
    """Heed the signals that tests send: `nohup` and a shell's background jobs ignore them.

    Every process that a test starts would inherit that.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the summary, and refuse to test a native fold of other sources than these."""
    _heed_signals()
    config.stash[_in_use] = {}
    newer = newer_sources(COUNTING / "_native.abi3.so", COUNTING / "native" / "src")
    if newer:
        pytest.exit(
            f"newer than the native fold: {', '.join(newer)}; `make native`, or `make reference`",
            returncode=4,
        )


def newer_sources(made: Path, sources: Path) -> list[str]:
    """Return the Rust files of a folder, and below it, that were written after what was made.

    None where nothing was made.
    """
    if not made.exists():
        return []
    made_at = made.stat().st_mtime
    files = sorted(sources.rglob("*.rs"))
    return [one.name for one in files if one.stat().st_mtime > made_at]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark each test with what its directory stands for.

    At once, because `-m` selects before any sorting.
    """
    marker = MARKER_OF_DIRECTORY.get(_directory(item))
    if marker is not None:
        item.add_marker(marker)


def pytest_collection_finish() -> None:
    """Exempt from garbage collection what the imports made.

    It stays until the end of the run. Without it a collection takes about a millisecond, so that
    there can be one after each test.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test failed, for `pytest_runtest_protocol`."""
    report = yield
    if report.failed:
        item.stash[_has_failed] = True
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let the warnings of a failed test fail no other test.

    The traceback of a failure keeps the test's processes and sockets alive beyond the test. They
    are collected here, outside of any test, and what they warn about is dropped: that test has
    failed already.
    """
    result = yield
    if item.stash.get(_has_failed, False):
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)
        reporting, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            gc.collect()
        finally:
            sys.unraisablehook = reporting
    return result


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run fast directories first, in random order within each; in a parallel run mix them."""
    order = list(MARKER_OF_DIRECTORY)
    items.sort(key=lambda item: order.index(_directory(item)) if _directory(item) in order else 0)
    if hasattr(config, "workerinput"):
        fast = [item for item in items if _directory(item) not in SLOW_DIRECTORIES]
        items[:] = in_parallel_order(fast, _slow_groups(items), config.workerinput["workercount"])


def _slow_groups(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """Return the slow tests, one per group, but those of a `one_worker` file together."""
    groups: dict[str, list[pytest.Item]] = {}
    for directory in SLOW_DIRECTORIES:
        for item in items:
            if _directory(item) == directory:
                is_whole = item.get_closest_marker("one_worker") is not None
                groups.setdefault(str(item.path) if is_whole else item.nodeid, []).append(item)
    return list(groups.values())


def _directory(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""


def pytest_report_header() -> list[str]:
    """Print the brokers that this machine can offer, and how counting runs."""
    given = os.environ.get(GIVEN_KAFKA_VARIABLE)
    if given:
        kafka = f"{given}, given by {GIVEN_KAFKA_VARIABLE}"
    elif docker_trouble() is None:
        kafka = "in Docker"
    else:
        reason = why_not()
        kafka = (
            "local Apache Kafka from Maven"
            if reason is None
            else f"MOCK ONLY, NO REAL KAFKA: {reason}"
        )
    redis_outlook = "in Docker" if docker_trouble() is None else describe_local_redis()
    unleash = (
        "as `make unleash` installed it"
        if INSTALLED_VARIABLE in os.environ
        else "FAKE ONLY; `make unleash` for a real one"
    )
    return [
        f"kafka, if a test asks: {kafka}",
        f"redis, if a test asks: {redis_outlook}",
        f"unleash, if a test asks: {unleash}",
        f"chromium, if a test asks: {describe_chromium()}",
        f"counting: {'native' if ENGINE == 'native' else 'the reference, in Python'}",
    ]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which Kafka and which Redis the tests ran on."""
    in_use = config.stash[_in_use]
    terminalreporter.section("brokers used", sep="-")
    for name in ("Kafka", "Redis"):
        terminalreporter.write_line(f"{name}: {in_use.get(name, 'none, no test asked for it')}")
    if "mock" in in_use:
        terminalreporter.write_line(in_use["mock"], red=True, bold=True)
    skipped = terminalreporter.stats.get("skipped", ())
    for missing, how in ((NOT_TRIED, HOW), (NOT_COMPLETED, HOW_SHELLS)):
        if any(missing in str(report.longrepr) for report in skipped):
            terminalreporter.write_line(f"{missing}; {how}", red=True, bold=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of a parallel run, hand the brokers' descriptions to the process that sums up."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["brokers"] = session.config.stash[_in_use]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the brokers' descriptions from a worker that has ended."""
    node.config.stash[_in_use].update(getattr(node, "workeroutput", {}).get("brokers", {}))


@pytest.fixture(scope="session")
def kafka_in_use(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaInUse]:
    """The Kafka of this run with its description; `kafka` is the address alone."""
    given = os.environ.get(GIVEN_KAFKA_VARIABLE)
    with ExitStack() as stack:
        if given:
            description = f"{given}, given by {GIVEN_KAFKA_VARIABLE}"
            broker = KafkaInUse(given, description, True, leave_running)
        elif hasattr(request.config, "workerinput"):
            # each worker's directory of temporary files lies in one that the run has to itself
            directory = tmp_path_factory.getbasetemp().parent
            broker = stack.enter_context(kafka_of_all_workers(directory, start_kafka))
        else:
            broker = start_kafka()
            stack.callback(broker.stop)
        _describe_kafka(request.config.stash[_in_use], broker)
        yield broker


def _describe_kafka(in_use: dict[str, str], broker: KafkaInUse) -> None:
    in_use["Kafka"] = broker.description
    if not broker.is_real:
        reasons = "\n".join(f"  {attempt}" for attempt in broker.attempts)
        in_use["mock"] = (
            "NO REAL KAFKA WAS AVAILABLE: THE TESTS RAN ON LIBRDKAFKA'S MOCK CLUSTER, AND "
            "TESTS MARKED real_kafka "
            f"DID NOT RUN (rebalancing, admin calls, restarts, durability). Tried:\n{reasons}"
        )


@pytest.fixture(scope="session")
def kafka(kafka_in_use: KafkaInUse) -> str:
    """The bootstrap address of a Kafka that all tests share.

    Docker, else local Apache Kafka, else the mock.
    """
    return kafka_in_use.bootstrap


@pytest.fixture(scope="session")
def redis_in_use(request: pytest.FixtureRequest) -> Iterator[RedisInUse]:
    """The Redis of this run with its description; `redis_url` is the address alone."""
    server = start_redis()
    request.config.stash[_in_use]["Redis"] = server.description
    yield server
    server.stop()


@pytest.fixture(scope="session")
def real_unleash() -> Iterator[UnleashServer]:
    """A real Unleash with a PostgreSQL of its own that all tests share.

    Skips where `make unleash` did not install one.
    """
    with UnleashServer(installed()) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_in_use: RedisInUse) -> str:
    """The address of a Redis that all tests of one worker share; see `redis_client`.

    It has an append-only file, synced every second.
    """
    return redis_in_use.url


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """An asyncio client of the shared Redis, emptied before and after; answers are bytes."""
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.flushall()
    yield client
    await client.flushall()  # what is left would refuse, or steer, a flag of the same name
    await client.aclose()


@pytest.fixture
def topic_prefix() -> str:
    """A prefix no other test uses, to be put before every topic and group name."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture
def create_topics(kafka_in_use: KafkaInUse) -> CreateTopics:
    """A coroutine function that makes topics on the shared Kafka.

    Names, then `partitions` (4) and `configs`.

    On the mock cluster topics come into being on first use, with 4 partitions; asking for another
    number fails.
    """

    async def create(
        *names: str, partitions: int = 4, configs: Mapping[str, str] | None = None
    ) -> None:
        if not kafka_in_use.is_real:
            assert partitions == 4, "the mock cluster only makes topics of 4 partitions"
            return
        await create_topics_at(
            kafka_in_use.bootstrap, *names, partitions=partitions, configs=configs
        )

    return create


@pytest.fixture(scope="session")
def kafka_to_break() -> Iterator[LocalKafka]:
    """The local Apache Kafka that the tests with `own_kafka` use one after another."""
    require_local_kafka()
    with LocalKafka() as broker:
        yield broker


@pytest.fixture
def own_kafka(request: pytest.FixtureRequest) -> LocalKafka:
    """A local Apache Kafka that no other test uses at the same time, to kill, freeze and restart.

    It runs when the test begins. It may hold topics of earlier tests, so names carry
    `topic_prefix`. Use `kafka` if a test breaks nothing.
    """
    require_local_kafka()
    broker: LocalKafka = request.getfixturevalue("kafka_to_break")
    if broker.is_running():
        broker.resume()
    broker.start()
    return broker


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A started Redis of the test's own with an append-only file, to kill, freeze and cut."""
    with RedisServer() as server:
        yield server


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo the logging of a command that ran in this process: it is silent, others read logs."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def _leaks_are_this_tests_own() -> Iterator[None]:
    """Collect garbage after each test, so that what it left open fails it and not a later one.

    What stays for good, such as a module's cache of syntax trees, is exempted once a collection
    takes long: else every later test pays for it.
    """
    yield
    began = time.perf_counter()
    gc.collect()
    if time.perf_counter() - began > SLOW_COLLECTION_SECONDS:
        gc.freeze()


@pytest.fixture(autouse=True)
def _real_kafka_or_say_so(request: pytest.FixtureRequest) -> None:
    """Keep a test marked `real_kafka` off the mock.

    It fails, or is skipped where the mock was allowed.
    """
    if request.node.get_closest_marker("real_kafka") is None:
        return
    broker: KafkaInUse = request.getfixturevalue("kafka_in_use")
    if not broker.is_real:
        _no_real_kafka("; ".join(broker.attempts))


def require_local_kafka() -> None:
    """Fail, or skip where the mock is allowed, on a machine that cannot run brokers."""
    reason = why_not()
    if reason is not None:
        _no_real_kafka(reason)


def _no_real_kafka(reason: str) -> None:
    if os.environ.get(ALLOW_MOCK_VARIABLE) == "1":
        pytest.skip(f"needs a real Kafka, which this machine has not: {reason}")
    pytest.fail(
        f"needs a real Kafka ({reason}); {ALLOW_MOCK_VARIABLE}=1 skips such tests", pytrace=False
    )
