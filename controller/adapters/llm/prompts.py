"""The questions put to a language model.

Packaged text, our numbers, and other people's words as quoted data.

Belongs here: what a prompt says, and what has to be done to text before it may stand in one. Does
not belong here: how a server is asked (`openai.py`), and what an answer may look like
(`schemas/advice.py`).

A prompt is one file in `prompt_texts`: the system message, a line of `=====`, the question. Files
are never changed once released, since decisions name prompts by hash: a better wording is a new
version.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from controller.core.effects import AskAdvice
from controller.core.judging.judgement import Advice, Judgement, MetricReport
from controller.core.metrics import kind_of_report, kind_to_show
from controller.core.metrics.kind import ArmSummary
from controller.core.plan import Plan, Stage
from controller.core.rollout import Rollout
from controller.core.serving import decided_share
from controller.core.visits import Visit
from schemas.advice import ANOMALIES_SCHEMA, ANSWER_SCHEMA, EXPLANATION_SCHEMA
from schemas.metric_names import Unit
from schemas.terms import Arm, Verdict

GATE_VERSION = "gate-v1"
EXPLAIN_VERSION = "explain-v1"
LOOK_VERSION = "look-v1"

#: Other people's words are cut here: a sentence or two say what a flag is for, more is room for
#: instructions.
NAME_MAX_CHARS = 64
DESCRIPTION_MAX_CHARS = 240
REASON_MAX_CHARS = 120

#: What a prompt lists at most. Small models lose the thread of longer ones, and their context may
#: be 2,048 tokens.
MAX_METRICS = 10
MAX_VISITS = 6
MAX_REASONS = 3
MAX_RECORDS = 12
MAX_ROLLOUTS = 12
MAX_METRICS_IN_A_LOOK = 3

#: Besides letters, marks and digits. Not among them: quotes (they end a quoted text), angle
#: brackets, square brackets, braces, pipes and backslashes (servers read chat control tokens such
#: as `<|im_end|>` and `[INST]` out of any text), backticks, hashes and asterisks (Markdown).
_PUNCTUATION = frozenset(" .,;:!?()'/%+_-@&")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent, and its name in the records."""

    version: str
    messages: tuple[Mapping[str, str], ...]  # role and content
    sha256: str  # of the messages as compact JSON


def gate_prompt(rollout: Rollout, question: AskAdvice) -> Prompt:
    """Return the question whether a gate should open: about 600 tokens, at most about 2,000.

    Holds the judged numbers, the plan's stage, the history of stages and the model's earlier
    verdict at this gate. No owner, no issuer, no context id; names and descriptions stand in double
    quotes, cleaned by `quoted`.
    """
    system, body = _texts(GATE_VERSION)
    judgement, plan = question.judgement, rollout.plan
    visit = rollout.visits[judgement.visit]
    stage = plan.stages[visit.stage]
    following = plan.stages[visit.stage + 1 : visit.stage + 2]
    text = body.substitute(
        flag=quoted(rollout.flag_key, NAME_MAX_CHARS),
        plan=quoted(plan.name, NAME_MAX_CHARS),
        description=quoted(plan.description, DESCRIPTION_MAX_CHARS),
        stage=visit.stage + 1,
        stages=len(plan.stages),
        served=_share_of(stage, visit.percent),
        next_step=_share_of(following[0], following[0].percent)
        if following
        else "the rollout is complete",
        gathered=_duration(visit.counted_until(judgement.at)),
        bake=_duration(stage.bake),
        min_sample=stage.min_sample,
        exposures=", ".join(f"{arm} {judgement.exposures.get(arm, 0)}" for arm in Arm),
        share="not measured"
        if judgement.observed_share is None
        else _percent(judgement.observed_share),
        decided=_percent(decided_share(plan, visit) or 1.0),
        split=_number(judgement.srm_e_value),
        harm=_harm(judgement),
        alpha=_percent(plan.alpha),
        metrics=_metrics(judgement.metrics),
        visits=_visits(rollout.visits[: judgement.visit + 1], judgement.at),
        earlier=_earlier(question.earlier),
    )
    return _prompt(GATE_VERSION, system.substitute(schema=json.dumps(ANSWER_SCHEMA)), text)


def fill(version: str, form: Mapping[str, Any], **fields: object) -> Prompt:
    """Return a packaged prompt with its fields filled in.

    Text of others must have passed `quoted` before.
    """
    system, body = _texts(version)
    return _prompt(version, system.substitute(schema=json.dumps(form)), body.substitute(fields))


def _prompt(version: str, system: str, question: str) -> Prompt:
    messages = ({"role": "system", "content": system}, {"role": "user", "content": question})
    return Prompt(version=version, messages=messages, sha256=_sha256(messages))


