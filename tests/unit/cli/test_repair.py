"""`rolloutd repair flag` says what is wrong with what it is given, by its exit code too."""

from __future__ import annotations

from typer.testing import CliRunner

from controller.cli.daemon import app
from tests.brokers import free_port


def test_a_name_that_no_flag_has_is_refused() -> None:
    """Nothing is connected for a name that cannot be one."""
    said = CliRunner().invoke(
        app,
        ["repair", "flag", "no flag", "--yes"],
        env={"ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "k:1"},
    )
    assert said.exit_code == 78
    assert "names no flag" in said.output


def test_redis_away_is_said_and_may_be_tried_again() -> None:
    """Nothing is known to be done: exit code 75."""
    environ = {
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "k:1",
        "ROLLOUTD_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
        "ROLLOUTD_REDIS__CALL_TIMEOUT_SECONDS": "0.1",
    }
    said = CliRunner().invoke(app, ["repair", "flag", "new-checkout", "--yes"], env=environ)
    assert said.exit_code == 75, said.output
    assert "try again" in said.output


def test_a_topic_that_is_not_counted_is_refused_first() -> None:
    """It first said that everything counted in it would be deleted, and asked."""
    said = CliRunner().invoke(
        app,
        ["repair", "partition", "flag.evaluation/3"],
        env={"ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "k:1"},
    )
    assert said.exit_code == 78, said.output
    assert said.output.startswith("flag.evaluation is not counted; counted are flag.evaluations ")
