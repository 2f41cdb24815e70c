"""Four eyes: who wrote a rollout's plan does not let it pass, by whatever way a command comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.codec.rollouts import rollout_from_json, rollout_to_json
from controller.core.effects import AnswerCommand, Transition
from controller.core.machine import decide
from controller.core.machine.four_eyes import MOST_AUTHORS
from controller.core.rollout import Rollout
from controller.reporting.fitting import fitting_commands
from schemas.terms import Approval, CommandStatus, CommandVerb, PhaseName
from tests.builders import MINUTE, T0, make_command, make_plan, make_stage
from tests.unit.core.machine.states import in_phase

NOW = T0 + 10 * MINUTE
STRICT = make_plan(four_eyes=True)


def started_by(issuer: str, *, four_eyes: bool = True) -> Rollout:
    """Return a rollout that asks for approval, which somebody started."""
    asking = in_phase(PhaseName.AWAITING_APPROVAL)
    stages = tuple(replace(one, approval=Approval.REQUIRED) for one in asking.plan.stages)
    plan = replace(asking.plan, four_eyes=four_eyes, stages=stages)
    return replace(asking, plan=plan, authors=(issuer,))


def give(rollout: Rollout, verb: CommandVerb, issuer: str, **fields: Any) -> Transition:
    """Give a command for the present revision."""
    now = max(NOW, rollout.updated_at)
    command = make_command(
        verb,
        issuer=issuer,
        issued_at=now,
        expected_revision=rollout.revision,
        **{"command_id": f"{verb}-{issuer}", **fields},
    )
    return decide(rollout, command, now)


def answer(transition: Transition) -> AnswerCommand:
    """Return the answer to the command."""
    return next(one for one in transition.effects if isinstance(one, AnswerCommand))


@pytest.mark.parametrize(
    "verb", [CommandVerb.APPROVE, CommandVerb.PROMOTE, CommandVerb.PROMOTE_FULL]
)
def test_who_started_it_does_not_let_it_pass(verb: CommandVerb) -> None:
    """Somebody else does; without the option anybody does."""
    alone = give(started_by("ada"), verb, "ada")
    assert answer(alone).status is CommandStatus.REJECTED
    assert answer(alone).reason.startswith("four eyes: ada started this rollout")
    assert alone.after == started_by("ada")
    assert answer(give(started_by("ada"), verb, "bob")).status is CommandStatus.ACCEPTED
    free = give(started_by("ada", four_eyes=False), verb, "ada")
    assert answer(free).status is CommandStatus.ACCEPTED


@pytest.mark.parametrize("issuer", ["Ada", " ada ", "ADA", "ａｄａ"])
def test_another_spelling_is_not_another_person(issuer: str) -> None:
    """Names are compared as people read them."""
    assert answer(give(started_by("ada"), CommandVerb.APPROVE, issuer)).status is (
        CommandStatus.REJECTED
    )


@pytest.mark.parametrize(
    "verb",
    [
        CommandVerb.PAUSE,
        CommandVerb.REJECT,
        CommandVerb.STEP_BACK,
        CommandVerb.ROLL_BACK,
        CommandVerb.ABORT,
        CommandVerb.FREEZE,
    ],
)
def test_stopping_needs_nobody_else(verb: CommandVerb) -> None:
    """Whoever started it may always make it safer."""
    assert answer(give(started_by("ada"), verb, "ada")).status is CommandStatus.ACCEPTED


def test_who_applies_a_plan_is_an_author_too() -> None:
    """So two people who change it do not let each other's change pass alone."""
    tighter = replace(started_by("ada").plan, alpha=0.001)
    moved = give(started_by("ada"), CommandVerb.APPLY, "bob", plan=tighter, reason="careful")
    assert answer(moved).status is CommandStatus.ACCEPTED
    assert moved.after is not None
    assert moved.after.authors == ("ada", "bob")
    again = give(moved.after, CommandVerb.APPLY, "BOB", plan=tighter, reason="careful")
    assert again.after is not None
    assert again.after.authors == ("ada", "bob")
    for issuer in ("ada", "bob"):
        refused = answer(give(moved.after, CommandVerb.PROMOTE, issuer))
        assert refused.reason.startswith("four eyes")
    assert answer(give(moved.after, CommandVerb.PROMOTE, "eve")).status is CommandStatus.ACCEPTED


