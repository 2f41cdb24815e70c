"""Checks of the settings that need the parts to be made: `rolloutd config check`."""

from __future__ import annotations

from controller.adapters.channels.types import make_channels
from controller.adapters.gate_webhooks import HttpGateWebhooks
from controller.adapters.measuring.measures import MonitoringSystems
from controller.adapters.oidc import make_provider
from controller.checking.checks_file import read_checks
from controller.clock import SystemClock
from controller.notifying.rules import rules_of
from controller.planes import make_outside_planes
from controller.settings import Settings
from controller.settings.access_file import read_access_file
from controller.settings.signal_rules import read_rules
from controller.web.surface import make_board, make_certificate, make_flagd_sync


def check_parts(settings: Settings) -> None:
    """Raise ConfigInvalid for what shows only when a part is made.

    These are templates, certificates, directories, packages, channels, and the files that the
    settings name.
    """
    clock = SystemClock()
    make_outside_planes(settings, clock)
    make_certificate(settings.http)
    make_flagd_sync(settings, make_board(settings, clock))
    if settings.sign_in.access_file is not None:
        read_access_file(settings.sign_in.access_file)
        make_provider(settings.sign_in)
    if settings.hooks.rules_file is not None:
        read_rules(settings.hooks.rules_file)
    make_channels(settings.notifications.channels, clock)
    rules_of(settings.notifications)
    MonitoringSystems(settings.checks, clock)
    HttpGateWebhooks(settings.gate_webhooks.endpoints)
    if settings.checks.file is not None:
        read_checks(settings.checks.file)
