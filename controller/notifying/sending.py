"""Sends what waits for one channel, one message after the other, until the channel has it.

A channel that fails keeps its messages and delays no other. What it refuses as such is kept as a
dead letter, so that one message which cannot be sent does not hold up those behind it. Where many
wait, several are sent as one, none of them left out.

Belongs here: order, pace, repeats. Does not belong here: the form of a message on its way
(`adapters/channels/`), and what is sent (`planner.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice, takewhile
from typing import Final, Protocol

import msgspec
import structlog

from controller.cancellation import swallowed_cancellation_raised
from controller.errors import ChannelUnavailable, MessageRefused, RecipientsMissed
from controller.health import Faults, Scope
from controller.notifying.book import Book, ChannelState, Delivery, Thread
from controller.notifying.words import Message, Words
from controller.ports import Clock
from controller.text import plural

#: With more waiting, messages are put together: people read each of a few by itself.
GROUPED_OVER: Final = 10
#: A message that nobody took for so long is given up.
GIVEN_UP: Final = timedelta(days=3)
#: A wait that a server may ask for. One with a wrong clock must not silence a channel for a day.
LONGEST_WAIT_SECONDS: Final = 600.0
_FIRST_WAIT_SECONDS: Final = 1.0
_LONGEST_OWN_WAIT_SECONDS: Final = 60.0
#: When recipients are tried again that a server did not take for now, as with greylisting.
_MISSED_AGAIN: Final = timedelta(minutes=2)
#: A channel that fails for longer is a fault.
_TOLD_AFTER: Final = timedelta(seconds=20)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a channel can bear."""

    per_minute: float  # messages
    burst: int = 1  # at once, after a pause
    most_grouped: int = 1  # messages in one; 1: each is its own
    seconds: float = 10.0  # deadline of one message
    grouped_over: int = GROUPED_OVER  # with more waiting


class Channel(Protocol):
    """Takes messages: `adapters/channels/`."""

    @property
    def name(self) -> str:
        """Its name in the settings."""

    @property
    def limits(self) -> Limits:
        """What it can bear."""

    @property
    def tracks(self) -> bool:
        """Whether it keeps an incident open until it hears that it is over."""

    @property
    def forgets(self) -> bool:
        """Whether it forgets an incident that it does not hear of again."""

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Show one message, in the rollout's conversation if there is one.

        `keep` is given a conversation that was begun, also where the message itself then fails.
        Raises ChannelUnavailable when it may be sent again, MessageRefused when that is no use,
        RecipientsMissed when only some of its recipients have it.
        """

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Show several messages, for the same recipients, as one. Raises as `send`."""

    async def close(self) -> None:
        """Drop its connections."""


def faults_of(channel: Channel) -> tuple[str, ...]:
    """Return the names of all faults that are reported of a channel."""
    kinds = ("channel", "dead_letters", "recipients")
    return tuple(f"{kind}/{channel.name}" for kind in kinds)


class Pace:
    """Says when the next message may go. Pure: monotonic seconds are arguments."""

    def __init__(self, limits: Limits) -> None:
        self._per_second = limits.per_minute / 60
        self._burst = float(limits.burst)
        self._free = self._burst
        self._at: float | None = None

    def wait(self, now: float) -> float:
        """Return in how many seconds one may go."""
        self._refill(now)
        return max(0.0, (1.0 - self._free) / self._per_second)

    def spend(self, now: float) -> None:
        """Note that one went."""
        self._refill(now)
        self._free -= 1.0

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._free = min(self._burst, self._free + (now - self._at) * self._per_second)
        self._at = now


