"""`rolloutd demo`: a rollout to watch, with nothing installed and nothing kept."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.errors import BadInput, OperatingTrouble

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
) -> None:
    """Watch a rollout by a daemon, with a broker, Valkey and synthetic apps on this machine.

    The daemon decides by its own statistics on what the apps emit. Exits 0 when the scenario ended
    as it must, 1 otherwise.
    """
    from controller.demo.scenarios import SCENARIOS, AdvisorPart

    if scenario == "list":
        for each in SCENARIOS.values():
            print(f"{each.name:<16}{each.title}; ends {each.ending}")
        return
    chosen = SCENARIOS.get(scenario)
    if chosen is None:
        typer.echo(
            f"there is no scenario {scenario!r}; there are: {', '.join(SCENARIOS)}", err=True
        )
        raise typer.Exit(EXIT_USAGE)
    if advisor_url is not None and chosen.advisor is not AdvisorPart.NOBODY:
        typer.echo(
            f"{scenario} brings an advisor of its own: leave --advisor-url out, or take "
            f"another scenario",
            err=True,
        )
        raise typer.Exit(EXIT_USAGE)
    try:
        import asyncio

        from controller.cli.get import tree_of_daemon
        from controller.demo.environment import AdvisorAddress
        from controller.demo.run import Options, play

        address = None if advisor_url is None else AdvisorAddress(advisor_url, advisor_model)
        as_named = asyncio.run(play(Options(chosen, seed, is_json, address, tree_of_daemon)))
    except (BadInput, OperatingTrouble) as trouble:
        typer.echo(f"rolloutd demo: {trouble}", err=True)
        raise typer.Exit(EXIT_NOT_AS_NAMED) from None
    except KeyboardInterrupt:
        typer.echo("rolloutd demo: interrupted; every process it started has ended", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not as_named:
        raise typer.Exit(EXIT_NOT_AS_NAMED)
