"""What ops/notifications.md shows works: every rules file in it is read, every kind is named."""

from __future__ import annotations

import re
from pathlib import Path

from controller.notifying.news import DECISIONS
from controller.notifying.rules import parse_notification_rules
from controller.notifying.templates import EXAMPLE
from schemas.terms import AlertKind

PAGE = (Path(__file__).parents[3] / "ops" / "notifications.md").read_text()
CHANNELS = ("team-slack", "mail", "pager", "second-pager", "boss-mail")


def test_the_rules_of_the_page_are_read() -> None:
    """With the channels that it names."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    rules = [one for one in blocks if "routes:" in one or "templates:" in one]
    assert len(rules) == 2
    for one in rules:
        parse_notification_rules(one, "ops/notifications.md", CHANNELS)


def test_every_kind_and_every_word_of_a_template_is_named() -> None:
    """Alerts have a page of their own."""
    alerts = (Path(__file__).parents[3] / "ops" / "alerts.md").read_text()
    assert all(f"`{kind}`" in PAGE for kind in DECISIONS.values())
    assert all(f"`{kind.value}`" in alerts for kind in AlertKind)
    assert all(f"`{name}`" in PAGE for name in EXAMPLE)
