"""Draws the phase diagram from the code; the page is checked in as `ops/state-machine.md`.

What commands do is read from `COMMANDS`, the table that the machine itself uses. What all other
events do is found by trying every event in samples of every phase. The samples also show that the
machine does in each phase what its table says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from controller.core.effects import AnswerCommand
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    Event,
    EvidenceJudged,
    Restarted,
    Ticked,
)
from controller.core.machine import COMMANDS, decide
from controller.core.machine.times import is_over
from controller.core.plan import AdvisorPolicy, Plan, Window
from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.terms import (
    AdvisorMode,
    Approval,
    CommandStatus,
    CommandVerb,
    GapPolicy,
    HealthGap,
    HoldReason,
    OnBreach,
    PhaseName,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_breach,
    make_command,
    make_judgement,
    make_plan,
    make_rollout,
    make_stages,
)
from tests.histories import GAPS, MISSING, OPEN, PASSING

PAGE = Path(__file__).parents[2] / "ops" / "state-machine.md"

_TEXT = """# What can happen to a flag

`tests/scenarios/diagram.py` draws this page from `controller/core/machine/__init__.py`. Arrows of
commands come from its table `COMMANDS`. All other arrows come from trying every event in every
phase. A test fails when the page and the code differ; `ROLLOUTD_REWRITE=1 pytest tests/scenarios`
draws it again. A hold changes no phase, so it has no arrow. The transcripts in
`tests/scenarios/*.txt` show whole rollouts, event by event.

```mermaid
{diagram}
```

## Commands

The table shows in which phases each command works, and the phases it may lead to. `stays`: the
command is accepted and the phase stays. In all other phases the command is rejected. A command with
a stale `expected_revision` is rejected too, except for `pause`, `roll_back` and `abort`. During a
freeze, and outside the plan's active windows, every command that advances the rollout is rejected.

