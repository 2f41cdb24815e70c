"""A call is repeated until it succeeds, with growing pauses."""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest

from controller.errors import BadInput, EventLogUnavailable, StoreUnavailable
from controller.retrying import Backoff, steady, until_done
from tests.virtual_time import LoopClock, in_virtual_time


class Flaky:
    """Fails as a test says, then gives an answer."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def __call__(self) -> str:
        """Fail, or return the answer."""
        if self.failures:
            raise self.failures.pop(0)
        return "done"


@in_virtual_time
async def test_a_call_is_repeated_until_it_succeeds() -> None:
    """Each failure is reported with the pause after it, and the pauses double up to a limit."""
    reports: list[tuple[str, float]] = []
    result = await until_done(
        Flaky(*(StoreUnavailable(str(number)) for number in range(4))),
        trouble=StoreUnavailable,
        backoff=Backoff(1.0, 4.0),
        report=lambda error, pause: reports.append((str(error), pause)),
    )
    assert result == "done"
    assert reports == [("0", 1.0), ("1", 2.0), ("2", 4.0), ("3", 4.0)]
    assert LoopClock().monotonic() == pytest.approx(11.0)


@in_virtual_time
async def test_other_errors_pass_through() -> None:
    """What is no trouble ends the repetition at once."""
    with pytest.raises(BadInput):
        await until_done(
            Flaky(EventLogUnavailable("away"), BadInput("wrong")),
            trouble=(EventLogUnavailable, StoreUnavailable),
            backoff=steady(1.0),
            report=lambda error, pause: None,
        )


@in_virtual_time
async def test_a_report_that_raises_ends_the_repetition() -> None:
    """So its owner decides how often is enough."""

    def give_up(error: StoreUnavailable, _pause: float) -> None:
        raise error

    with pytest.raises(StoreUnavailable):
        await until_done(
            Flaky(StoreUnavailable("away")),
            trouble=StoreUnavailable,
            backoff=steady(1.0),
            report=give_up,
        )


@in_virtual_time
@pytest.mark.parametrize("ends", ["with an answer", "with an error"])
async def test_a_swallowed_cancellation_ends_the_repetition(ends: str) -> None:
    """A deadline cancels once. A client that swallows it and fails is not tried for ever."""
    tries = 0

    async def swallows() -> str:
        """Do as `asyncio.wait_for` of Python 3.11 when a cancellation comes as it finishes."""
        nonlocal tries
        tries += 1
        if tries > 3:
            raise BadInput("the deadline has ended nothing")
        try:
            await asyncio.sleep(10.0)
        except asyncio.CancelledError:
            if ends == "with an error":
                raise StoreUnavailable("connection closed") from None
        return "done"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await until_done(
                swallows,
                trouble=StoreUnavailable,
                backoff=steady(1.0),
                report=lambda error, pause: None,
            )
    assert LoopClock().monotonic() == pytest.approx(2.0)


def test_chance_shortens_pauses_and_never_lengthens_them() -> None:
    """With jitter 0.5 a pause lasts between half of its length and all of it."""
    for pause, whole in zip(
        islice(Backoff(1.0, 8.0, 0.5).pauses(), 6), (1, 2, 4, 8, 8, 8), strict=True
    ):
        assert whole / 2 <= pause <= whole
