"""What `rolloutctl` refuses by itself, before Kafka is asked, with its exit codes.

And plans, which need no Kafka.
"""

from __future__ import annotations

import asyncio
import errno
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from controller.cli.common import EXIT_CONFIG, EXIT_REJECTED, EXIT_USAGE, perform
from controller.cli.examples import EXAMPLES
from controller.cli.operator import app
from controller.cli.status import known_by
from controller.errors import EventLogUnavailable
from controller.plans import templates
from schemas.terms import CommandVerb
from tests.live import quick_plan

BROKEN_PLAN = """name: broken
flag: new-checkout
owner: payments
stages:
  - {percent: 10, bake: 1h}
  - {percent: 5, bake: 1h}
guardrails: [error_rate < 1%]
"""
GOOD_PLAN = BROKEN_PLAN.replace("percent: 5,", "percent: 100,").replace("broken", "good")


def run(*arguments: str, text: str | None = None) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a call in this process."""
    environ = {"ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "ROLLOUTD_CONFIG": None}
    result = CliRunner().invoke(app, list(arguments), input=text, env=environ)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A file for a plan."""
    return tmp_path / "plan.yaml"


@pytest.mark.parametrize("verb", CommandVerb)
def test_every_verb_has_its_command(verb: CommandVerb) -> None:
    """Each verb of the contract can be typed, with dashes, and explains itself."""
    code, out, _ = run(verb.value.replace("_", "-"), "--help")
    assert code == 0
    assert "Usage" in out


