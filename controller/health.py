"""What is known about the process's own state: each part reports here, the HTTP surface and the supervisor read.

Three questions with three answers: is it alive (nothing broken that a restart mends), is it ready (everything it needs to
do its work has started and caught up), and is it degraded (something it can do without for a while is away). Values only:
what to do about them is the supervisor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Component:
    """One part or dependency, as last reported."""

    name: str
    is_required: bool  # False: without it the flags stay where they are, and are still served
    why_not: str | None  # None: ready; else what it waits for or what failed


class Health:
    """The process's state, written by its parts. All names are known at the start, so a part that never reports is seen."""

    def __init__(self, required: Iterable[str], optional: Iterable[str] = ()) -> None:
        self._components = {name: Component(name, True, "not started") for name in required}
        self._components |= {name: Component(name, False, "not started") for name in optional}
        self._broken: list[str] = []

    def ready(self, name: str) -> None:
        """The component does its work. Raises KeyError for a name that was not announced."""
        self._set(name, None)

    def not_ready(self, name: str, why: str) -> None:
        """The component waits or has failed; `why` is one sentence for a person. Raises KeyError like `ready`."""
        self._set(name, why)

    def broken(self, why: str) -> None:
        """An invariant does not hold: from now on the process is not alive, and only a restart mends it."""
        if why not in self._broken and len(self._broken) < 20:  # the first reasons tell the story
            self._broken.append(why)

    @property
    def components(self) -> Mapping[str, Component]:
        """Every component by name."""
        return self._components

    @property
    def trouble(self) -> tuple[str, ...]:
        """Which invariants broke; empty while alive."""
        return tuple(self._broken)

    @property
    def is_alive(self) -> bool:
        """False once an invariant broke."""
        return not self._broken

    @property
    def is_ready(self) -> bool:
        """True while alive and every required component is ready."""
        return self.is_alive and all(part.why_not is None for part in self._components.values() if part.is_required)

    @property
    def is_degraded(self) -> bool:
        """True while any component is not ready, required or not."""
        return any(part.why_not is not None for part in self._components.values())

    def _set(self, name: str, why_not: str | None) -> None:
        self._components[name] = Component(name, self._components[name].is_required, why_not)
