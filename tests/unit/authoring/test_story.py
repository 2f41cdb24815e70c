"""Explanations and changelogs: what is always told from the records, and what a model may add."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from controller.authoring.story import STEPS_FOR_GAPS, changelog, explain_rollout, since, subject_of
from controller.codec.decisions import to_judgement_record
from controller.core.judging.judgement import Gap, Judgement
from controller.core.rollout import RolledBack
from schemas.decision import Decision, PlanReference
from schemas.terms import Arm, DecisionKind, HealthGap, PhaseName, Verdict
from tests.builders import (
    HOUR,
    T0,
    make_arm_summary,
    make_breach,
    make_judgement,
    make_report,
    make_rollout,
)
from tests.unit.authoring.conftest import ScriptedServer, scripted


def make_decision(
    kind: str, revision: int, judgement: Judgement | None = None, **overrides: Any
) -> Decision:
    """Return a decision of the builders' rollout, so many hours after its start."""
    fields: dict[str, Any] = {
        "flag": "new-checkout",
        "rollout_id": "start-1",
        "revision": revision,
        "at": T0 + revision * HOUR,
        "kind": DecisionKind(kind),
        "reason": "because",
        "issuer": "rolloutd",
        "phase": PhaseName.BAKING,
        "stage": 0,
        "from_percent": 0.0,
        "to_percent": 10.0,
        "plan": PlanReference(name="three-steps", version="0123456789abcdef"),
        "gate_id": None,
        "command_id": None,
        "judgement": None if judgement is None else to_judgement_record(judgement),
        "advice": None,
    }
    return Decision(**{**fields, **overrides})


STARTED = make_decision("start", 1, issuer="ada")
ROLLED_BACK = make_decision(
    "roll_back",
    2,
    make_judgement(metrics=(make_breach(),)),
    from_percent=10.0,
    to_percent=0.0,
    reason="guardrail error_rate: 10 % against 1 %",
)


async def test_without_a_model_the_records_speak() -> None:
    """A roll back is explained by its reason, with where to look first.

    And says that no model wrote it.
    """
    told = await explain_rollout(None, make_rollout(), [STARTED, ROLLED_BACK])
    assert told.subject is ROLLED_BACK
    assert told.guess.content.likely_cause == (
        "What treatment runs and control does not: error_rate is bad in treatment, while control, "
        "served at the same time, is not. The records name no cause beyond the evidence above."
    )
    assert "failed requests" in told.guess.content.next_steps[0]
    assert "no model" in told.guess.origin


async def test_where_nothing_was_stopped_no_cause_is_made_up() -> None:
    """A rollout that was only started has no cause of trouble, and nobody has to be asked."""
    told = await explain_rollout(None, make_rollout(), [STARTED])
    assert told.guess.content.likely_cause == (
        "None to explain: by the records nothing stopped this rollout."
    )
    assert told.guess.content.next_steps == ["read the evidence: rolloutctl decisions new-checkout"]


BAD_CONTROL = make_breach(
    arms={arm: make_arm_summary(events=100, estimate=0.1) for arm in Arm}, limit=0.05
)


@pytest.mark.parametrize(
    ("decision", "cause"),
    [
        (make_decision("roll_back", 2, issuer="ada", reason="5xx"), "requested it: ada. "),
        (
            make_decision("hold", 2, issuer="ada", phase=PhaseName.SCHEDULED),
            "None to explain: the rollout waits for its start.",
        ),
        (make_decision("end", 2), "The plan's ends_at was reached. Nothing was wrong."),
        (
            make_decision("roll_back", 2, make_judgement(metrics=(BAD_CONTROL,))),
            "Perhaps not the release: control is beyond the limit of error_rate too.",
        ),
        (
            make_decision("hold", 2, make_judgement(gaps=(Gap(HealthGap.STALE, "40 s old"),))),
            "could not be judged (stale), which says nothing about the release",
        ),
        (
            make_decision("roll_back", 2, make_judgement(gaps=(Gap(HealthGap.SRM, "0 % of 74"),))),
            "could not be judged (srm), and the release may fail before it reports",
        ),
        (
            make_decision(
                "pause", 2, make_judgement(metrics=(make_report(safe=Verdict.INCONCLUSIVE),))
            ),
            "Too little evidence so far: neither harm nor safety is shown for error_rate.",
        ),
        (make_decision("pause", 2), "Unknown: it was decided without evidence"),
    ],
)
async def test_the_cause_is_not_the_decision_again(decision: Decision, cause: str) -> None:
    """It says where the cause lies, or that the records name none."""
    told = await explain_rollout(None, make_rollout(), [STARTED, decision])
    assert cause in told.guess.content.likely_cause
    assert decision.reason not in told.guess.content.likely_cause