def looser_plans() -> list[Any]:
    """Return plans that would let its author pass alone."""
    plan = started_by("ada").plan
    stages = tuple(replace(stage, approval=Approval.NOT_REQUIRED) for stage in plan.stages)
    return [
        replace(plan, four_eyes=False),
        replace(plan, stages=stages),
        replace(plan, guardrails=()),
        replace(plan, stages=(*plan.stages[:-1], make_stage(percent=100.0, bake=MINUTE))),
    ]


@pytest.mark.parametrize("number", range(4))
def test_an_author_does_not_loosen_the_plan(number: int) -> None:
    """Neither the option itself nor anything else that others rely on; somebody else may."""
    plan = looser_plans()[number]
    alone = give(started_by("ada"), CommandVerb.APPLY, "ada", plan=plan)
    assert answer(alone).status is CommandStatus.REJECTED
    assert alone.after == started_by("ada")
    assert answer(alone).reason.startswith("four eyes")


def test_an_author_may_tighten_the_plan() -> None:
    """What is more careful needs nobody else."""
    plan = started_by("ada").plan
    later = replace(plan, beta=plan.beta / 2)
    moved = give(started_by("ada"), CommandVerb.APPLY, "ada", plan=later)
    assert answer(moved).status is CommandStatus.ACCEPTED


def ended_of_ada() -> Rollout:
    """Return a rollout that ada started and ended."""
    first = decide(None, make_command(CommandVerb.START, plan=STRICT, issuer="ada"), T0)
    assert first.after is not None
    assert first.after.authors == ("ada",)
    ended = give(first.after, CommandVerb.ABORT, "ada").after
    assert ended is not None
    return ended


def test_a_restart_does_not_forget_who_wrote_the_plan() -> None:
    """The plan goes on, so its author cannot let it pass because somebody else restarted it."""
    again = give(ended_of_ada(), CommandVerb.RESTART, "bob").after
    assert again is not None
    assert again.authors == ("ada", "bob")
    for issuer in ("ada", "bob"):
        promoted = give(again, CommandVerb.PROMOTE, issuer, reason="why", command_id="p")
        assert answer(promoted).status is CommandStatus.REJECTED
    other = give(again, CommandVerb.PROMOTE, "eve", reason="why", command_id="p")
    assert answer(other).status is CommandStatus.ACCEPTED


@pytest.mark.parametrize("verb", [CommandVerb.START, CommandVerb.RESTART])
def test_a_plan_that_comes_with_the_command_has_its_issuer_as_author(verb: CommandVerb) -> None:
    """Whoever wrote the plan before it has no part in this one."""
    again = give(ended_of_ada(), verb, "bob", plan=STRICT).after
    assert again is not None
    assert again.authors == ("bob",)


def test_restarts_do_not_add_authors_without_end() -> None:
    """The state document bounds them."""
    full = replace(ended_of_ada(), authors=tuple(f"p{one}" for one in range(MOST_AUTHORS)))
    refused = give(full, CommandVerb.RESTART, "one more")
    assert "people have changed this plan" in answer(refused).reason
    assert answer(give(full, CommandVerb.RESTART, "p7")).status is CommandStatus.ACCEPTED


def test_the_authors_are_bounded() -> None:
    """The document does not grow with every person who ever changes a plan."""
    full = replace(started_by("ada"), authors=tuple(f"p{one}" for one in range(MOST_AUTHORS)))
    plan = replace(full.plan, beta=full.plan.beta / 2)
    assert (
        "people have changed this plan"
        in answer(give(full, CommandVerb.APPLY, "one more", plan=plan)).reason
    )
    assert answer(give(full, CommandVerb.APPLY, "p7", plan=plan)).status is CommandStatus.ACCEPTED


def test_authors_are_stored() -> None:
    """A restart does not forget who started it."""
    rollout = started_by("ada@example.org")
    assert rollout_from_json(rollout_to_json(rollout)).authors == ("ada@example.org",)
    assert rollout_from_json(rollout_to_json(rollout)).plan.four_eyes


def test_what_fits_depends_on_who_asks() -> None:
    """The page says why before the button is pressed."""
    for issuer, fits in (("ada", False), ("bob", True)):
        commands = fitting_commands(started_by("ada"), NOW, issuer=issuer)
        approve = next(one for one in commands if one.verb is CommandVerb.APPROVE)
        assert approve.fits is fits
