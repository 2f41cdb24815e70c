"""The newest rollout of every flag, and who receives it.

Every replica holds all rollouts: it serves all flags, whoever decides about them. They come from
the state topic and from the workers of this replica.

Belongs here: which rollout is the newest, and the order in which listeners receive it. Does not
belong here: reading the state topic (`running/state_follower.py`), and what a listener does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from controller.core.rollout import Retired, Rollout

#: Retired flags whose revision is known, to refuse what comes late; those before are forgotten.
RETIRED_KEPT: Final = 10_000

Listener = Callable[[Rollout], object]
"""Receives the newest rollout of a flag; must return at once."""

RetiredListener = Callable[[str, int], object]
"""Receives a flag that was retired, and the revision that did it; must return at once."""


class OwnRollouts(Protocol):
    """Receives the rollouts that run on this replica. Both methods must return at once."""

    def request(self, rollout: Rollout) -> None:
        """Receive a rollout that a worker of this replica decided or loaded."""

    def drop(self, flag_keys: Sequence[str]) -> None:
        """Forget flags that run here no longer."""


class RolloutRegistry:
    """Holds the newest rollout of each flag and passes it to its listeners."""

    def __init__(self) -> None:
        self._newest: dict[str, Rollout] = {}
        #: Grows with each change of the rollouts: who keeps what follows from them compares it.
        self.rollouts_version = 0
        self._flags_version = 0
        self._stored_flags: frozenset[str] = frozenset()
        self._retired: dict[str, int] = {}  # the revision that did it, oldest first
        self._listeners: list[Listener] = []
        self._retired_listeners: list[RetiredListener] = []
        self._own_listeners: list[OwnRollouts] = []
        self._overtaken_listeners: list[Callable[[str], object]] = []

    def subscribe(self, listener: Listener) -> None:
        """Pass every newest rollout to `listener`, whoever decided it. Not those from before.

        Listeners are the planes that have `update` (`controller/planes.py`), counting, and the
        flag's worker (`bootstrap._subscribe`).
        """
        self._listeners.append(listener)

    def on_retired(self, *listeners: RetiredListener) -> None:
        """Call these with each flag that was retired, whoever did it."""
        self._retired_listeners.extend(listeners)

    def subscribe_own(self, listener: OwnRollouts) -> None:
        """Pass the rollouts of flags that run here to `listener`."""
        self._own_listeners.append(listener)

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the newest rollout of a flag, None where none is known."""
        return self._newest.get(flag_key)

    def retired_revision(self, flag_key: str) -> int | None:
        """Return the revision that retired a flag lately; None for a flag that is not retired."""
        return self._retired.get(flag_key)

    def is_retired(self, flag_key: str) -> bool:
        """Return whether a flag was retired lately, and not started since."""
        return flag_key in self._retired

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The newest rollout of every flag; a copy."""
        return dict(self._newest)

    @property
    def flag_keys(self) -> Sequence[str]:
        """Every flag that has a rollout, as far as is known without asking Redis; in order."""
        return sorted({*self._newest, *self._stored_flags})

    @property
    def flags_version(self) -> int:
        """A number that grows whenever `flag_keys` may have changed."""
        return self._flags_version

    def on_overtaken(self, *listeners: Callable[[str], object]) -> None:
        """Call these with each flag whose newest rollout the state topic lacks."""
        self._overtaken_listeners.extend(listeners)

    def republish(self, flag_key: str) -> None:
        """Let the newest rollout be published again.

        The state topic ends with an older one, written late, or with none: it was created again.
        """
        for listener in self._overtaken_listeners:
            listener(flag_key)

    def add_stored_flags(self, flag_keys: Sequence[str]) -> None:
        """Add flags that Redis holds. Their rollouts may not be known yet."""
        self._stored_flags = self._stored_flags.union(flag_keys)
        self._flags_version += 1

    def drop_stored(self, flag_key: str) -> None:
        """Note that Redis holds nothing of a flag any more."""
        self._stored_flags = self._stored_flags.difference((flag_key,))
        self._flags_version += 1

    def retire(self, flag_key: str, revision: int) -> None:
        """Let go of a flag that was retired as this revision, unless a newer rollout is known.

        Documents up to this revision are refused from now on: they come late.
        """
        newest = self._newest.get(flag_key)
        if revision <= self._retired.get(flag_key, -1):
            return
        if newest is not None and newest.revision > revision:
            return
        self._newest.pop(flag_key, None)
        self._flags_version += 1
        self.rollouts_version += 1
        self._retired.pop(flag_key, None)
        self._retired[flag_key] = revision
        if len(self._retired) > RETIRED_KEPT:
            del self._retired[next(iter(self._retired))]
        for listener in self._retired_listeners:
            listener(flag_key, revision)

    def update(self, rollout: Rollout) -> None:
        """Pass a rollout to all listeners unless a newer one is known. It may be anybody's.

        The first listener that raises ends the round: those after it get the next rollout.
        """
        if isinstance(rollout.phase, Retired):
            self.retire(rollout.flag_key, rollout.revision)
            return
        if rollout.revision <= self._retired.get(rollout.flag_key, -1):
            return
        self._retired.pop(rollout.flag_key, None)
        newest = self._newest.get(rollout.flag_key)
        if newest is None:
            self._flags_version += 1
        if newest is None or rollout.revision >= newest.revision:
            self._newest[rollout.flag_key] = rollout
            self.rollouts_version += 1
            for listener in self._listeners:
                listener(rollout)

    def update_own(self, rollout: Rollout) -> None:
        """Pass on a rollout that a worker of this replica saved, or loaded as it took over.

        Synchronous, so that 0 % is served at once.
        """
        self.update(rollout)
        for listener in self._own_listeners:
            listener.request(rollout)

    def release(self, flag_key: str) -> None:
        """Note that a flag runs here no longer."""
        for listener in self._own_listeners:
            listener.drop([flag_key])
