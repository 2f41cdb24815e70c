"""Every type of channel, by its name in the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from controller.adapters.channels.alertmanager import Alertmanager
from controller.adapters.channels.apprise_url import AppriseUrl
from controller.adapters.channels.discord import Discord
from controller.adapters.channels.mail import Mail
from controller.adapters.channels.pagerduty import PagerDuty
from controller.adapters.channels.slack import SlackBot, SlackWebhook
from controller.adapters.channels.teams import Teams
from controller.adapters.channels.webhook import Webhook
from controller.errors import ConfigInvalid
from controller.notifying.sending import Channel
from controller.ports import Clock
from controller.settings.notifications import ChannelSettings

_TYPES: Final[Mapping[str, Callable[[str, ChannelSettings], Channel]]] = {
    "slack": SlackBot,
    "slack_webhook": SlackWebhook,
    "teams": Teams,
    "discord": Discord,
    "pagerduty": PagerDuty,
    "email": Mail,
    "webhook": Webhook,
    "apprise": AppriseUrl,
}


def make_channels(settings: Mapping[str, ChannelSettings], clock: Clock) -> Sequence[Channel]:
    """Return the channels. Raises ConfigInvalid for one that cannot be used."""
    return [_make(name, one, clock) for name, one in settings.items()]


def _make(name: str, settings: ChannelSettings, clock: Clock) -> Channel:
    try:
        if settings.type == "alertmanager":
            return Alertmanager(name, settings, clock)
        return _TYPES[settings.type](name, settings)
    except ConfigInvalid as refused:
        where = f"notifications.channels.{name}"
        message = str(refused)
        raise ConfigInvalid(message if where in message else f"{where}: {message}") from None
