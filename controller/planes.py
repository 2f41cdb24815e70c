"""Every flag plane of a replica. All are wired alike, by what the port says of them.

A new plane is made in `make_outside_planes`, described in the settings (`planes`), and implemented
in `adapters/`. The plane `ofrep` is different: it is the board of `web/flags.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from controller.adapters.file_plane import FilePlane
from controller.adapters.http_plane.plane import HttpPlane
from controller.adapters.redis.address import redis_url
from controller.adapters.redis.plane import RedisPlane
from controller.adapters.unleash.plane import UnleashPlane
from controller.deciding.registry import RolloutRegistry
from controller.ports import Clock, ClosablePlane, FlagPlane, FollowingPlane, RunningPlane
from controller.settings import PlanesSettings, Settings

NamedCall = tuple[str, Callable[[], Awaitable[None]]]


def make_outside_planes(settings: Settings, clock: Clock) -> Sequence[FlagPlane]:
    """Return the planes that the settings name. Raises ConfigInvalid.

    OFREP and the state topic are always there besides: they are parts of the daemon.
    """
    planes: list[FlagPlane] = [
        FilePlane(name, file) for name, file in settings.planes.files.items()
    ]
    keys = settings.planes.redis
    if keys.url is not None:
        seconds = keys.call_timeout_seconds
        planes.append(RedisPlane(redis_url(keys), key_prefix=keys.key_prefix, call_seconds=seconds))
    if settings.planes.unleash.url is not None:
        planes.append(UnleashPlane(settings.planes.unleash, clock))
    planes += [HttpPlane(name, http, clock) for name, http in settings.planes.http.items()]
    return planes


def planes_without_audiences(planes: PlanesSettings) -> Sequence[str]:
    """Return the names of the planes that serve only a share of all contexts.

    They serve no audiences and no divided treatment. Each plane says so itself.
    """
    abilities: dict[str, bool] = {}
    if planes.redis.url is not None:
        abilities[RedisPlane.name] = RedisPlane.can_serve_audiences(planes.redis)
    if planes.unleash.url is not None:
        abilities[UnleashPlane.name] = UnleashPlane.can_serve_audiences(planes.unleash)
    for name, file in planes.files.items():
        abilities[f"file:{name}"] = FilePlane.can_serve_audiences(file)
    for name, http in planes.http.items():
        abilities[f"http:{name}"] = HttpPlane.can_serve_audiences(http)
    return [name for name, can_serve in abilities.items() if not can_serve]


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

    @property
    def loops(self) -> Sequence[NamedCall]:
        """The loop of each plane that has one."""
        return [(plane.name, plane.run) for plane in self.all if isinstance(plane, RunningPlane)]

    @property
    def closers(self) -> Sequence[NamedCall]:
        """What closes each plane that has connections of its own."""
        return [(plane.name, plane.close) for plane in self.all if isinstance(plane, ClosablePlane)]
