"""What ops/checks.md shows works: every file in it is read."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

from controller.checking.checks_file import parse_checks
from controller.settings.signal_rules import parse_rules
from schemas.terms import MeasurementGap

PAGE = (Path(__file__).parents[3] / "ops" / "checks.md").read_text()


def test_the_files_of_the_page_are_read() -> None:
    """Checks, and the rules that go with them."""
    blocks = [dedent(one) for one in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    checks = [one for one in blocks if re.search(r"^checks:\n *- ", one, re.MULTILINE)]
    rules = [one for one in blocks if re.search(r"^rules:", one, re.MULTILINE)]
    assert len(checks) == len(rules) == 2
    assert [len(parse_checks(one, "ops/checks.md").checks) for one in checks] == [2, 1]
    assert [len(parse_rules(one, "ops/checks.md").rules) for one in rules] == [1, 1]


def test_every_gap_is_named() -> None:
    """But for maintenance, which is no fault."""
    told = set(MeasurementGap) - {MeasurementGap.PAUSED}
    assert all(f"`{one.value}`" in PAGE for one in told)
