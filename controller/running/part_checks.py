"""Checks of the settings that need the parts to be made: `rolloutd config check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from controller.adapters.channels.types import make_channels
from controller.adapters.gate_webhooks import HttpGateWebhooks
from controller.adapters.measuring.measures import MonitoringSystems
from controller.adapters.oidc import make_provider
from controller.checking.checks_file import read_checks
from controller.clock import SystemClock
from controller.errors import BadInput, ConfigInvalid
from controller.notifying.rules import rules_of
from controller.planes import make_outside_planes
from controller.ports import Clock
from controller.settings import Settings
from controller.settings.access_file import read_access_file
from controller.settings.signal_rules import read_rules
from controller.web.surface import make_board, make_certificate, make_flagd_sync


def check_parts(settings: Settings) -> None:
    """Raise ConfigInvalid with all that shows only when a part is made, a line or more for each.

    These are templates, certificates, directories, packages, channels, and the files that the
    settings name.
    """
    faults: list[str] = []
    for make in _parts(settings, SystemClock()):
        try:
            make()
        except BadInput as refused:
            faults.append(str(refused))
    if faults:
        raise ConfigInvalid("\n".join(dict.fromkeys(faults)))


def _parts(settings: Settings, clock: Clock) -> Iterator[Callable[[], object]]:
    """Yield what makes each part, or reads what it is made of."""
    yield settings.kafka.security.ssl_context
    yield lambda: make_outside_planes(settings, clock)
    yield lambda: make_certificate(settings.http)
    yield lambda: make_flagd_sync(settings, make_board(settings, clock))
    if (access_file := settings.sign_in.access_file) is not None:
        yield lambda: read_access_file(access_file)
        yield lambda: make_provider(settings.sign_in)
    if (rules_file := settings.hooks.rules_file) is not None:
        yield lambda: read_rules(rules_file)
    yield lambda: make_channels(settings.notifications.channels, clock)
    yield lambda: rules_of(settings.notifications)
    yield lambda: MonitoringSystems(settings.checks, clock)
    yield lambda: HttpGateWebhooks(settings.gate_webhooks.endpoints)
    if (checks_file := settings.checks.file) is not None:
        yield lambda: read_checks(checks_file)
