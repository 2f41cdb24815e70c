"""JSON that is nested too deeply is damage like any other, wherever stored JSON is read.

Its decoder raises RecursionError then, which is no ValueError: one such value in Redis or on a
topic must cost no more than what it stands for.
"""

from __future__ import annotations

from controller.adapters.kafka.state_feed import _revision_in
from controller.adapters.redis.rollouts import _readable_entries
from controller.checking.checker import states_in
from controller.codec.commands import result_in
from controller.deciding.flag.command_answers import EarlierUse, read_answer
from controller.notifying.book import _KINDS as KINDS_OF_NEWS
from controller.notifying.book import Book
from controller.responding.memory import _KINDS as KINDS_OF_ACTS
from controller.responding.memory import _readable
from schemas.totals import lately_changed

DEEP = b'{"unknown":' + b"[" * 100_000


def test_news_that_were_kept() -> None:
    """Each kind is left out."""
    book = Book.read({f"{kind}|1|a".encode(): DEEP for kind in KINDS_OF_NEWS})
    kept = (book.queues, book.incidents, book.threads, book.dead, book.flags, book.channels)
    assert not any((*kept, book.ended, book.mutes))


def test_what_hooks_did() -> None:
    """Each kind is left out."""
    assert list(_readable({f"{kind}|a".encode(): DEEP for kind in KINDS_OF_ACTS})) == []


def test_the_states_of_checks() -> None:
    """A check begins anew."""
    assert states_in({b"check|latency": DEEP}) == {}


def test_effects_of_a_rollout() -> None:
    """The others are carried out."""
    stored = {b"outbox:1": DEEP, b"outbox:2": b'{"effect_id":"e","topic":"t","key":"k"}\nvalue'}
    assert [entry.effect_id for entry in _readable_entries("new-checkout", stored)] == ["e"]


def test_the_answer_to_a_command() -> None:
    """On its topic it is given again as it is, and over HTTP as one that was lost."""
    assert read_answer(DEEP) == EarlierUse("", None, "")
    assert result_in(DEEP) is None


def test_a_document_of_the_state_topic() -> None:
    """Its revision is not known, so that it is read whole, and refused."""
    assert _revision_in(DEEP) is None


def test_whose_totals_have_changed() -> None:
    """Readers read the totals of all flags."""
    assert lately_changed({"changed": DEEP, "next": b"1"}) is None
