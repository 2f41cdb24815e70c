"""What alerts tell later of a rollout that nobody sees."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from controller.codec.outbox import outbox_entry
from controller.core.effects import RaiseAlert
from controller.core.rollout import RolledBack, Rollout
from controller.reporting.headline import Tone, brief, headline
from controller.reporting.situation import Situation
from controller.reporting.unwatched import Unwatched, open_unwatched, unwatched_words
from controller.reporting.views import rollout_view
from schemas.alert import Alert
from schemas.terms import AlertKind, Severity
from tests.builders import T0, make_rollout

WHY = "its totals have not been read for 9 s"


def told(minutes: int, severity: Severity, rollout: Rollout | None = None) -> Alert:
    """Return an alert so many minutes after `T0`, as it is published."""
    about = make_rollout() if rollout is None else rollout
    kind = AlertKind.UNWATCHED
    summary = f"{about.flag_key}: {unwatched_words(about, WHY)}"
    alert = RaiseAlert(kind, severity, summary, "restore Redis", f"{about.rollout_id}/{kind}")
    at = T0 + timedelta(minutes=minutes)
    entry = outbox_entry(alert, about.flag_key, about, f"e{minutes}", at)
    return Alert.model_validate_json(entry.value[entry.value.index(b'"data":') + 7 : -1])


CRITICAL, INFO = Severity.CRITICAL, Severity.INFO


@pytest.mark.parametrize(
    ("severities", "since"),
    [
        ([], None),
        ([CRITICAL], 0),
        ([CRITICAL, CRITICAL], 0),
        ([CRITICAL, INFO], None),
        ([CRITICAL, INFO, CRITICAL, CRITICAL], 2),
        ([INFO], None),
    ],
)
def test_an_alert_is_open_until_its_all_clear(
    severities: list[Severity], since: int | None
) -> None:
    """And since its first record, however often it was repeated."""
    alerts = [told(minutes, severity) for minutes, severity in enumerate(severities)]
    found = open_unwatched(make_rollout(), alerts)
    if since is None:
        assert found is None
        return
    at = T0 + timedelta(minutes=since)
    why = f"10 % is served and nobody sees what it does: {WHY}"
    assert found == Unwatched(why, "restore Redis", at)


def test_it_is_told_of_the_rollout_that_it_was_about_and_that_still_runs() -> None:
    """Another rollout of the flag is watched until an alert says otherwise."""
    alerts = [told(0, CRITICAL)]
    assert open_unwatched(replace(make_rollout(), rollout_id="start-2"), alerts) is None
    ended = replace(make_rollout(), phase=RolledBack(T0, "harm"), percent=0.0)
    assert open_unwatched(ended, alerts) is None


def test_it_comes_first_in_every_summary() -> None:
    """Before how much evidence there is, which is old by then."""
    rollout, now = make_rollout(), T0 + timedelta(minutes=3)
    unwatched = open_unwatched(rollout, [told(0, CRITICAL)])
    situation = Situation(rollout, (), now, unwatched=unwatched)
    head = headline(situation)
    assert head.tone is Tone.UNKNOWN
    assert head.now.startswith("Unwatched since 09:00:00 UTC (3m ago): 10 % is served and nobody")
    assert "To fix it: restore Redis." in head.now
    assert brief(situation) == f"unwatched: 10 % is served and nobody sees what it does: {WHY}"
    shown = rollout_view(rollout, now, None, unwatched=unwatched).summary.unwatched
    assert shown is not None
    assert (shown.action, shown.since) == ("restore Redis", T0)