def commands_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each command that the help lists, with its full name."""
    for name in group.commands:
        command = group.load(name) if hasattr(group, "load") else group.commands[name]
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def test_every_command_has_an_example_that_can_be_typed() -> None:
    """The help of each command ends with an example, and its options exist."""
    listed = dict(commands_of(get_command(app)))
    without = {name for name in listed if name not in EXAMPLES}
    assert without <= {"advisor eval", "advisor check"}, without
    for name, lines in EXAMPLES.items():
        for line in lines:
            words = shlex.split(line)
            assert words[: len(name.split())] == name.split()
            listed[name].make_context(name, words[len(name.split()) :]).close()


def test_switches_are_shown_without_a_type() -> None:
    """A reader of the help does not look for a value of --json."""
    _, out, _ = run("pause", "--help")
    assert "--json" in out
    assert "<bool>" not in out
    assert "Example: rolloutctl pause new-checkout" in out
    assert "<bool>" not in run("--help")[1] + run("plan", "--help")[1]


@pytest.mark.parametrize(
    "words", [["pause", "-h"], ["help", "pause"], ["plan", "help", "lint"], ["help"], ["-h"]]
)
def test_help_is_found_by_every_habit(words: list[str]) -> None:
    """`-h` and `help COMMAND` show the help, as of most command lines."""
    code, out, _ = run(*words)
    assert (code, "Usage: root " in out) == (0, True)
    assert words[-1] in ("-h", "help") or f" {words[-1]} [OPTIONS]" in out


@pytest.mark.parametrize("alias", ["roll-back", "undo", "list", "why", "logs", "describe"])
def test_an_alias_works_and_is_not_listed(alias: str) -> None:
    """What people type by habit is accepted, and the help stays short."""
    code, out, _ = run(alias, "--help")
    assert (code, "Usage" in out) == (0, True)
    _, listing, _ = run("--help")
    assert f" {alias} " not in listing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stop", "new-checkout"], "`pause` keeps the percentage, `rollback` and `abort` serve"),
        (["freeze", "new-checkout"], "why nothing may advance"),
        (["promote", "new-checkout"], "needs --reason"),
        (["promote-full", "new-checkout", "--reason", " "], "needs --reason"),
        (["freeze", "--all"], "needs --reason"),
        (["freeze", "--reason", "x"], "name a flag, or say --all"),
        (["unfreeze", "new-checkout", "--all"], "unfreeze: a flag or --all, not both"),
        (
            ["freeze", "--all", "--reason", "x", "--id", "one"],
            "--id and --expected-revision are one flag's",
        ),
        (["pause", "not a key"], "is not a flag key"),
        (["pause", "new-checkout", "--id", "not an id"], "id: "),
        (["pause", "new-checkout", "--as", ""], "issuer: "),
        (["approve", "a/b"], "is not a flag key"),
        (["status", "a/b"], "is not a flag key"),
        (["decisions", "a\x1bb"], "is not a flag key"),
        (["start", "canary"], "say which flag with --flag"),
        (["start", "no-such-plan"], "there is no such file, and no template"),
        (["start", "canry"], "no template of that name; did you mean canary?"),
        (["plan", "templates", "canry"], "did you mean canary? there are: "),
        (["rollback", "--all"], "rollback is for one flag at a time, so it has no --all"),
        (["kill", "new-checkout", "--all"], "lists the flags"),
        (["rolbak", "new-checkout"], "No such command 'rolbak'. Did you mean rollback? "),
        (["setp-back", "new-checkout"], "Did you mean step-back? "),
        (["lst"], "Did you mean status? "),
        (["stat"], "Did you mean status? "),
        (["prom", "new-checkout"], "Did you mean promote or promote-full? "),
        (["doctor", "--daemon", "http://h:1"], "No such option: --daemon. Did you mean --url? "),
        (["status", "--url", "http://h:1"], "No such option: --url. Did you mean --daemon? "),
        (["status", "--deamon", "http://h:1"], "Did you mean --daemon? "),
        (["status", "--boot", "h:1"], "Did you mean --bootstrap-servers? "),
        (["rollback", "f", "--raeson", "x"], "No such option: --raeson. Did you mean --reason? "),
        (["watch", "--flag", "f"], "No such option: --flag. Write the flag without it. "),
        (["alerts", "--zzzz"], "No such option: --zzzz. There are: --last, --since, "),
        (["plan", "lint", "plan.yaml", "--trafic", "5/s"], "Did you mean --traffic? "),
        (["lint", "plan.yaml"], "No such command 'lint'. Did you mean plan lint? "),
        (["templates"], "Did you mean plan templates? "),
        (["suggest", "pln"], "Did you mean plan? "),
        (["plan", "lint", "canary"], "`rolloutctl plan templates canary > plan.yaml` makes one"),
        (["plan", "lint", "/no-such-plan"], "/no-such-plan: there is no such file\n"),
        (["pause", "f", "--timeout", "0"], "--timeout': must be greater than or equal to 0.1 "),
        (["pause", "f", "--timeout", "5s"], "Invalid value for '--timeout': write a number "),
        (["completion", "tcsh"], "'SHELL': 'tcsh' is not one of 'bash', 'zsh', 'fish'. "),
        (["plan", "lint", "/"], "/: is a directory; name a plan"),
        (["plan", "templates", "no-such"], "there is no template"),
        (["pause"], "Missing argument 'FLAG'. `rolloutctl status` lists the flags. "),
        (["start"], "Missing argument 'PLAN'. Name a file, or a template: `rolloutctl plan "),
        (["backtest", "plan.yaml"], "Missing option '--from'."),
        (
            ["apply", "new-checkout", "plan.yaml"],
            "apply takes PLAN alone: drop what is too much of 'new-checkout', ",
        ),
        (["commands", "a", "b"], "commands takes FLAG alone: drop what is too much of 'a', 'b'. "),
        (["version"], "No such command 'version'. Did you mean --version? "),
        (["--json", "status"], "Options of a command come after it: root status "),
        (["alerts", "-o", "json"], "No such option: -o. Did you mean --json? "),
        (["events", "--output", "json"], "No such option: --output. Did you mean --json? "),
        (["doctor", "new-checkout"], "doctor takes options alone: drop 'new-checkout'. "),
        (["frobnicate"], "No such command 'frobnicate'. There are: start, pause, "),
        (
            ["step-back", "new-checkout", "--to", "10%"],
            (
                "step-back --to 10% needs --reason: the audit log keeps why stages were left out; "
                "nothing was sent"
            ),
        ),
        (
            ["freeze", "new-checkout"],
            "freeze needs --reason: the audit log keeps why nothing may advance, and until when",
        ),
        (
            ["promote", "new-checkout", "--to", "50%"],
            (
                "promote --to 50% needs --reason: the audit log keeps why this stage's gate was "
                "skipped; nothing was sent"
            ),
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_as_usage(arguments: list[str], words: str) -> None:
    """Exit code 2, a sentence that says how to fix it, and nothing on standard output."""
    code, out, err = run(*arguments)
    assert (code, out, words in err) == (EXIT_USAGE, "", True), err
    assert "\x1b" not in err


def test_a_bad_configuration_exits_78_with_its_place(tmp_path: Path) -> None:
    """The settings are the daemon's, and so are their errors."""
    config = tmp_path / "rolloutd.yaml"
    config.write_text("kafka: {bootstrap_server: 127.0.0.1:9092}\n")
    code, _, err = run("status", "--config", str(config))
    assert code == EXIT_CONFIG
    assert f"{config}:1:9: kafka.bootstrap_server: no such setting" in err


