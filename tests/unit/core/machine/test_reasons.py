"""Reasons of commands: none is lost, and an empty one leaves no half sentence behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.core.effects import AskAdvice, Effect, PublishDecision, RaiseAlert
from controller.core.events import CommandReceived, Ticked
from controller.core.machine import COMMANDS, decide, with_evidence
from controller.core.rollout import Rollout
from schemas.terms import AlertKind, CommandVerb, DecisionKind, PhaseName, Severity
from tests.builders import HOUR, T0, make_command, make_judgement, make_plan, make_rollout
from tests.unit.core.machine.states import FROZEN, GATE, SOON, in_phase

TRIED = sorted({(verb, phase) for verb, phase in COMMANDS}, key=str)


def done(verb: CommandVerb, phase: PhaseName | None, reason: str) -> tuple[Effect, ...]:
    """Return the effects of a command in a phase."""
    rollout: Rollout | None = None
    if phase is not None:
        freeze = FROZEN if verb is CommandVerb.UNFREEZE else None
        rollout = in_phase(phase, freeze=freeze)
    revision = 0 if rollout is None else rollout.revision
    plan = make_plan() if verb is CommandVerb.START else None
    command = make_command(
        verb, reason=reason, issued_at=SOON, expected_revision=revision, plan=plan
    )
    return decide(rollout, command, SOON).effects


def texts(effects: tuple[Effect, ...]) -> list[str]:
    """Return what decisions and alerts say."""
    decided = [effect.reason for effect in effects if isinstance(effect, PublishDecision)]
    return decided + [effect.summary for effect in effects if isinstance(effect, RaiseAlert)]


@pytest.mark.parametrize(("verb", "phase"), TRIED)
@pytest.mark.parametrize("reason", ["", "  "])
def test_an_empty_reason_leaves_no_half_sentence(
    verb: CommandVerb, phase: PhaseName | None, reason: str
) -> None:
    """No decision and no alert ends in a colon, or has nothing between a colon and its end."""
    for text in texts(done(verb, phase, reason)):
        assert text == text.strip()
        assert text
        assert not text.endswith(":")
        assert ": ." not in text


@pytest.mark.parametrize(("verb", "phase"), TRIED)
def test_a_reason_is_never_lost(verb: CommandVerb, phase: PhaseName | None) -> None:
    """Each decision and each alert of a command has the reason that its issuer gave."""
    for text in texts(done(verb, phase, "flaky checkout")):
        assert "flaky checkout" in text or text.startswith("new-checkout completed")


def test_a_roll_back_says_who_asked_for_it() -> None:
    """An operator's roll back names the operator; the controller's own names nobody."""
    _, alert, _ = done(CommandVerb.ROLL_BACK, PhaseName.BAKING, "")
    assert isinstance(alert, RaiseAlert)
    assert alert.summary.endswith("to 0 % by ada: no reason was given")


def test_an_abort_alerts() -> None:
    """0 % by an operator's decision is told like 0 % by a fault, as a warning."""
    _, alert, _ = done(CommandVerb.ABORT, PhaseName.BAKING, "wrong version")
    assert isinstance(alert, RaiseAlert)
    assert (alert.kind, alert.severity) == (AlertKind.ABORTED, Severity.WARNING)
    assert alert.summary == "new-checkout aborted at 50 %, 0 % is served by ada: wrong version"


def command_effects(verb: CommandVerb) -> tuple[Effect, ...]:
    """Return the effects of a command during the second stage's bake."""
    return done(verb, PhaseName.BAKING, "because")


@pytest.mark.parametrize(
    "effects",
    [
        command_effects(CommandVerb.ABORT),
        command_effects(CommandVerb.PROMOTE),
        command_effects(CommandVerb.PAUSE),
        decide(make_rollout(phase=GATE), Ticked(), T0 + 2 * HOUR).effects,
    ],
    ids=["abort", "promote", "pause", "max_bake"],
)
def test_what_no_evidence_caused_gets_the_newest(effects: tuple[Effect, ...]) -> None:
    """Decisions and alerts of commands and deadlines carry what was counted when they came."""
    newest = make_judgement()
    given = with_evidence(effects, newest)
    seen = [effect for effect in given if isinstance(effect, PublishDecision | RaiseAlert)]
    assert seen
    assert all(effect.judgement is newest for effect in seen)
    assert with_evidence(effects, None) == effects


def test_a_decision_without_evidence_says_why_there_is_none() -> None:
    """Silence would look as if nothing had been counted."""
    given = with_evidence(command_effects(CommandVerb.ROLL_BACK), None, "Redis is slow")
    told = [effect.evidence_trouble for effect in given if isinstance(effect, PublishDecision)]
    assert told == ["Redis is slow"]


def test_evidence_of_its_own_is_kept() -> None:
    """What evidence caused keeps that evidence, and a question to the model its own."""
    own, newest = make_judgement(), make_judgement(visit=1)
    decision = PublishDecision(DecisionKind.HOLD, "why", 10, 10, 0, "rolloutd", own)
    question = AskAdvice("gate-1", 1, SOON, own)
    assert with_evidence((decision, question), newest) == (decision, question)
    assert with_evidence((replace(decision, judgement=None),), newest) == (
        replace(decision, judgement=newest),
    )


def test_a_restart_says_why() -> None:
    """The reason of a restart is in its decision."""
    command: CommandReceived = make_command(
        CommandVerb.RESTART, reason="fixed", issued_at=SOON, command_id="restart-1"
    )
    decision, *_ = decide(in_phase(PhaseName.ROLLED_BACK), command, SOON).effects
    assert isinstance(decision, PublishDecision)
    assert (decision.kind, decision.reason) == (DecisionKind.START, "restarted: fixed")
