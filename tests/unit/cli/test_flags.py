"""`rolloutctl flags`: what any replica knows of how flags are used, beside the rollouts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console
from typer.testing import CliRunner

from controller.cli import sending
from controller.cli.daemon_answers import ask_flags
from controller.cli.flags import flag_table
from controller.cli.operator import app
from controller.cli.operator_client import NewestRollouts
from controller.ports import FlagUse, FlagUses, LastDecision, Lift
from controller.reporting.inventory import inventory
from controller.settings.flags import FlagsSettings
from schemas.api import MOST_OF_A_PAGE
from schemas.inventory import FlagList, UnknownFlag
from schemas.terms import DecisionKind
from tests.builders import T0, make_rollout
from tests.unit.cli.served_replica import ReplicaHandler, served

FLAGS = [f"flag-{number}" for number in range(MOST_OF_A_PAGE + 2)]
DECISION, LIFT = LastDecision(DecisionKind.COMPLETE, T0), Lift("paid", 0.04, None, 0.5, T0)
USE = FlagUse(7, 2, 1, T0, T0, DECISION, (LIFT,))
ROLLOUTS = [make_rollout(flag_key=flag_key) for flag_key in FLAGS]
RULES = FlagsSettings()
#: By these rules a replica finds what no default rule does.
STRICT = FlagsSettings(name_pattern="pay-.*")


class Replica(ReplicaHandler):
    """A replica that knows how all flags but the last are used."""

    def get(self) -> None:
        """Answer one page of the list."""
        query = parse_qs(urlsplit(self.path).query)
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        uses = FlagUses(dict.fromkeys(FLAGS[:-1], USE))
        lines = [one.line() for one in inventory(ROLLOUTS, T0, STRICT, uses)]
        page = FlagList(
            flags=lines[offset : offset + limit],
            total=len(lines),
            offset=offset,
            counts={},
            without_rollout=[UnknownFlag(flag="typo", events=1200)],
            at=T0,
        )
        self.answer(page.model_dump_json().encode())


@pytest.fixture
def daemon() -> Iterator[str]:
    """The address of a replica."""
    with served(Replica) as address:
        yield address


def test_every_page_of_a_daemons_list_is_read(daemon: str) -> None:
    """A flag of which nothing is known is left out."""
    known, why = ask_flags(daemon)
    assert known is not None, why
    uses = known.uses
    assert uses.by_flag == dict.fromkeys(FLAGS[:-1], USE)
    assert uses.unknown == {"typo": 1200}


def test_without_an_answer_there_is_a_reason() -> None:
    """The table is there without it."""
    known, why = ask_flags("http://127.0.0.1:1")
    assert known is None
    assert "cannot be reached" in why


@pytest.fixture
def in_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two flags in Kafka, and no settings."""

    async def newest(_: object) -> NewestRollouts:
        now = datetime.now(UTC)
        return NewestRollouts({one.flag_key: replace(one, updated_at=now) for one in ROLLOUTS[:2]})

    monkeypatch.setattr(sending, "all_rollouts", newest)
    monkeypatch.delenv("ROLLOUTD_CONFIG", raising=False)


@pytest.mark.usefixtures("in_kafka")
def test_a_daemon_says_what_it_found_by_its_own_rules(daemon: str) -> None:
    """As its page does, whatever the rules at hand are."""
    result = CliRunner().invoke(app, ["flags", "--stale", "--json", "--daemon", daemon])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["flag"], one["findings"][0]["finding"]) for one in lines] == [
        ("flag-0", "name"),
        ("flag-1", "name"),
    ]
    table = CliRunner().invoke(app, ["flags", "--stale", "--daemon", daemon])
    assert f"what to tidy up was found by the rules of {daemon}" in table.stderr


@pytest.mark.usefixtures("in_kafka")
def test_it_is_said_by_which_rules_there_is_nothing_to_tidy(tmp_path: Path) -> None:
    """A daemon's may find more."""
    config = tmp_path / "cfg.yaml"
    config.write_text("flags: {stale_after_days: 90}\n")
    plain = CliRunner().invoke(app, ["flags", "--stale"])
    assert "no flag to tidy up by the default rules; --daemon URL" in plain.stderr
    named = CliRunner().invoke(app, ["flags", "--stale", "--config", str(config)])
    assert f"no flag to tidy up by {config}" in named.stderr
    away = CliRunner().invoke(app, ["flags", "--stale", "--daemon", "http://127.0.0.1:1"])
    assert "no flag to tidy up by the default rules" in away.stderr


def table(uses: FlagUses) -> str:
    """Return the table of two flags as a wide terminal shows it."""
    shown = inventory(ROLLOUTS[:2], T0, RULES, uses)
    console = Console(file=io.StringIO(), width=120)
    console.print(flag_table(shown, has_uses=bool(uses.by_flag), unknown=uses.unknown))
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_the_table_has_a_column_for_what_is_known() -> None:
    """And none without a daemon."""
    words = table(FlagUses({FLAGS[0]: USE}))
    assert "IN 24 H" in words
    assert "7 treatment" in words
    assert "+4 %" in words
    assert "complete" in words
    assert "IN 24 H" not in table(FlagUses())
    assert "typo" not in words
    assert "rolloutctl events typo" in table(FlagUses({FLAGS[0]: USE}, {"typo": 1200}))
