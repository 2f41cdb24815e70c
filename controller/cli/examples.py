"""The help of each command of `rolloutctl`: its examples, switches without a type, and hints.

A hint says what a mistyped command probably meant, or which commands there are.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any, Final

import typer
from pydantic import ValidationError
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from controller.text import fault_words, one_line

#: Options that another command has, or that somebody expects, with what is meant here; tried in
#: this order.
_SAME: Final = {
    "--daemon": ("--url",),
    "--url": ("--daemon",),
    "--port": ("--url", "--daemon"),
    "--ops": ("--url",),
    "--follow": ("--watch",),
    "--limit": ("--last",),
    "--count": ("--last",),
    "--from": ("--since",),
    "--message": ("--reason",),
    "--why": ("--reason",),
    "--server": ("--bootstrap-servers",),
    "--broker": ("--bootstrap-servers",),
    "--brokers": ("--bootstrap-servers",),
    "--kafka": ("--bootstrap-servers",),
    "--prefix": ("--topic-prefix",),
    "--output": ("--json",),
    "--format": ("--json",),
    "-o": ("--json",),
}
#: By argument that is missing: where one is found.
_WHERE_FROM: Final = {
    "FLAG": "`rolloutctl status` lists the flags.",
    "PLAN": "Name a file, or a template: `rolloutctl plan templates` lists them.",
}
#: Both roots have it, and every command below them.
CONTEXT: Final = {"help_option_names": ["--help", "-h"]}
_BAD: Final = '"error rate doubled in eu-west"'

#: By command. Each begins with `rolloutctl` and the command's name; a test parses all of them.
EXAMPLES: Final = {
    "start": ("start plan.yaml", "start canary --flag new-checkout"),
    "pause": ("pause new-checkout --reason lunch",),
    "resume": ("resume new-checkout",),
    "apply": ("apply plan.yaml", "apply plan.yaml --dry-run --json"),
    "retry": ("retry new-checkout --reason 'the broken host is gone'",),
    "step-back": ("step-back new-checkout --reason 'latency rose at 50 %'",),
    "rollback": (f"rollback new-checkout --reason {_BAD}",),
    "abort": ("abort new-checkout --reason 'the launch moved to May'",),
    "kill": ("kill new-checkout",),
    "approve": ("approve new-checkout", "approve new-checkout --expected-revision 14 --json"),
    "reject": ("reject new-checkout --reason 'support is not ready'",),
    "promote": (
        "promote new-checkout --reason 'hotfix, see incident 7'",
        "promote new-checkout --to half --reason 'ran for a month in eu-west'",
    ),
    "promote-full": ("promote-full new-checkout --reason 'hotfix, see incident 7'",),
    "restart": ("restart new-checkout", "restart new-checkout --plan slower.yaml"),
    "revive": ("revive new-checkout --reason 'the payment provider is back'",),
    "retire": ("retire new-checkout --reason 'the code does not use it any more'",),
    "freeze": ("freeze --all --reason 'incident 7'", "freeze new-checkout --reason 'sale week'"),
    "unfreeze": ("unfreeze --all",),
    "open": ("open new-checkout --daemon http://127.0.0.1:8080",),
    "get": ("get new-checkout --daemon http://127.0.0.1:8080", "get new-checkout --watch"),
    "status": ("status", "status new-checkout --daemon http://127.0.0.1:8080"),
    "flags": ("flags --stale", "flags --daemon http://127.0.0.1:8080", "flags --json"),
    "watch": ("watch new-checkout", "watch --json"),
    "decisions": ("decisions new-checkout --last 5", "decisions new-checkout --json"),
    "history": ("history new-checkout", "history new-checkout --last 5 --json"),
    "alerts": ("alerts --since 1h", "alerts new-checkout --last 5"),
    "commands": ("commands --refused --since 1h", "commands new-checkout"),
    "events": ("events new-checkout", "events new-checkout --context user-42", "events --watch"),
    "quarantine": ("quarantine --last 10", "quarantine --flag new-checkout --since 2h"),
    "signal list": ("signal list --daemon http://127.0.0.1:8080",),
    "signal check": ("signal check signals.yaml",),
    "signal test": ("signal test alert.json --hook alertmanager/prod --rules signals.yaml",),
    "signal send": ("signal send 'checkout is down' --service checkout --severity critical",),
    "notify list": ("notify list --daemon http://127.0.0.1:8080",),
    "notify check": ("notify check notifications.yaml --channel team-slack",),
    "notify ack": ("notify ack new-checkout", "notify ack new-checkout/8f6bb2b8/1/rolled_back"),
    "notify mute": (
        'notify mute "checkout-*" --for 2h --reason "the database moves"',
        'notify mute payments --for 30m --critical --reason "we test the pager"',
    ),
    "notify unmute": ("notify unmute payments", "notify unmute 42"),
    "notify retry": ("notify retry team-slack", "notify retry 42"),
    "notify test": ("notify test payments --daemon http://127.0.0.1:8080",),
    "doctor": ("doctor --url http://127.0.0.1:8081",),
    "plan lint": ("plan lint plan.yaml --traffic 50/s",),
    "plan templates": ("plan templates canary --flag new-checkout",),
    "simulate": ("simulate plan.yaml --traffic 50/s --effect errors=x2",),
    "backtest": ("backtest plan.yaml --from 36h",),
    "verdict": ("verdict --stdin",),
    "suggest plan": ("suggest plan --flag new-checkout --describe 'new payment page' --risk high",),
    "suggest targeting": (
        "suggest targeting --describe 'pro users in Germany' --segments segments.yaml",
    ),
    "explain": ("explain new-checkout",),
    "changelog": ("changelog --since 7d",),
    "completion": ("completion bash", "completion fish"),
    "advisor check": ("advisor check --url http://127.0.0.1:8081/v1 --model llama-3.2-1b",),
}


def _nothing() -> None:
    """Stand for the function of a group, which has none."""


def _without_types(params: list[Any]) -> list[Any]:
    """Return the parameters, switches without a placeholder for a value."""
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
            param.metavar = ""
    return params


class _Command(TyperCommand):
    """A command whose switches are shown without a type: `--json` takes no value."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Refuse `--all` where a command is for one flag: it would be taken for another option.

        Of words too many it is said what the command takes.
        """
        params = self.get_params(ctx)
        is_for_one = any(param.name == "flag" and param.required for param in params)
        if is_for_one and "--all" in args:
            ctx.fail(
                f"{self.name} is for one flag at a time, so it has no --all: name the flag. "
                "`rolloutctl status` lists the flags. `rolloutctl freeze --all --reason WHY` keeps "
                "every rollout from advancing."
            )
        if ctx.allow_extra_args:
            return super().parse_args(ctx, args)
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, args)
        except TyperException as error:
            missing = (getattr(getattr(error, "param", None), "metavar", None) or "").upper()
            if missing in _WHERE_FROM and not getattr(error, "message", "x"):
                error.message = _WHERE_FROM[missing]
            # The parser validates values with pydantic, and repeats its first fault as it is.
            if isinstance(fault := error.__context__, ValidationError):
                first = fault.errors(include_url=False, include_input=False)[0]
                error.message = fault_words(first["type"], error.message)
            if not hasattr(error, "possibilities"):  # of an option that there is not
                raise
            unknown = one_line(str(getattr(error, "option_name", "")))
            ctx.fail(f"No such option: {unknown}. {_meant_option(unknown, params)}")
        if ctx.args and not ctx.resilient_parsing:
            ctx.fail(f"{self.name} takes {_too_much(ctx, params)}")
        return rest

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """Return the parameters."""
        return _without_types(super().get_params(ctx))


def _too_much(ctx: typer.Context, params: list[Any]) -> str:
    """Return what a command takes, and the words that were typed for it."""
    arguments = [one for one in params if isinstance(one, TyperArgument)]
    names = " ".join((one.metavar or one.name or "").upper() for one in arguments)
    typed = [*(ctx.params.get(one.name or "") for one in arguments), *ctx.args]
    words = ", ".join(repr(one) for one in typed if one is not None)
    if arguments:
        return f"{names} alone: drop what is too much of {words}."
    takes_config = any("--config" in getattr(one, "opts", ()) for one in params)
    if takes_config and Path(ctx.args[0]).is_file():
        return f"options alone. Did you mean --config {ctx.args[0]}?"
    return f"options alone: drop {words}."


def _meant_option(typed: str, params: list[Any]) -> str:
    """Return which option of a command was probably meant, or which there are."""
    known = [
        name
        for param in params
        if isinstance(param, TyperOption) and not param.hidden
        for name in param.opts
        if name.startswith("--")
    ]
    arguments = [one for one in params if isinstance(one, TyperArgument)]
    if any(f"--{one.name}" == typed for one in arguments):
        return f"Write the {typed[2:]} without it."
    meant = [name for name in _SAME.get(typed, ()) if name in known]
    meant += [name for name in known if name.startswith(typed) and len(typed) > 3]
    meant += difflib.get_close_matches(typed, known, n=1)
    return f"Did you mean {meant[0]}?" if meant else f"There are: {', '.join(known)}."


class CommandGroup(TyperGroup):
    """A group of commands whose switches are shown without a type."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Take `help COMMAND` for `COMMAND --help`; say where the option of a command belongs."""
        if args[:1] == ["help"] and "help" not in self.commands:
            args = [*args[1:], "--help"]
        typed = list(args)  # the parser takes words out of its list
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            command = next((word for word in typed if word in self.commands), None)
            if not hasattr(error, "possibilities") or command is None:
                raise
            unknown = one_line(str(getattr(error, "option_name", "")))
            ctx.fail(
                f"No such option: {unknown}. Options of a command come after it: "
                f"{ctx.command_path} {command} {unknown}"
            )

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Return the command; for an unknown one say which was meant, or which there are."""
        is_typing = ctx.resilient_parsing  # a shell completes what is not a command yet
        if args and args[0] not in self.commands and args[0][:1].isalnum() and not is_typing:
            listed = [name for name, command in self.commands.items() if not command.hidden]
            word = args[0].lower()
            begun = [name for name in listed if name.startswith(word) and len(word) >= 3]
            near = begun or difflib.get_close_matches(word, self.commands, n=1)
            hint = f"There are: {', '.join(listed)}."
            if any(f"--{word}" in getattr(param, "opts", ()) for param in self.get_params(ctx)):
                hint = f"Did you mean --{word}?"
            elif (place := self.place_of(word)) is not None:
                hint = f"Did you mean {place}?"
            elif near:
                hint = f"Did you mean {' or '.join(map(self.own_name, near))}?"
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def place_of(self, word: str) -> str | None:
        """Return where there is a command of this name, if not here; None: not known."""
        for name, command in self.commands.items():
            if isinstance(command, TyperGroup) and word in command.commands:
                return f"{name} {word}"
        return None

    def own_name(self, name: str) -> str:
        """Return the name that the help lists for a command, which may be known by others too."""
        meant = inspect.unwrap(self.commands[name].callback or _nothing)
        for own, command in self.commands.items():
            if not command.hidden and inspect.unwrap(command.callback or _nothing) is meant:
                return own
        return name

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """Return the parameters."""
        return _without_types(super().get_params(ctx))


def with_examples(app: typer.Typer, prefix: str = "") -> None:
    """Add to each command of an application the examples of its name."""
    app.info.cls = CommandGroup
    for command in app.registered_commands:
        command.cls = _Command
        callback = command.callback
        name = command.name or (callback.__name__.replace("_", "-") if callback else "")
        lines = EXAMPLES.get(f"{prefix}{name}")
        if lines and command.epilog is None:
            # A blank line keeps each example on a line of its own.
            command.epilog = "\n\n".join(f"Example: rolloutctl {line}" for line in lines)
    for group in app.registered_groups:
        if group.typer_instance is not None and group.name:
            with_examples(group.typer_instance, f"{prefix}{group.name} ")
