"""What a start is told: what it will need and is not there, and what is against the rules.

A start is not refused for what is not there: apps may begin to send events after the flag is on,
and a plane may come back. But whoever starts is told at once, and not when the first bake is over.
Whether events of both arms arrive is asked from the end of the first settle on, see
`core/judging/gaps.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from controller.core.plan import Plan
from controller.core.rollout import Rollout
from controller.deciding.external_readings import why_unmeasured
from controller.health import Faults, Scope
from controller.ports import Clock, GateWebhooks, Queries
from controller.reporting.start_rules import AgainstRules, against_rules
from controller.settings.flags import FlagsSettings
from schemas.terms import AdvisorMode

#: The model's server gets so long to answer. A start waits for it, commands of other flags do not.
PROBE_SECONDS: Final = 1.0
#: Named of each kind; more are counted.
_MOST_NAMED: Final = 3


class ModelProbe(Protocol):
    """The configured model, as far as a start has to know."""

    async def why_unreachable(self, seconds: float) -> str | None:
        """Return why the server does not answer within `seconds`, None when it does."""


class Preflight:
    """Looks for what a start will need. It knows this replica's faults, and asks the model."""

    def __init__(
        self,
        faults: Faults,
        model: ModelProbe | None,
        rules: FlagsSettings | None = None,
        rollouts: Callable[[], Mapping[str, Rollout]] = dict,
        queries: Queries | None = None,
        clock: Clock | None = None,
        webhooks: GateWebhooks | None = None,
    ) -> None:
        """`model` is None where none is configured. `rollouts` are all, by flag.

        Without `queries` and `clock` external metrics are not looked at, without `webhooks` no
        gate webhooks.
        """
        self._faults = faults
        self._model = model
        self._rules = FlagsSettings() if rules is None else rules
        self._rollouts = rollouts
        self._queries = queries
        self._clock = clock
        self._webhooks = webhooks

    def against_rules(self, plan: Plan) -> AgainstRules:
        """Return what is against the rules for flags if a rollout begins by this plan."""
        return against_rules(plan, self._rollouts().values(), self._rules)

    async def missing(self, plan: Plan) -> tuple[str, ...]:
        """Return what is not there, one phrase each; empty when all is well."""
        missing = [*_named(self._faults, Scope.PLANE, "flag plane")]
        if not plan.blind:
            missing += _named(self._faults, Scope.PARTITION, "event partition")
        if (without_advice := await self._without_advice(plan.advisor.mode)) is not None:
            missing.append(without_advice)
        missing += self._without_address(plan)
        missing += await self._unmeasured(plan)
        return tuple(missing)

    def _without_address(self, plan: Plan) -> Iterator[str]:
        """Yield each gate webhook that the settings of this replica do not have."""
        known = None if self._webhooks is None else self._webhooks.endpoints
        for webhook in plan.gate_webhooks if known is not None else ():
            if known is not None and webhook.endpoint not in known:
                yield (
                    f"gate webhook {webhook.endpoint} has no address "
                    f"(gate_webhooks.endpoints.{webhook.endpoint} in the settings): no gate can "
                    f"pass without it"
                )

    async def _unmeasured(self, plan: Plan) -> Sequence[str]:
        """Return which external metrics cannot be measured, as far as that is known in time."""
        if self._queries is None or self._clock is None or not plan.external:
            return ()
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return await why_unmeasured(self._queries, plan, self._clock.now())
        except TimeoutError:
            why = f"no answer within {PROBE_SECONDS:g} s"
            return (f"the monitoring system of the external metrics is slow: {why}",)

    async def _without_advice(self, mode: AdvisorMode) -> str | None:
        is_required = mode is AdvisorMode.REQUIRED
        if self._model is None or not (is_required or mode is AdvisorMode.CAN_HOLD):
            return None  # without a model, a start that requires one is refused
        why_not = await self._model.why_unreachable(PROBE_SECONDS)
        if why_not is None:
            return None
        end = "no gate can pass without it" if is_required else "gates pass without its advice"
        return f"the model's server does not answer ({why_not}): {end}"


def _named(faults: Faults, scope: Scope, what: str) -> Iterator[str]:
    """Yield the faults of a scope: the first by name, and how many more there are."""
    found = [fault for fault in faults.current if fault.scope is scope]
    for fault in found[:_MOST_NAMED]:
        yield f"{what} {fault.name}: {fault.why}"
    if len(found) > _MOST_NAMED:
        yield f"{len(found) - _MOST_NAMED} more: {what}s"
