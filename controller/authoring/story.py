"""Tells what happened to a flag, from its decisions: an explanation, and a changelog.

Our own code always writes what happened and on what evidence, word for word from the audit log. A
model adds its guess at the cause, or one paragraph, under its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from controller.adapters.llm.prompts import (
    DESCRIPTION_MAX_CHARS,
    NAME_MAX_CHARS,
    explanation_prompt,
    fill,
    quoted,
)
from controller.authoring.drafting import Draft, Model, draft
from controller.core.judging.judgement import Harm, Judgement, MetricReport
from controller.core.metrics import kind_of_report, kind_to_show
from controller.core.metrics.kind import ArmSummary
from controller.core.rollout import Rollout
from controller.text import printable
from schemas.advice import EXPLANATION_SCHEMA, ExplanationAnswer, parse_form
from schemas.command import CONTROLLER_NAME
from schemas.decision import Decision, JudgementRecord, MetricRecord
from schemas.terms import AdviceChoice, Arm, DecisionKind, HealthGap, PhaseName, Verdict

CHANGELOG_VERSION = "changelog-v1"
SUMMARY_MAX_CHARS = 500
MAX_RECORDS = 40

_LOWERING = (DecisionKind.ROLL_BACK, DecisionKind.STEP_BACK, DecisionKind.ABORT, DecisionKind.END)
_STOPPING = (*_LOWERING, DecisionKind.PAUSE, DecisionKind.HOLD)
#: What was held before one of these held no longer.
_ONWARD = (DecisionKind.ADVANCE, DecisionKind.COMPLETE)

#: What a person should check first, by the gap in the evidence. A test checks that all are here.
STEPS_FOR_GAPS = {
    HealthGap.NO_TRAFFIC: (
        "check that both variants are served and reported: flag plane, targeting, the apps' "
        "provider; `rolloutctl events` shows what arrives, and what is ignored and why"
    ),
    HealthGap.NO_OUTCOMES: (
        "check that the apps publish request.outcomes with the context id of the evaluation"
    ),
    HealthGap.BELOW_MIN_SAMPLE: (
        "wait, or fit the plan to the traffic: a larger first stage, a longer bake"
    ),
    HealthGap.STALE: "check the consumer lag and the apps' producers",
    HealthGap.SRM: (
        "compare users served with users reported: a crash before the first event causes this"
    ),
    HealthGap.MULTIPLE_EXPOSURE: (
        "check that every app uses the same targeting key: a session in one, a user in another"
    ),
    HealthGap.REPEATED_OUTCOMES: (
        "search for a producer that sends outcomes again, or a topic that is being replayed"
    ),
    HealthGap.IMPLAUSIBLE_LATENCY: (
        "check that the apps send http.server.request.duration in seconds, not in milliseconds"
    ),
    HealthGap.ACTUATION_DRIFT: "check the flag plane: it does not serve what was decided",
    HealthGap.TAINTED: "events of this stage were lost: step back or promote with a reason",
    HealthGap.METRIC_NO_DATA: "check that the external metric's target is scraped",
    HealthGap.METRIC_NOT_A_NUMBER: "check the external metric's query: it may divide by zero",
    HealthGap.METRIC_SEVERAL_SERIES: "let the external metric's query give one series",
    HealthGap.METRIC_LATE: "check that the external metric's target is still scraped",
    HealthGap.METRIC_REFUSED: "run the external metric's query in the monitoring system",
    HealthGap.METRIC_NO_ANSWER: "check that the monitoring system answers",
    HealthGap.WEBHOOK_NO_ANSWER: "check that the gate webhook answers in time",
    HealthGap.WEBHOOK_HTTP_ERROR: "read the log of the gate webhook",
    HealthGap.WEBHOOK_REDIRECT: "write the gate webhook's new address into the settings",
    HealthGap.WEBHOOK_TOO_LARGE: "let the gate webhook answer with less",
    HealthGap.WEBHOOK_WRONG_TYPE: "let the gate webhook answer with JSON",
    HealthGap.WEBHOOK_MALFORMED: "let the gate webhook answer pass, hold or fail",
    HealthGap.WEBHOOK_NOT_SET: "add the gate webhook to the settings",
}
#: Their advice is how to go on, which an ended rollout does not.
_WHILE_UNDER_WAY = frozenset({HealthGap.BELOW_MIN_SAMPLE, HealthGap.TAINTED})


class _Summary(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    summary: str = Field(min_length=1, max_length=SUMMARY_MAX_CHARS)


_SUMMARY_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"summary": {"type": "string", "maxLength": SUMMARY_MAX_CHARS}},
    "required": ["summary"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class EarlierRollout:
    """An earlier rollout of a flag, as far as its decisions are still in the topic."""

    first: Decision
    last: Decision  # what became of it

    def document(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "rollout_id": self.last.rollout_id,
            "plan": self.last.plan.name,
            "first_decision_at": self.first.at.isoformat(),
            "last": self.last.model_dump(mode="json", exclude={"judgement", "advice"}),
        }


@dataclass(frozen=True, slots=True)
class RolloutStory:
    """What happened to a rollout, and a guess at the cause."""

    subject: Decision | None  # what most needs explaining; None when nothing was decided yet
    decisions: Sequence[Decision]  # of this rollout, oldest first
    guess: Draft[ExplanationAnswer]
    earlier: Sequence[EarlierRollout] = ()  # of the same flag, oldest first


async def explain_rollout(
    model: Model | None, rollout: Rollout, decisions: Sequence[Decision]
) -> RolloutStory:
    """Return what happened to the rollout and why, from its decisions."""
    mine = [one for one in decisions if one.rollout_id == rollout.rollout_id]
    subject = subject_of(mine)
    evidence = next((one.judgement for one in reversed(mine) if one.judgement is not None), None)
    if subject is not None and subject.judgement is not None:
        evidence = subject.judgement
    prompt = explanation_prompt(
        rollout.plan,
        "nothing was decided yet"
        if subject is None
        else f"{_words(subject.kind)}: {subject.reason}",
        None if evidence is None else to_core(evidence),
        [(one.kind, one.from_percent, one.to_percent, one.reason) for one in mine],
    )
    guess = await draft(
        model,
        prompt,
        EXPLANATION_SCHEMA,
        read=lambda content: parse_form(content, ExplanationAnswer),
        template=lambda: by_rule(rollout, subject, evidence),
    )
    return RolloutStory(subject, mine, guess, earlier_rollouts(decisions, rollout.rollout_id))


def earlier_rollouts(decisions: Sequence[Decision], rollout_id: str) -> list[EarlierRollout]:
    """Return the rollouts before this one, oldest first, from the decisions about their flag."""
    by_rollout: dict[str, list[Decision]] = {}
    for one in decisions:
        if one.rollout_id != rollout_id:
            by_rollout.setdefault(one.rollout_id, []).append(one)
    return [EarlierRollout(mine[0], mine[-1]) for mine in by_rollout.values()]


def subject_of(decisions: Sequence[Decision]) -> Decision | None:
    """Return the newest decision that lowered, else that stopped, else the newest of all.

    A gate that held and then let the rollout on needs no explaining.
    """
    onward = max((at for at, one in enumerate(decisions) if one.kind in _ONWARD), default=-1)
    for kinds, among in ((_LOWERING, decisions), (_STOPPING, decisions[onward + 1 :])):
        newest = next((one for one in reversed(among) if one.kind in kinds), None)
        if newest is not None:
            return newest
    return decisions[-1] if decisions else None


def by_rule(
    rollout: Rollout, subject: Decision | None, evidence: JudgementRecord | None
) -> ExplanationAnswer:
    """Return an explanation from the records alone."""
    if subject is None:
        return ExplanationAnswer(
            likely_cause="Nothing was decided about this rollout yet.", next_steps=[]
        )
    by = "" if subject.issuer == "rolloutd" else f" by {subject.issuer}"
    steps = []
    failing = (
        []
        if evidence is None
        else [metric for metric in evidence.metrics if metric.harm is Verdict.FAIL]
    )
    for metric in failing:
        where = kind_to_show(metric.metric).where_to_search
        steps.append(
            f"compare {where} with treatment and control, beginning at {subject.at:%H:%M} "
            f"UTC ({metric.metric})"
        )
    steps += _steps_for_gaps(rollout, evidence)
    if subject.kind in _LOWERING and subject.issuer == "rolloutd":
        steps.append("start a new rollout once the cause is fixed; this one is over")
    if by and subject.kind in _STOPPING and subject.phase is not PhaseName.SCHEDULED:
        steps.insert(0, f"ask {subject.issuer}, who sent the command")
    if not steps:
        steps.append(f"read the evidence: rolloutctl decisions {rollout.flag_key}")
    return ExplanationAnswer(
        likely_cause=_cut(_recorded_cause(subject, evidence, failing), 400),
        next_steps=[_cut(step, 200) for step in dict.fromkeys(steps)][:4],
    )


def _steps_for_gaps(rollout: Rollout, evidence: JudgementRecord | None) -> list[str]:
    kinds = [] if evidence is None else [gap.kind for gap in evidence.gaps]
    ended = rollout.has_ended
    return [STEPS_FOR_GAPS[kind] for kind in kinds if not (ended and kind in _WHILE_UNDER_WAY)]


#: What the records cannot tell.
_NO_MORE = "The records name no cause beyond the evidence above"


def _recorded_cause(
    subject: Decision, evidence: JudgementRecord | None, failing: Sequence[MetricRecord]
) -> str:
    """Return where the cause lies as far as the records show it, without repeating the decision."""
    if subject.phase is PhaseName.SCHEDULED:
        return "None to explain: the rollout waits for its start."
    if subject.kind not in _STOPPING:
        return "None to explain: by the records nothing stopped this rollout."
    if subject.issuer != CONTROLLER_NAME:
        return (
            f"A person or a system requested it: {subject.issuer}. {_NO_MORE} and the reason given."
        )
    if subject.kind is DecisionKind.END:
        return "The plan's ends_at was reached. Nothing was wrong."
    if failing:
        return _cause_of_harm(failing)
    if subject.advice is not None and subject.advice.choice is not AdviceChoice.PROCEED:
        return f"The model {subject.advice.model} advised against it. {_NO_MORE} and its advice."
    if evidence is None:
        return "Unknown: it was decided without evidence, and no command requested it."
    if evidence.gaps:
        gaps = ", ".join(dict.fromkeys(gap.kind.value for gap in evidence.gaps))
        meaning = "which says nothing about the release: search"
        if subject.kind in _LOWERING:  # so does a treatment that went missing
            meaning = "and the release may fail before it reports: search there and"
        return (
            f"The evidence could not be judged ({gaps}), {meaning} "
            f"in how events are sent, counted and served. {_NO_MORE}."
        )
    undecided = [one.metric for one in evidence.metrics if one.safe is not Verdict.PASS]
    if undecided:
        return (
            f"Too little evidence so far: neither harm nor safety is shown for "
            f"{', '.join(undecided)}. More users or a longer bake decide it."
        )
    return f"Unknown. {_NO_MORE}."


def _cause_of_harm(failing: Sequence[MetricRecord]) -> str:
    """Return whether harm is treatment's own: control was served at the same time."""
    names = ", ".join(one.metric for one in failing)
    if any(_is_control_bad(one) for one in failing):
        return (
            f"Perhaps not the release: control is beyond the limit of {names} too. Search for what "
            f"both have in common. {_NO_MORE}."
        )
    return (
        f"What treatment runs and control does not: {names} is bad in treatment, while control, "
        f"served at the same time, is not. {_NO_MORE}."
    )


