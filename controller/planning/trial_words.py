"""Says in words what virtual rollouts of a plan came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from controller.planning.figures import ShareOfRuns, Spread, TriedTraffic, lacking_words
from controller.planning.trial import SimulationRequest
from controller.reporting.situation import about
from controller.reporting.tried_plan import TriedPlan, TriedScenario
from controller.text import plural

_ALWAYS_ASSUMED: Final = (
    "also assumed: a model, if asked, advises to proceed; people approve at once; each request "
    "has a context of its own"
)


def tried_plan(request: SimulationRequest, scenarios: Sequence[TriedTraffic]) -> TriedPlan:
    """Return what the scenarios came to."""
    plan = request.plan
    return TriedPlan(
        plan=f"{plan.name} of {plan.flag_key}",
        rollouts=f"{plural(request.runs, 'virtual rollout')} each, seed {request.seed}",
        about=(
            f"control: {request.traffic.words(plan)}",
            f"rollouts {request.begin}",
            _ALWAYS_ASSUMED,
        ),
        assumed=", ".join(request.assumed),
        scenarios=tuple(map(_scenario, scenarios)),
    )


def _scenario(scenario: TriedTraffic) -> TriedScenario:
    effects = ", ".join(str(effect) for effect in scenario.traffic.effects)
    # What is planned is open time. With active windows, its median is beside that of all time.
    has_windows = any(stage.open_seconds != stage.seconds for stage in scenario.stages)
    open_ = ("open",) if has_windows else ()
    return TriedScenario(
        title=f"with {effects}" if effects else "treatment as good as control",
        rows=tuple(_rows(scenario)),
        columns=(
            *("stage", "served", "planned"),
            *open_,
            *("median", "p90", "passed", "undecided", "contexts"),
        ),
        stages=tuple(
            _stage(scenario, index, has_windows=has_windows)
            for index in range(len(scenario.stages))
        ),
    )


def _stage(scenario: TriedTraffic, index: int, *, has_windows: bool) -> tuple[str, ...]:
    stage = scenario.stages[index]
    seconds, in_windows = stage.seconds, stage.open_seconds
    median = "–" if in_windows is None else about(timedelta(seconds=in_windows.median))
    return (
        f"{index + 1}/{len(scenario.stages)}",
        f"{stage.percent:g} %",
        about(stage.planned),
        *((median,) if has_windows else ()),
        "–" if seconds is None else about(timedelta(seconds=seconds.median)),
        "–" if seconds is None else about(timedelta(seconds=seconds.p90)),
        str(stage.passed),
        str(stage.undecided),
        "–" if stage.contexts is None else f"{stage.contexts.median:,.0f}",
    )


def _rows(scenario: TriedTraffic) -> list[tuple[str, str]]:
    rows = [("completed", _part_words(scenario.promoted))]
    if scenario.traffic.effects:
        rows.append(("harm found", _part_words(scenario.found)))
        rows.append(("harm missed", f"{_part_words(scenario.missed)}: completed in spite of it"))
        if (seconds := scenario.seconds_to_find) is not None:
            rows.append(("found after", _duration_words(seconds)))
        if (contexts := scenario.harmed_contexts) is not None:
            words = f"{_number_words(contexts)}: in treatment from the start of the harm to the "
            rows.append(("contexts exposed", f"{words}rollback"))
        if (failures := scenario.extra_failures) is not None:
            words = f"{_number_words(failures)}: more than at control's rate"
            rows.append(("excess failures", words))
        if scenario.finders:
            rows.append(
                (
                    "found by",
                    ", ".join(
                        f"{metric} {count}" for metric, count in scenario.finders.most_common()
                    ),
                )
            )
    rows.append(("false alarm", _part_words(scenario.false_alarm)))
    lacking = sum((stage.lacking for stage in scenario.stages), Counter[str]())
    waited = f", because {lacking_words(lacking)}" if lacking else ""
    rows.append(("undecided", f"{_part_words(scenario.undecided)}: paused at max_bake{waited}"))
    if scenario.otherwise.count:
        reasons = sorted(
            {run.reason for run in scenario.runs if run.ended in ("paused", "given_up")}
        )
        rows.append(("other endings", f"{_part_words(scenario.otherwise)}: {', '.join(reasons)}"))
    if (seconds := scenario.seconds_to_complete) is not None:
        rows.append(("completed after", _duration_words(seconds)))
    return rows


def _part_words(part: ShareOfRuns) -> str:
    """Return `3 of 200, 1.5 % (0.5 to 4.3 %)`."""
    low, high = part.interval
    return (
        f"{part.count} of {part.of}, {100 * part.share:.3g} % ({100 * low:.3g} to "
        f"{100 * high:.3g} %)"
    )


def _duration_words(seconds: Spread) -> str:
    """Return a median and 90 % quantile of seconds."""
    return (
        f"{about(timedelta(seconds=seconds.median))} median, "
        f"{about(timedelta(seconds=seconds.p90))} p90"
    )


def _number_words(numbers: Spread) -> str:
    """Return a median and 90 % quantile of counts."""
    return f"{numbers.median:,.0f} median, {numbers.p90:,.0f} p90"