def explanation_prompt(
    plan: Plan,
    subject: str,
    judgement: Judgement | None,
    decisions: Sequence[tuple[str, float, float, str]],
) -> Prompt:
    """Return the question why something happened.

    `decisions` are (kind, from percent, to percent, reason), oldest first.
    """
    records = [
        f"- {kind}: {before:g} % to {after:g} %, {quoted(reason, DESCRIPTION_MAX_CHARS)}"
        for kind, before, after, reason in decisions[-MAX_RECORDS:]
    ]
    return fill(
        EXPLAIN_VERSION,
        EXPLANATION_SCHEMA,
        flag=quoted(plan.flag_key, NAME_MAX_CHARS),
        plan=quoted(plan.name, NAME_MAX_CHARS),
        description=quoted(plan.description, DESCRIPTION_MAX_CHARS),
        subject=quoted(subject, DESCRIPTION_MAX_CHARS),
        metrics="- none was published" if judgement is None else _metrics(judgement.metrics),
        records="\n".join(records) or "- none",
    )


def look_prompt(
    seen: Sequence[tuple[Rollout, Judgement]], before: Mapping[str, Judgement]
) -> Prompt:
    """Return the question what is unusual in all evidence together.

    Rollouts are numbered from 1, at most `MAX_ROLLOUTS`.
    """
    lines = []
    for number, (rollout, judgement) in enumerate(seen[:MAX_ROLLOUTS], 1):
        lines.append(
            f"{number}. {quoted(rollout.flag_key, NAME_MAX_CHARS)}, "
            f"{_percent(rollout.percent / 100)} of users:"
        )
        known = (
            {metric.metric: metric for metric in before[rollout.flag_key].metrics}
            if rollout.flag_key in before
            else {}
        )
        nearest = _nearest_to_alarm(judgement.metrics, MAX_METRICS_IN_A_LOOK)
        lines += [f"  {_metric(report)}{_before(known.get(report.metric))}" for report in nearest]
    return fill(LOOK_VERSION, ANOMALIES_SCHEMA, rollouts="\n".join(lines))


def _before(report: MetricReport | None) -> str:
    if report is None:
        return ""
    arms = (
        f"{arm}: {_value(report.metric, one.estimate)}"
        for arm, one in report.arms.items()
        if one.estimate is not None
    )
    return f" Before: {', '.join(arms) or 'nothing measured'}."


def quoted(text: str, max_chars: int) -> str:
    """Return other people's text as one line in double quotes that nothing inside can end.

    Letters, marks and digits of every script stay, and little punctuation; whatever else there is
    becomes a space. Looks alike are normalised first (NFKC), so that no tokenizer can turn what
    passed into what did not. Cut to `max_chars`.
    """
    normal = unicodedata.normalize("NFKC", text[: 4 * max_chars])
    kept = "".join(
        char if char in _PUNCTUATION or unicodedata.category(char)[0] in "LMN" else " "
        for char in normal
    )
    line = " ".join(kept.split())
    return f'"{line if len(line) <= max_chars else line[: max_chars - 3].rstrip() + "..."}"'


@cache
def _texts(version: str) -> tuple[Template, Template]:
    """Return system message and question of a packaged prompt."""
    text = (
        resources.files("controller.adapters.llm")
        .joinpath("prompt_texts", f"{version}.md")
        .read_text(encoding="utf-8")
    )
    system, _, question = text.partition("\n=====\n")
    return Template(system), Template(question.rstrip("\n"))