def test_lint_does_not_pass_over_settings_that_it_was_given(
    plan_file: Path, tmp_path: Path
) -> None:
    """What it says about planes would be missing, as if nothing were wrong."""
    plan_file.write_text(GOOD_PLAN)
    code, _, err = run("plan", "lint", str(plan_file), "--config", str(tmp_path / "none.yaml"))
    assert code == EXIT_CONFIG
    assert "none.yaml: cannot be read" in err


@pytest.mark.parametrize(
    ("policy", "code", "verdict"),
    [("refuse", EXIT_REJECTED, "would be refused"), ("warn", 0, "can be started")],
)
def test_lint_goes_by_the_rules_of_a_start(
    plan_file: Path, tmp_path: Path, policy: str, code: int, verdict: str
) -> None:
    """Those of the settings that it was given: the daemon would say the same."""
    config = tmp_path / "rolloutd.yaml"
    config.write_text(f"flags: {{name_pattern: 'pay-.*', at_start: {{name: {policy}}}}}\n")
    plan_file.write_text(GOOD_PLAN)
    found, out, _ = run("plan", "lint", str(plan_file), "--config", str(config))
    kind = "error" if code else "warning"
    assert f"{plan_file}:2:1: {kind}: flag: " in out
    assert "new-checkout does not fit pay-.* (flags.name_pattern); choose one that does" in out
    assert (found, verdict in out) == (code, True)
    assert "does not fit" not in run("plan", "lint", str(plan_file))[1]


def test_a_file_that_is_no_text_is_refused_in_words(tmp_path: Path) -> None:
    """Not in those of a decoder."""
    (tmp_path / "plan.yaml").write_bytes(b"name: \xff")
    code, _, err = run("plan", "lint", str(tmp_path / "plan.yaml"))
    assert (code, "is no text in UTF-8 (byte 7), so no plan" in err) == (EXIT_USAGE, True)


def test_lint_refuses_a_bad_option_although_no_traffic_is_known(plan_file: Path) -> None:
    """Else nobody learns of it before the option has a use."""
    plan_file.write_text(GOOD_PLAN)
    code, _, err = run("plan", "lint", str(plan_file), "--error-rate", "abc")
    assert (code, "--error-rate: 'abc' is not a share" in err) == (EXIT_USAGE, True)


def test_a_plan_with_errors_is_told_with_line_and_fix(plan_file: Path) -> None:
    """Lint exits 1 and says where, what and how to fix it."""
    plan_file.write_text(BROKEN_PLAN)
    code, out, _ = run("plan", "lint", str(plan_file))
    assert code == EXIT_REJECTED
    assert f"{plan_file}:6:6: error: stages[1].percent: 5 % does not rise" in out
    assert "order the stages by rising percent" in out
    assert "would be refused" in out


def test_lint_for_machines_is_one_document(plan_file: Path) -> None:
    """The same findings under stable names."""
    plan_file.write_text(BROKEN_PLAN)
    code, out, _ = run("plan", "lint", str(plan_file), "--json")
    document = json.loads(out)
    assert code == EXIT_REJECTED
    assert (document["file"], document["is_usable"]) == (str(plan_file), False)
    first = document["findings"][0]
    assert list(first) == ["file", "line", "column", "severity", "path", "message", "fix"]
    assert (first["line"], first["severity"], first["path"]) == (
        6,
        "error",
        ["stages", 1, "percent"],
    )


def test_a_plan_can_come_from_standard_input() -> None:
    """A dash reads the plan from a pipe."""
    code, out, _ = run("plan", "lint", "-", text=GOOD_PLAN)
    assert (code, out.splitlines()[0]) == (0, "standard input: the plan can be started")


