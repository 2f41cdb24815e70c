"""Checks that a scenario ended as it must, and sums it up in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.core.rollout import AwaitingApproval, Paused, Rollout
from controller.demo.apps import USERS, Report
from controller.demo.observer import Course, last_reasons
from controller.demo.scenarios import Ending
from controller.text import plural
from schemas.terms import HoldReason, PhaseName

#: The phases in which nothing moves without a command.
AT_REST = frozenset(
    {
        PhaseName.COMPLETED,
        PhaseName.ROLLED_BACK,
        PhaseName.ABORTED,
        PhaseName.PAUSED,
        PhaseName.AWAITING_APPROVAL,
    }
)


def is_at_rest(rollout: Rollout | None) -> bool:
    """Return whether the demo has reached its end."""
    return rollout is not None and rollout.phase.name in AT_REST


def ending_difference(
    ending: Ending, rollout: Rollout, decisions: Sequence[dict[str, Any]]
) -> str | None:
    """Return how the end differs from the one a scenario must have, None when it does not."""
    phase = rollout.phase
    stage = rollout.visits[-1].stage if rollout.visits else None
    reason = phase.reason if isinstance(phase, Paused | AwaitingApproval) else None
    reasons = last_reasons(decisions)
    if phase.name is not ending.phase:
        return f"it ended {_words(phase.name)}, not {_words(ending.phase)}"
    if ending.percent is not None and rollout.percent != ending.percent:
        return f"it ended at {rollout.percent:g} %, not at {ending.percent:g} %"
    if ending.stage is not None and stage != ending.stage:
        return (
            f"it ended in stage {'none' if stage is None else stage + 1}, not in stage "
            f"{ending.stage + 1}"
        )
    if ending.reason is not None and reason is not ending.reason:
        return f"its reason is {reason}, not {ending.reason}"
    if ending.names and not any(name in reasons for name in ending.names):
        return f"its reason does not name {' or '.join(ending.names)}: {reasons}"
    return None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Whether the demo ended as it may, and a sentence about that."""

    fault: str | None  # None: it did
    words: str


def conclude(
    ending: Ending,
    rollout: Rollout | None,
    decisions: Sequence[dict[str, Any]],
    *,
    longest_seconds: float,
    has_real_advisor: bool,
) -> Conclusion:
    """Return how the demo ended. A real model may hold any gate: then a person decides, as here."""
    if rollout is None:
        fault: str | None = f"the rollout did not begin within {longest_seconds:g} s"
    elif not is_at_rest(rollout):
        fault = f"it was still {rollout.phase.name} after {longest_seconds:g} s"
    elif has_real_advisor and _is_objection(rollout):
        return Conclusion(
            None, f"OK, held by the model: a person decides. Without its advice: {ending}"
        )
    else:
        fault = ending_difference(ending, rollout, decisions)
    if fault is None:
        return Conclusion(None, f"OK, as expected: {ending}")
    return Conclusion(fault, f"Expected: {ending}. But {fault}")


def _is_objection(rollout: Rollout) -> bool:
    """Return whether a person must decide because advice held."""
    return (
        isinstance(rollout.phase, AwaitingApproval) and rollout.phase.reason is HoldReason.ADVISOR
    )


def summary(course: Course, report: Report) -> list[str]:
    """Return sentences about what happened, how many users it reached and how long it took."""
    rollout = course.rollout
    if rollout is None or not course.decisions:
        return ["The rollout never began."]
    seconds = (rollout.updated_at - rollout.started_at).total_seconds()
    stage = rollout.visits[-1]
    where = f"stage {stage.stage + 1} ({stage.percent:g} %)"
    match rollout.phase.name:
        case PhaseName.COMPLETED:
            lines = [
                (
                    f"Completed: {plural(stage.stage + 1, 'stage')} in {seconds:.1f} s, every gate "
                    f"passed on evidence."
                )
            ]
        case PhaseName.ROLLED_BACK:
            lines = [f"Rolled back to 0 % after {seconds:.1f} s, in {where}."]
        case PhaseName.PAUSED:
            lines = [
                (
                    f"Paused at {rollout.percent:g} % after {seconds:.1f} s, in {where}: "
                    f"nothing advances until a person decides."
                )
            ]
        case PhaseName.AWAITING_APPROVAL:
            lines = [
                (
                    f"After {seconds:.1f} s a person is asked, in {where}; exposure stays at "
                    f"{rollout.percent:g} %."
                )
            ]
        case other:
            lines = [f"Ended {_words(other)} after {seconds:.1f} s, in {where}."]
    if rollout.phase.name is not PhaseName.COMPLETED:
        lines.append(f"Why: {_why(rollout, course.decisions)}.")
    unadvised = sum(1 for decision in course.decisions if "no advice" in decision["reason"])
    if unadvised:
        gates = plural(unadvised, "gate was", "gates were")
        lines.append(f"{gates} decided without advice: no usable answer came in time.")
    if answers := Counter(
        decision["advice"]["choice"] for decision in course.decisions if decision.get("advice")
    ):
        said = ", ".join(f"{choice} ({count})" for choice, count in sorted(answers.items()))
        lines.append(f"Advice in the decisions: {said}.")
    lines.append(_harm(course, report))
    if (
        report.last_harm_at is not None
        and report.first_harm_at is not None
        and rollout.phase.name is PhaseName.ROLLED_BACK
    ):
        lines.append(
            f"The first of them {_clock(report.first_harm_at, rollout.started_at)} after "
            f"the start, the last "
            f"{_clock(report.last_harm_at, rollout.started_at)}; decided after {seconds:.1f} s."
        )
    return lines


def _why(rollout: Rollout, decisions: Sequence[dict[str, Any]]) -> str:
    """Return the last reason, with that of the hold where the hold lasted too long."""
    is_outlasted = (
        isinstance(rollout.phase, Paused | AwaitingApproval) and decisions[-1]["judgement"] is None
    )
    return last_reasons(decisions, 2 if is_outlasted else 1)


def _harm(course: Course, report: Report) -> str:
    """Return the harm that the apps know of, and what the daemon counted from events alone."""
    seen: dict[str, Any] = next(
        (d["judgement"]["harm"] for d in reversed(course.decisions) if d["judgement"]), {}
    )
    reached = f"{report.treated_users:,} of {USERS:,} users got the new version"
    harmed = (
        f"{report.harmed_users:,} saw an error or a delay that they would not have had otherwise"
        if report.harmed_users
        else "it harmed none of them"
    )
    as_many = "" if report.harmed_users else ", as many as the old version would have had"
    counted = (
        f" (rolloutd counted {plural(seen['failed_requests'], 'failed request')} in "
        f"treatment{as_many})"
        if seen
        else ""
    )
    return f"{reached}; {harmed}{counted}."


def _clock(at: float, start: datetime) -> str:
    return f"{at - start.timestamp():.1f} s"


def _words(phase: PhaseName) -> str:
    return phase.value.replace("_", " ")
