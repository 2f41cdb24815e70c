"""Stops saves that must not happen: a raise at the wrong time, and whatever breaks an invariant."""

from __future__ import annotations

import structlog

from controller.core.invariants import Step, Violation, raises_exposure, violations
from controller.core.rollout import Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.flag_state import FlagState
from controller.deciding.flag.outbox import OUTBOX_LIMIT, Outbox
from controller.health import Scope

#: The reporter of broken invariants, which alone clears them.
INVARIANTS = "invariants"
OUTBOX_FULL = (
    "Kafka takes no records and the outbox is full: nothing is raised until it is empty; send "
    "it again then"
)


class Safeguards:
    """Checks each decision of one flag before it is saved."""

    def __init__(
        self, flag_key: str, dependencies: WorkerDependencies, state: FlagState, outbox: Outbox
    ) -> None:
        self._flag_key = flag_key
        self._dependencies = dependencies
        self._state = state
        self._outbox = outbox
        self._held_back = ""  # why nothing was raised, as logged last
        self._violated: set[tuple[str, int]] = set()  # (invariant, revision), each reported once
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    def why_not_raise(self, after: Rollout | None) -> str | None:
        """Return why `after` cannot be saved now; None for all that raises nothing."""
        if after is None or not raises_exposure(self._state.rollout, after):
            self._held_back = ""
            return None
        if len(self._outbox) >= OUTBOX_LIMIT:
            self._logger.error("outbox_full", entries=len(self._outbox), limit=OUTBOX_LIMIT)
            return OUTBOX_FULL
        why = self._dependencies.guard.why_not()
        if why is not None and why != self._held_back:
            self._held_back = why
            self._logger.warning("raising_held_back", error=why)
        return why

    def violations(self, step: Step) -> list[Violation]:
        """Return the invariants that a decision would break; nearly always none.

        Each is reported once for a revision.
        """
        if step.after is step.before and not step.effects:
            return []
        broken = violations(
            step,
            outbox=len(self._outbox),
            outbox_limit=OUTBOX_LIMIT,
            bake_left_seconds=self._state.bake.left_seconds,
        )
        before = self._state.rollout
        revision = 0 if before is None else before.revision
        for violation in broken:
            if (violation.rule, revision) not in self._violated:
                self._violated.add((violation.rule, revision))
                self._report(violation)
        if self._violated and not broken and step.after is not step.before:
            self._violated.clear()
            self.clear()
        return broken

    def clear(self) -> None:
        """Clear the faults of this flag."""
        self._dependencies.faults.clear(Scope.FLAG, self._flag_key, reporter=INVARIANTS)

    def _report(self, violation: Violation) -> None:
        self._dependencies.metrics.invariant_violations.of(violation.rule).inc()
        self._logger.error(
            "invariant_violated",
            invariant=violation.rule,
            error=violation.why,
            is_saved=not violation.forbids,
        )
        why = f"a decision would break invariant {violation.rule}: {violation.why}"
        fix = "report it with the log; decide by hand"
        self._dependencies.faults.report(Scope.FLAG, self._flag_key, why, fix, reporter=INVARIANTS)