def test_a_plan_with_errors_is_not_started(plan_file: Path) -> None:
    """Start lints first: exit code 1, the findings on standard error.

    And Kafka is not even asked.
    """
    plan_file.write_text(BROKEN_PLAN)
    code, out, err = run("start", str(plan_file))
    assert (code, out) == (EXIT_REJECTED, "")
    assert f"{plan_file}:6:6: error:" in err
    assert "nothing was sent" in err


@pytest.mark.parametrize("name", templates())
def test_a_template_printed_can_be_linted(name: str, plan_file: Path) -> None:
    """What `plan templates NAME` prints is a plan to begin with, for the flag named."""
    code, out, _ = run("plan", "templates", name, "--flag", "new-search")
    assert code == 0
    assert 'flag: "new-search"' in out
    plan_file.write_text(out)
    assert run("plan", "lint", str(plan_file))[0] == 0


def test_templates_are_listed_for_people_and_machines() -> None:
    """Both lists name all of them."""
    _, table, _ = run("plan", "templates")
    _, out, _ = run("plan", "templates", "--json")
    names = [one["name"] for one in json.loads(out)["templates"]]
    assert names == list(templates())
    assert all(f"\n{name} " in table for name in names)


def test_lint_tells_how_alpha_is_spent(plan_file: Path) -> None:
    """Each guardrail with its part; for machines too.

    Without traffic it says what it did not try.
    """
    plan_file.write_text(
        GOOD_PLAN.replace("[error_rate < 1%]", "[error_rate < 1%, latency_p99 < 200ms]")
    )
    _, out, _ = run("plan", "lint", str(plan_file))
    assert "alpha: 1 % of false alarms per role in a whole rollout" in out
    assert "guardrail  error_rate < 1 %\n" in out
    assert "not simulated: `--traffic 50/s`" in out
    _, out, _ = run("plan", "lint", "--json", str(plan_file))
    told = json.loads(out)
    assert sum(one["alpha"] for one in told["alpha"]["guardrails"]) == pytest.approx(0.01)
    assert told["simulation"] is None


def test_lint_warns_of_a_gate_that_cannot_decide_with_its_line(plan_file: Path) -> None:
    """With traffic, stated either way, virtual rollouts are tried.

    Their warnings stand among the others, in order of lines.
    """
    plan_file.write_text(
        GOOD_PLAN.replace("[error_rate < 1%]", "[error_rate < 1% and < control + 10%]")
    )
    code, out, _ = run("plan", "lint", str(plan_file), "--traffic", "2/s")
    assert code == 0
    assert (
        f"{plan_file}:5:5: warning: stages[0]: the gate is unlikely to decide at 2 contexts/s"
        in out.replace("\n", " ")
    )
    assert "simulated: " in out
    assert "too little traffic: 1 of 6 rollouts of a release as good as control complete" in out
    assert "; 5 stay undecided at max_bake\n" in out
    assert "(1h 1m planned), undecided in 5\n" in out
    plan_file.write_text(plan_file.read_text() + "traffic: 7200\n")
    _, out, _ = run("plan", "lint", "--json", str(plan_file))
    told = json.loads(out)
    assert told["simulation"]["rollouts"] > 0
    assert told["simulation"]["is_enough_traffic"] is False
    assert told["simulation"]["healthy"]["undecided"] == 5
    assert any("unlikely to decide" in finding["message"] for finding in told["findings"])


def test_lint_tells_how_long_the_stages_take_with_the_traffic(plan_file: Path) -> None:
    """Enough traffic is a result, too: how long each stage takes, and all of them."""
    plan_file.write_text(GOOD_PLAN)
    code, out, _ = run("plan", "lint", str(plan_file), "--traffic", "1e5/min")
    assert code == 0
    result, first, second = out[out.index("enough traffic") :].splitlines()[:3]
    assert result.startswith("enough traffic: 6 of 6 rollouts of a release as good as control")
    assert result.endswith("complete, after about 2h 2m")
    assert first == "  stage 1, 10 %: about 1h 1m (1h 1m planned)"
    assert second == "  stage 2, 100 %: about 1h 1m (1h 1m planned)"
    _, out, _ = run("plan", "lint", "--json", str(plan_file), "--traffic", "1e5/min")
    simulation = json.loads(out)["simulation"]
    assert simulation["is_enough_traffic"] is True
    assert [one["planned_seconds"] for one in simulation["healthy"]["stages"]] == [3_660] * 2