class Sender:
    """Sends to one channel, as long as it runs."""

    def __init__(
        self,
        channel: Channel,
        book: Book,
        words: Words,
        save: Callable[[], Awaitable[None]],
        clock: Clock,
        faults: Faults,
        count: Callable[[str], object] = lambda _outcome: None,
    ) -> None:
        """`save` stores what has changed in the book; `count` is told what became of a message."""
        self._channel = channel
        self._book = book
        self._words = words
        self._save = save
        self._clock = clock
        self._faults = faults
        self._count = count
        self._pace = Pace(channel.limits)
        self._failures = 0  # in a row
        self.news = asyncio.Event()
        """Set where something waits."""

    async def run(self) -> None:
        """Send until cancelled. Raises what `save` raises."""
        self._tell_of_refused()
        while True:
            self.news.clear()
            self._give_up_old()
            deliveries = self._next()
            if not deliveries:
                await self.news.wait()
                continue
            await asyncio.sleep(self._pace.wait(self._clock.monotonic()))
            self._pace.spend(self._clock.monotonic())
            wait = await self._send(deliveries)
            await self._save()
            await asyncio.sleep(wait)

    def _next(self) -> list[Delivery]:
        """Return what is sent next, as one message."""
        name, limits = self._channel.name, self._channel.limits
        waits = len(self._book.queues.get(name, {}))
        most = limits.most_grouped if waits > limits.grouped_over else 1
        now = self._clock.now()
        # No further than needed: thousands may wait, and this is done for each message.
        due = (
            one for one in self._book.waiting(name) if one.again_at is None or one.again_at <= now
        )
        if (first := next(due, None)) is None:
            return []
        return [first, *islice((one for one in due if one.only == first.only), most - 1)]

    async def _send(self, deliveries: Sequence[Delivery]) -> float:
        """Send one message; return after how many seconds the next one may go."""
        channel = self._channel
        try:
            messages = [self._words(one) for one in deliveries]
            async with asyncio.timeout(channel.limits.seconds):
                with swallowed_cancellation_raised():  # mail is sent with `asyncio.wait_for`
                    if len(messages) > 1:
                        await channel.send_group(messages)
                    else:
                        await self._converse(deliveries[0], messages[0])
        except TimeoutError:
            return self._failed(f"no answer within {channel.limits.seconds:g} s", None)
        except ChannelUnavailable as trouble:
            return self._failed(str(trouble), trouble.retry_after_seconds)
        except RecipientsMissed as missed:
            self._missed(deliveries, missed)
            return 0.0
        except MessageRefused as refused:
            if len(deliveries) > 1:
                # One of them is to blame, and each gets its chance alone.
                log.warning("group_refused", channel=channel.name, error=str(refused))
                return await self._send(deliveries[:1])
            self._refused(deliveries[0], str(refused))
            return 0.0
        except Exception as error:  # ours: the messages behind it must be sent
            log.exception("notification_failed", channel=channel.name)
            self._refused(deliveries[0], f"a mistake of rolloutd: {error!r}")
            return 0.0
        self._taken(deliveries)
        return 0.0

    async def _converse(self, delivery: Delivery, message: Message) -> None:
        name, rollout_id = self._channel.name, f"{delivery.news.flag}/{delivery.news.rollout_id}"
        known = self._book.threads.get((name, rollout_id))
        keep = partial(self._book.converse, name, rollout_id)
        await self._channel.send(message, known, keep)

    # --- what became of it ---

    def _taken(self, deliveries: Sequence[Delivery]) -> None:
        name, now = self._channel.name, self._clock.now()
        for one in deliveries:
            self._book.sent(one)
            if not one.only:
                self._book.reached(one, now)
            self._count("sent")
        if self._failures:
            log.info("channel_works_again", channel=name, failures=self._failures)
        self._failures = 0
        was = self._book.channels.get(name, ChannelState())
        self._book.channel_is(name, ChannelState(was.sent + len(deliveries), now))
        self._faults.clear(Scope.DEPENDENCY, self._fault)
        if not any(one.delivery.channel == name for one in self._book.dead.values()):
            self._faults.clear(Scope.DEPENDENCY, f"dead_letters/{name}")
        if deliveries[0].only and not any(one.only for one in self._book.waiting(name)):
            self._faults.clear(Scope.DEPENDENCY, f"recipients/{name}")

    def _missed(self, deliveries: Sequence[Delivery], missed: RecipientsMissed) -> None:
        """Note that some recipients have a message: the others must not hold up what follows."""
        name, now = self._channel.name, self._clock.now()
        log.warning("recipients_missed", channel=name, error=str(missed))
        for one in deliveries:
            never, later = missed.never, missed.later
            if now - one.at > GIVEN_UP:
                never, later = (*never, *later), ()
            if later:
                self._book.put_off(one, later, now + _MISSED_AGAIN)
            if never:
                self._refused(msgspec.structs.replace(one, only=never), str(missed))
        self._taken(deliveries)
        if missed.later and now - deliveries[0].at > _TOLD_AFTER:
            self._faults.report(
                Scope.DEPENDENCY,
                f"recipients/{name}",
                f"some recipients of channel {name} do not get their messages: {missed}",
                "see that their addresses are right and their server takes messages; they are sent "
                "then",
            )

    def _failed(self, why: str, requested_seconds: float | None) -> float:
        """Note that a channel does not work; return for how long it is left alone."""
        name, now = self._channel.name, self._clock.now()
        self._failures += 1
        self._count("failed")
        was = self._book.channels.get(name, ChannelState())
        since = was.since or now
        state = msgspec.structs.replace(was, trouble=why[:500], since=since)
        self._book.channel_is(name, state)
        if self._failures == 1:
            log.warning("channel_fails", channel=name, error=why)
        if now - since > _TOLD_AFTER:
            waits = len(self._book.queues.get(name, {}))
            self._faults.report(
                Scope.DEPENDENCY,
                self._fault,
                f"{plural(waits, 'message waits', 'messages wait')} for channel {name}: {why}",
                "see that its address and token are right and its server answers; they are sent "
                "then",
            )
        doubled = _FIRST_WAIT_SECONDS * 2.0 ** min(self._failures - 1, 10)
        own = min(_LONGEST_OWN_WAIT_SECONDS, doubled)
        return max(own, min(requested_seconds or 0.0, LONGEST_WAIT_SECONDS))

    def _refused(self, delivery: Delivery, why: str) -> None:
        now = self._clock.now()
        log.warning("notification_refused", channel=delivery.channel, error=why)
        self._count("refused")
        self._book.bury(delivery, why[:500], now)
        self._tell_of_refused()

    def _tell_of_refused(self) -> None:
        """Report the newest dead letter, also one of which another replica has told."""
        name = self._channel.name
        dead = next(
            (one for one in reversed(self._book.dead.values()) if one.delivery.channel == name),
            None,
        )
        if dead is not None:
            self._faults.report(
                Scope.DEPENDENCY,
                f"dead_letters/{name}",
                f"channel {name} refused a message about {dead.delivery.news.flag}: {dead.why}",
                "`rolloutctl notify list` shows it, `rolloutctl notify retry` sends it again",
            )

    def _give_up_old(self) -> None:
        now = self._clock.now()
        waiting = self._book.waiting(self._channel.name)  # in order of time
        for one in list(takewhile(lambda one: now - one.at > GIVEN_UP, waiting)):
            self._refused(one, f"could not be sent for {GIVEN_UP.days} days")

    @property
    def _fault(self) -> str:
        return f"channel/{self._channel.name}"
