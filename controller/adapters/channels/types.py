"""Every type of channel, by its name in the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
from controller.settings.notifications import ChannelSettings, ChannelType

Make = Callable[[str, ChannelSettings], Channel]


def channel_types(clock: Clock) -> Mapping[ChannelType, Make]:
    """Return what makes a channel of each type; it raises ConfigInvalid."""
    return {
        "slack": SlackBot,
        "slack_webhook": SlackWebhook,
        "teams": Teams,
        "discord": Discord,
        "pagerduty": PagerDuty,
        "alertmanager": partial(Alertmanager, clock=clock),
        "email": Mail,
        "webhook": Webhook,
        "apprise": AppriseUrl,
    }


def make_channels(settings: Mapping[str, ChannelSettings], clock: Clock) -> Sequence[Channel]:
    """Return the channels. Raises ConfigInvalid for one that cannot be used."""
    types = channel_types(clock)
    return [_made(types[one.type], name, one) for name, one in settings.items()]


def _made(make: Make, name: str, settings: ChannelSettings) -> Channel:
    try:
        return make(name, settings)
    except ConfigInvalid as refused:
        where = f"notifications.channels.{name}"
        message = str(refused)
        raise ConfigInvalid(message if where in message else f"{where}: {message}") from None
