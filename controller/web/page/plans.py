"""The plan that a rollout runs, and a form in which a plan is checked and simulated.

A pasted plan is read in a thread, one at a time, and bounded in size; it is simulated in a process
of its own. No file is opened, and what was pasted is not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Final
from urllib.parse import parse_qs

import yaml

from controller.codec.plans import from_core_plan
from controller.core.plan import Plan
from controller.plans import Finding, lint_text
from controller.reporting.tried_plan import RUNS, TrialOrder, TriedPlan
from controller.text import plural
from controller.web.page.rendering import Renderer, ScreenSection
from controller.web.page.trials import NotTried, PlanTrials
from schemas.plan import PlanDocument

#: Characters of a plan that is checked here; one of 100 stages has 10,000. `rolloutctl plan lint`
#: takes more.
LONGEST_PLAN: Final = 20_000
#: Bytes of the form: each character may be written as `%XX` for each of its bytes.
LONGEST_FORM: Final = 12 * LONGEST_PLAN
#: Characters of what is typed beside it, such as `50/s`.
LONGEST_FIELD: Final = 100
FINDINGS: Final = 50
_WAIT_SECONDS: Final = 5.0

#: Finds what the settings say about a plan. It is called in a thread.
PlanRules = Callable[[PlanDocument], Iterable[Finding]]


class Busy(Exception):
    """Another plan is being checked, and takes long."""


@dataclass(frozen=True, slots=True)
class PastedPlan:
    """What a pasted plan came to."""

    status: int
    sections: list[ScreenSection]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the form shows. Nothing, before a plan is pasted."""

    order: TrialOrder
    result: str = "Check a plan"
    mark: str = ""
    tone: str = ""
    why: str = ""
    findings: Sequence[Finding] = ()
    can_start: bool = False
    tried: TriedPlan | None = None
    why_not_tried: str = ""


class PlanScreen:
    """Shows a plan, and checks and simulates one that is pasted."""

    def __init__(
        self,
        renderer: Renderer,
        now: Callable[[], datetime],
        rules: Callable[[], PlanRules],
        trials: PlanTrials | None = None,
    ) -> None:
        """`rules` makes those that hold at the moment of a check.

        `trials` None: in processes of their own, with the limits of the page.
        """
        self._renderer = renderer
        self._now = now
        self._rules = rules
        self._trials = PlanTrials() if trials is None else trials
        self._one_at_a_time = asyncio.Semaphore(1)

    async def sections(self, plan: Plan) -> list[ScreenSection]:
        """Return the plan as text; written in a thread, because a large one takes long."""
        text = await asyncio.to_thread(_as_yaml, plan)
        values = {"flag": plan.flag_key, "version": plan.version, "text": text}
        return self._renderer.blocks("plan.html", values)

    def empty_form(self) -> list[ScreenSection]:
        """Return the form without a plan."""
        return self._form(_Shown(TrialOrder()))

    async def checked(self, body: bytes) -> PastedPlan:
        """Return the form with what lint finds, and what virtual rollouts came to, if requested.

        Raises Busy while another check takes too long.
        """
        order, is_simulated = posted(body)
        if len(order.plan) > LONGEST_PLAN:
            why = (
                f"The plan has {len(order.plan):,} characters; here {LONGEST_PLAN:,} are read. "
                f"`rolloutctl plan lint plan.yaml` reads larger ones."
            )
            return PastedPlan(200, self._form(_not_checked(why)))
        if not order.plan.strip():
            return PastedPlan(200, self._form(_not_checked("Nothing was pasted.")))
        shown = _judged(order, *await self._linted(order.plan))
        status = 200
        if is_simulated and shown.can_start:
            try:
                answer = await self._trials.tried(order)
                why = _in_words_of_the_form(answer.refused)
                shown = replace(shown, tried=answer.tried, why_not_tried=why)
            except NotTried as trouble:
                status, shown = trouble.status, replace(shown, why_not_tried=str(trouble))
        return PastedPlan(status, self._form(shown))

    async def _linted(self, text: str) -> tuple[PlanDocument | None, Sequence[Finding]]:
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._one_at_a_time.acquire()
        except TimeoutError:
            raise Busy from None
        try:
            # Not awaited by the request alone: a thread goes on when its client has left.
            work = asyncio.to_thread(lint_text, text, self._now(), by_settings=self._rules())
            task = asyncio.ensure_future(work)
            task.add_done_callback(lambda _: self._one_at_a_time.release())
        except BaseException:
            self._one_at_a_time.release()
            raise
        return await asyncio.shield(task)

    def _form(self, shown: _Shown) -> list[ScreenSection]:
        marked = {one.line for one in shown.findings}
        lines = enumerate(shown.order.plan.splitlines(), start=1) if shown.findings else ()
        return self._renderer.blocks(
            "lint.html",
            {
                "shown": shown,
                "lines": [{"text": line, "marked": number in marked} for number, line in lines],
                "longest": LONGEST_PLAN,
                "longest_field": LONGEST_FIELD,
                "runs": RUNS,
                "fields": _FIELDS,
            },
        )


#: What is typed for a simulation: its name in the form, its label, and an example.
_FIELDS: Final = (
    ("traffic", "Traffic, both arms together", "50/s"),
    ("error_rate", "Error rate of control", "0.5%"),
    ("latency", "Latency of control: p50,p99", "40ms,150ms"),
    ("conversion", "Conversion of control", "bought=3%"),
    ("effect", "What the release does worse", "errors=x2@stage2"),
)


def _not_checked(why: str) -> _Shown:
    return _Shown(TrialOrder(), "Not checked", "?", "unknown", why)


def _judged(order: TrialOrder, document: PlanDocument | None, found: Sequence[Finding]) -> _Shown:
    """Return what is shown of a plan that lint has read."""
    findings = found[:FINDINGS]
    errors = sum(one.is_error for one in findings)
    warnings = len(findings) - errors
    words = ", ".join(
        plural(count, name) for count, name in ((errors, "error"), (warnings, "warning")) if count
    )
    if errors:
        result, mark, tone = f"It cannot be started: {words}.", "▲", "harm"
    elif warnings:
        result, mark, tone = f"It works, with {words}.", "◆", "waits"
    else:
        result, mark, tone = "No fault found.", "✓", "done"
    can_start = document is not None and not errors
    return _Shown(order, result, mark, tone, findings=findings, can_start=can_start)


def _in_words_of_the_form(refused: str) -> str:
    """Return a refusal of `rolloutctl` without the form of its options."""
    return refused.removeprefix("--")


def posted(body: bytes) -> tuple[TrialOrder, bool]:
    """Return what a form's body has, and whether the plan shall be simulated."""
    form = parse_qs(body.decode("latin-1"), keep_blank_values=True, max_num_fields=10)
    typed = {name: values[-1].strip()[:LONGEST_FIELD] for name, values in form.items()}
    typed["plan"] = form.get("plan", [""])[-1].replace("\r\n", "\n")
    order = TrialOrder(**{one.name: typed.get(one.name, "") for one in fields(TrialOrder)})
    return order, typed.get("do") == "simulate"


def _as_yaml(plan: Plan) -> str:
    document = from_core_plan(plan).model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=90)
