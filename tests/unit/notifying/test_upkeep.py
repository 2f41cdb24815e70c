"""A long book is gone through once at a look: the same loop makes decisions meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from controller.health import Faults
from controller.notifying.book import MOST_WAITING, Book, Delivery, Purpose
from controller.notifying.planner import Planner, Told
from controller.notifying.rules import NotificationRules
from controller.notifying.sending import GROUPED_OVER, Sender
from controller.notifying.upkeep import REFRESH_EVERY, make_room
from controller.notifying.words import Message, plain_message
from schemas.terms import Severity
from tests.builders import T0
from tests.unit.notifying.news_of import news
from tests.unit.notifying.test_recipients import Clock, Mail

COUNT = 500


class CountingBook(Book):
    """Counts the messages that somebody goes through."""

    seen = 0

    def waiting(self, channel: str) -> Iterator[Delivery]:
        """Yield what waits, and count it."""
        for one in super().waiting(channel):
            self.seen += 1
            yield one


def sender_of(channel: Mail, book: Book, clock: Clock) -> Sender:
    """Return a sender that stores nothing."""

    async def save() -> None:
        """Keep nothing."""

    def words(one: Delivery) -> Message:
        return plain_message(one, "production", None)

    return Sender(channel, book, words, save, clock, Faults(clock.now))


def test_open_incidents_are_not_each_looked_for_among_all_that_waits() -> None:
    """An Alertmanager is away in a storm: the cost grew with the square of the incidents."""
    book = CountingBook()
    rules = NotificationRules.model_validate({"routes": [{"name": "all", "to": ["am", "chat"]}]})
    everybody, am = frozenset({"am", "chat"}), frozenset({"am"})
    made = Planner(book, rules, Told(everybody, tracking=am, forgetful=am))
    for number in range(COUNT):
        made.take(news(number, flag=f"flag-{number}", key=f"{number}"), None, T0)
    had = next(iter(book.waiting("am")))
    book.sent(had)
    book.seen = 0
    made.do_due(T0 + REFRESH_EVERY)
    assert book.seen <= COUNT
    purposes = [one.purpose for one in book.waiting("am")]
    assert purposes == [Purpose.NEWS] * (COUNT - 1) + [Purpose.REFRESH]
    assert list(book.waiting("am"))[-1].news.key == had.news.key


def test_room_is_made_in_one_pass_from_the_least_urgent_of_the_longest_queue() -> None:
    """A queue of 20,000 was gone through for each message that had to go."""
    book = CountingBook()
    chosen = {5: Severity.INFO, 9: Severity.INFO, 7: Severity.WARNING}
    for number in range(MOST_WAITING):
        about = news(number, severity=chosen.get(number, Severity.CRITICAL))
        book.add("chat", about, Purpose.NEWS, T0)
    for number in range(5):
        book.add("pager", news(number, severity=Severity.INFO), Purpose.NEWS, T0)
    make_room(book, T0)
    assert [one.delivery.news.revision for one in book.dead.values()] == [5, 9, 7, 0, 1]
    assert {one.delivery.channel for one in book.dead.values()} == {"chat"}
    assert book.waits == MOST_WAITING
    assert book.seen <= MOST_WAITING


async def test_people_read_a_few_one_by_one_and_a_machine_gets_what_waits() -> None:
    """An Alertmanager had a call for each of a thousand alerts that came one after the other."""
    book, clock = Book(), Clock()
    for number in range(GROUPED_OVER):
        book.add("mail", news(number), Purpose.NEWS, T0)
    found = []
    for limits in (Mail.limits, replace(Mail.limits, grouped_over=1)):
        channel = Mail()
        channel.limits = limits
        found.append(len(sender_of(channel, book, clock)._next()))
    assert found == [1, GROUPED_OVER]


async def test_what_is_sent_next_is_found_without_going_through_what_follows() -> None:
    """Each message would cost as much as thousands that wait behind it."""
    book, clock, channel = CountingBook(), Clock(), Mail()
    for number in range(COUNT):
        book.add("mail", news(number), Purpose.NEWS, T0)
    sender = sender_of(channel, book, clock)
    sender._give_up_old()
    assert len(sender._next()) == channel.limits.most_grouped
    assert book.seen <= channel.limits.most_grouped + 1
    clock.at = T0 + timedelta(days=4)
    sender._give_up_old()
    assert len(book.dead) == COUNT
