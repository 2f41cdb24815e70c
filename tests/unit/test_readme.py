"""What the README shows works when it is copied."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from controller.plans import lint_text
from schemas.wire import decode_evaluation, decode_outcome

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NOW_MS = round(datetime(2026, 11, 21, 3, 0, 5, tzinfo=UTC).timestamp() * 1000)


def shown_events() -> dict[str, tuple[bytes, bytes]]:
    """Return topic -> (key, value) of the records that the README pipes into kcat at `NOW_MS`."""
    commands = re.findall(
        r"echo '(.*?)' \| tr -d '\\n' \|\n\s+kcat -P \S+ \S+ -t (\S+)", README, re.DOTALL
    )
    events = {}
    for text, topic in commands:
        dated = text.replace("'$(date -u +%FT%TZ)'", "2026-11-21T03:00:04Z")
        key, value = dated.replace("\n", "").split(":", 1)
        events[topic] = (key.encode(), value.encode())
    return events


def test_the_plan_can_be_started() -> None:
    """The README's plan passes `plan lint` without a finding."""
    plan = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert plan is not None
    document, findings = lint_text(plan[1], datetime(2026, 11, 21, tzinfo=UTC))
    assert document is not None
    assert [str(finding) for finding in findings if finding.is_error] == []


def test_the_plan_with_audiences_can_be_started() -> None:
    """So does the one that shows all of audiences and values."""
    plan = re.search(r"```yaml\n(.*?)```", (ROOT / "ops" / "audiences.md").read_text(), re.DOTALL)
    assert plan is not None
    document, findings = lint_text(plan[1], datetime(2026, 11, 21, tzinfo=UTC))
    assert document is not None
    assert findings == []


def test_the_events_are_counted() -> None:
    """The README's evaluation and outcome are accepted as they stand."""
    events = shown_events()
    assert set(events) == {"flag.evaluations", "request.outcomes"}
    key, value = events["flag.evaluations"]
    evaluation = decode_evaluation(value, key, NOW_MS, ())
    assert (evaluation.context_id, evaluation.flag_key, evaluation.variant) == (
        "user-42",
        "new-checkout",
        "on",
    )
    key, value = events["request.outcomes"]
    outcome = decode_outcome(value, key, NOW_MS, ())
    assert outcome.is_error
    assert list(outcome.flags) == [("new-checkout", "on")]


def test_a_lost_redis_has_one_answer() -> None:
    """README, `ops/running.md` and `ops/alerts.md` all name the one case that needs a check."""
    (row,) = re.findall(r"^\| Redis is lost.*$", README, re.MULTILINE)
    assert "nothing" not in row
    assert "running.md#recover-from-a-lost-redis" in row
    for page in ("running.md", "alerts.md"):
        text = " ".join((ROOT / "ops" / page).read_text().split())
        assert "unless Kafka was away when Redis was lost" in text, page
