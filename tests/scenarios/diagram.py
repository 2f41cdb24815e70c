"""Draws the phase diagram from the code: every phase, every event, and where `decide` takes them.

Nothing is listed by hand but the samples that are tried; the page is checked in as
`ops/state-machine.md`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from controller.core.machine import decide
from controller.core.plan import AdvisorPolicy, Plan
from controller.core.rollout import (
    Aborted,
    AdviceReceived,
    AdviceRound,
    AdviceUnavailable,
    AnswerCommand,
    AwaitingApproval,
    Baking,
    CommandReceived,
    Completed,
    Event,
    EvidenceJudged,
    Freeze,
    Gating,
    Paused,
    Phase,
    Restarted,
    RolledBack,
    Rollout,
    Scheduled,
    Ticked,
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

Drawn from the code by `tests/scenarios/diagram.py`, which tries every event in every phase; a test
fails when this page and `controller/core/machine.py` differ (`ROLLOUTD_REWRITE=1 pytest
tests/scenarios` draws it anew). A hold changes no phase, so it has no arrow. The transcripts in
`tests/scenarios/*.txt` tell whole rollouts, event by event.

```mermaid
{diagram}
```

## Commands

What becomes of each command in each phase: where it leads, `stays` for accepted without a change of
phase, `-` for rejected. With a stale `expected_revision` all but `pause`, `roll_back` and `abort`
are rejected; in a freeze also whatever advances.

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
    yield make_plan(stages=stages, expires_at=T0 + HOUR)
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
        starts = replace(plan, start_at=T0 + 24 * HOUR, expires_at=None)
        yield "start", make_command(CommandVerb.START, issued_at=at, plan=starts), at
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
    for before, samples in _phases().items():
        for rollout in samples:
            for word, event, at in _events(rollout):
                after, _ = decide(rollout, event, at)
                if after is None or after.phase.name is before:
                    continue
                if isinstance(event, EvidenceJudged) and _is_due(rollout, at):
                    continue  # evidence past a deadline does what the tick does
                arrows[before, after.phase.name].add(word)
    yield "stateDiagram-v2"
    for (before, after_name), words in sorted(arrows.items(), key=lambda arrow: _order(*arrow[0])):
        yield (
            f"    {'[*]' if before is None else before} --> {after_name}: "
            f"{', '.join(sorted(words))}"
        )


def _is_due(rollout: Rollout | None, at: datetime) -> bool:
    if rollout is None:
        return False
    is_expired = rollout.plan.expires_at is not None and at >= rollout.plan.expires_at
    return is_expired or (isinstance(rollout.phase, Gating) and at >= rollout.phase.until)


def _order(before: PhaseName | None, after: PhaseName) -> tuple[int, int]:
    names = list(PhaseName)
    return -1 if before is None else names.index(before), names.index(after)


def _table() -> Iterator[str]:
    """Yield a Markdown table: commands by phases."""
    phases = _phases()
    yield (
        "| command | "
        + " | ".join("no rollout" if name is None else name for name in phases)
        + " |"
    )
    yield "|---" * (len(phases) + 1) + "|"
    for verb in CommandVerb:
        cells = []
        for samples in phases.values():
            outcomes = {
                _outcome(rollout, order, at)
                for rollout in samples
                for order, at in _orders(rollout, verb)
            }
            if len(outcomes) > 1:
                outcomes.discard("-")
            cells.append(", ".join(sorted(outcomes)))
        yield f"| `{verb}` | " + " | ".join(cells) + " |"


def _orders(
    rollout: Rollout | None, verb: CommandVerb
) -> Iterator[tuple[CommandReceived, datetime]]:
    """Yield a command as it should be given, and when."""
    for _, event, at in _events(rollout):
        if isinstance(event, CommandReceived) and event.verb is verb:
            yield event, at


def _outcome(rollout: Rollout | None, order: CommandReceived, at: datetime) -> str:
    after, effects = decide(rollout, order, at)
    (answer,) = (effect for effect in effects if isinstance(effect, AnswerCommand))
    if answer.status is CommandStatus.REJECTED or after is None:
        return "-"
    is_same = (
        rollout is not None
        and after.phase.name is rollout.phase.name
        and after.rollout_id == rollout.rollout_id
    )
    return "stays" if is_same else str(after.phase.name)