{table}
"""
_AT = T0 + 2 * HOUR  # past every deadline below
_SOON = T0 + MINUTE + timedelta(seconds=1)  # before every deadline below


def page() -> str:
    """Return the whole page."""
    return _TEXT.format(diagram="\n".join(_diagram()), table="\n".join(_table()))


def _phases() -> dict[PhaseName | None, list[Rollout | None]]:
    """Return samples of every phase; None is a flag never started.

    Together they meet every branch of a phase.
    """
    samples: dict[PhaseName | None, list[Rollout | None]] = defaultdict(list, {None: [None]})
    for plan in _plans():
        for stage in range(len(plan.stages)):
            gate = Gating(stage, "gate", T0, T0 + HOUR)
            rounds = (
                None,
                AdviceRound(1, T0 + HOUR),
                AdviceRound(1, T0, make_advice(), is_closed=True),
                AdviceRound(3, T0, None, is_closed=True, held_until=T0),
            )
            waiting: list[Scheduled | Baking | Gating | AwaitingApproval] = [
                Scheduled(T0 + HOUR),
                Baking(stage, T0 + HOUR),
                *(replace(gate, advice=round_) for round_ in rounds),
                AwaitingApproval(stage, "gate", T0, HoldReason.APPROVAL),
            ]
            phases: list[Phase] = [
                *waiting,
                *(Paused(T0, HoldReason.OPERATOR, held) for held in waiting),
                Completed(T0),
                RolledBack(T0, "because"),
                Aborted(T0, "because"),
            ]
            for phase in phases:
                for freeze in (None, Freeze(T0, "ada", "because")):
                    rollout = make_rollout(plan=plan, phase=phase, freeze=freeze, updated_at=T0)
                    samples[phase.name].append(rollout)
    return samples


def _plans() -> Iterator[Plan]:
    stages = make_stages(10, 50)
    for approval in Approval:
        for mode in (AdvisorMode.OFF, AdvisorMode.CAN_HOLD):
            yield make_plan(
                stages=tuple(replace(stage, approval=approval) for stage in stages),
                advisor=AdvisorPolicy(mode=mode),
            )
    yield make_plan(stages=stages, active=(Window(frozenset(range(1, 8)), 0, 1440, "UTC"),))
    yield make_plan(stages=stages, expires_at=T0 + HOUR)
    yield make_plan(stages=stages, ends_at=T0 + HOUR)
    for policy in (GapPolicy.PAUSE, GapPolicy.ROLL_BACK):
        yield make_plan(stages=stages, gap_policies=dict.fromkeys(HealthGap, policy))


def _events(rollout: Rollout | None) -> Iterator[tuple[str, Event, datetime]]:
    """Yield every event with its time, and with the word for it in the diagram."""
    plan = make_plan(stages=make_stages(10, 50)) if rollout is None else rollout.plan
    revision = 0 if rollout is None else rollout.revision
    visit = 0 if rollout is None else rollout.visit_index
    for at in (_SOON, _AT):
        for verb in CommandVerb:
            order = make_command(
                verb, issued_at=at, expected_revision=revision, plan=replace(plan, expires_at=None)
            )
            yield str(verb), order, at
        longer = tuple(replace(stage, bake=stage.bake + 24 * HOUR) for stage in plan.stages)
        yield (
            str(CommandVerb.APPLY),
            make_command(
                CommandVerb.APPLY,
                issued_at=at,
                plan=replace(plan, stages=longer, expires_at=None),
                expected_revision=revision,
            ),
            at,
        )
        starts = replace(plan, start_at=T0 + 24 * HOUR, expires_at=None)
        for verb in (CommandVerb.START, CommandVerb.RESTART):
            yield str(verb), make_command(verb, issued_at=at, plan=starts), at
        yield _time_word(rollout, at), Ticked(), at
        yield "restarted", Restarted(), at
        for seen in PASSING[:1]:
            yield "passed", EvidenceJudged(replace(seen, visit=visit)), at
        for seen in (*OPEN, *GAPS, MISSING):
            word = "health gap" if seen.gaps else "not passed"
            yield word, EvidenceJudged(replace(seen, visit=visit)), at
        for policy in OnBreach:
            breach = make_judgement(visit=visit, metrics=(make_breach(on_breach=policy),))
            yield "breach", EvidenceJudged(breach), at
        for advice in (make_advice("proceed"), make_advice("hold")):
            yield "advice", AdviceReceived("gate", 1, advice), at
        yield "advice", AdviceUnavailable("gate", 1, "away"), at


def _time_word(rollout: Rollout | None, at: datetime) -> str:
    """Return which deadline a tick is about."""
    if (
        rollout is not None
        and rollout.plan.expires_at is not None
        and at >= rollout.plan.expires_at
    ):
        return "expired"
    if rollout is not None and is_over(rollout, at):
        return "end"
    match None if rollout is None else rollout.phase:
        case Scheduled():
            return "start time"
        case Baking():
            return "baked"
        case _:
            return "max_bake"


def _diagram() -> Iterator[str]:
    """Yield a Mermaid state diagram.

    An arrow per pair of phases, with everything that leads along it.
    """
    arrows: dict[tuple[PhaseName | None, PhaseName], set[str]] = defaultdict(set)
    for (verb, before), row in COMMANDS.items():
        for after in row.leads_to:
            if after is not before:
                arrows[before, after].add(verb)
    for rollout, word, event, at in _other_events():
        moved, _ = decide(rollout, event, at)
        assert moved is not None
        after, before = moved.phase.name, rollout.phase.name
        if after is before or (isinstance(event, EvidenceJudged) and _is_due(rollout, at)):
            continue  # evidence past a deadline does what the tick does
        arrows[before, after].add(word)
    yield "stateDiagram-v2"
    for (before, after), words in sorted(arrows.items(), key=lambda arrow: _order(*arrow[0])):
        yield f"    {'[*]' if before is None else before} --> {after}: {', '.join(sorted(words))}"


def _other_events() -> Iterator[tuple[Rollout, str, Event, datetime]]:
    """Yield every sample with every event that is no command."""
    for samples in _phases().values():
        for rollout in samples:
            for word, event, at in _events(rollout):
                if rollout is not None and not isinstance(event, CommandReceived):
                    yield rollout, word, event, at


def _is_due(rollout: Rollout, at: datetime) -> bool:
    if is_over(rollout, at):
        return True
    is_expired = rollout.plan.expires_at is not None and at >= rollout.plan.expires_at
    return is_expired or (isinstance(rollout.phase, Gating) and at >= rollout.phase.until)


def _order(before: PhaseName | None, after: PhaseName) -> tuple[int, int]:
    names = list(PhaseName)
    return -1 if before is None else names.index(before), names.index(after)


def _table() -> Iterator[str]:
    """Yield a Markdown table: commands, the phases they work in, and where they lead."""
    yield "| command | in | leads to |"
    yield "|---|---|---|"
    for verb in CommandVerb:
        phases: dict[str, list[str]] = defaultdict(list)
        for phase in (None, *PhaseName):
            row = COMMANDS.get((verb, phase))
            if row is not None:
                leads_to = ", ".join(sorted(row.leads_to)) or "stays"
                phases[leads_to].append(phase or "no rollout")
        for leads_to, names in phases.items():
            yield f"| `{verb}` | {', '.join(names)} | {leads_to} |"


def outcomes() -> dict[tuple[CommandVerb, PhaseName | None], set[PhaseName | None]]:
    """Return where each command leads from each phase, by trying; None: it is rejected."""
    found: dict[tuple[CommandVerb, PhaseName | None], set[PhaseName | None]] = defaultdict(set)
    for name, samples in _phases().items():
        for rollout in samples:
            for _, event, at in _events(rollout):
                if isinstance(event, CommandReceived):
                    found[event.verb, name].add(_outcome(rollout, event, at))
    return found


def _outcome(rollout: Rollout | None, command: CommandReceived, at: datetime) -> PhaseName | None:
    after, effects = decide(rollout, command, at)
    (answer,) = (effect for effect in effects if isinstance(effect, AnswerCommand))
    if answer.status is CommandStatus.REJECTED or after is None:
        return None
    return after.phase.name
