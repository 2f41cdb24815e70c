"""Where the native fold is: built beside us by `make native`, or installed as `rolloutd-native`.

Loads nothing else, so that `--version` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Final

BUILT: Final = "controller.counting._native"
_INSTALLED: Final = "rolloutd_native"


@dataclass(frozen=True, slots=True)
class NativePlace:
    """What to import, and why not what is installed."""

    module: str | None  # None: the reference counts
    refused: str | None = None  # why an installed part is not used, and what to do


def native_place(built: str = BUILT) -> NativePlace:
    """Return where the native fold is. What was built beside us comes first.

    An installed one must be of our own version: what it counts and stores is that of its version.
    """
    if find_spec(built) is not None:
        return NativePlace(built)
    if find_spec(_INSTALLED) is None:
        return NativePlace(None)
    ours = metadata.version("rolloutd")
    try:
        installed = metadata.version("rolloutd-native")
    except metadata.PackageNotFoundError:
        installed = "without a version"
    if installed == ours:
        return NativePlace(f"{_INSTALLED}._native")
    return NativePlace(
        None,
        f"rolloutd-native is {installed} and rolloutd is {ours}, so the reference in Python "
        f"counts; install rolloutd-native {ours}, or uninstall it",
    )


def load_native(place: NativePlace) -> tuple[Any | None, str | None]:
    """Return the native module, and why one that is there is not used.

    None: there is none of our version, or it cannot be loaded.
    """
    if place.module is None:
        return None, place.refused
    try:
        return import_module(place.module), None
    except ImportError as error:
        return None, (
            f"the native fold cannot be loaded, so the reference in Python counts: {error}; "
            "`make reference native` builds it again, or install rolloutd-native again"
        )
