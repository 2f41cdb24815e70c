"""What `rolloutctl status` says of flag planes, whatever the daemon's address turns out to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Self

import pytest
from typer.testing import CliRunner, Result

from controller.cli import watch
from controller.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_REJECTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
)
from controller.cli.daemon_answers import (
    API,
    READ_TOKEN_VARIABLE,
    ask_daemon,
    ask_planes,
    plane_line,
)
from controller.cli.operator import app
from controller.cli.operator_client import NewestRollouts
from controller.codec.decisions import decision_event, to_judgement_record
from controller.codec.rollouts import rollout_to_json
from controller.core.effects import PublishDecision
from controller.core.judging.quiet import LONGEST
from controller.core.rollout import RolledBack
from controller.errors import EventLogUnavailable
from controller.reporting.situation import NOT_JUDGED_AFTER
from controller.running.report_writer import QUIET_SECONDS
from schemas.api import BASE
from schemas.terms import DecisionKind
from tests.builders import T0, make_judgement, make_rollout
from tests.unit.cli.served_replica import ReplicaHandler, served

#: The header that said who asked, of each request.
ASKED_BY: list[str | None] = []
AWAY = "Redis has it, and it cannot be read"


@pytest.fixture
def answers() -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """An HTTP server's address, and what it will answer next."""
    queue: list[tuple[int, bytes]] = []

    class Handler(ReplicaHandler):
        def get(self) -> None:
            ASKED_BY.append(self.headers.get("authorization"))
            status, body = queue.pop()
            self.answer(body, status)

    with served(Handler) as address:
        yield address, queue


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (
            404,
            b'{"error":"another replica runs this flag"}',
            "answered 404: another replica runs this flag",
        ),
        (404, b'{"error":"Not Found"}', "404: Not Found; next: see whether this is the http.port"),
        (
            200,
            b"<html>",
            "does not answer as rolloutd does; next: see whether this is the http.port",
        ),
        (200, b"[]", "does not answer as rolloutd does"),
        (200, b'{"planes":7}', "does not answer as rolloutd does"),
        (200, b" " * 2_000_000, "longer than"),
    ],
)
def test_what_is_no_answer_is_said_in_words(
    answers: tuple[str, list[tuple[int, bytes]]], status: int, body: bytes, why: str
) -> None:
    """An address that is another service's.

    Or another replica's, costs a line of complaint and nothing else.
    """
    address, queue = answers
    queue.append((status, body))
    planes, said = ask_planes(address, "new-checkout")
    assert planes is None
    assert why in said


def test_a_daemon_that_is_away_is_said_in_words() -> None:
    """No connection and no address are told alike."""
    for address in ("http://127.0.0.1:1", "nonsense"):
        planes, said = ask_planes(address, "new-checkout")
        assert (planes, "cannot be reached" in said, ".;" in said) == (None, True, False)


def test_a_line_per_plane() -> None:
    """A plane that serves what was decided is short.

    One that does not says since when and why, without control characters.
    """
    good = {"plane": "redis", "is_converged": True, "percent": 10.0}
    bad = {
        "plane": "http:x",
        "is_converged": False,
        "reason": "gone\x1b[2J",
        "since": "2026-11-21T03:00:00Z",
    }
    assert plane_line(good).plain == "redis: serves 10 %"
    assert plane_line(bad).plain == "http:x: NOT CONVERGED since 03:00:00 UTC: gone?[2J"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'{"flag":"f","has_rollout":true,"events":"many","classes":7,"remarks":{}}',
        b'{"flag":"f","has_rollout":true,"events":1,"remarks":{},"classes":{"counted":[]}}',
    ],
)
def test_what_is_no_answer_about_events_is_said_in_words(
    answers: tuple[str, list[tuple[int, bytes]]], body: bytes
) -> None:
    """Another service's answer costs a line, and no traceback."""
    address, queue = answers
    queue.append((200, body))
    result = CliRunner().invoke(app, ["events", "f", "--daemon", address])
    assert result.exit_code == 1
    assert "does not answer as rolloutd does" in result.output


