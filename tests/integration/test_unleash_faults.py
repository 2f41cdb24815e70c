"""The reconcile loop and the Unleash plane against an Unleash that fails.

The rows F23 and F24 of the fault matrix.

On a real socket, with periods and waits a tenth of production's.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import SystemClock
from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.health import Faults
from controller.telemetry import Metrics
from schemas.terms import AlertKind
from tests import fault_server
from tests.fault_server import Script, answering
from tests.patience import SLACK
from tests.unleash.fake import FakeUnleash
from tests.unleash.given import decided, make_settings, rolled_back
from tests.unleash.server import Console

FLAG = "new-checkout"
PERIOD_SECONDS = 0.5
REQUEST_SECONDS = 0.3


@pytest.fixture
async def fake() -> AsyncIterator[FakeUnleash]:
    """An Unleash that does as it is told."""
    async with FakeUnleash().running() as running:
        yield running


@pytest.fixture
async def console(fake: FakeUnleash) -> AsyncIterator[Console]:
    """A person in the console."""
    person = Console(fake.url)
    yield person
    await person.close()


class Loop:
    """A reconcile loop over one Unleash, and what it told the outside."""

    def __init__(self, fake: FakeUnleash, **settings: Any) -> None:
        self.plane = UnleashPlane(
            make_settings(fake.url, request_timeout_seconds=REQUEST_SECONDS, **settings),
            SystemClock(),
        )
        self.alerts: list[RaiseAlert] = []
        self.actuation = FlagReconciler(
            [self.plane],
            SystemClock(),
            self,
            Metrics(version="test"),
            Faults(SystemClock().now),
            period_seconds=PERIOD_SECONDS,
        )

    def alert(self, flag_key: str, alert: RaiseAlert) -> None:
        """Note an alert."""
        self.alerts.append(alert)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Loop]:
        """Run it."""
        task = asyncio.create_task(self.actuation.run())
        try:
            yield self
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.plane.close()


async def until(holds: Callable[[], bool], seconds: float = 30.0) -> float:
    """Return how many seconds it took until something holds.

    Raises AssertionError when it does not in time.
    """
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def watch(fake: FakeUnleash, seconds: float) -> list[float]:
    """Return the percentages served in the meantime."""
    seen, began = [], time.monotonic()
    while time.monotonic() - began < seconds:
        seen.append(fake.percent(FLAG))
        await asyncio.sleep(0.01)
    return seen


TROUBLES: dict[str, tuple[Script, str]] = {
    "5xx": (answering("<html>bad gateway</html>", status="502 Bad Gateway"), "failed .HTTP 502"),
    "5xx with words": (
        answering('{"name": "UnknownError", "message": "no database"}', status="500 X"),
        "500: no database",
    ),
    "401": (
        answering('{"message": "You must log in"}', status="401 X"),
        "does not know our token .HTTP 401: You must log in",
    ),
    "429": (
        answering("", status="429 Too Many Requests", retry_after="1"),
        "asks us to be slower .HTTP 429",
    ),
    "429 until": (
        answering("", status="429 X", retry_after="Sat, 21 Nov 2099 12:00:00 GMT"),
        "asks us to be slower",
    ),
    "429 odd": (answering("", status="429 X", retry_after="soon"), "asks us to be slower"),
    "redirect": (
        answering("", status="302 Found", location="http://127.0.0.1:1/"),
        "redirects us .HTTP 302",
    ),
    "login page": (
        answering("<html>log in</html>", content_type="text/html"),
        "what is no answer of Unleash",
    ),
    "not found page": (
        answering("<html>nginx</html>", status="404 Not Found"),
        "HTTP 404.*base address",
    ),
    "other JSON": (answering('{"hello": 1}'), "what is no answer of Unleash"),
    "deep JSON": (answering("[" * 100_000), "what is no answer of Unleash"),
    "long": (answering(b" " * 2_000_000), "longer than 1000000 bytes"),
    "packed": (answering(b"\x1f\x8b", content_encoding="gzip"), "a compressed answer"),
    "hang": (fault_server.hang, "no complete answer within 0.3 s"),
    "hang in body": (fault_server.hang_in_body, "no complete answer within 0.3 s"),
    "drip": (
        fault_server.repeating(b" ", head=b"HTTP/1.1 200 OK\r\n\r\n", pause_seconds=0.05),
        "no complete answer",
    ),
    "reset": (fault_server.reset, "gave no usable answer"),
    "reset in body": (fault_server.reset_in_body, "gave no usable answer"),
    "closed": (fault_server.close_at_once, "gave no usable answer"),
    "not HTTP": (fault_server.repeating(b"SSH-2.0-OpenSSH\r\n", times=1), "gave no usable answer"),
}


@pytest.mark.parametrize("kind", TROUBLES)
async def test_trouble_is_told_and_nothing_is_taken_for_an_answer(
    fake: FakeUnleash, kind: str
) -> None:
    """Whatever the server does, each call ends in time with one sentence on the fault."""
    script, message = TROUBLES[kind]
    fake.faults.append(("", script))
    plane = UnleashPlane(
        make_settings(fake.url, request_timeout_seconds=REQUEST_SECONDS), SystemClock()
    )
    began = time.monotonic()
    with pytest.raises(FlagPlaneUnavailable, match=message) as look:
        await plane.look(rolled_back(FLAG, 2))
    assert fake.url in str(look.value)
    with pytest.raises(FlagPlaneUnavailable):
        await plane.serve(decided(FLAG, 10))
    assert time.monotonic() - began < 20  # a hanging server would never end it
    await plane.close()


@pytest.mark.parametrize("kind", ["5xx", "401", "429 until", "hang"])
async def test_an_outage_makes_no_storm_and_a_rollback_goes_through_right_after_it(
    fake: FakeUnleash, kind: str
) -> None:
    """Ten flags wait while a rollback is tried every period.

    After the outage it is served within one, raises later.
    """
    loop = Loop(fake)
    async with loop.running():
        for number in range(10):
            loop.actuation.request(decided(f"flag-{number}", 10))
        loop.actuation.request(decided(FLAG, 50))
        await until(
            lambda: (
                fake.percent(FLAG) == 50
                and all(fake.percent(f"flag-{number}") == 10 for number in range(10))
            )
        )
        assert fake.server is not None
        fake.faults.append(("", TROUBLES[kind][0]))
        before = len(fake.server.requests)
        for number in range(10):
            loop.actuation.request(decided(f"flag-{number}", 25, 2))
        loop.actuation.request(rolled_back(FLAG, 2))
        await asyncio.sleep(5 * PERIOD_SECONDS)
        asked = len(fake.server.requests) - before
        assert asked <= 12, f"{asked} requests in five periods"
        assert fake.percent(FLAG) == 50
        assert [fake.percent(f"flag-{number}") for number in range(10)] == [10] * 10  # fail static
        fake.faults.clear()
        took = await until(lambda: fake.percent(FLAG) == 0)
        print(  # noqa: T201
            f"{kind}: {asked} requests in five periods, "
            f"rollback served {took:.2f} s after the outage"
        )


async def test_a_slow_server_is_written_to_all_the_same(fake: FakeUnleash) -> None:
    """Where every request takes most of its time limit, flags are raised.

    And a rollback needs two requests, not more.
    """
    loop = Loop(fake)
    fake.pauses.append(("", partial(asyncio.sleep, 0.7 * REQUEST_SECONDS)))
    async with loop.running():
        loop.actuation.request(decided(FLAG, 50))
        await until(lambda: fake.percent(FLAG) == 50)
        await asyncio.sleep(PERIOD_SECONDS)
        loop.actuation.request(rolled_back(FLAG, 2))
        took = await until(lambda: fake.percent(FLAG) == 0)
        print(f"{0.7 * REQUEST_SECONDS:.2f} s for each request: rollback served after {took:.2f} s")  # noqa: T201


async def test_what_cannot_be_written_holds_up_no_other_flag(fake: FakeUnleash) -> None:
    """A flag whose writes all fail does not keep other flags from being raised."""
    fake.faults.append((f"(POST|PATCH) .*features/{FLAG}", TROUBLES["5xx"][0]))
    loop = Loop(fake)
    async with loop.running():
        loop.actuation.request(decided(FLAG, 1))
        for number in range(5):
            loop.actuation.request(decided(f"flag-{number}", 10))
        fake.faults.append((r"POST .*/features$", TROUBLES["5xx"][0]))
        await asyncio.sleep(PERIOD_SECONDS)
        fake.faults.pop()
        await until(lambda: all(fake.percent(f"flag-{number}") == 10 for number in range(5)))


async def test_a_refused_write_is_not_repeated_at_once(fake: FakeUnleash, console: Console) -> None:
    """Where changes need approval the write is tried once, not at every period.

    Lowering is tried at every one.
    """
    words = (
        '{"name": "PermissionError", "message": "change requests are enabled in this environment"}'
    )
    loop = Loop(fake)
    async with loop.running():
        loop.actuation.request(decided(FLAG, 50))
        await until(lambda: fake.percent(FLAG) == 50)
        fake.faults.append(("PATCH|/off", answering(words, status="403 Forbidden")))
        loop.actuation.request(decided(FLAG, 60, 2))
        await asyncio.sleep(4 * PERIOD_SECONDS)
        assert len(_patches(fake)) == 2  # one was the first raise
        assert "change requests are enabled" in (loop.actuation.drift(decided(FLAG, 60, 2)) or "")
        loop.actuation.request(rolled_back(FLAG, 3))
        await until(lambda: len(_patches(fake)) >= 5)
        fake.faults.clear()
        await until(lambda: fake.percent(FLAG) == 0)


def _patches(fake: FakeUnleash) -> list[str]:
    assert fake.server is not None
    return [each.line for each in fake.server.requests if each.line.startswith("PATCH")]


async def test_a_strategy_that_cannot_be_written_is_switched_off_with_its_environment(
    fake: FakeUnleash,
) -> None:
    """A rollback whose patch fails lets nobody in all the same."""
    loop = Loop(fake)
    async with loop.running():
        loop.actuation.request(decided(FLAG, 50))
        await until(lambda: fake.percent(FLAG) == 50)
        fake.faults.append(
            ("PATCH", answering('{"name": "BadDataError", "message": "no"}', status="400 X"))
        )
        loop.actuation.request(rolled_back(FLAG, 2))
        await until(lambda: fake.percent(FLAG) == 0)


async def test_a_crash_at_any_request_is_finished_by_a_successor_and_never_exposes_more(
    fake: FakeUnleash,
) -> None:
    """Killed at any request on the way to 10, 50 and 0 %.

    Never more than was decided, and the next process blames nobody.
    """
    crashes = 0
    for steps in ((10,), (10, 50), (10, 50, 0), (10, 0, 5)):
        for crash_at in range(9):
            flag_key = f"flag-{len(steps)}-{steps[-1]}-{crash_at}"
            documents = [
                rolled_back(flag_key, number)
                if percent == 0
                else decided(flag_key, percent, number)
                for number, percent in enumerate(steps, 1)
            ]
            for document in documents[:-1]:
                await _serve_whole(fake, document)
            last, before = documents[-1], fake.percent(flag_key)
            first = UnleashPlane(make_settings(fake.url), SystemClock())
            crash, count = asyncio.Event(), iter(range(100))
            fake.pauses.append(("", partial(_crash_at, crash_at, count, crash)))
            task = asyncio.create_task(_look_and_serve(first, last))
            waiting = asyncio.create_task(crash.wait())
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
            crashes += not task.done()
            task.cancel()
            waiting.cancel()
            await asyncio.wait([task, waiting])
            await first.close()
            fake.pauses.clear()
            assert fake.percent(flag_key) <= max(before, last.percent)
            second = UnleashPlane(make_settings(fake.url), SystemClock())
            assert (await second.look(last)).edited_by is None
            await second.serve(last)
            assert (await second.look(last)).difference is None
            assert fake.percent(flag_key) == last.percent
            await second.close()
    print(f"{crashes} crashes")  # noqa: T201
    assert crashes >= 15


async def _crash_at(crash_at: int, count: Any, crash: asyncio.Event) -> None:
    if next(count) == crash_at:
        crash.set()
        await asyncio.get_running_loop().create_future()


async def _look_and_serve(plane: UnleashPlane, rollout: Rollout) -> None:
    await plane.look(rollout)
    await plane.serve(rollout)


async def _serve_whole(fake: FakeUnleash, rollout: Rollout) -> None:
    plane = UnleashPlane(make_settings(fake.url), SystemClock())
    await plane.serve(rollout)
    await plane.close()


async def test_the_audit_trail_may_be_closed_to_us(fake: FakeUnleash, console: Console) -> None:
    """Without the right to read who did what, an edit is found all the same, by nobody known."""
    fake.faults.append(("search/events", answering('{"message": "no"}', status="403 Forbidden")))
    loop = Loop(fake)
    async with loop.running():
        loop.actuation.request(decided(FLAG, 25))
        await until(lambda: fake.percent(FLAG) == 25)
        await console.edit(FLAG, rollout="90")
        await until(lambda: fake.percent(FLAG) == 25)
        await until(lambda: [alert.kind for alert in loop.alerts] == [AlertKind.FOREIGN_EDIT])
        assert "somebody" in loop.alerts[0].summary


@pytest.mark.parametrize("edit", ["raised", "another strategy", "switched to everybody"])
async def test_an_edit_upwards_lasts_one_period_at_most(
    fake: FakeUnleash, console: Console, edit: str
) -> None:
    """More exposure than decided is undone within a period and reported with a name."""
    loop = Loop(fake)
    longest = 0.0
    async with loop.running():
        loop.actuation.request(decided(FLAG, 10))
        await until(lambda: fake.percent(FLAG) == 10)
        for number in range(5):
            await asyncio.sleep(0.07 * number)
            if edit == "raised":
                await console.edit(FLAG, rollout=str(60 + number))
            elif edit == "another strategy":
                await console.add(FLAG, 100, title=f"everybody {number}")
            else:
                await console.edit(
                    FLAG, rollout=str(91 + number), title=f"mine {number}", disabled=False
                )
            assert fake.percent(FLAG) > 10
            longest = max(longest, await until(lambda: fake.percent(FLAG) == 10))
        await until(lambda: len({alert.dedup_key for alert in loop.alerts}) == 5)
        assert {alert.kind for alert in loop.alerts} == {AlertKind.FOREIGN_EDIT}
        assert all("admin" in alert.summary for alert in loop.alerts)
    print(f"{edit}: undone after {longest:.2f} s at most, the period is {PERIOD_SECONDS} s")  # noqa: T201
    assert longest <= (PERIOD_SECONDS + 0.25) * SLACK


async def test_an_edit_downwards_stays(fake: FakeUnleash, console: Console) -> None:
    """A lowering, switching off or archiving by others is reported and not overruled."""
    loop = Loop(fake)
    async with loop.running():
        loop.actuation.request(decided(FLAG, 50))
        await until(lambda: fake.percent(FLAG) == 50)
        await console.edit(FLAG, rollout="5")
        assert set(await watch(fake, 3 * PERIOD_SECONDS)) == {5}
        await console.here("POST", FLAG, "/off")
        assert set(await watch(fake, 3 * PERIOD_SECONDS)) == {0}
        await console.call("DELETE", f"/{FLAG}")
        assert set(await watch(fake, 3 * PERIOD_SECONDS)) == {0}
        assert {alert.kind for alert in loop.alerts} == {AlertKind.FOREIGN_EDIT}
        assert len(loop.alerts) == 3


async def test_a_zombie_frozen_at_any_request_raises_nothing_after_a_rollback(
    fake: FakeUnleash, console: Console
) -> None:
    """A replica stopped before any of its requests, which wakes after a rollback, exposes nobody.

    Its patch is refused, and what a create and an add may leave stands at 0 %.
    """
    worst = 0.0
    for stop_at in range(8):
        flag_key = f"flag-{stop_at}"
        zombie = UnleashPlane(make_settings(fake.url), SystemClock())
        woken, count = asyncio.Event(), iter(range(100))
        task = asyncio.create_task(_as_zombie(zombie, flag_key, fake, woken, stop_at, count))
        await asyncio.sleep(0.15)
        fake.pauses.clear()
        loop = Loop(fake)
        async with loop.running():
            loop.actuation.request(decided(flag_key, 5, 2))
            await until(partial(_serves, fake, flag_key, 5))
            loop.actuation.request(rolled_back(flag_key, 3))
            await until(partial(_serves, fake, flag_key, 0))
            woken.set()
            began, wrong = time.monotonic(), 0.0
            while time.monotonic() - began < 1.3 * PERIOD_SECONDS:
                await asyncio.sleep(0.01)
                if fake.percent(flag_key) > 0:
                    wrong += 0.01
            worst = max(worst, wrong)
            assert fake.percent(flag_key) == 0
        with suppress(FlagPlaneUnavailable):
            await task
        await zombie.close()
    assert worst == 0


def _serves(fake: FakeUnleash, flag_key: str, percent: float) -> bool:
    return fake.percent(flag_key) == percent


async def _as_zombie(
    plane: UnleashPlane,
    flag_key: str,
    fake: FakeUnleash,
    woken: asyncio.Event,
    stop_at: int,
    count: Any,
) -> None:
    """Serve 25 % by an old revision, and stand still at one of the requests until woken."""

    async def maybe_stop() -> None:
        if next(count) == stop_at:
            await woken.wait()

    fake.pauses.append(("", maybe_stop))
    await plane.look(decided(flag_key, 25))
    await plane.serve(decided(flag_key, 25))


async def test_a_private_authority_is_trusted_when_named(
    fake: FakeUnleash, certificate: tuple[Path, Path]
) -> None:
    """Unleash of a private authority is trusted once the settings name it, refused before."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    async with fault_server.fault_server(
        answering('{"name": "NotFoundError", "message": ""}', status="404 X"), tls=tls
    ) as server:
        trusting = UnleashPlane(make_settings(server.url, ca_file=certificate[0]), SystemClock())
        assert (await trusting.look(rolled_back(FLAG, 1))).difference is None
        await trusting.close()
        distrusting = UnleashPlane(make_settings(server.url), SystemClock())
        with pytest.raises(FlagPlaneUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await distrusting.look(rolled_back(FLAG, 1))
        await distrusting.close()
    with pytest.raises(ConfigInvalid, match="ca_file, certificate_file or key_file cannot be used"):
        UnleashPlane(
            make_settings(server.url, ca_file=certificate[0].with_name("none.pem")), SystemClock()
        )