async def test_earlier_rollouts_of_the_flag_are_told_with_what_became_of_each() -> None:
    """A restart begins a new rollout; why the last one ended is what people ask then."""
    older = [
        one.model_copy(update={"rollout_id": f"start-{number}"})
        for number in (8, 9)
        for one in (STARTED, ROLLED_BACK)
    ]
    told = await explain_rollout(None, make_rollout(), [*older, STARTED])
    assert told.decisions == [STARTED]
    assert [one.last.rollout_id for one in told.earlier] == ["start-8", "start-9"]
    document = told.earlier[1].document()
    assert (document["rollout_id"], document["plan"]) == ("start-9", "three-steps")
    assert document["last"]["reason"] == "guardrail error_rate: 10 % against 1 %"
    assert document["last"]["kind"] == "roll_back"


async def test_a_model_adds_its_guess() -> None:
    """A guess in the form stands under the model's name.

    What it was told is our records, with their numbers.
    """
    guess = {
        "likely_cause": "The new provider refuses cards. This is a guess.",
        "next_steps": ["look at its log"],
    }
    model = scripted(json.dumps(guess))
    told = await explain_rollout(model, make_rollout(), [STARTED, ROLLED_BACK])
    assert told.guess.content.likely_cause == guess["likely_cause"]
    assert "the model tiny" in told.guess.origin
    assert model is not None
    assert isinstance(model.server, ScriptedServer)
    sent = json.dumps(model.server.prompts[0].messages)
    assert "roll_back: 10 % to 0 %" in sent
    assert "error_rate" in sent
    assert "ada" not in sent  # who gave an order is nobody's business but people's


async def test_a_useless_guess_is_replaced() -> None:
    """Out of the form, the records speak, and the reason is said."""
    told = await explain_rollout(scripted("raise it to 100 %!"), make_rollout(), [ROLLED_BACK])
    assert told.guess.author == "template"
    assert "not one JSON object" in told.guess.origin


async def test_gaps_name_what_to_look_at() -> None:
    """A hold for missing evidence says where evidence comes from."""
    gap = make_judgement(gaps=(Gap(HealthGap.NO_OUTCOMES, "no outcome for 5 min"),))
    told = await explain_rollout(
        None,
        make_rollout(),
        [make_decision("hold", 2, gap, reason="no_outcomes: no outcome for 5 min")],
    )
    assert "request.outcomes" in told.guess.content.next_steps[0]


async def test_who_decided_is_asked_before_the_evidence() -> None:
    """A command's decision has evidence, too; its gaps are not why the operator sent it."""
    gaps = tuple(Gap(kind, "as measured") for kind in HealthGap)
    rolled_back = make_decision("roll_back", 2, make_judgement(gaps=gaps), issuer="ada")
    told = await explain_rollout(None, make_rollout(), [rolled_back])
    assert told.guess.content.next_steps[0] == "ask ada, who sent the command"


async def test_a_breach_comes_before_the_gaps_and_an_end_has_no_advice_to_wait() -> None:
    """A guardrail breaches early, when the sample of a gate is not complete."""
    gaps = (Gap(HealthGap.BELOW_MIN_SAMPLE, "20 of 500"), Gap(HealthGap.STALE, "40 s old"))
    judgement = make_judgement(metrics=(make_breach(),), gaps=gaps)
    ended = make_rollout(phase=RolledBack(T0, "guardrail"))
    told = await explain_rollout(None, ended, [make_decision("roll_back", 2, judgement)])
    breach, *others = told.guess.content.next_steps
    assert "failed requests" in breach
    assert others == [
        STEPS_FOR_GAPS[HealthGap.STALE],
        "start a new rollout once the cause is fixed; this one is over",
    ]


