"""Every flag plane of a replica. All are wired alike, by what the port says of them.

A new plane is implemented in `adapters/`, described in the settings (`planes`), and has its row in
`_configured`. Nothing else knows its name. The plane `ofrep` is different: it is the board of
`web/flags.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Generic, Protocol, TypeVar

from controller.deciding.registry import RolloutRegistry
from controller.ports import (
    Clock,
    ClosablePlane,
    ConfiguredPlane,
    DroppingPlane,
    FlagPlane,
    FollowingPlane,
    RunningPlane,
)
from controller.settings import Settings
from controller.settings.planes import PlanesSettings

_ADAPTERS: Final = "controller.adapters"
NamedCall = tuple[str, Callable[[], Awaitable[None]]]
S = TypeVar("S")


class _Addressed(Protocol):
    @property
    def url(self) -> str | None:
        """The system's address. None: there is no such plane."""


A = TypeVar("A", bound=_Addressed)


@dataclass(frozen=True, slots=True)
class _Kind(Generic[S]):
    """One kind of plane: what the settings say of each such plane, and the class of all.

    The class is imported where such a plane is set: most replicas have one kind, or none.
    """

    name: str
    sections: Mapping[str, S]  # by the operator's name; "" where there is at most one such plane
    place: str  # of the class: its module, a colon and its name

    @property
    def plane(self) -> type[ConfiguredPlane[S]]:
        """The class."""
        module, _, name = self.place.partition(":")
        found: type[ConfiguredPlane[S]] = getattr(import_module(module), name)
        return found

    def name_of(self, name: str) -> str:
        """Return the name of one plane, as in logs."""
        return f"{self.name}:{name}" if name else self.name


def _configured(planes: PlanesSettings) -> Sequence[_Kind[Any]]:
    """Return every kind of plane that settings can name."""
    return (
        _Kind("file", planes.files, f"{_ADAPTERS}.file_plane:FilePlane"),
        _Kind("redis", _at_most_one(planes.redis), f"{_ADAPTERS}.redis.plane:RedisPlane"),
        _Kind("unleash", _at_most_one(planes.unleash), f"{_ADAPTERS}.unleash.plane:UnleashPlane"),
        _Kind("http", planes.http, f"{_ADAPTERS}.http_plane.plane:HttpPlane"),
    )


def _at_most_one(section: A) -> Mapping[str, A]:
    """Return a section without a name of its own; nothing if it has no address."""
    return {} if section.url is None else {"": section}


def make_outside_planes(settings: Settings, clock: Clock) -> Sequence[FlagPlane]:
    """Return the planes that the settings name. Raises ConfigInvalid.

    OFREP and the state topic are always there besides: they are parts of the daemon.
    """
    return [
        kind.plane.from_settings(name, section, clock)
        for kind in _configured(settings.planes)
        for name, section in kind.sections.items()
    ]


def planes_without_audiences(planes: PlanesSettings) -> Sequence[str]:
    """Return the names of the planes that serve only a share of all contexts.

    They serve no audiences and no divided treatment. Each plane says so itself.
    """
    return [
        kind.name_of(name)
        for kind in _configured(planes)
        for name, section in kind.sections.items()
        if not kind.plane.can_serve_audiences(section)
    ]


class Planes:
    """The flag planes of a replica, and what each needs besides `serve` and `look`."""

    def __init__(self, planes: Sequence[FlagPlane]) -> None:
        self.all = tuple(planes)

    @property
    def names(self) -> Sequence[str]:
        """The name of each plane."""
        return [plane.name for plane in self.all]

    def follow(self, registry: RolloutRegistry) -> None:
        """Let every plane that serves the flags of all replicas receive their documents."""
        for plane in self.all:
            if isinstance(plane, FollowingPlane):
                registry.subscribe(plane.update)
            if isinstance(plane, DroppingPlane):
                registry.on_retired(plane.drop)

    @property
    def loops(self) -> Sequence[NamedCall]:
        """The loop of each plane that has one."""
        return [(plane.name, plane.run) for plane in self.all if isinstance(plane, RunningPlane)]

    @property
    def closers(self) -> Sequence[NamedCall]:
        """What closes each plane that has connections of its own."""
        return [(plane.name, plane.close) for plane in self.all if isinstance(plane, ClosablePlane)]
