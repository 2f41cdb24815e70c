"""Who hears of what, and when next: by news, steps, people and time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.notifying.book import Book, Purpose
from controller.notifying.news import News
from controller.notifying.planner import _TOLD_ONCE, _UNTIL_NEXT_STEP, Planner, Told
from controller.notifying.rules import NotificationRules
from controller.notifying.upkeep import REFRESH_EVERY
from schemas.terms import AlertKind, Severity
from tests.builders import MINUTE, T0
from tests.unit.notifying.news_of import news, step

TOLD = Told(
    known=frozenset({"chat", "pager", "mail", "boss", "am"}),
    tracking=frozenset({"pager", "am"}),
    forgetful=frozenset({"am"}),
)
RULES: dict[str, Any] = {
    "routes": [
        {"name": "payments", "when": {"owners": "payments"}, "to": ["chat", "pager"]},
        {"name": "rest", "to": "mail"},
    ]
}
ON_CALL: dict[str, Any] = {
    "routes": [{"name": "all", "to": "chat", "escalation": "on-call"}],
    "escalations": [
        {
            "name": "on-call",
            "repeat": "5m",
            "steps": [{"after": "10m", "to": "pager"}, {"after": "30m", "to": "boss"}],
        }
    ],
}

ROUTE = {"name": "all", "to": "pager", "escalation": "on-call"}


def planner(rules: dict[str, Any] | None = None, book: Book | None = None) -> Planner:
    """Return a planner over a book."""
    made = NotificationRules.model_validate(rules or RULES)
    return Planner(book or Book(), made, TOLD)


def sent(made: Planner) -> list[tuple[str, str]]:
    """Return channel and purpose of all that waits, in order, and let the channels have it."""
    waiting = sorted(
        (one for queue in made.book.queues.values() for one in queue.values()),
        key=lambda one: one.number,
    )
    for one in waiting:
        made.book.sent(one)
    return [(one.channel, one.purpose.value) for one in waiting]


def minutes(made: Planner, count: int, *, since: datetime = T0) -> list[tuple[int, str, str]]:
    """Return what is sent in so many minutes: minute, channel and purpose."""
    found = []
    for minute in range(1, count + 1):
        made.do_due(since + minute * MINUTE)
        found += [(minute, *one) for one in sent(made)]
    return found


def test_the_first_route_that_fits_takes_it() -> None:
    """And the others get none of it."""
    made = planner()
    made.take(news(), None, T0)
    made.take(news(2, key="b", owner="search"), None, T0)
    assert sent(made) == [("chat", "news"), ("pager", "news"), ("mail", "news")]


def test_a_record_that_is_read_again_is_not_told_again() -> None:
    """Readers of Kafka see some records twice."""
    made = planner()
    made.take(news(), None, T0)
    again = Planner(Book.read(_stored(made.book)), made.rules, TOLD)
    again.take(news(), None, T0)
    assert sent(made) == sent(again) == [("chat", "news"), ("pager", "news")]


def test_the_same_alert_again_is_one_page() -> None:
    """Something new about the incident is told, the same is not."""
    made = planner()
    made.take(news(), None, T0)
    sent(made)
    made.take(news(2), None, T0)
    assert sent(made) == []
    made.take(news(3, cause="m guesses: a timeout"), None, T0)
    assert sent(made) == [("chat", "news"), ("pager", "news")]


def test_everybody_who_was_told_hears_that_it_is_over() -> None:
    """Also where no route is for news of that severity."""
    made = planner()
    made.take(news(kind="unwatched", key="k"), None, T0)
    sent(made)
    made.take(news(2, kind="unwatched", key="k", severity=Severity.INFO), None, T0)
    assert sent(made) == [("chat", "over"), ("pager", "over")]
    assert made.book.incidents == {}


def test_who_keeps_an_incident_open_knows_it_by_what_opened_it() -> None:
    """An Alertmanager tells alerts apart by their labels, of which severity is one."""
    made = planner()
    made.take(news(kind="unwatched", key="k"), None, T0)
    sent(made)
    made.take(news(2, kind="unwatched", key="k", severity=Severity.INFO), None, T0)
    severities = {
        channel: next(iter(queue.values())).news.severity
        for channel, queue in made.book.queues.items()
        if queue
    }
    assert severities == {"chat": Severity.INFO, "pager": Severity.CRITICAL}


@pytest.mark.parametrize(
    ("kind", "is_over"),
    [
        ("paused", True),
        ("approval_needed", True),
        ("foreign_edit", True),  # nothing else ends it: it has no all-clear
        ("not_actuated", False),
    ],
)
def test_a_rollout_that_goes_on_waits_for_nobody(kind: str, *, is_over: bool) -> None:
    """A chat sees what the rollout did; the pager must be told."""
    made = planner()
    made.take(news(kind=kind), None, T0)
    sent(made)
    made.take(None, step(2), T0)
    assert sent(made) == ([("pager", "over")] if is_over else [])
    assert bool(made.book.incidents) is not is_over


def test_it_is_decided_of_every_alert_what_ends_it() -> None:
    """An alert whose end nobody tells would stay open for two weeks, and call people all night."""
    until_all_clear = {
        AlertKind.NOT_ACTUATED,
        AlertKind.UNWATCHED,
        AlertKind.FLAG_BROKEN,
        AlertKind.SIGNAL,
        # These are told again while they last. Nobody says that they are over.
        AlertKind.EVENT_FAULTS,
    }
    ways = [until_all_clear, _UNTIL_NEXT_STEP, _TOLD_ONCE]
    assert sorted(kind for kinds in ways for kind in kinds) == sorted(AlertKind)


def test_a_decision_of_the_same_moment_ends_nothing() -> None:
    """A roll-back is a decision and an alert of one revision."""
    made = planner()
    made.take(news(5), step(5), T0)
    made.take(None, step(5), T0)
    assert len(made.book.incidents) == 1


def test_an_end_that_was_read_before_its_beginning_counts() -> None:
    """Alerts and decisions are two topics: one may be read far ahead of the other."""
    made = planner()
    made.take(None, step(7), T0)
    made.take(news(5), None, T0)
    assert sent(made) == [("chat", "note"), ("pager", "note")]
    assert made.book.incidents == {}


def test_a_new_rollout_ends_everything_that_was_told_of_the_flag() -> None:
    """Its plane may still not serve it: that is told again."""
    made = planner()
    made.take(news(kind="not_actuated"), None, T0)
    sent(made)
    made.take(None, step(9, is_new_chapter=True, rollout_id="r2"), T0)
    assert sent(made) == [("pager", "over")]


def test_escalation_goes_as_configured() -> None:
    """Repeats every five minutes to all who were told, the next ones after 10 and 30."""
    made = planner(ON_CALL)
    made.take(news(), None, T0)
    assert sent(made) == [("chat", "news")]
    found = minutes(made, 31)
    assert [one for one in found if one[2] == "escalated"] == [
        (10, "pager", "escalated"),
        (30, "boss", "escalated"),
    ]
    assert [minute for minute, channel, _ in found if channel == "chat"] == [5, 10, 15, 20, 25, 30]
    assert [minute for minute, channel, _ in found if channel == "pager"] == [
        10,
        15,
        20,
        25,
        30,
    ]


def test_who_takes_it_ends_the_escalation() -> None:
    """And is told when it is over, with all who heard of it."""
    made = planner(ON_CALL)
    made.take(news(), None, T0)
    minutes(made, 12)
    assert made.acknowledge("checkout", "ada", T0 + 12 * MINUTE) == ["checkout/r1/rolled_back"]
    assert sent(made) == [("chat", "taken"), ("pager", "taken")]
    assert minutes(made, 90, since=T0 + 12 * MINUTE) == []
    made.take(None, step(2), T0)
    assert sent(made) == [("pager", "over")]


def test_what_gets_worse_is_not_what_was_taken() -> None:
    """Whoever took a warning has not seen that it is critical now."""
    made = planner(ON_CALL)
    made.take(news(severity=Severity.WARNING), None, T0)
    made.acknowledge("checkout", "ada", T0)
    sent(made)
    made.take(news(2), None, T0 + MINUTE)
    assert sent(made) == [("chat", "news")]
    assert (11, "pager", "escalated") in minutes(made, 12)


def test_a_warning_is_not_escalated_where_only_the_critical_is() -> None:
    """It is told once."""
    made = planner(ON_CALL)
    made.take(news(severity=Severity.WARNING), None, T0)
    sent(made)
    assert minutes(made, 60) == []


def test_a_mute_keeps_and_then_tells_what_is_not_over() -> None:
    """Maintenance hides the alert, and not that it goes on afterwards."""
    until = T0 + timedelta(minutes=20)
    mute = {"name": "db", "when": {"flags": "checkout"}, "until": until.isoformat()}
    made = planner({**ON_CALL, "mutes": [mute]})
    made.take(news(), None, T0)
    made.take(news(2, kind="unwatched", key="other"), None, T0)
    assert sent(made) == []
    made.take(news(3, kind="unwatched", key="other", severity=Severity.INFO), None, T0)
    found = minutes(made, 31)
    assert found[0] == (20, "chat", "news")
    assert (30, "pager", "escalated") in found
    assert (25, "chat", "repeat") in found


def test_a_channel_that_forgets_hears_it_again() -> None:
    """An Alertmanager ends what it does not hear of; also of what somebody has taken."""
    made = planner({"routes": [{"name": "all", "to": "am"}]})
    made.take(news(), None, T0)
    made.acknowledge("checkout", "ada", T0)
    sent(made)
    found = minutes(made, 6)
    every = int(REFRESH_EVERY / MINUTE)
    assert found == [(minute, "am", "refresh") for minute in range(every, 7, every)]


def test_info_is_told_where_a_route_asks_for_it() -> None:
    """By kind or by severity; a route for warnings gets none."""
    advanced: dict[str, Any] = {"kind": "advanced", "severity": Severity.INFO, "key": "a"}
    for when, expected in (
        ({}, []),
        ({"kinds": "advanced"}, [("chat", "note")]),
        ({"severity": "info"}, [("chat", "note")]),
        ({"kinds": "started"}, []),
    ):
        made = planner({"routes": [{"name": "all", "when": when, "to": "chat"}]})
        made.take(news(**advanced), None, T0)
        assert sent(made) == expected, when
        assert made.book.incidents == {}


def test_go_on_tries_the_routes_below_and_a_channel_hears_once() -> None:
    """Two routes to one channel are one message."""
    routes = [
        {"name": "first", "to": ["chat", "mail"], "go_on": True},
        {"name": "second", "to": ["mail", "pager"]},
        {"name": "third", "to": "boss"},
    ]
    made = planner({"routes": routes})
    made.take(news(), None, T0)
    assert [channel for channel, _ in sent(made)] == ["chat", "mail", "pager"]


def test_what_nobody_hears_of_is_no_incident() -> None:
    """An empty route swallows it."""
    made = planner({"routes": [{"name": "nobody", "to": []}]})
    made.take(news(), None, T0)
    assert sent(made) == []
    assert made.book.incidents == {}


def test_a_channel_that_is_gone_holds_nothing_up() -> None:
    """What waited for it is shown as refused, and nothing is sent there any more."""
    made = planner(ON_CALL)
    made.take(news(), None, T0)
    left = Planner(made.book, made.rules, Told(known=frozenset({"pager"})))
    left.drop_unknown_channels(T0)
    assert [one.why for one in left.book.dead.values()] == [
        "the settings have no such channel any more"
    ]
    assert {channel for _, channel, _ in minutes(left, 31)} == {"pager"}


def test_another_system_takes_only_what_it_was_told() -> None:
    """Its own incident may be called as one of our flags."""
    made = planner()
    made.take(news(), None, T0)
    assert made.acknowledge("checkout", "pagerduty/prod", T0, is_person=False) == []
    (key,) = made.book.incidents
    assert made.acknowledge(key, "pagerduty/prod", T0, is_person=False) == [key]


EVENTS = st.lists(
    st.one_of(
        st.builds(
            lambda number, kind, severity, key: news(
                number, kind=kind, severity=severity, key=key, summary=f"{number}"
            ),
            st.integers(1, 30),
            st.sampled_from(["rolled_back", "paused", "unwatched", "completed", "forced"]),
            st.sampled_from(list(Severity)),
            st.sampled_from(["a", "b"]),
        ),
        st.builds(
            lambda number, new: step(number, is_new_chapter=new), st.integers(1, 30), st.booleans()
        ),
        st.integers(1, 40),
        st.just("acknowledge"),
    ),
    max_size=30,
)


@given(EVENTS)
def test_after_any_course_a_pager_has_open_what_is_open(events: list[Any]) -> None:
    """Whoever keeps incidents open was told of each one, and of the end of each that has ended."""
    made, now = planner(ON_CALL | {"routes": [ROUTE]}), T0
    opened: dict[str, bool] = {}
    for event in events:
        if isinstance(event, News):
            made.take(event, None, now)
        elif event == "acknowledge":
            made.acknowledge("checkout", "ada", now)
        elif isinstance(event, int):
            now += event * MINUTE
            made.do_due(now)
        else:
            made.take(None, event, now)
        for one in list(made.book.waiting("pager")):
            if one.purpose is Purpose.OVER:
                assert opened[one.news.key]
                opened[one.news.key] = False
            elif one.purpose is not Purpose.NOTE:
                opened[one.news.key] = True
            made.book.sent(one)
        assert set(made.book.incidents) == {key for key, is_open in opened.items() if is_open}
        # The book in the store is the book in memory.
        assert _same(Book.read(_stored(made.book)), made.book)


def _stored(book: Book) -> dict[bytes, bytes]:
    """Return the store after all changes so far."""
    kept: dict[bytes, bytes] = getattr(book, "_kept", {})
    kept.update({name.encode(): value for name, value in book.changes().items()})
    book._kept = kept  # type: ignore[attr-defined]
    return kept


def _same(one: Book, other: Book) -> bool:
    parts = ["cursor", "incidents", "threads", "dead", "flags", "channels", "number"]
    parts += ["ended", "mutes"]
    return all(getattr(one, part) == getattr(other, part) for part in parts) and (
        {name: queue for name, queue in one.queues.items() if queue}
        == {name: queue for name, queue in other.queues.items() if queue}
    )


@pytest.mark.parametrize(
    ("route", "escalation"), [("all", "new"), ("new", "new"), ("new", "on-call")]
)
def test_an_escalation_goes_on_under_another_name(route: str, escalation: str) -> None:
    """Who renames it in the file does not mean that nobody is told of what is open."""
    made = planner(ON_CALL)
    made.take(news(), None, T0)
    sent(made)
    made.rules = NotificationRules.model_validate(
        {
            "routes": [{"name": route, "to": "chat", "escalation": escalation}],
            "escalations": [{**ON_CALL["escalations"][0], "name": escalation}],
        }
    )
    assert ("pager", "escalated") in [one[1:] for one in minutes(made, 12)]
    assert made.next_step(made.book.incidents[news().key]) is not None


def test_an_escalation_that_the_file_has_no_more_ends() -> None:
    """Its route is there, and has none."""
    made = planner(ON_CALL)
    made.take(news(), None, T0)
    sent(made)
    made.rules = NotificationRules.model_validate({"routes": [{"name": "all", "to": "chat"}]})
    assert minutes(made, 12) == []