@pytest.mark.parametrize("kind", HealthGap)
async def test_every_gap_is_explained(kind: HealthGap) -> None:
    """Each kind of gap has its advice, which the explanation without a model repeats."""
    held = make_decision("hold", 2, make_judgement(gaps=(Gap(kind, "as measured"),)))
    explanation = await explain_rollout(None, make_rollout(), [held])
    assert explanation.guess.content.next_steps == [STEPS_FOR_GAPS[kind]]


def test_no_advice_is_for_a_gap_that_is_gone() -> None:
    """The advice is for exactly the gaps that there are."""
    assert set(STEPS_FOR_GAPS) == set(HealthGap)


async def test_nothing_decided_yet() -> None:
    """A rollout without decisions, or with another rollout's, has no story."""
    told = await explain_rollout(
        None, make_rollout(), [make_decision("roll_back", 1, rollout_id="earlier")]
    )
    assert told.subject is None
    assert told.decisions == []


def test_what_most_needs_explaining() -> None:
    """A lowering before a stop, a stop before the rest, the newest of each."""
    hold = make_decision("hold", 3)
    assert subject_of([STARTED, ROLLED_BACK, hold]) is ROLLED_BACK
    assert subject_of([STARTED, hold]) is hold
    assert subject_of([STARTED]) is STARTED
    assert subject_of([]) is None


@pytest.mark.parametrize("onward", ["advance", "complete"])
async def test_a_gate_that_held_and_then_opened_is_no_trouble(onward: str) -> None:
    """What held an earlier gate is no cause of anything once the rollout went on."""
    hold = make_decision("hold", 2, make_judgement(gaps=(Gap(HealthGap.STALE, "40 s old"),)))
    went_on = make_decision(onward, 3)
    told = await explain_rollout(None, make_rollout(), [STARTED, hold, went_on])
    assert told.subject is went_on
    assert told.guess.content.likely_cause == (
        "None to explain: by the records nothing stopped this rollout."
    )
    assert subject_of([STARTED, ROLLED_BACK, went_on]) is ROLLED_BACK
    assert subject_of([STARTED, went_on, hold]) is hold


async def test_changelog_lists_transitions() -> None:
    """Every change of a flag is one line with time, movement and reason; holds are none."""
    made = await changelog(None, [STARTED, make_decision("hold", 2), ROLLED_BACK], "Rollouts")
    assert made.content.splitlines() == [
        "# Rollouts",
        "",
        "## new-checkout",
        "",
        "- 2026-01-05 10:00 UTC, **start** 0 % → 10 %, by ada: because",
        (
            r"- 2026-01-05 11:00 UTC, **roll back** 10 % → 0 %: guardrail error\_rate: 10 % "
            r"against 1 %"
        ),
    ]


async def test_changelog_shows_text_as_text() -> None:
    """A reason with Markdown or HTML in it becomes neither link nor tag."""
    hostile = make_decision(
        "abort", 2, reason="<script>x</script> [click](http://evil.example) ![i](x)\n# Heading"
    )
    made = await changelog(None, [hostile], "Rollouts")
    assert "<script>" not in made.content.replace("\\<", "")
    assert "[click](" not in made.content.replace("\\[", "")
    assert made.content.count("\n#") == 1  # the flag's own heading


async def test_changelog_takes_one_paragraph_from_a_model() -> None:
    """A model's summary stands above the list, which stays ours; its Markdown is text."""
    made = await changelog(
        scripted('{"summary": "The new checkout was [taken back](http://evil.example)."}'),
        [ROLLED_BACK],
        "R",
    )
    assert made.author == "tiny"
    assert "[taken back](" not in made.content.replace("\\[", "")
    assert "**roll back** 10 % → 0 %" in made.content
    empty = await changelog(scripted('{"summary": "Much happened."}'), [], "R")
    assert "Nothing changed." in empty.content


def test_since_is_inclusive_and_in_order() -> None:
    """Decisions from the moment on are kept, oldest first."""
    assert since([ROLLED_BACK, STARTED], T0 + HOUR) == [STARTED, ROLLED_BACK]
    assert since([ROLLED_BACK, STARTED], T0 + HOUR + timedelta(seconds=1)) == [ROLLED_BACK]
