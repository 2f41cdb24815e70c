"""Checks of the settings that need the parts to be made: `rolloutd config check`."""

from __future__ import annotations

from controller.clock import SystemClock
from controller.planes import make_outside_planes
from controller.settings import Settings
from controller.web.surface import make_board, make_flagd_sync


def check_parts(settings: Settings) -> None:
    """Raise ConfigInvalid for what shows only when a part is made.

    These are templates, certificates, directories and packages.
    """
    clock = SystemClock()
    make_outside_planes(settings, clock)
    make_flagd_sync(settings, make_board(settings, clock))
