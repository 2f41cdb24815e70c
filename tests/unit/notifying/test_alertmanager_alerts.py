"""What Alertmanager, which knows an alert by its labels, has of an incident that changes."""

from __future__ import annotations

from controller.notifying.book import Purpose
from controller.notifying.planner import Planner
from schemas.terms import Severity
from tests.builders import MINUTE, T0
from tests.unit.notifying.news_of import news
from tests.unit.notifying.test_planner import planner, sent

ALL = {"routes": [{"name": "all", "to": ["am", "chat", "pager"]}]}


def hear(made: Planner, firing: set[Severity]) -> None:
    """Change the alerts that fire by what waits for Alertmanager."""
    for one in made.book.waiting("am"):
        if one.purpose is Purpose.OVER:
            firing.discard(one.news.severity)
        else:
            firing.add(one.news.severity)


def test_it_keeps_no_alert_of_another_severity() -> None:
    """The lesser one would go on beside the worse one, and be refreshed by nobody."""
    made, firing = planner(ALL), set[Severity]()
    made.take(news(1, kind="not_actuated", severity=Severity.WARNING), None, T0)
    hear(made, firing)
    sent(made)
    made.take(news(2, kind="not_actuated", summary="worse"), None, T0 + MINUTE)
    hear(made, firing)
    assert firing == {Severity.CRITICAL}
    # Who shows an incident by its key hears of no end of it.
    assert sent(made) == [("am", "over"), ("am", "news"), ("chat", "news"), ("pager", "news")]
    made.take(news(3, kind="not_actuated", severity=Severity.INFO), None, T0 + 2 * MINUTE)
    hear(made, firing)
    assert firing == set()


def test_it_goes_on_with_an_alert_whose_labels_stay() -> None:
    """A new summary is an annotation."""
    made = planner(ALL)
    made.take(news(1), None, T0)
    sent(made)
    made.take(news(2, summary="worse"), None, T0 + MINUTE)
    assert ("am", "over") not in sent(made)
