"""What a change of the external metrics of a running plan does."""

from __future__ import annotations

from collections.abc import Iterator

from controller.core.plan import ExternalMetric, Plan
from schemas.terms import ChangeEffect, MetricRole


def external_changes(
    old: Plan, new: Plan, present: int | None
) -> Iterator[tuple[str, str, str, ChangeEffect]]:
    """Yield name, words of before and after, and effect of each external metric that changes."""
    before = {one.name: one for one in old.external}
    after = {one.name: one for one in new.external}
    is_running = present is not None and present < len(new.stages)
    percent = new.stages[present].percent if is_running and present is not None else None
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        is_tighter = one is None or (other is not None and _is_tighter(one, other))
        is_present = percent is not None and one is not None and one.is_watched_at(percent)
        looser = ChangeEffect.RESTARTS if is_present else ChangeEffect.NEEDS_REASON
        effect = ChangeEffect.AT_ONCE if is_tighter else looser
        words, others = _words(one), _words(other)
        if words == others:  # only the query is another one, or which stages it watches
            others += ", asked otherwise"
        yield name, words, others, effect


def _is_tighter(old: ExternalMetric, new: ExternalMetric) -> bool:
    """Return whether the new metric asks the same, and at least as much of the answer."""
    sign = -1 if old.is_better_when_higher else 1
    return (
        (old.queries, old.is_better_when_higher) == (new.queries, new.is_better_when_higher)
        and (new.is_counted or (new.misses <= old.misses and new.of >= old.of))
        and new.every <= old.every
        and new.repeats <= old.repeats
        and new.newest_within <= old.newest_within
        and (old.limit is None or (new.limit is not None and sign * (new.limit - old.limit) <= 0))
        and (old.margin is None or (new.margin is not None and new.margin <= old.margin))
        and new.role.strength >= old.role.strength
        and new.on_breach.strength >= old.on_breach.strength
        and new.from_percent <= old.from_percent
        and new.to_percent >= old.to_percent
    )


def _words(metric: ExternalMetric | None) -> str:
    if metric is None:
        return ""
    role = "" if metric.role is MetricRole.GUARDRAIL else f"{metric.role.value}, "
    return role + metric.words
