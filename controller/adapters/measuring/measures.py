"""Every monitoring system that can be asked, by what a check names."""

from __future__ import annotations

import asyncio

from controller.adapters.measuring.asking import MeasuringSystem
from controller.adapters.measuring.better_stack import ask_better_stack
from controller.adapters.measuring.exposition import ask_blackbox, ask_uptime_kuma
from controller.adapters.measuring.prometheus import ask_counters, ask_prometheus
from controller.checking.checks_file import Check
from controller.core.plan import CounterQuestion
from controller.ports import Clock, CounterSample, Sample
from controller.settings.checks import ChecksSettings


class MonitoringSystems:
    """Implements `Measures` of checks, and `Queries` of external metrics."""

    def __init__(self, settings: ChecksSettings, clock: Clock) -> None:
        """Raises ConfigInvalid."""
        if settings.is_on or settings.prometheus.url is not None:
            # httpx: before the loop runs, and not where no system is asked
            import controller.adapters.http.pool  # noqa: F401
        self._clock = clock
        self._prometheus = MeasuringSystem("checks.prometheus", settings.prometheus)
        self._uptime_kuma = MeasuringSystem("checks.uptime_kuma", settings.uptime_kuma)
        self._better_stack = MeasuringSystem("checks.better_stack", settings.better_stack)
        self._blackbox = MeasuringSystem("checks.blackbox", settings.blackbox)

    async def value(self, check: Check) -> float:
        """Return the number of a check. Raises NotMeasured."""
        if check.uptime_kuma is not None:
            kuma = check.uptime_kuma
            return await ask_uptime_kuma(self._uptime_kuma, kuma.monitor, kuma.what)
        if check.better_stack is not None:
            stack = check.better_stack
            now = self._clock.now
            return await ask_better_stack(self._better_stack, stack.monitor, stack.what, now)
        if check.blackbox is not None:
            probe = check.blackbox
            return await ask_blackbox(self._blackbox, probe.target, probe.module, probe.what)
        assert check.prometheus is not None
        return await self.query(check.prometheus)

    async def query(self, query: str) -> float:
        """Return the number of a Prometheus query. Raises NotMeasured."""
        return (await self.sample(query)).value

    async def sample(self, query: str) -> Sample:
        """Return the number of a Prometheus query, and when it was computed. Raises NotMeasured."""
        return Sample(*await ask_prometheus(self._prometheus, query))

    async def counters(self, question: CounterQuestion) -> CounterSample:
        """Return the counters of both arms, all of one moment. Raises NotMeasured."""
        return CounterSample(*await ask_counters(self._prometheus, question))

    async def close(self) -> None:
        """Drop the connections."""
        systems = (self._prometheus, self._uptime_kuma, self._better_stack, self._blackbox)
        await asyncio.gather(*(one.close() for one in systems))
