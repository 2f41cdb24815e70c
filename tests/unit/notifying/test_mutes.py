"""Mutes by command: of a route or of flags, what they keep back, and what is told when they end."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.codec.signals import signal_event
from controller.health import Faults
from controller.notifying.book import MOST_MUTES, Book
from controller.notifying.intake import Intake
from controller.notifying.planner import Planner
from schemas.signal import MuteRequest, Signal
from schemas.terms import NotificationRequest, Severity, SignalStatus
from tests.builders import MINUTE, T0
from tests.unit.notifying.news_of import news, step
from tests.unit.notifying.test_planner import ON_CALL, minutes, planner, sent

TWO_ROUTES: dict[str, Any] = {
    "routes": [
        {"name": "night", "to": ["pager"], "escalation": "on-call", "go_on": True},
        {"name": "day", "to": ["chat"]},
    ],
    "escalations": [{"name": "on-call", "steps": [{"after": "10m", "to": "boss"}]}],
}


def ask(
    made: Planner,
    request: NotificationRequest,
    about: str,
    at: datetime = T0,
    mute: dict[str, Any] | None = None,
) -> None:
    """Ask something of the notifications, as `rolloutctl notify` does."""
    signal = Signal(
        id="1",
        hook="rolloutctl/cli",
        status=SignalStatus.NOTE,
        condition="x",
        title="x",
        received_at=at,
        request=request,
        request_about=about,
        issuer="ada",
        mute=None if mute is None else MuteRequest.model_validate(mute),
    )
    intake = Intake(made, lambda _flag: "", (), Faults(lambda: T0))
    intake.take(signal_event(signal, "/test"), at)


def mute(made: Planner, about: str, minutes_long: int = 20, **more: Any) -> None:
    """Mute something from now on."""
    asked = {"until": T0 + minutes_long * MINUTE, "reason": "a move", **more}
    ask(made, NotificationRequest.MUTE, about, mute=asked)


def warning(number: int = 1, **told: Any) -> Any:
    """Return that a flag's plane does not serve what was decided."""
    told = {"kind": "not_actuated", "severity": Severity.WARNING, "key": "k", **told}
    return news(number, **told)


@pytest.mark.parametrize("about", ["checkout", "check*", "all"])
def test_a_flag_or_a_route_is_muted_until_the_mute_ends(about: str) -> None:
    """What is open by then is told then; what is over is not."""
    made = planner(ON_CALL)
    mute(made, about)
    made.take(warning(), None, T0)
    made.take(warning(2, key="other"), None, T0)
    made.take(warning(3, key="other", severity=Severity.INFO), None, T0)
    assert sent(made) == []
    assert minutes(made, 21) == [(20, "chat", "news")]
    assert made.book.mutes == {}


def test_another_flag_is_told_as_always() -> None:
    """A mute hides what it names."""
    made = planner(ON_CALL)
    mute(made, "search-*")
    made.take(warning(), None, T0)
    assert sent(made) == [("chat", "news")]


def test_critical_news_is_muted_only_where_that_is_said() -> None:
    """A roll-back is told through a mute of some minutes for a noisy warning."""
    made = planner(ON_CALL)
    mute(made, "checkout")
    made.take(news(), None, T0)
    assert sent(made) == [("chat", "news")]
    made = planner(ON_CALL)
    mute(made, "checkout", is_critical_too=True)
    made.take(news(), None, T0)
    assert sent(made) == []


def test_what_gets_critical_while_it_is_muted_is_told_at_once() -> None:
    """Nobody knows of the warning before it, so its escalation begins then."""
    made = planner(ON_CALL)
    mute(made, "checkout")
    made.take(warning(), None, T0)
    made.do_due(T0 + MINUTE)
    made.take(warning(2, severity=Severity.CRITICAL), None, T0 + 2 * MINUTE)
    assert sent(made) == [("chat", "news")]
    assert (10, "pager", "escalated") in minutes(made, 11, since=T0 + 2 * MINUTE)


def test_a_muted_route_leaves_the_others_alone() -> None:
    """And its own people hear of it when its mute ends, with their escalation from then on."""
    made = planner(TWO_ROUTES)
    mute(made, "night", is_critical_too=True)
    made.take(news(), None, T0)
    assert sent(made) == [("chat", "news")]
    assert minutes(made, 31) == [(20, "pager", "news"), (30, "boss", "escalated")]


