"""Flag planes: what serves a percentage, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol, Self, TypeVar, runtime_checkable

from controller.core.rollout import Rollout
from controller.ports.surroundings import Clock

S_contra = TypeVar("S_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Served:
    """What a flag plane serves for one flag, as read from it."""

    #: Percentage of contexts that get treatment, 0 to 100; None: the plane does not know the flag.
    percent: float | None
    difference: str | None  # in words, what is not as decided; None: all is
    #: Who changed it after we wrote it last; None: nobody, or the plane cannot tell.
    edited_by: str | None = None

    @classmethod
    def compared(
        cls, percent: float | None, decided: float, *, edited_by: str | None = None
    ) -> Served:
        """Return what a plane serves that knows nothing but percentages."""
        if percent == decided:
            return cls(percent, None)
        serves = "does not know the flag" if percent is None else f"serves {percent:g} %"
        return cls(percent, f"{serves}, decided is {decided:g} %", edited_by)

    def short_of(self, beyond: str | None) -> Served:
        """Return the same for a plane that serves percentages alone, when more was decided.

        `beyond` names what was decided besides, None for nothing.
        """
        if beyond is None or self.difference is not None:
            return self
        return replace(
            self,
            difference=f"cannot serve {beyond}; everybody else gets the decided "
            f"{self.percent or 0:g} %",
        )


@dataclass(frozen=True, slots=True)
class PlaneStanding:
    """Whether a flag plane serves what was decided for one flag, as last observed."""

    plane: str
    is_converged: bool
    decided_percent: float
    #: As read last; None: nothing was read yet, or the plane does not know the flag.
    percent: float | None
    why: str | None  # why it has not converged
    since: datetime | None  # since when it has not converged
    looked_at: datetime | None  # when it last answered; None: not yet


class FlagPlane(Protocol):
    """A system that serves flags to apps.

    A plane that the settings describe is a `ConfiguredPlane`. A plane may also be a `LocalPlane`, a
    `FollowingPlane`, a `RunningPlane` or a `ClosablePlane`, by having the method. It is a
    `DroppingPlane` or a `RetiringPlane`, or it serves retired flags for ever. All planes are wired
    alike: see `controller/planes.py`.
    """

    @property
    def name(self) -> str:
        """A short name for logs, alerts and metrics."""

    async def serve(self, rollout: Rollout) -> None:
        """Make the plane serve what `rollout` says; idempotent.

        An older revision than the plane has seen changes nothing.

        Raises FlagPlaneUnavailable when it is not known to be served.
        """

    async def look(self, rollout: Rollout) -> Served:
        """Return what the plane serves now, compared with what `rollout` says.

        Raises FlagPlaneUnavailable.
        """


@runtime_checkable
class LocalPlane(FlagPlane, Protocol):
    """A flag plane in the memory of this process, so that nobody waits for its answers."""

    def look_at_once(self, rollout: Rollout) -> Served:
        """Return what `look` returns."""


class ConfiguredPlane(FlagPlane, Protocol[S_contra]):
    """A flag plane that a section of the settings describes: one row of `controller/planes.py`.

    `S_contra` is the type of the section.
    """

    @classmethod
    def from_settings(cls, name: str, settings: S_contra, clock: Clock) -> Self:
        """Return the plane; nothing is connected yet.

        `name` is the operator's name for it where there can be several such planes.
        Raises ConfigInvalid.
        """

    @staticmethod
    def can_serve_audiences(settings: S_contra) -> bool:
        """Return whether the plane can serve audiences and divided treatments.

        Other planes serve only a share of all contexts. It is known before the plane is made.
        """


@runtime_checkable
class FollowingPlane(Protocol):
    """A flag plane that serves the flags of all replicas, not only those that run here."""

    def update(self, rollout: Rollout) -> object:
        """Serve a newer document, whoever decided it; an older one changes nothing.

        Returns at once.
        """


@runtime_checkable
class RunningPlane(Protocol):
    """A flag plane with work of its own beside `serve` and `look`."""

    async def run(self) -> None:
        """Run from the time when everything decided so far is known, until cancelled."""


@runtime_checkable
class ClosablePlane(Protocol):
    """A flag plane with connections of its own."""

    async def close(self) -> None:
        """Drop the connections, within a deadline."""


@runtime_checkable
class DroppingPlane(Protocol):
    """A flag plane of every replica that forgets flags which were retired."""

    def drop(self, flag_key: str, revision: int) -> object:
        """Serve nothing for a flag that was retired as this revision; returns at once.

        A document of a higher revision may be known already: then nothing changes.
        """


@runtime_checkable
class RetiringPlane(Protocol):
    """A flag plane that is told, by the replica that runs the flag, that it was retired."""

    async def retire(self, flag_key: str, revision: int) -> None:
        """Let go of a flag; idempotent. What stays of it there is in `ops/flags.md`.

        Raises FlagPlaneUnavailable when it is not known to be done.
        """
