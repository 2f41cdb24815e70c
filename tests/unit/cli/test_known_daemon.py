"""What `rolloutctl rollback` says where Kafka is away and nothing was prepared for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.emergency import DAEMON_VARIABLE, TOKEN_VARIABLE, _advised, known_daemon
from schemas.terms import CommandVerb
from tests.unit.cli.test_sending import sent


@pytest.mark.parametrize("known", [DAEMON_VARIABLE, TOKEN_VARIABLE, None])
def test_everything_that_is_missing_is_said_at_once(
    known: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what the daemon needs: three tries in an emergency are two too many."""
    for name in (DAEMON_VARIABLE, TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
        if name == known:
            monkeypatch.setenv(name, "http://127.0.0.1:8080")
    daemon, missing = known_daemon()
    assert daemon is None
    for name in (DAEMON_VARIABLE, TOKEN_VARIABLE):
        assert (name in missing) == (name != known)
    assert "http.command_token_file" in missing
    assert "at its start" in missing


@pytest.mark.parametrize("has_file", [True, False])
def test_a_token_that_cannot_be_read_is_a_thing_to_do(
    has_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands after `next:` is one sentence that says what to do."""
    path = tmp_path / "token"
    if has_file:
        path.touch()
    monkeypatch.setenv(DAEMON_VARIABLE, "http://127.0.0.1:8080")
    monkeypatch.setenv(TOKEN_VARIABLE, str(path))
    daemon, missing = known_daemon()
    assert daemon is None
    said = _advised("no broker answers", [sent(CommandVerb.ROLL_BACK)], missing)
    todo = "write a token into" if has_file else f"let {TOKEN_VARIABLE} name a readable file"
    assert said.startswith(f"no broker answers\nnext: to send rollback without Kafka, {todo}")
    assert "for a replica that has this token" in said


@pytest.mark.parametrize(
    "trouble",
    ["wrong password; next: correct the password", "no topic rollout.commands: start rolloutd"],
)
@pytest.mark.parametrize("verb", [CommandVerb.ROLL_BACK, CommandVerb.FREEZE])
@pytest.mark.parametrize("missing", ["", "let X name a replica"])
def test_what_to_do_next_is_said_once(verb: CommandVerb, missing: str, trouble: str) -> None:
    """A trouble that says it itself is followed by another way, where there is one."""
    said = _advised(trouble, [sent(verb)], missing)
    assert said.count("next: ") == trouble.count("next: ")
    assert said.startswith(trouble)
    assert ("or lower the flag in its flag plane" in said) == (verb is CommandVerb.ROLL_BACK)
    assert "fix its address" not in said


def test_an_address_where_nobody_answers_may_be_the_wrong_one() -> None:
    """In an emergency too: correcting it is less than what sending over HTTP needs."""
    said = _advised("no broker answers", [sent(CommandVerb.ROLL_BACK)], "set X")
    assert said.endswith("or correct Kafka's address (--bootstrap-servers, --config), and repeat")
    assert said.count("next: ") == 1
