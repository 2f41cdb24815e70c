"""`rolloutctl flags`: what any replica knows of how flags are used, beside the rollouts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from controller.cli.daemon_answers import ask_flag_uses
from controller.cli.flags import flag_table
from controller.ports import FlagUse, FlagUses, LastDecision, Lift
from controller.reporting.inventory import inventory
from controller.settings.flags import FlagsSettings
from schemas.api import MOST_OF_A_PAGE
from schemas.inventory import FlagList, UnknownFlag
from schemas.terms import DecisionKind
from tests.builders import T0, make_rollout

FLAGS = [f"flag-{number}" for number in range(MOST_OF_A_PAGE + 2)]
DECISION, LIFT = LastDecision(DecisionKind.COMPLETE, T0), Lift("paid", 0.04, None, 0.5, T0)
USE = FlagUse(7, 2, 1, T0, T0, DECISION, (LIFT,))
ROLLOUTS = [make_rollout(flag_key=flag_key) for flag_key in FLAGS]
RULES = FlagsSettings()


class Replica(BaseHTTPRequestHandler):
    """A replica that knows how all flags but the last are used."""

    def do_GET(self) -> None:
        """Answer one page of the list."""
        query = parse_qs(urlsplit(self.path).query)
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        uses = FlagUses(dict.fromkeys(FLAGS[:-1], USE))
        lines = [one.line() for one in inventory(ROLLOUTS, T0, RULES, uses)]
        page = FlagList(
            flags=lines[offset : offset + limit],
            total=len(lines),
            offset=offset,
            counts={},
            without_rollout=[UnknownFlag(flag="typo", events=1200)],
            at=T0,
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(page.model_dump_json().encode())

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def daemon() -> Iterator[str]:
    """The address of a replica."""
    server = HTTPServer(("127.0.0.1", 0), Replica)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_page_of_a_daemons_list_is_read(daemon: str) -> None:
    """A flag of which nothing is known is left out."""
    uses, why = ask_flag_uses(daemon)
    assert uses is not None, why
    assert uses.by_flag == dict.fromkeys(FLAGS[:-1], USE)
    assert uses.unknown == {"typo": 1200}


def test_without_an_answer_there_is_a_reason() -> None:
    """The table is there without it."""
    uses, why = ask_flag_uses("http://127.0.0.1:1")
    assert uses is None
    assert "cannot be reached" in why


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
