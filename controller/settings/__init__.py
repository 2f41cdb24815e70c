"""All that an operator can set: one frozen model, read at start from a file and variables.

The sections of flag planes are in `planes.py` alone: only the planes read them.
"""

from controller.settings.advisor import AdvisorSettings
from controller.settings.hooks import HookSettings, HooksSettings
from controller.settings.http import FlagdSyncSettings, HttpSettings
from controller.settings.kafka import EventFormats, KafkaSecurity, KafkaSettings, TopicNames
from controller.settings.last_known import LastKnownSettings
from controller.settings.model import (
    ClockSettings,
    CountingSettings,
    LogSettings,
    RedisSettings,
    Settings,
    ShutdownSettings,
    WatchdogSettings,
)
from controller.settings.notifications import ChannelSettings, NotificationsSettings
from controller.settings.reading import load_settings
from controller.settings.showing import MASK, insecure_connections, show, show_explained

__all__ = [
    "MASK",
    "AdvisorSettings",
    "ChannelSettings",
    "ClockSettings",
    "CountingSettings",
    "EventFormats",
    "FlagdSyncSettings",
    "HookSettings",
    "HooksSettings",
    "HttpSettings",
    "KafkaSecurity",
    "KafkaSettings",
    "LastKnownSettings",
    "LogSettings",
    "NotificationsSettings",
    "RedisSettings",
    "Settings",
    "ShutdownSettings",
    "TopicNames",
    "WatchdogSettings",
    "insecure_connections",
    "load_settings",
    "show",
    "show_explained",
]
