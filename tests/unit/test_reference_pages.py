"""The reference pages are true: every field, setting, metric, path and command is in them.

`ROLLOUTD_REWRITE=1 pytest tests/unit/test_reference_pages.py` writes them again from the code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from controller.settings import TopicNames
from schemas.topics import TOPIC_POLICIES
from tests.cli_reference import cli_sections
from tests.reference_pages import (
    ROOT,
    api_sections,
    metric_sections,
    plan_sections,
    setting_sections,
    with_fields,
)

PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "ops/plan.md": plan_sections,
    "ops/settings.md": setting_sections,
    "ops/metrics.md": metric_sections,
    "ops/http-api.md": api_sections,
    "ops/cli.md": cli_sections,
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_says_what_the_models_say(name: str) -> None:
    """What follows the marker is made from the models; what precedes it is written by people."""
    path = ROOT / name
    page = path.read_text(encoding="utf-8")
    expected = with_fields(page, PAGES[name]())
    if os.environ.get("ROLLOUTD_REWRITE") == "1":
        path.write_text(expected, encoding="utf-8")
    else:
        assert page == expected, "ROLLOUTD_REWRITE=1 pytest tests/unit/test_reference_pages.py"


@pytest.mark.parametrize("name", PAGES)
def test_every_entry_has_a_meaning(name: str) -> None:
    """No field, setting or metric is listed without words that explain it."""
    entries = [
        " ".join(one.split("\n\n")[0].split())
        for one in "\n\n".join(PAGES[name]()).split("\n- ")[1:]
    ]
    assert len(entries) > 20
    # An argument without a text of its own has only what its parser knows.
    silent = [
        one
        for one in entries
        if len(one.rpartition("): ")[2]) < 10 or one.endswith("`: [required]")
    ]
    assert silent == []
    # A list of texts was shown as a choice of one.
    assert [one for one in entries if "One of `str`" in one] == []


def test_the_table_of_topics_has_each_retention() -> None:
    """`ops/running.md` says how long each topic keeps its records, as rolloutd creates it."""
    page = (ROOT / "ops" / "running.md").read_text(encoding="utf-8")
    kept = {
        name: row.split("|")[2].strip()
        for row in page.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([a-z]+\.[a-z]+)`", row.split("|")[1])
        if "day" in row or "year" in row or "compacted" in row
    }
    names = TopicNames()
    for logical, policy in TOPIC_POLICIES.items():
        words = kept[getattr(names, logical)]
        if policy.retention_ms is None:
            assert "compacted" in words, logical
        else:
            number, unit = words.split()
            days = int(number) * (366 if unit == "years" else 1)
            assert days * 86_400_000 == policy.retention_ms, logical