def _is_control_bad(metric: MetricRecord) -> bool:
    """Return whether control, too, is beyond the metric's limit."""
    control = metric.arms.get(Arm.CONTROL)
    if metric.limit is None or control is None or control.estimate is None:
        return False
    if kind_of_report(metric).is_better_when_higher:
        return control.estimate < metric.limit
    return control.estimate > metric.limit


def to_core(record: JudgementRecord) -> Judgement:
    """Return published evidence as the core has it, as far as it was published."""
    return Judgement(
        at=record.at,
        visit=record.visit,
        gaps=(),
        metrics=tuple(
            MetricReport(
                metric=metric.metric,
                role=metric.role,
                on_breach=metric.on_breach,
                harm=metric.harm,
                safe=metric.safe,
                arms={
                    arm: ArmSummary(each.trials, each.events, each.estimate, each.low, each.high)
                    for arm, each in metric.arms.items()
                },
                e_value=metric.e_value or 0.0,
                threshold=metric.threshold or 1.0,
                e_value_safe=metric.e_value_safe,
                threshold_safe=metric.threshold_safe,
                margin=metric.margin,
                limit=metric.limit,
                reason=metric.reason,
                is_better_when_higher=metric.is_better_when_higher,
            )
            for metric in record.metrics
        ),
        harm=Harm(
            record.harm.exposed_contexts,
            record.harm.failed_requests,
            record.harm.excess_failed_requests or 0.0,
        ),
        exposures=record.exposures,
    )


