"""Carries out `rolloutctl backtest`: reads recorded events, and shows the decisions on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Literal

import typer
from aiokafka import ConsumerRecord
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import rendering
from controller.cli.common import EXIT_USAGE, complain, fail, output
from controller.cli.operator_client import as_decision, read_event
from controller.core.judging.judgement import Judgement
from controller.core.plan import Plan
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable
from controller.planning.backtest import Backtest, Replay, Source
from controller.reporting.situation import about
from controller.settings import CountingSettings, KafkaSettings
from controller.text import one_line, plural
from schemas.decision import Decision
from schemas.fields import parse_duration
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import Arm, Verdict

#: A first event this long after --from is told.
_TOLD_BEYOND = timedelta(minutes=1)
#: Decisions that were really taken, shown for people.
MOST_REAL: Final = 50
_EVENT_TOPICS: tuple[Literal["evaluations"], Literal["outcomes"]] = ("evaluations", "outcomes")


@dataclass(frozen=True, slots=True)
class BacktestRequest:
    """Which records a plan is tried on, and how."""

    plan: Plan
    kafka: KafkaSettings
    counting: CountingSettings
    requested: datetime  # where the window begins
    begins: datetime  # the flag's first event in it, once it is known
    ends: datetime
    every: timedelta  # length of the slices that are counted and judged
    counts_split: bool
    has_end: bool  # whether `ends` was asked for; else everything that was recorded is read


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
            f"{option}: {text!r} is not a time: write it as in 2026-11-20T09:00:00Z, "
            f"2026-11-20 or 36h (ago)",
            EXIT_USAGE,
        )
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


async def run_backtest(request: BacktestRequest, *, is_json: bool) -> None:
    """Feed the recorded events to the plan, and show what it would have decided.

    The virtual rollout begins with the flag's first event, because before it there is nothing to
    judge.
    """
    is_shared = request.kafka.is_one_topic
    topics = _EVENT_TOPICS[:1] if is_shared else _EVENT_TOPICS
    evaluations, flag_key = request.kafka.topic("evaluations"), request.plan.flag_key.encode()
    async with KafkaReader(request.kafka, topics) as reader:
        starts = await reader.offsets_at(request.begins, *topics)
        # Not by time: one record from the future would hide all that follow it.
        ends = await reader.ends(*topics)
        last = ends if not request.has_end else await reader.offsets_at(request.ends, *topics)
        sources = {
            (one.topic, one.partition): [
                Source(logical, one.partition)
                for logical in _EVENT_TOPICS
                if request.kafka.topic(logical) == one.topic
            ]
            for one in starts
        }
        all_sources = [source for both in sources.values() for source in both]
        test: Backtest | None = None
        replay: Replay | None = None
        total = sum(last[one] - starts[one] for one in starts)
        done = 0
        async for at_ms, record in reader.placed_in_time(starts, ends):
            at = datetime.fromtimestamp(at_ms / 1000, UTC)
            if at < request.requested:
                continue  # behind a record from the future, by which Kafka found the begin
            if request.has_end and at >= request.ends:
                break
            done += 1
            at = min(at, request.ends)
            if test is None or replay is None:
                # Keys have no characters that any of the formats would escape.
                if record.topic != evaluations or flag_key not in bytes(record.value or b""):
                    continue
                request = replace(request, begins=at)
                test = _make_test(request, all_sources)
                replay = Replay(test, at, request.every)
            if replay.take(at, sources[record.topic, record.partition], record):
                if test.is_over:
                    break
                _show_progress(done, total, is_json=is_json)
        if test is None or replay is None:
            test = _make_test(request, all_sources)
        else:
            replay.end(max(request.ends, request.begins))
    served = await _actual_decisions(request)
    if is_json:
        typer.echo(rendering.to_json(_document(request, test, served)))
    else:
        _show(request, test, served)


def _make_test(request: BacktestRequest, sources: Sequence[Source]) -> Backtest:
    formats = request.kafka.formats
    return Backtest(
        request.plan,
        request.begins,
        sources,
        read_evaluations=evaluation_reader(
            formats.evaluations, of_spans=request.kafka.is_one_topic
        ),
        read_outcomes=outcome_reader(formats.outcomes),
        exact_limit=request.counting.exact_set_limit,
        window_ms=request.counting.attribution_window_ms,
        batch_ms=round(request.counting.flush_interval_seconds * 1000),
        counts_split=request.counts_split,
    )


def _show_progress(done: int, total: int, *, is_json: bool) -> None:
    if not is_json and sys.stderr.isatty() and done % 1000 < 50:
        typer.echo(f"{done:,} of {plural(total, 'record')}\r", err=True, nl=False)


async def _actual_decisions(request: BacktestRequest) -> list[Decision]:
    """Return the decisions that were taken about the flag in that time.

    None where they cannot be read: they are only shown beside the result.
    """
    try:
        async with KafkaReader(request.kafka, ["decisions"]) as reader:
            partition = reader.partition("decisions", request.plan.flag_key)
            starts = await reader.offsets_at(request.begins, "decisions")
            ends = await reader.offsets_at(request.ends, "decisions")
            return [
                one
                async for record in reader.in_time_order(
                    {partition: starts[partition]}, {partition: ends[partition]}
                )
                if (one := _decision_of(record, request.plan.flag_key)) is not None
            ]
    except EventLogUnavailable as trouble:
        complain(f"the decisions of that time cannot be read: {trouble}")
        return []


def _decision_of(record: ConsumerRecord, flag: str) -> Decision | None:
    event = read_event(record.value) if record.key == flag.encode() else None
    return None if event is None else as_decision(event)


# --- output


def why_nothing_counted(plan: Plan, late: int) -> str:
    """Return why there is no evidence; `late` records came while a stage settled."""
    if late:
        return (
            f"nothing was counted: all {plural(late, 'record')} of {plan.flag_key} came while a "
            f"stage settled; next: begin earlier (--from), or shorten `settle`"
        )
    return (
        f"nothing was recorded of {plan.flag_key} in that time with variants "
        f"{plan.treatment}, {plan.control}"
    )


def _show(request: BacktestRequest, test: Backtest, served: list[Decision]) -> None:
    console = output()
    plan, rollout = request.plan, _rollout(test)
    console.print(
        Text(f"{plan.name} of {plan.flag_key}", "bold"),
        f" over what was recorded from {_at(request.begins)} to {_at(request.ends)}",
        sep="",
    )
    waited = request.begins - request.requested
    if waited > _TOLD_BEYOND:
        words = f"begins at the flag's first event, {about(waited)} after --from"
        console.print(words)
    counts = test.records
    console.print(
        f"records: {counts.counted:,} counted, {counts.late:,} while settling, "
        f"{counts.ignored:,} of others, "
        f"{counts.refused:,} refused"
    )
    if counts.counted == 0:
        complain(why_nothing_counted(plan, counts.late))
    if plan.external:
        names = ", ".join(one.name for one in plan.external)
        complain(f"left out, because nothing is recorded of external metrics: {names}")
    if plan.gate_webhooks:
        names = ", ".join(one.endpoint for one in plan.gate_webhooks)
        complain(f"left out, because nothing is recorded of gate webhooks: {names}")
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
        for words in real_decision_lines(served):
            console.print(words, style="dim", markup=False)
    _show_shares(test, served)


def real_decision_lines(served: Sequence[Decision]) -> list[str]:
    """Return a line per decision that was really taken, also of those that moved no percentage.

    Of many only the newest `MOST_REAL`, after a line that says how many are left out.
    """
    hidden = len(served) - MOST_REAL
    lines = (
        [f"{plural(hidden, 'earlier decision')} not shown; --json has them"] if hidden > 0 else []
    )
    for real in served[-MOST_REAL:]:
        move = f"{real.from_percent:g} → {real.to_percent:g} %"
        kind = real.kind.value.replace("_", " ")
        lines.append(f"{_at(real.at)}  {kind:<10}{move:>14}  {one_line(real.reason)}")
    return lines


def _ending(request: BacktestRequest, test: Backtest, rollout: Rollout) -> list[str]:
    took = about(test.decisions[-1].at - request.begins)
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
    changed = [one.at for one in served if one.from_percent != one.to_percent]
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
        "requested_from": request.requested.isoformat(),
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
