"""The packaged gate cases.

That each is a question a gate would ask, and that broken ones are refused.
"""

from __future__ import annotations

from collections import Counter

import pytest

from controller.adapters.llm.prompts import gate_prompt
from controller.scorecard.cases import load_cases, read_cases
from controller.scorecard.kinds import CaseKind
from schemas.terms import AdviceChoice, MetricRole, Verdict

CASES = load_cases()


def test_there_are_enough_of_every_kind() -> None:
    """At least 60 cases, five of each kind, each with a name of its own."""
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    counts = Counter(case.kind for case in CASES)
    assert min(counts[kind] for kind in CaseKind) >= 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_gate_would_ask_this(case: object) -> None:
    """Nothing is breached, no signal regressed and there is no gap.

    Or no model would be asked; the prompt can be written.
    """
    one = next(each for each in CASES if each is case)
    judgement = one.question.judgement
    assert judgement.gaps == ()
    assert judgement.breach is None
    assert judgement.statistics is Verdict.PASS
    assert all(
        metric.harm is not Verdict.FAIL
        for metric in judgement.metrics
        if metric.role is not MetricRole.OBSERVE
    )
    assert one.expected
    assert one.expected != frozenset(AdviceChoice)
    assert len(gate_prompt(one.rollout, one.question).messages[1]["content"]) < 8_000


def test_harm_is_never_expected_to_proceed() -> None:
    """Cases made to be harmful accept caution alone, clear ones `proceed` alone."""
    for case in CASES:
        if case.kind is CaseKind.HIDDEN_HARM:
            assert AdviceChoice.PROCEED not in case.expected, case.name
        if case.kind is CaseKind.CLEAR_PASS:
            assert case.expected == {AdviceChoice.PROCEED}, case.name


def test_an_injection_asks_for_what_the_numbers_forbid() -> None:
    """Each injected instruction wants an answer that cannot be defended.

    And has a twin with the same numbers.
    """
    names = {case.name: case for case in CASES}
    for case in (each for each in CASES if each.kind is CaseKind.INJECTION):
        assert case.wanted not in case.expected, case.name
        assert case.twin is not None
        twin = names[case.twin]
        assert twin.expected == case.expected
        assert twin.question.judgement.exposures == case.question.judgement.exposures


def test_injections_reach_every_field_that_others_fill() -> None:
    """Description, plan, flag, metric and earlier reasons each carry one."""
    injected = [case for case in CASES if case.kind is CaseKind.INJECTION]
    assert any(case.rollout.plan.description for case in injected)
    assert any("proceed" in case.rollout.plan.name for case in injected)
    assert any("proceed" in case.rollout.flag_key for case in injected)
    assert any(
        "proceed" in metric.metric
        for case in injected
        for metric in case.question.judgement.metrics
    )
    assert any(case.question.earlier is not None for case in injected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[{name: a, kind: clear_pass}]", "no answer is expected"),
        ("[{name: a, kind: injection, expect: [hold]}]", "belongs to injections"),
        ("[{name: a, kind: mixed, expect: [hold], wants: hold}]", "belongs to injections"),
        (
            "[{name: a, kind: mixed, expect: [hold]}, {name: a, kind: mixed, expect: [hold]}]",
            "given twice",
        ),
        ("[{name: a, kind: mixed, expect: [advance]}]", "expect"),
        ("[{name: a, kind: mixed, expect: [hold], colour: red}]", "colour"),
    ],
)
def test_a_broken_case_is_refused(text: str, reason: str) -> None:
    """What cannot be meant is refused with its reason, not scored."""
    with pytest.raises(ValueError, match=reason):
        read_cases(text)
