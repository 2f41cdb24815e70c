"""What channels hear of an alert: of one flag, or of no flag at all."""

from __future__ import annotations

import json

from controller.codec.outbox import outbox_entry
from controller.core.effects import RaiseAlert
from controller.notifying.book import Delivery, Purpose
from controller.notifying.news import News, read_event
from controller.notifying.rules import parse_notification_rules
from controller.notifying.words import Message, headline, plain_message
from schemas.terms import AlertKind, Severity
from tests.builders import T0, make_plan, make_rollout

RULES = parse_notification_rules(
    """
routes:
  - {name: payments, when: {owners: payments, severity: info}, to: team}
  - {name: checkout, when: {flags: "new-*", severity: info}, to: team}
  - {name: weekly, when: {kinds: flag_digest}, to: tidy}
""",
    "rules.yaml",
    None,
)


def told(kind: AlertKind) -> News:
    """Return an alert of a flag of the payments, as it is published and read again."""
    rollout = make_rollout(plan=make_plan(owner="payments"))
    alert = RaiseAlert(kind, Severity.INFO, "2 flags to tidy up", "look", "key")
    entry = outbox_entry(alert, rollout.flag_key, rollout, "effect", T0)
    news, _ = read_event(json.loads(entry.value), lambda _: "payments")
    assert news is not None
    return news


def message(news: News) -> Message:
    """Return what a channel shows."""
    delivery = Delivery(1, "tidy", news, Purpose.NOTE, T0)
    return plain_message(delivery, "production", "https://rollouts.example.com")


def test_a_digest_is_about_no_flag() -> None:
    """Its record has a flag, as all have: whose owner would hear of the flags of all others."""
    digest, retired = told(AlertKind.FLAG_DIGEST), told(AlertKind.RETIRED)
    assert [route.name for route in RULES.routes_for(digest, T0)] == ["weekly"]
    assert [route.name for route in RULES.routes_for(retired, T0)] == ["payments"]
    shown, other = message(digest), message(retired)
    assert shown.link.endswith("/ui/flags")
    assert other.link.endswith("/ui/rollouts/new-checkout")
    assert [name for name, _ in shown.facts] == ["Environment", "At"]
    assert headline(shown) == "2 flags to tidy up"
    assert headline(other) == "new-checkout: 10 %, baking"
    assert digest.rollout_id != retired.rollout_id, "it has a conversation of its own"
