"""Follows the state topic: every document in it reaches the registry, whoever decided it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

import structlog

from controller.adapters.kafka.state_topic_plane import StateTopicPlane
from controller.core.rollout import Rollout
from controller.deciding.registry import RolloutRegistry
from controller.errors import StoreUnavailable
from controller.health import Faults, Health, Scope
from controller.ports import RetiredFlag
from controller.retrying import steady, until_done
from controller.running.connections import Connections

#: The reporter of documents that cannot be used, which alone clears them.
_STATE = "state"
RETRY_SECONDS = 1.0


class StateFollower:
    """Feeds the registry from the state topic and, at the start, from what Redis has besides."""

    def __init__(
        self,
        connections: Connections,
        registry: RolloutRegistry,
        plane: StateTopicPlane,
        health: Health,
        faults: Faults,
    ) -> None:
        self._feed = connections.feed
        self._reader = connections.state_reader
        self._rollouts = connections.rollouts
        self._damaged = connections.damaged
        self._registry = registry
        self._plane = plane
        self._health = health
        self._faults = faults
        self._logger = structlog.get_logger()

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The newest rollout of each flag, as far as it was followed."""
        return self._registry.rollouts

    async def run(self) -> None:
        """Follow until cancelled."""
        async with aclosing(self._feed.documents()) as documents:
            async for document in documents:
                if isinstance(document, RetiredFlag):
                    self._registry.retire(document.flag_key, document.revision)
                    self._clear_faults(document.flag_key)
                else:
                    self.update(document)
                    await self._plane.note(document)

    async def read_flag_keys(self) -> None:
        """Add the flags that Redis holds to the registry. Raises StoreUnavailable."""
        self._registry.add_stored_flags(await self._rollouts.flag_keys())

    async def catch_up(self) -> None:
        """Return once everything decided is known: the state topic to its end, and Redis.

        A crash may have kept the last decisions from the topic. By an older document, events of a
        new stage would be counted for the stage before, for good. Raises ConfigInvalid.
        """
        await self._feed.caught_up()
        self._reader.check()
        revisions = {key: each.revision for key, each in self._registry.rollouts.items()}
        unpublished = await until_done(
            lambda: self._rollouts.newer_than(revisions),
            trouble=StoreUnavailable,
            backoff=steady(RETRY_SECONDS),
            report=self._report_waiting,
        )
        for rollout in unpublished:
            self._logger.info(
                "decided_unpublished", flag_key=rollout.flag_key, revision=rollout.revision
            )
            self.update(rollout)

    def update(self, rollout: Rollout) -> None:
        """Give a document to the registry. One that cannot be used stops its own flag only."""
        try:
            self._registry.update(rollout)
        except Exception as error:  # the edge of one flag: the topic would bring it again for ever
            why = f"revision {rollout.revision} cannot be used: {type(error).__name__}: {error}"
            self._logger.exception("document_unusable", flag_key=rollout.flag_key)
            fix = "see document_unusable in the log"
            self._faults.report(Scope.FLAG, rollout.flag_key, why[:300], fix, reporter=_STATE)
        else:
            self._clear_faults(rollout.flag_key)

    def _clear_faults(self, flag_key: str) -> None:
        """Clear what was wrong with a flag: its replica has written something that can be read."""
        self._faults.clear(Scope.FLAG, flag_key, reporter=_STATE)
        self._damaged.clear(flag_key)

    def _report_waiting(self, trouble: StoreUnavailable, _pause: float) -> None:
        self._health.not_ready("state", str(trouble))
        self._logger.warning("waiting", step="reading what was decided last", error=str(trouble))