# --- changelog ---


async def changelog(model: Model | None, decisions: Sequence[Decision], title: str) -> Draft[str]:
    """Return Markdown: a paragraph by the model, if any, then every transition by flag."""
    transitions = [one for one in decisions if one.kind is not DecisionKind.HOLD]
    lines = [
        f"- {quoted(one.flag, NAME_MAX_CHARS)} {_words(one.kind)}, {one.from_percent:g} % "
        f"to {one.to_percent:g} %: "
        f"{quoted(one.reason, DESCRIPTION_MAX_CHARS)}"
        for one in transitions[-MAX_RECORDS:]
    ]
    body = _body(transitions)

    def read(content: str) -> str:
        return f"{_markdown(' '.join(parse_form(content, _Summary).summary.split()))}\n\n{body}"

    if not transitions:
        return Draft(f"# {_markdown(title)}\n\n{body}", "template", "there is nothing to sum up")
    written = await draft(
        model,
        fill(CHANGELOG_VERSION, _SUMMARY_FORM, records="\n".join(lines)),
        _SUMMARY_FORM,
        read=read,
        template=lambda: body,
    )
    return Draft(f"# {_markdown(title)}\n\n{written.content}", written.author, written.why_template)


def _body(decisions: Sequence[Decision]) -> str:
    if not decisions:
        return "Nothing changed.\n"
    parts = []
    for flag in sorted({one.flag for one in decisions}):
        parts.append(f"## {_markdown(flag)}\n")
        parts += [_entry(one) for one in decisions if one.flag == flag]
        parts.append("")
    return "\n".join(parts)


def _entry(one: Decision) -> str:
    moved = (
        f"{one.from_percent:g} % → {one.to_percent:g} %"
        if one.from_percent != one.to_percent
        else f"{one.to_percent:g} %"
    )
    by = "" if one.issuer == "rolloutd" else f", by {_markdown(one.issuer)}"
    why = f": {_markdown(one.reason)}" if one.reason else ""
    return f"- {one.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, **{_words(one.kind)}** {moved}{by}{why}"


def since(decisions: Iterable[Decision], moment: datetime) -> list[Decision]:
    """Return the decisions from a moment on, oldest first."""
    return sorted(
        (one for one in decisions if one.at >= moment),
        key=lambda one: (one.at, one.flag, one.revision),
    )


def _words(kind: DecisionKind) -> str:
    return kind.value.replace("_", " ")


def _cut(text: str, most: int) -> str:
    line = printable(text)
    return line if len(line) <= most else line[: most - 3] + "..."


def _markdown(text: str) -> str:
    """Return text that others wrote as one line without any Markdown: no link, tag or image."""
    line = printable(" ".join(text.split()))
    return "".join(f"\\{char}" if char in "\\`*_[]<>#!|~&" else char for char in line)