def test_a_class_of_a_later_release_is_shown(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """By its name and numbers, with nothing in it that moves a cursor."""
    address, queue = answers
    found = '{"evaluations":1,"outcomes":2,"hint":"do\\u001b[2J","samples":[]}'
    document = '{"flag":"f","has_rollout":true,"events":3,"remarks":{},"classes":{"new_one":%s}}'
    queue.append((200, (document % found).encode()))
    result = CliRunner().invoke(app, ["events", "f", "--daemon", address])
    assert result.exit_code == 0, result.output
    assert "new one" in result.output
    assert "\x1b" not in result.output


def test_status_without_kafka_is_what_the_daemon_knows(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """One flag and all of them: the daemon's answer, and that Kafka did not give it."""
    address, queue = answers
    rollout = make_rollout(phase=RolledBack(T0, "guardrail error_rate: too many"), percent=0.0)
    document = rollout_to_json(rollout)
    published = PublishDecision(DecisionKind.ROLL_BACK, "too many", 10, 0, 0, "rolloutd")
    event = decision_event(published, rollout, "new-checkout/1/1", T0)
    planes = b'{"planes": [{"plane": "ofrep", "percent": 0, "is_converged": true}]}'
    queue += [(200, planes), (200, b'{"decisions": [%b]}' % event), (200, document)]
    flag = status("new-checkout", "--daemon", address)
    assert flag.exit_code == 0
    assert "rolled back" in flag.stdout
    assert "roll back by rolloutd" in flag.stdout
    assert "ofrep: serves 0 %" in flag.stdout
    assert "127.0.0.1:1" in flag.stderr
    assert f"shown is what {address} knows" in flag.stderr
    queue.append((200, b'{"rollouts": [%b]}' % document))
    old = status("--daemon", address)
    assert old.exit_code == 0
    assert "1 rollout that ended more than 7 days ago not shown; `status --all` does" in old.stderr
    queue.append((200, b'{"rollouts": [%b]}' % document))
    fleet = status("--all", "--daemon", address)
    assert fleet.exit_code == 0
    assert "new-checkout" in fleet.stdout
    queue.append((200, b'{"decisions": [%b]}' % event))
    told = without_kafka("decisions", "new-checkout", "--daemon", address)
    assert told.exit_code == 0
    assert "too many" in told.stdout
    assert f"shown is what {address} knows" in told.stderr
    queue.append((200, b'{"rollouts": [%b, {"flag": "other"}, 7]}' % document))
    (line,) = status("--daemon", address, "--json").stdout.splitlines()
    assert json.loads(line)["state"]["flag"] == "new-checkout"


def test_explain_without_kafka_tells_what_the_daemon_knows(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """In an outage people ask why, too."""
    address, queue = answers
    rollout = make_rollout(phase=RolledBack(T0, "guardrail error_rate: too many"), percent=0.0)
    published = PublishDecision(DecisionKind.ROLL_BACK, "too many", 10, 0, 0, "rolloutd")
    event = decision_event(published, rollout, "new-checkout/1/1", T0)
    queue += [(200, b'{"decisions": [%b]}' % event), (200, rollout_to_json(rollout))]
    told = without_kafka("explain", "new-checkout", "--no-model", "--daemon", address)
    assert told.exit_code == 0, told.output
    assert "roll back  10 -> 0 %     too many" in told.stdout
    assert f"shown is what {address} knows" in told.stderr


def test_watch_waits_for_kafka_where_a_daemon_says_how_the_rollout_stands(
    answers: tuple[str, list[tuple[int, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; and it goes on as soon as Kafka answers. Without a daemon it ends as before."""
    address, queue = answers
    tries: list[str | None] = []

    async def follow(_kafka: object, flag: str | None, *_: object, **_named: object) -> None:
        tries.append(flag)
        if len(tries) == 3:
            raise KeyboardInterrupt
        raise EventLogUnavailable("Kafka at 127.0.0.1:1: no broker answers")

    monkeypatch.setattr(watch, "_follow", follow)
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.01)
    queue += [(200, b'{"decisions": []}'), (200, rollout_to_json(make_rollout()))]
    told = without_kafka("watch", "new-checkout", "--daemon", address)
    assert (told.exit_code, tries) == (EXIT_INTERRUPTED, ["new-checkout"] * 3)
    assert told.stdout.count("now       new-checkout  baking") == 1
    assert told.stderr.count("waiting for Kafka; Ctrl-C ends") == 1
    tries.clear()
    assert without_kafka("watch", "new-checkout").exit_code == EXIT_UNREACHABLE
    assert len(tries) == 1


def test_news_of_all_flags_without_kafka_say_that_one_flag_can_be_asked_for(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """Not that a daemon could be named: it was."""
    address, _ = answers
    for command in ("alerts", "commands"):
        told = without_kafka(command, "--daemon", address)
        assert told.exit_code == EXIT_UNREACHABLE
        assert f"name a flag, and {address} is asked" in told.stderr


def test_status_of_all_says_that_the_daemon_is_silent(
    answers: tuple[str, list[tuple[int, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka keeps what was decided last, also when nobody decides any more."""
    rollout = make_rollout()
    document = json.loads(rollout_to_json(rollout))

    class Kafka:
        """Answers, although no daemon does."""

        def __init__(self, *_: object) -> None: ...

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    async def read(_: object) -> NewestRollouts:
        return NewestRollouts({rollout.flag_key: rollout}, {rollout.flag_key: document})

    monkeypatch.setattr("controller.cli.status.KafkaReader", Kafka)

    async def none_of(*_: object) -> list[dict[str, object]]:
        return []

    monkeypatch.setattr("controller.cli.status.read_rollouts", read)
    monkeypatch.setattr("controller.cli.status.newest_events", none_of)
    dead = status("--daemon", "http://127.0.0.1:1")
    assert (dead.exit_code, "new-checkout" in dead.stdout) == (0, True)
    assert "http://127.0.0.1:1 cannot be reached" in dead.stderr
    address, queue = answers
    queue.append((200, b'{"rollouts": []}'))
    assert "cannot be reached" not in status("--daemon", address).stderr


@pytest.mark.parametrize(("has_rollout", "code"), [(True, 0), (False, 1)])
def test_events_of_a_flag_without_a_rollout_exit_as_they_do_without_a_daemon(
    answers: tuple[str, list[tuple[int, bytes]]], has_rollout: bool, code: int
) -> None:
    """What was counted is shown either way."""
    address, queue = answers
    known = {"flag": "f", "has_rollout": has_rollout, "events": 0, "classes": {}, "remarks": {}}
    queue.append((200, json.dumps(known).encode()))
    result = CliRunner().invoke(app, ["events", "f", "--daemon", address])
    assert result.exit_code == code, result.output


@pytest.mark.parametrize(
    ("status_code", "body", "why"),
    [
        (404, b'{"error": "no rollout has this flag key"}', "no rollout has this flag key"),
        (200, b'{"flag": 7}', "does not answer as rolloutd does"),
        (200, b"<html>", "does not answer as rolloutd does"),
    ],
)
def test_without_kafka_and_without_an_answer_both_are_told(
    answers: tuple[str, list[tuple[int, bytes]]], status_code: int, body: bytes, why: str
) -> None:
    """The exit code is that of Kafka out of reach."""
    address, queue = answers
    queue.append((status_code, body))
    result = status("new-checkout", "--daemon", address)
    assert result.exit_code == EXIT_UNREACHABLE
    assert "127.0.0.1:1" in result.stderr
    assert why in result.stderr
    queue.append((status_code, body))
    told = without_kafka("alerts", "new-checkout", "--daemon", address)
    assert told.exit_code == EXIT_UNREACHABLE
    assert why in told.stderr
    for alone in (status("new-checkout"), without_kafka("alerts")):
        assert alone.exit_code == EXIT_UNREACHABLE
        assert "ROLLOUTCTL_DAEMON" in alone.stderr


def test_the_tree_is_what_the_daemon_knows_without_a_word_from_kafka(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """`get` asks the daemon first; what is not at hand stands at the tree's end."""
    address, queue = answers
    document = rollout_to_json(make_rollout(phase=RolledBack(T0, "too many"), percent=0.0))
    planes = b'{"planes": [{"plane": "ofrep", "percent": 0, "is_converged": true}]}'
    queue += [(200, planes), (200, b'{"decisions": []}'), (200, document)]
    tree = without_kafka("get", "new-checkout", "--daemon", address)
    assert tree.exit_code == 0
    assert tree.stderr == ""
    assert "Rolled back: too many; 0 % is served." in tree.stdout
    assert "ofrep" in tree.stdout
    queue += [(503, b'{"error": "not now"}'), (200, b'{"decisions": []}'), (200, document)]
    tree = without_kafka("get", "new-checkout", "--daemon", address)
    assert " ".join(tree.stdout.split()).endswith(
        f"└─ flag planes: {address} answered 503: not now"
    )


def test_the_tree_says_which_part_an_outage_of_redis_hides(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """Decisions that cannot be read, and evidence that is old, are named at the tree's end."""
    address, queue = answers
    away = (503, b'{"error": "Redis has it, and it cannot be read"}')
    planes = (200, b'{"planes": [{"plane": "ofrep", "percent": 0, "is_converged": true}]}')
    ended = rollout_to_json(make_rollout(phase=RolledBack(T0, "too many"), percent=0.0))
    queue += [planes, away, (200, ended)]
    tree = without_kafka("get", "new-checkout", "--daemon", address)
    words = " ".join(tree.stdout.split())
    assert words.endswith(f"└─ last decisions: {address} answered 503: {AWAY}"), words
    queue += [planes, away, (200, ended)]
    assert (
        f"last decisions: {address} answered 503"
        in status("new-checkout", "--daemon", address).stderr
    )
    old = to_judgement_record(make_judgement()).model_dump_json().encode()
    running = rollout_to_json(make_rollout())
    since = b'{"why":"10 % is served","action":"restore Redis","since":"2026-01-05T09:00:00Z"}'
    view = b'{"summary":{"flag":"new-checkout","unwatched":%b}}' % since
    queue += [planes, (200, old), (200, view), (200, b'{"decisions": []}'), (200, running)]
    tree = without_kafka("get", "new-checkout", "--daemon", address)
    words = " ".join(tree.stdout.split())
    assert "└─ newest evidence: nothing was judged for" in words
    assert "Unwatched since 2026-01-05 09:00 UTC" in words
    assert "To fix it: restore Redis." in words


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "http://x:no", "nonsense"])
@pytest.mark.parametrize("command", ["get", "status", "open", "decisions", "events"])
def test_what_is_no_address_of_a_daemon_is_a_usage_error(command: str, url: str) -> None:
    """It says what to write; nobody is asked."""
    result = without_kafka(command, "new-checkout", "--daemon", url)
    assert result.exit_code == EXIT_USAGE, result.output
    assert "write it as in http://127.0.0.1:8080" in result.stderr


def test_a_tree_that_nobody_can_give_is_told_with_both_reasons(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """The daemon's answer is no rollout, and Kafka is away."""
    address, queue = answers
    queue.append((200, b"<html>"))
    result = without_kafka("get", "new-checkout", "--daemon", address)
    assert result.exit_code == EXIT_UNREACHABLE
    assert "does not answer as rolloutd does" in result.stderr
    assert "127.0.0.1:1" in result.stderr


def test_open_prints_the_address_of_a_page_that_is_there(
    answers: tuple[str, list[tuple[int, bytes]]],
) -> None:
    """And opens nothing for an address that answers otherwise, or for no address."""
    address, queue = answers
    queue.append((200, b"{}"))
    result = without_kafka("open", "new-checkout", "--print", "--daemon", f"{address}/")
    assert (result.exit_code, result.stdout) == (0, f"{address}/ui/rollouts/new-checkout\n")
    missing = (404, b'{"error": "no rollout has this flag key"}')
    known = b'{"rollouts": [%b]}' % rollout_to_json(make_rollout())
    queue += [(200, known), missing]
    result = without_kafka("open", "other", "--print", "--daemon", address)
    assert (result.exit_code, result.stdout) == (EXIT_REJECTED, "")
    assert "other has no rollout; there are: new-checkout" in result.stderr
    queue += [(404, b"<html>"), missing]
    result = without_kafka("open", "other", "--print", "--daemon", address)
    assert (result.exit_code, result.stdout) == (EXIT_UNREACHABLE, "")
    result = without_kafka("open", "--print")
    assert result.exit_code == EXIT_USAGE
    assert "ROLLOUTCTL_DAEMON" in result.stderr


def test_a_token_for_reading_is_sent_and_a_wrong_file_is_told(
    answers: tuple[str, list[tuple[int, bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `http.readers` is closed, `rolloutctl` says who asks; without a file, nobody."""
    address, queue = answers
    queue += [(200, b"{}"), (200, b"{}")]
    assert ask_daemon(address, "/x") == ({}, "")
    file = tmp_path / "token"
    file.write_text("secret-token\n")
    monkeypatch.setenv(READ_TOKEN_VARIABLE, str(file))
    assert ask_daemon(address, "/x") == ({}, "")
    assert ASKED_BY[-2:] == [None, "Bearer secret-token"]
    asked = len(ASKED_BY)
    for text in ("", "two tokens", "s\u00e9cret"):
        file.write_text(text)
        document, why = ask_daemon(address, "/x")
        assert document is None
        assert READ_TOKEN_VARIABLE in why
    assert len(ASKED_BY) == asked


def status(*arguments: str) -> Result:
    """Return what `rolloutctl status` does where nothing listens at Kafka's address."""
    return without_kafka("status", *arguments)


def without_kafka(*arguments: str) -> Result:
    """Return what `rolloutctl` does where nothing listens at Kafka's address."""
    environ = {"ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "ROLLOUTD_CONFIG": None}
    return CliRunner().invoke(app, [*arguments], env=environ)


def test_the_address_of_the_api_is_that_of_its_contract() -> None:
    """It is written twice, because the contract is slow to import."""
    assert API == BASE


def test_evidence_is_old_where_a_quiet_rollout_should_have_been_judged_and_reported_again() -> None:
    """Not before that: a quiet rollout is judged and reported seldom."""
    assert LONGEST + timedelta(seconds=QUIET_SECONDS) < NOT_JUDGED_AFTER
