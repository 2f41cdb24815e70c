"""Flags whose rollout has ended: looked at less often, and archived when nothing uses them."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from controller.adapters.unleash.api import Refused, UnleashApi
from controller.adapters.unleash.reader import FlagReading
from controller.core.rollout import Ended, Rollout
from controller.ports import Clock
from controller.settings.planes import UnleashSettings

#: A flag whose rollout ended this long ago, and that was as decided, is looked at less often.
SETTLED_AFTER: Final = timedelta(days=1)
SETTLED_SECONDS: Final = 60.0

_log = structlog.get_logger(__name__)


class EndedFlags:
    """What is remembered of flags whose rollout has ended."""

    def __init__(self, api: UnleashApi, settings: UnleashSettings, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._archive_after_days = settings.archive_after_days
        self._settled: dict[str, tuple[Rollout, float]] = {}  # by flag: as decided at (monotonic)
        self._due: set[str] = set()  # flags to be archived, as of the last look
        self._tried: set[tuple[str, str]] = set()  # (flag key, rollout id): archiving was tried

    def is_settled(self, rollout: Rollout) -> bool:
        """Return whether a look can be left out.

        Thousands of flags were rolled out once, and a few are being rolled out.
        """
        settled = self._settled.get(rollout.flag_key)
        return (
            settled is not None
            and settled[0] == rollout
            and self._clock.monotonic() - settled[1] < SETTLED_SECONDS
        )

    def note_as_decided(self, rollout: Rollout) -> None:
        """Record that the flag serves what was decided."""
        phase = rollout.phase
        if isinstance(phase, Ended) and self._clock.now() - phase.at >= SETTLED_AFTER:
            self._settled[rollout.flag_key] = (rollout, self._clock.monotonic())

    def forget_settled(self, rollout: Rollout) -> None:
        """Look at the flag at every round again."""
        self._settled.pop(rollout.flag_key, None)

    def forget(self, flag_key: str) -> None:
        """Forget a flag that was retired."""
        self._settled.pop(flag_key, None)
        self._due.discard(flag_key)
        self._tried = {each for each in self._tried if each[0] != flag_key}

    def is_to_be_archived(self, flag_key: str) -> bool:
        """Return whether the last look found the flag due for archiving."""
        return flag_key in self._due

    def check_due(self, rollout: Rollout, reading: FlagReading) -> bool:
        """Return whether the flag is due for archiving, or archived already; remember it.

        It is due when its time is up, the flag is ours alone, and no SDK asks for it in an
        environment where it is on.
        """
        is_due = self._is_due(rollout, reading)
        if is_due and reading.state is not None:
            self._due.add(rollout.flag_key)
        else:
            self._due.discard(rollout.flag_key)
        return is_due

    def _is_due(self, rollout: Rollout, reading: FlagReading) -> bool:
        if self._archive_after_days is None or not isinstance(rollout.phase, Ended):
            return False
        if rollout.plan.active and not rollout.phase.serves_nothing:
            return False  # it goes on opening and closing
        used_since = self._clock.now() - timedelta(days=self._archive_after_days)
        if rollout.phase.at > used_since:
            return False
        if reading.feature is None or reading.state is None:
            return True  # it is archived, by us or before us
        if (rollout.flag_key, rollout.rollout_id) in self._tried:
            return False  # archiving was refused, or somebody revived the flag
        # Without a time its SDKs report nothing, so it may be in use.
        is_used = any(
            each.enabled and (each.last_seen_at is None or each.last_seen_at > used_since)
            for each in reading.feature.environments
        )
        return bool(reading.state.ours) and not reading.state.others and not is_used

    async def archive(self, rollout: Rollout) -> None:
        """Archive the flag, once. Raises FlagPlaneUnavailable.

        A refusal is only logged, because the flag serves what was decided.
        """
        self._tried.add((rollout.flag_key, rollout.rollout_id))
        try:
            await self._api.archive(rollout.flag_key)
        except Refused as refusal:
            _log.warning(
                "not_archived", flag_key=rollout.flag_key, plane="unleash", error=str(refusal)
            )
        else:
            _log.info("flag_archived", flag_key=rollout.flag_key, plane="unleash")
