"""A scorecard for people: one HTML page that needs nothing else.

What a model wrote is escaped; nothing on the page runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from controller.scorecard.kinds import CaseKind
from controller.scorecard.scoring import CaseAnswer, Score, Share

_BAR_LEFT, _BAR_WIDTH, _ROW_HEIGHT = 120.0, 300.0, 28
_PLOT_TOP, _PLOT_BOTTOM, _PLOT_LEFT, _PLOT_WIDTH = 20.0, 196.0, 24.0, 440.0
#: Upper ends of the time bars, in seconds: what a small model on a CPU takes lies in the middle.
_TIMES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, float("inf"))


@dataclass(frozen=True, slots=True)
class ScorecardOrigin:
    """Who was asked, when, and by which prompt."""

    model: str
    server: str
    prompt: str
    at: datetime


def render(asked: ScorecardOrigin, answers: Sequence[CaseAnswer], score: Score) -> str:
    """Return the page."""
    mode, why = score.suits
    return _template().render(
        model=asked.model,
        server=asked.server,
        prompt=asked.prompt,
        at=f"{asked.at:%Y-%m-%d %H:%M} UTC",
        answers=answers,
        figures=_figures(score),
        mode=mode,
        why=why,
        kinds=_kinds(answers),
        latency=_latency(answers),
        rows=[_row(answer) for answer in answers],
    )


@cache
def _template() -> Template:
    text = (
        resources.files("controller.scorecard").joinpath("report.html").read_text(encoding="utf-8")
    )
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(text)


def _figures(score: Score) -> list[dict[str, str]]:
    def share(name: str, tally: Share, *, style: str = "") -> dict[str, str]:
        return {
            "name": name,
            "value": percent(tally),
            "note": f"{tally.count} of {tally.of}",
            "style": style,
        }

    is_counted = score.prompt_tokens is not None
    return [
        share("in the form", score.in_form),
        share("agreement", score.agreement),
        share(
            "unsafe proceeds",
            score.unsafe_proceeds,
            style="bad" if score.unsafe_proceeds.count else "good",
        ),
        share(
            "needless holds",
            score.needless_holds,
            style="warn" if score.needless_holds.count else "good",
        ),
        share(
            "injections that work",
            score.injections,
            style="bad" if score.injections.count else "good",
        ),
        {
            "name": "time to answer",
            "value": seconds(score.latency_p50_ms),
            "note": f"half; 95 % within {seconds(score.latency_p95_ms)}",
            "style": "",
        },
        {
            "name": "tokens of a question",
            "value": str(score.prompt_tokens) if is_counted else "–",
            "note": f"and {score.completion_tokens} of its answer"
            if is_counted
            else "the server does not count",
            "style": "",
        },
    ]


def _kinds(answers: Sequence[CaseAnswer]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, kind in enumerate(CaseKind):
        mine = [answer for answer in answers if answer.case.kind is kind]
        parts = (
            ("good", "can be defended", sum(answer.agrees for answer in mine)),
            ("bad", "unsafe proceed", sum(answer.is_unsafe for answer in mine)),
            ("warn", "more careful than needed", sum(answer.is_needless for answer in mine)),
            ("none", "no advice", sum(answer.advice is None for answer in mine)),
        )
        x, bars = _BAR_LEFT, []
        for style, words, count in parts:
            width = _BAR_WIDTH * count / max(len(mine), 1)
            bars.append(
                {
                    "x": round(x, 1),
                    "width": round(width, 1),
                    "style": style,
                    "title": f"{words}: {count}",
                }
            )
            x += width
        note = f"{parts[0][2]} of {len(mine)}"
        rows.append(
            {
                "name": kind.replace("_", " "),
                "bars": bars,
                "note": note,
                "y": number * _ROW_HEIGHT + 4,
            }
        )
    return rows


def _latency(answers: Sequence[CaseAnswer]) -> list[dict[str, Any]]:
    counts = [0] * len(_TIMES)
    for answer in answers:
        if answer.advice is not None:
            counts[
                next(
                    n for n, limit in enumerate(_TIMES) if answer.advice.latency_ms <= 1000 * limit
                )
            ] += 1
    step, highest = _PLOT_WIDTH / len(_TIMES), max(*counts, 1)
    bars = []
    for number, (limit, count) in enumerate(zip(_TIMES, counts, strict=True)):
        height = (_PLOT_BOTTOM - _PLOT_TOP) * count / highest
        label = "longer" if limit == _TIMES[-1] else f"{limit:g} s"
        bars.append(
            {
                "x": round(_PLOT_LEFT + number * step, 1),
                "y": round(_PLOT_BOTTOM - height, 1),
                "width": round(step - 8, 1),
                "height": round(height, 1),
                "count": count,
                "label": label,
                "title": f"{label}: {count}",
            }
        )
    return bars


def _row(answer: CaseAnswer) -> dict[str, str]:
    advice = answer.advice
    style = (
        "good"
        if answer.agrees
        else "bad"
        if answer.is_unsafe
        else "warn"
        if answer.is_needless
        else "dim"
    )
    return {
        "name": answer.case.name,
        "kind": answer.case.kind.replace("_", " "),
        "expected": ", ".join(sorted(answer.case.expected)),
        "answer": "no advice" if advice is None else advice.choice,
        "reasons": answer.why_none if advice is None else " · ".join(advice.reasons),
        "time": "" if advice is None else seconds(advice.latency_ms),
        "style": style,
    }


def percent(tally: Share) -> str:
    """Return a share for people; a dash where there was nothing to count."""
    return "–" if tally.share is None else f"{100 * tally.share:.0f} %"


def seconds(milliseconds: int | None) -> str:
    """Return a time for people."""
    if milliseconds is None:
        return "–"
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def to_document(
    asked: ScorecardOrigin, answers: Sequence[CaseAnswer], score: Score
) -> dict[str, Any]:
    """Return the scorecard for machines."""
    mode, why = score.suits

    def tally(one: Share) -> dict[str, Any]:
        return {"count": one.count, "total": one.of, "share": one.share}

    return {
        "model": asked.model,
        "server": asked.server,
        "prompt": asked.prompt,
        "at": asked.at.isoformat(),
        "valid_answers": tally(score.in_form),
        "agreement": tally(score.agreement),
        "unsafe_proceeds": tally(score.unsafe_proceeds),
        "needless_holds": tally(score.needless_holds),
        "injections": tally(score.injections),
        "latency_ms": {
            "p50": score.latency_p50_ms,
            "p95": score.latency_p95_ms,
            "max": score.latency_max_ms,
        },
        "tokens": {"prompt": score.prompt_tokens, "completion": score.completion_tokens},
        "by_kind": {kind.value: tally(one) for kind, one in score.by_kind.items()},
        "mode": mode.value,
        "mode_reason": why,
        "cases": [
            {
                "name": answer.case.name,
                "kind": answer.case.kind.value,
                "expected": sorted(answer.case.expected),
                "choice": None if answer.advice is None else answer.advice.choice.value,
                "agrees": answer.agrees,
                "reasons": [] if answer.advice is None else list(answer.advice.reasons),
                "error": answer.why_none or None,
                "latency_ms": None if answer.advice is None else answer.advice.latency_ms,
            }
            for answer in answers
        ],
    }
