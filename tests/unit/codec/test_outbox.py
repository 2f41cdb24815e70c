"""Messages of the core become records: decisions, results, alerts and state."""

import json

import pytest

from controller.codec.outbox import outbox_entry
from controller.core.effects import AnswerCommand, PublishDecision
from controller.core.rollout import RolledBack
from controller.errors import (
    BrokenInvariant,
)
from schemas.decision import Decision
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb, DecisionKind
from tests.builders import (
    T0,
    make_advice,
    make_breach,
    make_judgement,
    make_rollout,
)


def test_decision_is_an_event_with_all_its_evidence() -> None:
    """A decision goes out as a CloudEvent with its effect's id, the evidence and the advice."""
    effect = PublishDecision(
        kind=DecisionKind.ROLL_BACK,
        reason="guardrail error_rate",
        from_percent=10.0,
        to_percent=0.0,
        stage=0,
        issuer="rolloutd",
        judgement=make_judgement(metrics=(make_breach(),)),
        advice=make_advice("roll_back"),
    )
    rollout = make_rollout(phase=RolledBack(T0, "guardrail error_rate"), revision=2)
    entry = outbox_entry(effect, "new-checkout", rollout, "new-checkout/2/1", T0)
    event = json.loads(entry.value)
    decision = Decision.model_validate(event["data"])
    assert (entry.topic, entry.key, entry.effect_id) == (
        "decisions",
        "new-checkout",
        "new-checkout/2/1",
    )
    assert (event["id"], event["type"], event["subject"]) == (
        "new-checkout/2/1",
        "io.rolloutd.decision.v1",
        "new-checkout",
    )
    assert (decision.revision, decision.phase, decision.plan.version) == (
        2,
        "rolled_back",
        rollout.plan.version,
    )
    assert decision.judgement is not None
    assert decision.judgement.metrics[0].arms["treatment"].events == 100  # type: ignore[index]
    assert decision.advice is not None
    assert decision.advice.model == "tiny"


def test_half_a_character_in_advice_does_not_stop_the_audit_log() -> None:
    """What a model server sends as text is recorded even when UTF-8 cannot say it."""
    effect = PublishDecision(
        DecisionKind.HOLD, "r", 1.0, 1.0, 0, "rolloutd", advice=make_advice(model="\ud800")
    )
    value = outbox_entry(effect, "new-checkout", make_rollout(), "new-checkout/1/0", T0).value
    assert json.loads(value)["data"]["advice"]["model"] == "?"


def test_result_has_its_commands_id_and_needs_no_rollout() -> None:
    """An answer carries the command's id, also when the flag has no rollout."""
    effect = AnswerCommand(
        "c-1", CommandVerb.PAUSE, CommandStatus.REJECTED, "there is no rollout", 0
    )
    entry = outbox_entry(effect, "f", None, "ignored", T0)
    event = json.loads(entry.value)
    assert (entry.topic, entry.key, entry.effect_id, event["id"]) == (
        "results",
        "f",
        "f/c-1",
        "c-1",
    )
    answer = Result.model_validate(event["data"])
    assert (answer.reason, answer.issuer) == ("there is no rollout", None)


def test_a_result_says_who_sent_the_command() -> None:
    """The list of commands can name who did it, also where nothing was decided."""
    effect = AnswerCommand(
        "c-1", CommandVerb.PAUSE, CommandStatus.REJECTED, "no", 0, issuer="ada@laptop"
    )
    event = json.loads(outbox_entry(effect, "f", None, "ignored", T0).value)
    assert Result.model_validate(event["data"]).issuer == "ada@laptop"


def test_only_answers_do_without_a_rollout() -> None:
    """A decision about no rollout is a mistake of ours, not a record."""
    effect = PublishDecision(DecisionKind.HOLD, "r", 1.0, 1.0, 0, "rolloutd")
    with pytest.raises(BrokenInvariant):
        outbox_entry(effect, "f", None, "f/1/0", T0)
