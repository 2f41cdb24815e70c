"""`rolloutd demo`: a rollout to watch, with nothing installed and nothing kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from controller.errors import BadInput, OperatingTrouble

if TYPE_CHECKING:
    from controller.demo.scenarios import Scenario

EXIT_NOT_AS_NAMED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def demo(
    scenario: Annotated[
        str, typer.Option(help="What happens: `--scenario list` shows them.")
    ] = "healthy",
    seed: Annotated[
        int,
        typer.Option(help="Draws of users, failures and latencies; not of the machine's timing."),
    ] = 7,
    is_json: Annotated[
        bool, typer.Option("--json", help="One line per decision, the final rollout document last.")
    ] = False,
    advisor_url: Annotated[
        str | None,
        typer.Option(
            help="A real LocalAI, Ollama or other OpenAI-compatible server to ask at the gates."
        ),
    ] = None,
    advisor_model: Annotated[
        str, typer.Option(help="The model's name on that server.")
    ] = "rolloutd-advisor",
    advisor_protocol: Annotated[
        str, typer.Option(help="How the server is asked: openai, localai or ollama.")
    ] = "openai",
) -> None:
    """Watch a rollout by a daemon, with a broker, Valkey and synthetic apps on this machine.

    The daemon decides by its own statistics on what the apps emit. Exits 0 when the scenario ended
    as it must, 1 otherwise.
    """
    if scenario == "list":
        _list_scenarios()
        return
    chosen = _scenario_of(scenario, has_advisor=advisor_url is not None)
    _check_protocol(advisor_protocol)
    try:
        import asyncio

        from controller.cli.get import tree_of_daemon
        from controller.demo.environment import AdvisorAddress
        from controller.demo.run import Options, play

        address = (
            None
            if advisor_url is None
            else AdvisorAddress(advisor_url, advisor_model, advisor_protocol)
        )
        as_named = asyncio.run(play(Options(chosen, seed, is_json, address, tree_of_daemon)))
    except (BadInput, OperatingTrouble) as trouble:
        typer.echo(f"rolloutd demo: {trouble}", err=True)
        raise typer.Exit(EXIT_NOT_AS_NAMED) from None
    except KeyboardInterrupt:
        typer.echo("rolloutd demo: interrupted; every process it started has ended", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not as_named:
        raise typer.Exit(EXIT_NOT_AS_NAMED)


def _check_protocol(name: str) -> None:
    """Exit 2 for a protocol that no server is asked by."""
    from controller.settings import AdvisorSettings

    protocols = get_args(AdvisorSettings.model_fields["protocol"].annotation)
    if name not in protocols:
        typer.echo(f"--advisor-protocol is one of {', '.join(protocols)}", err=True)
        raise typer.Exit(EXIT_USAGE)


def _list_scenarios() -> None:
    from controller.demo.scenarios import SCENARIOS

    for each in SCENARIOS.values():
        print(f"{each.name:<16}{each.title}; ends {each.ending}")


def _scenario_of(name: str, *, has_advisor: bool) -> Scenario:
    """Return the scenario of this name; exit 2 without one, or where two advisors would answer."""
    from controller.demo.scenarios import SCENARIOS, AdvisorPart

    chosen = SCENARIOS.get(name)
    if chosen is None:
        typer.echo(f"there is no scenario {name!r}; there are: {', '.join(SCENARIOS)}", err=True)
        raise typer.Exit(EXIT_USAGE)
    if has_advisor and chosen.advisor is not AdvisorPart.NOBODY:
        typer.echo(
            f"{name} brings an advisor of its own: leave --advisor-url out, or take "
            f"another scenario",
            err=True,
        )
        raise typer.Exit(EXIT_USAGE)
    return chosen
