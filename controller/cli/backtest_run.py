"""What `rolloutctl backtest` does: reads recorded events, and shows what would be decided."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import typer
from aiokafka import ConsumerRecord
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import rendering
from controller.cli.common import EXIT_USAGE, complain, fail, output
from controller.cli.operator_client import as_decision, read_event
from controller.cli.situation import about
from controller.core.judging.judgement import Judgement
from controller.core.plan import Plan
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable
from controller.planning.backtest import Backtest, Source
from controller.settings import CountingSettings, KafkaSettings
from controller.text import one_line
from schemas.decision import Decision
from schemas.fields import parse_duration
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import Arm, DecisionKind, Verdict

_EVENT_TOPICS: tuple[Literal["evaluations"], Literal["outcomes"]] = ("evaluations", "outcomes")


@dataclass(frozen=True, slots=True)
class BacktestRequest:
    """Which records a plan is tried on, and how."""

    plan: Plan
    kafka: KafkaSettings
    counting: CountingSettings
    begins: datetime
    ends: datetime
    every: timedelta  # length of the slices that are counted and judged
    counts_split: bool


def time_of(text: str, option: str, now: datetime) -> datetime:
    """Return a moment: ISO 8601, UTC where no offset is given, or a duration before now.

    Exits 2 on anything else.
    """
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        fail(
            f"{option}: {text!r} is no time: write it as in 2026-11-20T09:00:00Z, "
            f"2026-11-20 or 36h (ago)",
            EXIT_USAGE,
        )
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


async def run_backtest(request: BacktestRequest, *, is_json: bool) -> None:
    """Feed the recorded events to the plan, and show what it would have decided."""
    is_shared = request.kafka.is_one_topic
    topics = _EVENT_TOPICS[:1] if is_shared else _EVENT_TOPICS
    async with KafkaReader(request.kafka, topics) as reader:
        starts = await reader.offsets_at(request.begins, *topics)
        ends = await reader.offsets_at(request.ends, *topics)
        sources = {
            (one.topic, one.partition): [
                Source(logical, one.partition)
                for logical in _EVENT_TOPICS
                if request.kafka.topic(logical) == one.topic
            ]
            for one in starts
        }
        test = Backtest(
            request.plan,
            request.begins,
            [source for both in sources.values() for source in both],
            read_evaluations=evaluation_reader(
                request.kafka.formats.evaluations, of_spans=is_shared
            ),
            read_outcomes=outcome_reader(request.kafka.formats.outcomes),
            exact_limit=request.counting.exact_set_limit,
            window_ms=request.counting.attribution_window_ms,
            counts_split=request.counts_split,
        )
        total = sum(ends[one] - starts[one] for one in starts)
        done = 0
        batch: dict[Source, list[ConsumerRecord]] = {}
        until = request.begins + request.every
        async for record in reader.in_time_order(starts, ends):
            at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
            if at >= until:
                test.advance(until, batch)
                if test.is_over:
                    break
                batch = {}
                until += max(1, -((until - at) // request.every)) * request.every
                _show_progress(done, total, is_json=is_json)
            for source in sources[record.topic, record.partition]:
                batch.setdefault(source, []).append(record)
            done += 1
        if not test.is_over:
            test.advance(min(until, max(request.ends, request.begins)), batch)
        if not test.is_over and until < request.ends:
            test.advance(request.ends, {})
    served = await _actual_decisions(request)
    if is_json:
        typer.echo(rendering.to_json(_document(request, test, served)))
    else:
        _show(request, test, served)


def _show_progress(done: int, total: int, *, is_json: bool) -> None:
    if not is_json and sys.stderr.isatty() and done % 1000 < 50:
        typer.echo(f"{done:,} of {total:,} records\r", err=True, nl=False)


async def _actual_decisions(request: BacktestRequest) -> list[Decision]:
    """Return the decisions that were taken about the flag in that time.

    None where they cannot be read: they are only shown beside the result.
    """
    try:
        async with KafkaReader(request.kafka, ["decisions"]) as reader:
            partition = reader.partition("decisions", request.plan.flag_key)
            starts = await reader.offsets_at(request.begins, "decisions")
            ends = await reader.offsets_at(request.ends, "decisions")
            decisions = [
                one
                async for record in reader.in_time_order(
                    {partition: starts[partition]}, {partition: ends[partition]}
                )
                if (one := _decision_of(record, request.plan.flag_key)) is not None
            ]
    except EventLogUnavailable as trouble:
        complain(f"the decisions of that time cannot be read: {trouble}")
        return []
    return [
        one
        for one in decisions
        if one.from_percent != one.to_percent or one.kind is DecisionKind.COMPLETE
    ]


def _decision_of(record: ConsumerRecord, flag: str) -> Decision | None:
    event = read_event(record.value) if record.key == flag.encode() else None
    return None if event is None else as_decision(event)


# --- output


def _show(request: BacktestRequest, test: Backtest, served: list[Decision]) -> None:
    console = output()
    plan, rollout = request.plan, _rollout(test)
    console.print(
        Text(f"{plan.name} of {plan.flag_key}", "bold"),
        f" over what was recorded from {_at(request.begins)} to {_at(request.ends)}",
        sep="",
    )
    counts = test.records
    console.print(
        f"records: {counts.counted:,} counted, {counts.late:,} while settling, "
        f"{counts.ignored:,} of others, "
        f"{counts.refused:,} refused"
    )
    if counts.counted == 0:
        complain(
            f"nothing was recorded of {plan.flag_key} in that time with variants "
            f"{plan.treatment}, {plan.control}"
        )
    console.print()
    for one in test.decisions:
        decision = one.decision
        move = f"{decision.from_percent:g} → {decision.to_percent:g} %"
        line = Text.assemble(
            (f"{_at(one.at)}  ", "dim"),
            (f"{decision.kind.value.replace('_', ' '):<10}", "bold"),
            f"{move:>14}  ",
        )
        line.append(one_line(decision.reason))
        console.print(line)
    console.print()
    for words in _ending(request, test, rollout):
        console.print(one_line(words))
    if served:
        console.print("\nreally decided then:")
        for real in served:
            move = f"{real.from_percent:g} → {real.to_percent:g} %"
            line_of_decision = (
                f"{_at(real.at)}  {real.kind.value.replace('_', ' '):<10}{move:>14}  {real.reason}"
            )
            console.print(one_line(line_of_decision), style="dim")
    _show_shares(test, served)


def _ending(request: BacktestRequest, test: Backtest, rollout: Rollout) -> list[str]:
    took = about(test.judged_at - request.begins)
    if rollout.has_ended or rollout.phase.name == "paused":
        return [
            (
                f"ended {rollout.phase.name.value.replace('_', ' ')} after {took} at "
                f"{rollout.percent:g} %"
            )
        ]
    stage = (rollout.stage_index or 0) + 1
    words = [
        (
            f"at the end of the records: {rollout.phase.name.value} in stage {stage} of "
            f"{len(request.plan.stages)}"
        )
    ]
    judgement = test.judgement
    if judgement is not None:
        words += [f"  {gap.kind}: {gap.detail}" for gap in judgement.gaps]
        words += [
            f"  {metric.metric}: {metric.reason}"
            for metric in judgement.metrics
            if metric.safe is not Verdict.PASS
        ]
    return words


def _show_shares(test: Backtest, served: list[Decision]) -> None:
    """Warn where the records have another split than the plan's, which they cannot follow."""
    rollout, share = _rollout(test), test.share()
    percent = rollout.visits[-1].percent if rollout.visits else 0.0
    if share is not None and percent and abs(100 * share - percent) > max(1.0, 0.2 * percent):
        complain(
            f"in the last stage {100 * share:.3g} % of the contexts had treatment, the "
            f"plan's stage has {percent:g} %: "
            "the records are of another split, which is not held against them; it changes "
            "how fast the tests decide"
        )
    changed = [one.at for one in served if one.kind is not DecisionKind.HOLD]
    for visit, following in pairwise([*rollout.visits, None]):
        assert visit is not None
        end = test.judged_at if following is None else following.entered_at
        inside = [at for at in changed if visit.counts_from < at < end]
        if inside:
            complain(
                f"what was served changed at {_at(inside[0])}, within stage "
                f"{visit.stage + 1}: its evidence mixes splits, and "
                "a drift of both arms may look like an effect"
            )
            return


