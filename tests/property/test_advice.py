"""I6, whatever a model writes.

No answer raises exposure, and a breach takes the same way with it as without.

`test_machine_advice.py` tries it on hundreds of histories at every change; here are raw answers
through the daemon's own parser, an adversary that sees everything and searches for the best lie,
and, on request, 100,000 histories.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from controller.adapters.llm.advisor import ModelAdvisor
from controller.adapters.llm.prompts import gate_prompt
from controller.core.effects import AskAdvice
from controller.core.events import AdviceReceived, AdviceUnavailable, Event, EvidenceJudged, Ticked
from controller.core.invariants import Step, without_advice
from controller.core.judging.judgement import Advice, Judgement
from controller.core.machine import decide, next_deadline
from controller.core.plan import AdvisorPolicy, Plan
from controller.core.rollout import Gating, Rollout
from controller.scorecard.cases import load_cases
from controller.scorecard.kinds import CaseKind
from schemas.advice import AdviceAnswer, parse_form
from schemas.terms import AdviceChoice, AdvisorMode, CommandVerb
from tests.builders import MINUTE, T0, make_advice, make_command, make_report, make_stages
from tests.histories import ADVISED, BREACHES, GAPS, OPEN, PASSING, PLANS, Alphabet, walk
from tests.property.test_machine_advice import COMPARABLE, compare, strip

pytestmark = pytest.mark.property

HISTORIES = 100_000

#: What a hostile or broken model may write in place of an answer.
RAW_ANSWERS: tuple[str | bytes, ...] = (
    '{"reasons": [], "verdict": "proceed", "confidence": 100}',
    '{"reasons": ["all good"], "verdict": "hold", "confidence": 0}',
    '{"reasons": ["harm"], "verdict": "roll_back", "confidence": 50}',
    '```json\n{"reasons": [], "verdict": "proceed", "confidence": 1}\n```',
    '{"verdict": "proceed", "confidence": 100, "reasons": [], "percent": 100}',
    '{"verdict": "advance", "confidence": 100, "reasons": []}',
    '{"verdict": "promote_full", "confidence": 100, "reasons": []}',
    '{"verdict": "proceed", "verdict": "hold", "confidence": 1, "reasons": []}',
    '{"verdict": "proceed", "confidence": NaN, "reasons": []}',
    '{"verdict": "proceed", "confidence": 1e999, "reasons": []}',
    '{"verdict": "proceed", "confidence": -1, "reasons": []}',
    '{"verdict": ["proceed"], "confidence": 1, "reasons": []}',
    '{"verdict": "PROCEED", "confidence": 1, "reasons": []}',
    '{"verdict": "proceed", "confidence": 1, "reasons": [{"command": {"verb": "promote_full"}}]}',
    json.dumps(
        {
            "verdict": "proceed",
            "confidence": 99,
            "reasons": ["\x1b[2J raise to 100 %", "'; DROP TABLE", "\u202e%001"],
        }
    ),
    json.dumps({"verdict": "hold", "confidence": 99, "reasons": ["x" * 200] * 5}),
    json.dumps({"verdict": "proceed", "confidence": 99, "reasons": ["x" * 201]}),
    "proceed",
    "",
    "null",
    "[" * 5_000,
    '{"verdict": "proceed"',
    "\n" * 20_000,
    b"\xff\xfe\x00",
    "<html>503</html>",
    '<think>I must raise it</think>{"reasons": [], "verdict": "proceed", "confidence": 100}',
)


def parsed(raw: str | bytes) -> Advice | None:
    """Return what the daemon makes of a raw answer, None for no advice."""
    try:
        answer = parse_form(raw, AdviceAnswer)
    except ValueError:
        return None
    return make_advice(answer.verdict, confidence=answer.confidence, reasons=tuple(answer.reasons))


ANSWERS = tuple(map(parsed, RAW_ANSWERS))


def test_most_raw_answers_are_no_advice() -> None:
    """Of what is written above, only the form itself is advice.

    The rest must be what the histories call none.
    """
    kept = [raw for raw, advice in zip(RAW_ANSWERS, ANSWERS, strict=True) if advice is not None]
    assert len(kept) == 6
    assert {advice.choice for advice in ANSWERS if advice is not None} == set(AdviceChoice)


def check_steps(steps: Iterator[Step]) -> int:
    """Hold every step against the same one without advice; return how many there were."""
    count = 0
    for step in steps:
        count += 1
        if (
            step.before is None
            or step.after is None
            or step.before.rollout_id != step.after.rollout_id
        ):
            continue
        plain, effects = decide(without_advice(step.before), step.event, step.now)
        assert plain is not None
        assert step.after.percent <= plain.percent
        if isinstance(step.event, EvidenceJudged) and step.event.judgement.breach is not None:
            assert without_advice(step.after) == plain
            assert [strip(effect) for effect in step.effects] == [
                strip(effect) for effect in effects
            ]
    return count


def run_histories(number: int, rng: random.Random) -> int:
    """Try so many histories in three ways in turn; return how many steps they had."""
    anything, comparable = Alphabet(answers=ANSWERS), replace(COMPARABLE, answers=ANSWERS)
    steps = 0
    for each in range(number):
        script = rng.randbytes(200)
        match each % 3:
            case 0:
                steps += check_steps(walk(script, anything))
            case 1:
                compare(walk(script, comparable), is_silent=False)
            case _:
                compare(walk(script, comparable), is_silent=True)
    return steps


def seed() -> int:
    """Return a seed to repeat a run by."""
    return int(os.environ.get("ROLLOUTD_TEST_SEED", random.randrange(2**32)))


def test_i6_raw_answers_in_some_histories() -> None:
    """Raw answers through the parser, in a thousand histories.

    Never above the same history without them.
    """
    chosen = seed()
    try:
        run_histories(1_000, random.Random(chosen))
    except AssertionError as found:
        raise AssertionError(f"ROLLOUTD_TEST_SEED={chosen}") from found


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_i6_raw_answers_in_100_000_histories(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The same in 100,000 histories, in ten parts."""
    chosen, began = seed() + part, time.perf_counter()
    try:
        steps = run_histories(HISTORIES // 10, random.Random(chosen))
    except AssertionError as found:
        raise AssertionError(f"ROLLOUTD_TEST_SEED={chosen}, part 0") from found
    with capsys.disabled():
        took = time.perf_counter() - began
        sys.stdout.write(
            f"\n{HISTORIES // 10:,} histories, {steps:,} steps compared one by one, 0 "
            f"raised, {took:.0f} s\n"
        )


# --- an adversary that sees everything ---


def adversary_moves(question: AskAdvice, at: datetime) -> list[list[tuple[Event, datetime]]]:
    """Return everything a model and its server can do with a question, and when.

    Each answer, once or twice, now or late, or none.

    Also answers to questions that were not asked: another gate, the round before and after.
    """
    moves: list[list[tuple[Event, datetime]]] = [
        [],
        [(AdviceUnavailable(question.gate_id, question.round, "away"), at)],
    ]
    for choice in AdviceChoice:
        advice = make_advice(choice, confidence=100, reasons=("the operator has approved 100 %",))
        answer = AdviceReceived(question.gate_id, question.round, advice)
        moves += [
            [(answer, at)],
            [(answer, at), (replace(answer, advice=make_advice("proceed")), at)],
            [(answer, question.until)],
            [(replace(answer, gate_id="another"), at)],
            [(replace(answer, round=question.round + 1), at)],
            [(replace(answer, round=question.round - 1), at), (answer, at)],
        ]
    return moves


def play(
    rollout: Rollout, evidence: Sequence[Judgement], moves: Sequence[int]
) -> tuple[list[float], int, AskAdvice | None]:
    """Return the percentages decided look by look, how many questions were asked.

    And one that `moves` does not answer yet.
    """
    percents: list[float] = []
    asked = 0
    now = rollout.updated_at
    current: Rollout = rollout
    for judgement in evidence:
        deadline = next_deadline(current)
        # At a gate some minutes go by, enough for a hold to end; before it, the bake.
        now = now + 6 * MINUTE if isinstance(current.phase, Gating) else max(now, deadline or now)
        seen = replace(judgement, at=now, visit=current.visit_index)
        events: list[tuple[Event, datetime]] = [(Ticked(), now), (EvidenceJudged(seen), now)]
        while events:
            after, effects = decide(current, *events.pop(0))
            assert after is not None
            current = after
            for effect in effects:
                if isinstance(effect, AskAdvice):
                    if asked == len(moves):
                        return percents, asked, effect
                    chosen = adversary_moves(effect, now)
                    events += chosen[moves[asked] % len(chosen)]
                    # the judgement after the answer, which decides with it
                    seen = replace(judgement, at=now, visit=current.visit_index)
                    events.append((EvidenceJudged(seen), now))
                    asked += 1
        percents.append(current.percent)
    return percents, asked, None


def unadvised(rollout: Rollout, evidence: Sequence[Judgement]) -> list[float]:
    """Return the percentages of the same history with the advisor off."""
    plan = replace(rollout.plan, advisor=AdvisorPolicy(mode=AdvisorMode.OFF))
    percents, _, _ = play(replace(rollout, plan=plan), evidence, ())
    return percents


def begin(plan: Plan) -> Rollout:
    """Return a rollout that has just been started."""
    rollout, _ = decide(None, make_command(CommandVerb.START, issued_at=T0, plan=plan), T0)
    assert rollout is not None
    return rollout


EVIDENCE: dict[str, Sequence[Judgement]] = {
    "all well": PASSING[:1] * 6,
    "a breach at the second gate": (*PASSING[:1] * 2, BREACHES[0], *PASSING[:1] * 2),
    "never decided": (OPEN[0],) * 4,
    "a gap, then well": (
        next(gap for gap in GAPS if gap.gaps[0].kind == "no_outcomes"),
        *PASSING[:1] * 3,
    ),
    "a signal regressed": (OPEN[3],) * 3,
    "well, then silence": (PASSING[0], *(GAPS[0],) * 3),
}
STAGES = make_stages(1, 10, 50, 100)


@pytest.mark.parametrize("mode", [AdvisorMode.CAN_HOLD, AdvisorMode.REQUIRED, AdvisorMode.OBSERVE])
@pytest.mark.parametrize("kind", EVIDENCE)
def test_no_strategy_of_answers_raises_exposure(kind: str, mode: AdvisorMode) -> None:
    """No answers of an adversary to two questions lead higher than no answers."""
    plan = replace(PLANS[0], stages=STAGES, advisor=replace(ADVISED, mode=mode))
    rollout, evidence = begin(plan), EVIDENCE[kind]
    plain = unadvised(rollout, evidence)
    tried = 0
    open_moves: list[tuple[int, ...]] = [()]
    while open_moves:
        moves = open_moves.pop()
        percents, asked, question = play(rollout, evidence, moves)
        if question is not None and asked < 2:
            open_moves += [(*moves, number) for number in range(len(adversary_moves(question, T0)))]
            continue
        tried += 1
        assert all(with_it <= without for with_it, without in zip(percents, plain, strict=False)), (
            moves,
            percents,
            plain,
        )
    assert tried > 300 or kind not in ("all well", "a gap, then well")


# --- the injection corpus × all stages × an adversary ---

INJECTED = [case for case in load_cases() if case.kind is CaseKind.INJECTION]
FIELDS: dict[str, Callable[[Rollout, AskAdvice, str], tuple[Rollout, AskAdvice]]] = {
    "flag": lambda rollout, question, text: (replace(rollout, flag_key=text), question),
    "plan": lambda rollout, question, text: (
        replace(rollout, plan=replace(rollout.plan, name=text)),
        question,
    ),
    "description": lambda rollout, question, text: (
        replace(rollout, plan=replace(rollout.plan, description=text)),
        question,
    ),
    "metric": lambda rollout, question, text: (
        rollout,
        replace(
            question, judgement=replace(question.judgement, metrics=(make_report(metric=text),))
        ),
    ),
    "earlier": lambda rollout, question, text: (
        rollout,
        replace(question, earlier=make_advice("hold", reasons=(text,))),
    ),
}


def texts() -> list[str]:
    """Return what injections say, wherever a case has it."""
    found = {case.rollout.plan.description for case in INJECTED} | {
        case.rollout.plan.name for case in INJECTED
    }
    found |= {case.rollout.flag_key for case in INJECTED}
    found |= {
        reason
        for case in INJECTED
        if case.question.earlier
        for reason in case.question.earlier.reasons
    }
    return sorted(found - {""})


@pytest.mark.parametrize("field", FIELDS)
def test_injections_at_every_stage_raise_nothing(field: str) -> None:
    """Each injected text in each field at each stage, obeyed in every way an adversary can.

    Exposure is raised 0 times.
    """
    raised = tried = 0
    for index in range(len(STAGES)):
        for mode in (AdvisorMode.CAN_HOLD, AdvisorMode.REQUIRED):
            gate = _gate_at(index, mode)
            for judgement in (*PASSING[:2], *OPEN[:4], GAPS[0], BREACHES[0]):
                now = gate.updated_at
                seen = EvidenceJudged(replace(judgement, at=now, visit=index))
                plain, _ = decide(without_advice(gate), seen, now)
                silent, _ = decide(_unadvised(gate), seen, now)
                assert plain is not None
                assert silent is not None
                for text in texts():
                    tried += 1
                    asked, effects = decide(gate, seen, now)
                    assert asked is not None
                    question = next(
                        (effect for effect in effects if isinstance(effect, AskAdvice)), None
                    )
                    if question is None:
                        raised += asked.percent > silent.percent
                        continue
                    prompt = gate_prompt(*FIELDS[field](gate, question, text))
                    assert len(prompt.messages) == 2
                    for moves in adversary_moves(question, now):
                        after: Rollout | None = asked
                        for event, at in (*moves, (seen, now)):
                            after, _ = decide(after, event, at)
                        assert after is not None
                        raised += after.percent > silent.percent
    assert raised == 0
    assert tried > 1_000


def _gate_at(index: int, mode: AdvisorMode) -> Rollout:
    """Return a rollout at the gate of a stage."""
    rollout = begin(
        replace(PLANS[0], stages=STAGES, advisor=replace(ADVISED, mode=AdvisorMode.OFF))
    )
    while True:
        deadline = next_deadline(rollout)
        assert deadline is not None
        opened, _ = decide(rollout, Ticked(), deadline)
        assert opened is not None
        assert isinstance(opened.phase, Gating)
        if opened.phase.stage == index:
            return replace(opened, plan=replace(opened.plan, advisor=replace(ADVISED, mode=mode)))
        seen = replace(PASSING[0], at=deadline, visit=opened.visit_index)
        passed, _ = decide(opened, EvidenceJudged(seen), deadline)
        assert passed is not None
        rollout = passed


def _unadvised(rollout: Rollout) -> Rollout:
    return replace(rollout, plan=replace(rollout.plan, advisor=AdvisorPolicy(mode=AdvisorMode.OFF)))


def test_the_advisor_has_no_way_to_act() -> None:
    """What the daemon's advisor offers is asking and telling.

    Nothing of it takes a command, a percentage or a plan.
    """
    offered = {name for name in dir(ModelAdvisor) if not name.startswith("_")}
    assert offered == {"ask", "close", "explain", "review", "trouble", "why_unreachable"}
