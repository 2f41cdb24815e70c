"""Every port in memory, deterministic: for tests, and for simulating rollouts without a broker.

These are twins of the real adapters, not mocks: the contract tests run the same sentences on both.
Each has an `outage`. It can be switched off, or made to do what it was asked and lose the reply, as
a network does.
"""

from controller.adapters.memory.advisor import MemoryAdvisor
from controller.adapters.memory.clock import ManualClock
from controller.adapters.memory.event_log import MemoryBroker, MemoryEventLog
from controller.adapters.memory.flag_plane import MemoryFlagPlane
from controller.adapters.memory.flag_uses import MemoryFlagUses
from controller.adapters.memory.outage import Outage
from controller.adapters.memory.publishing import MemoryPublisher, MemoryStateFeed
from controller.adapters.memory.reports import MemoryReports
from controller.adapters.memory.rollouts import MemoryRollouts
from controller.adapters.memory.totals import MemoryTotals

__all__ = [
    "ManualClock",
    "MemoryAdvisor",
    "MemoryBroker",
    "MemoryEventLog",
    "MemoryFlagPlane",
    "MemoryFlagUses",
    "MemoryPublisher",
    "MemoryReports",
    "MemoryRollouts",
    "MemoryStateFeed",
    "MemoryTotals",
    "Outage",
]