def _sha256(messages: Sequence[Mapping[str, str]]) -> str:
    compact = json.dumps(messages, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(compact.encode()).hexdigest()


# --- the numbers


_SAFE_WORDS = {
    Verdict.PASS: "shown not worse than tolerated",
    Verdict.FAIL: "worse than tolerated",
    Verdict.INCONCLUSIVE: "not decided yet",
    Verdict.NO_DATA: "nothing measured",
}


def _metrics(reports: Sequence[MetricReport]) -> str:
    """Return one line per metric, those nearest to an alarm first when there are too many."""
    kept = _nearest_to_alarm(reports, MAX_METRICS)
    lines = [_metric(report) for report in kept]
    if len(reports) > len(kept):
        lines.append(
            f"- and {len(reports) - len(kept)} more metrics, all further from an alarm than these"
        )
    return "\n".join(lines) or "- none: this stage is judged by time alone"


def _nearest_to_alarm(reports: Sequence[MetricReport], most: int) -> list[MetricReport]:
    """Return so many of the metrics, in their own order."""

    def distance(index: int) -> tuple[bool, float]:
        return reports[index].harm is not Verdict.FAIL, -reports[index].e_value / reports[
            index
        ].threshold

    return [reports[index] for index in sorted(sorted(range(len(reports)), key=distance)[:most])]


def _metric(report: MetricReport) -> str:
    verdict = "worse than tolerated" if report.harm is Verdict.FAIL else _SAFE_WORDS[report.safe]
    parts = [
        (
            f"- {quoted(report.metric, NAME_MAX_CHARS)} ({report.role}, "
            f"{_better(report)}): {verdict}."
        )
    ]
    parts += [
        f"{arm}: {_arm(report.metric, report.arms[arm])}." for arm in Arm if arm in report.arms
    ]
    if report.ratio is not None:
        parts.append(
            f"Harm in treatment / control: "
            f"{_number(report.ratio)}{_range(report.ratio_low, report.ratio_high)}."
        )
    tolerated = []
    if report.margin is not None:
        margin = (
            f"{_number(100 * report.margin)} percentage points"
            if report.in_points
            else _percent(report.margin)
        )
        tolerated.append(f"up to {margin} worse than control")
    if report.limit is not None:
        is_higher = kind_of_report(report).is_better_when_higher
        bound = "at least" if is_higher else "at most"
        tolerated.append(f"{bound} {_value(report.metric, report.limit)}")
    if tolerated:
        parts.append(f"Tolerated: {' and '.join(tolerated)}.")
    if kind_to_show(report.metric).unit is Unit.PLAIN:
        parts.append(f"A threshold, not a test: {report.reason}.")
    else:
        parts.append(
            f"Evidence of harm: {_number(report.e_value)}, alarm at {_number(report.threshold)}."
        )
    return " ".join(parts)


def _arm(metric: str, arm: ArmSummary) -> str:
    if arm.estimate is None:
        return f"nothing measured in {arm.trials} observations"
    low = None if arm.low is None else _value(metric, arm.low)
    high = None if arm.high is None else _value(metric, arm.high)
    return f"{_value(metric, arm.estimate)}{_interval(low, high)} of {arm.trials} observations"


def _range(low: float | None, high: float | None) -> str:
    return _interval(None if low is None else _number(low), None if high is None else _number(high))


def _interval(low: str | None, high: str | None) -> str:
    """Return ` (low to high)`; empty when neither end is known."""
    if low is None and high is None:
        return ""
    return f" ({low or 'unbounded'} to {high or 'unbounded'})"


def _better(report: MetricReport) -> str:
    is_higher = kind_of_report(report).is_better_when_higher
    return "higher is better" if is_higher else "lower is better"


def _value(metric: str, value: float) -> str:
    """Return a metric's value with its unit: milliseconds for latency, percent for shares."""
    unit = kind_to_show(metric).unit
    if unit is Unit.SHARE:
        return _percent(value)
    return f"{_number(value)} ms" if unit is Unit.MILLISECONDS else _number(value)


def _percent(share: float) -> str:
    return f"{_number(100 * share)} %"


def _number(value: float) -> str:
    """Return three significant digits, more for whole numbers.

    Without exponents as far as anyone reads them.
    """
    if not math.isfinite(value):
        return "unbounded" if value > 0 else "not measured"
    if abs(value) >= 1e6:
        return "over 1000000" if value > 0 else "under -1000000"
    if abs(value) >= 100:
        return str(round(value))
    if abs(value) >= 1:
        return f"{value:.3g}"
    return f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")  # + 0.0: no minus before a zero


def _duration(length: timedelta) -> str:
    """Return the two largest units: `2 d 3 h`."""
    left = max(0, round(length.total_seconds()))
    parts = []
    for name, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def _harm(judgement: Judgement) -> str:
    harm = judgement.harm
    return (
        f"{harm.exposed_contexts} users saw the treatment, {harm.failed_requests} of its "
        f"requests failed, "
        f"{_number(harm.excess_failed_requests)} more than control's rate would have given"
    )


def _share_of(stage: Stage, percent: float) -> str:
    """Return how much of whom a stage exposes; the audience's name is its author's."""
    of = (
        "users"
        if stage.audience is None
        else f"the audience {quoted(stage.audience, NAME_MAX_CHARS)}"
    )
    return f"{_percent(percent / 100)} of {of}"


def _visits(visits: Sequence[Visit], at: datetime) -> str:
    """Return one line per stay in a stage, the newest ones, oldest first."""
    lines = (
        [f"- {len(visits) - MAX_VISITS} earlier ones are left out"]
        if len(visits) > MAX_VISITS
        else []
    )
    highest = -1
    for number, visit in enumerate(visits):
        line = (
            f"- stage {visit.stage + 1}, {_percent(visit.percent / 100)}: "
            f"{_duration((visit.left_at or at) - visit.entered_at)}"
        )
        line += " (now)" if number == len(visits) - 1 else ""
        line += " (stepped back to)" if number and visit.stage < visits[number - 1].stage else ""
        line += (
            " (again)"
            if number and visit.stage > visits[number - 1].stage and visit.stage <= highest
            else ""
        )
        highest = max(highest, visit.stage)
        if number >= len(visits) - MAX_VISITS:
            lines.append(line)
    return "\n".join(lines)


def _earlier(advice: Advice | None) -> str:
    """Return the model's last verdict at this gate.

    Its words are as little ours as a description's.
    """
    if advice is None:
        return "none."
    reasons = ", ".join(quoted(reason, REASON_MAX_CHARS) for reason in advice.reasons[:MAX_REASONS])
    return f"{advice.choice}, because {reasons}." if reasons else f"{advice.choice}."