def _rollout(test: Backtest) -> Rollout:
    assert test.rollout is not None
    return test.rollout


def _at(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _document(request: BacktestRequest, test: Backtest, served: list[Decision]) -> dict[str, Any]:
    rollout, counts = _rollout(test), test.records
    return {
        "plan": request.plan.name,
        "version": request.plan.version,
        "flag": request.plan.flag_key,
        "from": request.begins.isoformat(),
        "to": request.ends.isoformat(),
        "records": {
            "counted": counts.counted,
            "late": counts.late,
            "ignored": counts.ignored,
            "refused": counts.refused,
        },
        "phase": rollout.phase.name.value,
        "percent": rollout.percent,
        "stage": None if rollout.stage_index is None else rollout.stage_index + 1,
        "judged_at": test.judged_at.isoformat(),
        "observed_share": test.share(),
        "decisions": [
            {
                "at": one.at.isoformat(),
                "kind": one.decision.kind.value,
                "from_percent": one.decision.from_percent,
                "to_percent": one.decision.to_percent,
                "reason": one.decision.reason,
                "metrics": []
                if one.decision.judgement is None
                else _metrics(one.decision.judgement),
            }
            for one in test.decisions
        ],
        "metrics": [] if test.judgement is None else _metrics(test.judgement),
        "actual_decisions": [
            {
                "at": one.at.isoformat(),
                "kind": one.kind.value,
                "from_percent": one.from_percent,
                "to_percent": one.to_percent,
                "reason": one.reason,
            }
            for one in served
        ],
    }


def _metrics(judgement: Judgement) -> list[dict[str, Any]]:
    return [
        {
            "metric": metric.metric,
            "harm": metric.harm.value,
            "safe": metric.safe.value,
            "e_value": metric.e_value,
            "threshold": metric.threshold,
            "estimates": {
                arm.value: metric.arms[arm].estimate for arm in Arm if arm in metric.arms
            },
            "reason": metric.reason,
        }
        for metric in judgement.metrics
    ]
