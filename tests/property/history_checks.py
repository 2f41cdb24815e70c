"""Runs a test on many histories of one flag, and shows the shortest one that fails it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from controller.core.effects import AnswerCommand
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    EvidenceJudged,
)
from controller.core.invariants import Step
from controller.core.rollout import Gating, Rollout
from schemas.terms import CommandStatus, CommandVerb
from tests.builders import T0
from tests.examples import IS_THOROUGH
from tests.histories import (
    ANYTHING,
    Alphabet,
    walk,
)

#: A history of some 40 events costs a few milliseconds, so that many are affordable.
MANY = 2_000 if IS_THOROUGH else 200
VERY_MANY = 20_000 if IS_THOROUGH else 500  # for what advice may do

scripts = st.binary(min_size=200, max_size=200)
Test = Callable[[Iterator[Step]], None]


def invariant(
    examples: int, alphabet: Alphabet = ANYTHING
) -> Callable[[Test], Callable[..., None]]:
    """Run a test on so many histories.

    When it fails, tell the shortest one line by line, up to where it went wrong.

    Many are cut into parts of 2,000: a test that takes minutes on a busy machine would be taken for
    one that hangs. Tests may all draw from one seed, so each part turns the bytes it is given in
    another way.
    """
    parts = max(examples // 2_000, 1)

    def decorate(test: Test) -> Callable[..., None]:
        def on_script(script: bytes, part: int) -> None:
            told: list[Step] = []
            turned = bytes(byte ^ (23 * part) for byte in script)
            try:
                test(_told(walk(turned, alphabet), told))
            except AssertionError:
                for step in told:
                    note(tell(step))
                raise

        on_script.__name__, on_script.__doc__, on_script.__module__ = (
            test.__name__,
            test.__doc__,
            test.__module__,
        )
        on_scripts = settings(max_examples=examples // parts)(given(script=scripts)(on_script))
        in_parts: Callable[..., None] = pytest.mark.parametrize("part", range(parts))(on_scripts)
        return in_parts

    return decorate


def _told(steps: Iterator[Step], told: list[Step]) -> Iterator[Step]:
    for step in steps:
        told.append(step)
        yield step


def tell(step: Step) -> str:
    """Return a step in one line."""
    event = step.event
    what = type(event).__name__
    match event:
        case CommandReceived():
            what = (
                f"{event.verb} expecting {event.expected_revision}, issued "
                f"{step.now - event.issued_at} ago"
            )
        case EvidenceJudged(judgement=seen):
            gaps, breach = [gap.kind for gap in seen.gaps], seen.breach is not None
            what = f"judged visit {seen.visit}: {seen.statistics} {gaps} breach={breach}"
        case AdviceReceived():
            what = f"advice {event.advice.choice} for {event.gate_id} round {event.round}"
        case AdviceUnavailable():
            what = f"no advice for {event.gate_id} round {event.round}"
    state = (
        "nothing"
        if step.after is None
        else f"r{step.after.revision} {step.after.percent:g}% {step.after.phase}"
    )
    return f"{step.now - T0} {what} -> {state}"


def percent(rollout: Rollout | None) -> float:
    """Return what is decided to be served; 0 for a flag never started."""
    return 0.0 if rollout is None else rollout.percent


def answers(step: Step) -> list[AnswerCommand]:
    """Return the answers among a step's effects."""
    return [effect for effect in step.effects if isinstance(effect, AnswerCommand)]


def is_accepted(step: Step, *verbs: CommandVerb) -> bool:
    """True when the event is one of these commands and was accepted."""
    return (
        isinstance(step.event, CommandReceived)
        and step.event.verb in verbs
        and [answer.status for answer in answers(step)] == [CommandStatus.ACCEPTED]
    )


def has_ended(step: Step) -> bool:
    """Return whether the end of the plan has come by a step."""
    assert step.before is not None
    ends_at = step.before.plan.ends_at
    return ends_at is not None and max(step.now, step.before.updated_at) >= ends_at


def visible(rollout: Rollout) -> object:
    """Return everything but where the question to the model stands."""
    phase = (
        replace(rollout.phase, advice=None) if isinstance(rollout.phase, Gating) else rollout.phase
    )
    return replace(rollout, phase=phase)
