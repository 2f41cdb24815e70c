"""Every command of `rolloutctl`: its names, its one-line help, and the module of its function.

The list of commands and shell completion read this table alone, so that they import no command. A
test compares it with the commands themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ListedCommand:
    """A command or a group of commands, as the help lists it."""

    name: str
    panel: str
    help: str
    #: The module in `controller/cli/`, and the function or `typer.Typer` in it.
    place: str
    #: What is typed for the command besides its own name. The help does not list these.
    aliases: tuple[str, ...] = ()
    #: The commands of a group.
    inner: tuple[str, ...] = ()
    is_hidden: bool = False


#: The commands of `rolloutd`, for whoever types one after `rolloutctl`.
DAEMON_COMMANDS: Final = ("run", "demo", "config", "repair", "token")

_INSPECT, _CONTROL, _PLANS = "Inspect", "Control", "Plans"
_DRAFT, _MODEL, _SHELL = "Assist", "Model", "Shell"
_SIGNALS = "Signals"

#: In the order of the help. A verb without a docstring of its own has its whole help here.
COMMANDS: Final = (
    ListedCommand(
        "start", _CONTROL, "Start a rollout by a plan, after checking the plan.", "verbs:start"
    ),
    ListedCommand(
        "pause",
        _CONTROL,
        "Stop at the present percentage. Guardrails stay armed. Works in every active phase, at "
        "any revision.",
        "verbs:pause",
    ),
    ListedCommand("resume", _CONTROL, "Resume from where it was paused.", "verbs:resume"),
    ListedCommand(
        "retry",
        _CONTROL,
        "Begin the present stage again, also a paused one: its evidence counts from zero. Needs "
        "--reason.",
        "verbs:retry",
    ),
    ListedCommand(
        "rollback",
        _CONTROL,
        "Serve 0 % because something is wrong. Ends the rollout. Works in every phase, at any "
        "revision.",
        "verbs:roll_back",
        ("roll-back", "roll_back", "undo"),
    ),
    ListedCommand(
        "abort",
        _CONTROL,
        "Serve 0 % although nothing is wrong. Ends the rollout. Works in every phase, at any "
        "revision.",
        "verbs:abort",
    ),
    ListedCommand(
        "kill",
        _CONTROL,
        "Switch a flag off for everybody, also one whose rollout is complete.",
        "verbs:kill",
    ),
    ListedCommand(
        "approve",
        _CONTROL,
        "Let a stage that awaits approval advance, if it still has the revision you have seen.",
        "verbs:approve",
    ),
    ListedCommand(
        "reject",
        _CONTROL,
        "Pause a stage that awaits approval, if it still has the revision you have seen.",
        "verbs:reject",
    ),
    ListedCommand(
        "promote",
        _CONTROL,
        "Enter the next stage now, or a later one, without waiting for any gate before it. Shows "
        "where the rollout stands, and asks on a terminal. Needs --reason.",
        "verbs:promote",
    ),
    ListedCommand(
        "promote-full",
        _CONTROL,
        "Enter the last stage now, without waiting for any gate. Shows where the rollout stands, "
        "and asks on a terminal. Needs --reason.",
        "verbs:promote_full",
        ("promote_full",),
    ),
    ListedCommand(
        "step-back",
        _CONTROL,
        "Serve the stage below, or an earlier one.",
        "verbs:step_back",
        ("stepback",),
    ),
    ListedCommand(
        "restart",
        _CONTROL,
        "Start a finished rollout again, by its own plan or another.",
        "verbs:restart",
    ),
    ListedCommand(
        "revive",
        _CONTROL,
        "Switch a flag on again that was switched off, by its own plan from the first stage.",
        "verbs:revive",
    ),
    ListedCommand(
        "retire",
        _CONTROL,
        "Let go of a flag whose rollout has ended: apps use the default of their own code. Asks on "
        "a terminal. Needs --reason.",
        "verbs:retire",
    ),
    ListedCommand(
        "freeze",
        _CONTROL,
        "Block all advancement until `unfreeze`. Rollbacks still happen. Needs --reason.",
        "verbs:freeze",
    ),
    ListedCommand("unfreeze", _CONTROL, "Lift the freeze.", "verbs:unfreeze"),
    ListedCommand(
        "apply",
        _CONTROL,
        "Change the plan of a running rollout, after showing every difference.",
        "apply:apply",
    ),
    ListedCommand(
        "status",
        _INSPECT,
        "Show where every rollout stands, or everything about one.",
        "status:status",
        ("list", "ls"),
    ),
    ListedCommand(
        "get",
        _INSPECT,
        "Show one rollout as a tree: stages, gate, evidence, flag planes, decisions, commands.",
        "get:get",
        ("describe", "show"),
    ),
    ListedCommand(
        "open",
        _INSPECT,
        "Open the page of one rollout, or of all, in a browser; print its address.",
        "open_page:open_page",
    ),
    ListedCommand(
        "flags",
        _INSPECT,
        "Show every flag with a rollout, those to tidy up first, each with what resolves it.",
        "flags:flags",
    ),
    ListedCommand(
        "watch",
        _INSPECT,
        "Follow state, decisions, alerts and refused commands as they come, until Ctrl-C.",
        "watch:watch",
    ),
    ListedCommand(
        "decisions",
        _INSPECT,
        "Show a flag's newest decisions and what each was based on.",
        "status:decisions",
        ("log", "logs", "audit"),
    ),
    ListedCommand(
        "history",
        _INSPECT,
        "Show a flag's past rollouts: when, by whom, how far, and how each ended.",
        "history:history",
    ),
    ListedCommand(
        "alerts", _INSPECT, "Show the newest alerts, each with what to do.", "status:alerts"
    ),
    ListedCommand(
        "commands",
        _INSPECT,
        "Show the newest commands and what became of each: done, or refused and why.",
        "given_commands:commands",
        ("results", "who"),
    ),
    ListedCommand(
        "doctor",
        _INSPECT,
        "Show what is wrong with a replica and how to fix it. Exits 0 when nothing is, else 1.",
        "doctor:doctor",
    ),
    ListedCommand(
        "events",
        _INSPECT,
        "Show what the recent events of a flag are: counted, ignored or refused, and why.",
        "events:events",
    ),
    ListedCommand(
        "quarantine",
        _INSPECT,
        "Show the newest refused records: why, where they are, how to fix them, and their text.",
        "events:quarantine",
    ),
    ListedCommand(
        "simulate",
        _PLANS,
        "Try a plan on virtual rollouts: how long it takes, how often it errs, what harm costs.",
        "simulate:simulate",
    ),
    ListedCommand(
        "backtest",
        _PLANS,
        "Run a plan over the recorded events of its flag, and show what it would have decided.",
        "backtest:backtest",
    ),
    ListedCommand(
        "verdict",
        _PLANS,
        "Judge streams of totals with the daemon's own tests: JSON lines in, one verdict a line "
        "out. Needs no Kafka.",
        "verdict:verdict",
    ),
    ListedCommand(
        "explain",
        _DRAFT,
        "Explain what happened to a rollout, on what evidence, the likely cause and next steps.",
        "drafts:explain",
        ("why",),
    ),
    ListedCommand(
        "changelog",
        _DRAFT,
        "Write Markdown from the audit log: what was started, advanced, completed and rolled back.",
        "drafts:changelog",
    ),
    ListedCommand(
        "completion",
        _SHELL,
        "Print the script that makes a shell complete commands, options and flags.",
        "completion:completion",
    ),
    ListedCommand(
        "stop", _CONTROL, "Refuse a word that could mean two things.", "verbs:stop", is_hidden=True
    ),
    ListedCommand(
        "signal",
        _SIGNALS,
        "Show what monitoring systems told, and try rules without one.",
        "signals:app",
        inner=("list", "check", "test", "send"),
    ),
    ListedCommand(
        "notify",
        _SIGNALS,
        "Show who was told of what, take an incident, mute, and try a route.",
        "notify:app",
        inner=("list", "check", "ack", "mute", "unmute", "retry", "test"),
    ),
    ListedCommand(
        "plan",
        _PLANS,
        "Check a plan before it is started, and show templates.",
        "plan_files:app",
        inner=("lint", "templates"),
    ),
    ListedCommand(
        "suggest",
        _DRAFT,
        "Draft a plan or targeting rules; a person decides what becomes of them.",
        "drafts:app",
        inner=("plan", "targeting"),
    ),
    ListedCommand(
        "advisor",
        _MODEL,
        "Check whether the model's server is fit, and what its advice is worth.",
        "advisor:app",
        inner=("check", "eval"),
    ),
)