def test_lint_of_a_blind_plan_does_not_ask_for_the_traffic_that_it_got(plan_file: Path) -> None:
    """No evidence is judged, so that there is nothing to simulate."""
    _, text, _ = run("plan", "templates", "blind")
    plan_file.write_text(text)
    _, out, _ = run("plan", "lint", str(plan_file), "--traffic", "50/s")
    assert "not simulated: the plan is blind, so its stages take 3d 1h as planned" in out
    assert "--traffic" not in out


@pytest.mark.parametrize("traffic", ["1e99/s", "2e9/s"])
def test_impossible_traffic_is_refused_in_words(plan_file: Path, traffic: str) -> None:
    """And does not end in a random number generator."""
    plan_file.write_text(GOOD_PLAN)
    code, _, err = run("plan", "lint", str(plan_file), "--traffic", traffic)
    assert code == 2
    assert f"--traffic: '{traffic}' is more than can be drawn" in " ".join(err.split())


def test_lint_warns_of_planes_that_cannot_serve_a_plan(plan_file: Path, tmp_path: Path) -> None:
    """With a plane of percentages alone, what it cannot serve is said before the start."""
    plan_file.write_text(GOOD_PLAN.replace("bake: 1h}", "bake: 1h, control: equal}", 1))
    settings = tmp_path / "rolloutd.yaml"
    settings.write_text(
        "planes: {redis: {url: 'redis://127.0.0.1/1'}, http: {ld: {template: launchdarkly}}}\n"
    )
    code, _, err = run("plan", "lint", str(plan_file), "--config", str(settings))
    assert code == 0
    assert "warning: redis, http:ld cannot serve control arms of equal size" in err
    assert run("plan", "lint", str(plan_file))[2] == ""


@pytest.mark.parametrize(
    "name", ["pause", "resume", "retry", "rollback", "abort", "kill", "step-back"]
)
def test_commands_that_never_ask_take_yes_all_the_same(name: str) -> None:
    """Whoever is in a hurry adds it: the flag must come down, not an error of usage."""
    command = dict(commands_of(get_command(app)))[name]
    for option in ("-y", "--yes"):
        context = command.make_context(name, ["new-checkout", option])
        assert context.params["flag"] == "new-checkout"


def test_a_restart_takes_no_plan_of_another_flag(plan_file: Path) -> None:
    """It was taken for the flag that was typed, with the other's variants and guardrails."""
    plan_file.write_text(quick_plan("new-checkout").model_dump_json())
    code, _, err = run("restart", "another-flag", "--plan", str(plan_file))
    assert code == EXIT_USAGE
    assert "is a plan of the flag new-checkout, and this is for another-flag" in err


def test_a_reader_that_has_gone_is_no_crash_of_a_group_of_tasks() -> None:
    """`watch | head -1` ends as `status | head -1` does, without a traceback."""

    async def write(*errors: Exception) -> None:
        async with asyncio.TaskGroup() as tasks:
            for error in errors:
                tasks.create_task(_raising(error))

    with pytest.raises(BrokenPipeError) as closed:
        perform(write(BrokenPipeError(errno.EPIPE, "closed")))
    assert closed.value.errno == errno.EPIPE
    with pytest.raises(ExceptionGroup):
        perform(write(BrokenPipeError(errno.EPIPE, "closed"), ValueError("ours")))


async def _raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("trouble", "advice"),
    [
        ("no broker answers", "see whether Kafka runs at that address"),
        ("wrong password; next: correct kafka.security.username", "asks a replica without Kafka"),
    ],
)
async def test_what_a_broker_has_against_us_is_no_question_of_its_address(
    trouble: str, advice: str
) -> None:
    """Kafka runs there: it has just refused us, and the trouble says what to correct."""
    with pytest.raises(EventLogUnavailable) as refused:
        await known_by(None, EventLogUnavailable(trouble), None)
    assert advice in str(refused.value)
    assert str(refused.value).count("next: ") == 1


async def test_a_topic_that_is_missing_is_no_question_of_kafkas_address_alone() -> None:
    """The trouble says itself what to do: Kafka answers there."""
    with pytest.raises(EventLogUnavailable) as refused:
        await known_by(None, EventLogUnavailable("no topic: start rolloutd against it"), None)
    assert "see whether Kafka runs" not in str(refused.value)
