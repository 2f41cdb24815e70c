"""What is counted as what, and what the report shows of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from controller.adapters.memory import ManualClock
from controller.core.effects import AskAdvice
from controller.core.judging.judgement import Advice
from controller.core.rollout import Rollout
from controller.errors import AdviceUnavailableError
from controller.scorecard.cases import Case, load_cases
from controller.scorecard.kinds import CaseKind
from controller.scorecard.report import ScorecardOrigin, render, to_document
from controller.scorecard.scoring import CaseAnswer, Score, put_cases, score
from schemas.terms import AdviceChoice, AdvisorMode
from tests.builders import make_advice

CASES = load_cases()
ASKED = ScorecardOrigin(
    "tiny", "http://127.0.0.1:1 (openai)", "gate-v1", datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
)


class Scripted:
    """An advisor that answers as a rule says; None: no advice."""

    def __init__(self, rule: Callable[[Rollout, AskAdvice], AdviceChoice | None]) -> None:
        self._rule = rule

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        choice = self._rule(rollout, question)
        if choice is None:
            raise AdviceUnavailableError("it hangs")
        return make_advice(choice, prompt_tokens=600, completion_tokens=40)


def answer_all(choose: Callable[[Case], AdviceChoice | None]) -> list[CaseAnswer]:
    """Return the answers of a model that chooses by the case."""
    answers = []
    for case in CASES:
        choice = choose(case)
        answers.append(
            CaseAnswer(case, None, "it hangs")
            if choice is None
            else CaseAnswer(case, make_advice(choice))
        )
    return answers


def score_of(choose: Callable[[Case], AdviceChoice | None]) -> Score:
    """Return the score of a model that chooses by the case."""
    return score(answer_all(choose))


def defended(case: Case) -> AdviceChoice:
    """Return an answer that can be defended."""
    return sorted(case.expected)[0]


def test_a_perfect_model() -> None:
    """Defensible answers throughout.

    Full agreement, nothing unsafe, nothing needless, and its holds are worth waiting for.
    """
    figures = score_of(defended)
    assert (figures.in_form.share, figures.agreement.share) == (1.0, 1.0)
    assert (
        figures.unsafe_proceeds.count,
        figures.needless_holds.count,
        figures.injections.count,
    ) == (0, 0, 0)
    assert figures.unsafe_proceeds.of > 30
    assert figures.needless_holds.of > 15
    assert figures.suits[0] is AdvisorMode.CAN_HOLD


def test_a_model_that_always_proceeds() -> None:
    """It is unsafe wherever it could be, never needless, and was not swayed by injections.

    It says so anyway.
    """
    figures = score_of(lambda _: AdviceChoice.PROCEED)
    assert figures.unsafe_proceeds.share == 1.0
    assert figures.needless_holds.count == 0
    assert figures.injections.count == 0
    assert figures.suits[0] is AdvisorMode.OBSERVE
    assert "catches less than 50 %" in figures.suits[1]


def test_a_model_that_always_holds() -> None:
    """It is safe and of no use."""
    figures = score_of(lambda _: AdviceChoice.HOLD)
    assert figures.unsafe_proceeds.count == 0
    assert figures.needless_holds.share == 1.0
    assert "needless holds" in figures.suits[1]


def test_a_model_that_obeys_texts() -> None:
    """Whoever follows each injected instruction, and is right otherwise, is swayed each time."""
    figures = score_of(lambda case: case.wanted or defended(case))
    assert figures.injections.share == 1.0
    assert figures.suits[0] is AdvisorMode.OBSERVE


def test_no_advice_is_neither_right_nor_wrong() -> None:
    """A model that is silent has no agreement to speak of, and is better left out."""
    figures = score_of(lambda _: None)
    assert figures.in_form.share == 0.0
    assert figures.agreement.share is None
    assert figures.latency_p95_ms is None
    assert figures.suits[0] is AdvisorMode.OFF


async def test_every_case_is_put_with_its_own_deadline() -> None:
    """Each case is asked in turn, within the deadline.

    And what fails is noted as no advice with its reason.
    """
    clock = ManualClock()
    heard: list[str] = []
    asked: list[float] = []

    def rule(_: Rollout, question: AskAdvice) -> AdviceChoice | None:
        asked.append((question.until - clock.now()).total_seconds())
        return None if len(asked) % 2 else AdviceChoice.HOLD

    answers = await put_cases(
        Scripted(rule),
        CASES[:4],
        clock,
        deadline_seconds=7.0,
        on_answer=lambda answer: heard.append(answer.case.name),
    )
    assert heard == [case.name for case in CASES[:4]]
    assert asked == [7.0] * 4
    assert [answer.why_none for answer in answers] == ["it hangs", "", "it hangs", ""]
    assert score(answers).prompt_tokens == 600


class _Page(HTMLParser):
    """Collects which tags a page has, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [
            name for name, _ in attrs if name in ("src", "href", "onclick", "onload", "srcset")
        ]


def test_report_is_self_contained_and_runs_nothing() -> None:
    """The page loads nothing, has no script, and what a model wrote stands in it as text."""
    hostile = make_advice(
        "hold", reasons=("<script>alert(1)</script><img src=x onerror=alert(1)>",)
    )
    answers = [CaseAnswer(case, hostile) for case in CASES]
    page = render(ASKED, answers, score(answers))
    parser = _Page()
    parser.feed(page)
    assert parser.loaded == []
    assert not {"script", "img", "iframe", "link", "object"} & set(parser.tags)
    assert "&lt;script&gt;alert(1)" in page
    assert "url(" not in page
    assert "@import" not in page


@pytest.mark.parametrize("choose", [defended, lambda _: None])
def test_report_shows_every_case(choose: Callable[[Case], AdviceChoice | None]) -> None:
    """Each case has its row, each kind its bar, also when there was no advice at all."""
    answers = answer_all(choose)
    page = render(ASKED, answers, score(answers))
    assert page.count("<tr>") == len(CASES) + 1
    for kind in CaseKind:
        assert kind.replace("_", " ") in page
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([0-9.]+)"', page)]
    assert all(0 <= width <= 480 for width in widths)


def test_document_holds_every_figure() -> None:
    """For machines: figures with their counts, and each case with what was answered."""
    answers = answer_all(defended)
    document = to_document(ASKED, answers, score(answers))
    assert document["agreement"] == {"count": len(CASES), "total": len(CASES), "share": 1.0}
    assert document["mode"] == "can_hold"
    assert len(document["cases"]) == len(CASES)
    assert document["cases"][0]["choice"] == "proceed"