def test_who_took_it_meanwhile_is_not_told_when_the_mute_ends() -> None:
    """Somebody looks after it already."""
    made = planner(TWO_ROUTES)
    mute(made, "night", is_critical_too=True)
    made.take(news(), None, T0)
    sent(made)
    made.acknowledge("checkout", "ada", T0)
    assert sent(made) == [("chat", "taken")]
    assert minutes(made, 40) == []


def test_an_escalation_under_way_waits_for_the_end_of_a_mute() -> None:
    """A mute in the middle of the night silences it; nothing due is forgotten."""
    made = planner(ON_CALL)
    made.take(news(), None, T0)
    sent(made)
    mute(made, "checkout", is_critical_too=True)
    found = minutes(made, 21)
    assert {minute for minute, _, _ in found} == {20}
    assert (20, "pager", "escalated") in found


def test_what_is_over_is_told_through_a_mute() -> None:
    """Who was told before must hear it, and a pager must resolve."""
    made = planner()
    made.take(news(kind="paused"), None, T0)
    sent(made)
    mute(made, "checkout", is_critical_too=True)
    made.take(None, step(2), T0)
    assert sent(made) == [("pager", "over")]


def test_what_changes_while_it_is_muted_is_told_at_the_end() -> None:
    """To those who knew of it before the mute."""
    made = planner(ON_CALL)
    made.take(warning(), None, T0)
    sent(made)
    mute(made, "checkout")
    made.take(warning(2, summary="it serves 50 % now"), None, T0 + MINUTE)
    assert sent(made) == []
    assert minutes(made, 25) == [(20, "chat", "news")]


@pytest.mark.parametrize("about", ["1", "checkout"])
def test_a_mute_is_ended_by_its_number_or_by_what_it_mutes(about: str) -> None:
    """What is open is told with the next look."""
    made = planner(ON_CALL)
    mute(made, "checkout")
    assert list(made.book.mutes) == [1]
    made.take(warning(), None, T0)
    ask(made, NotificationRequest.UNMUTE, about)
    assert minutes(made, 1) == [(1, "chat", "news")]


def test_a_route_is_meant_before_a_flag_of_the_same_name() -> None:
    """Unless it is said that a flag is meant."""
    made = planner(ON_CALL)
    mute(made, "all")
    mute(made, "all", is_flag=True)
    assert [one.is_route for one in made.book.mutes.values()] == [True, False]


def test_a_mute_that_cannot_be_is_refused() -> None:
    """One that is over, one of nothing, and one more than anybody can oversee."""
    made = planner(ON_CALL)
    mute(made, "checkout", minutes_long=0)
    mute(made, "")
    ask(made, NotificationRequest.MUTE, "checkout")
    assert made.book.mutes == {}
    for number in range(MOST_MUTES + 5):
        mute(made, f"flag-{number}")
    assert len(made.book.mutes) == MOST_MUTES


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("tell"), st.sampled_from(list(Severity)), st.integers(0, 5)),
        st.tuples(st.just("mute"), st.sampled_from(["night", "day", "checkout"]), st.booleans()),
        st.tuples(st.just("unmute"), st.sampled_from(["night", "day", "checkout"]), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 30), st.just(0)),
    ),
    max_size=25,
)


@given(EVENTS)
def test_a_mute_loses_nothing(events: list[Any]) -> None:
    """Once every mute is over, each route's people know of all that is open, as it is now."""
    made, now = planner(TWO_ROUTES), T0
    known: dict[tuple[str, str], str] = {}
    for number, (what, one, two) in enumerate(events, 1):
        if what == "tell":
            made.take(warning(number, severity=one, summary=f"number {two}"), None, now)
        elif what == "mute":
            until = now + timedelta(minutes=15)
            asked = {"until": until, "reason": "x", "is_critical_too": two}
            ask(made, NotificationRequest.MUTE, one, now, asked)
        elif what == "unmute":
            ask(made, NotificationRequest.UNMUTE, one, now)
        else:
            now += one * MINUTE
            made.do_due(now)
        known |= _told(made)
    made.do_due(now + timedelta(hours=2))
    known |= _told(made)
    assert made.book.mutes == {}
    for key, incident in made.book.incidents.items():
        assert incident.held == ()
        assert incident.muted_until is None
        for channel in ("pager", "chat"):
            assert known[channel, key] == incident.news.summary


def _told(made: Planner) -> dict[tuple[str, str], str]:
    """Return the newest summary that each channel has of each incident, and let them have it."""
    book: Book = made.book
    found = {
        (one.channel, one.news.key): one.news.summary
        for queue in book.queues.values()
        for one in queue.values()
    }
    sent(made)
    return found
