"""What an operator can set: one frozen model, read once at start from a file and variables."""

from controller.settings.advisor import AdvisorSettings
from controller.settings.http import FlagdSyncSettings, HttpSettings
from controller.settings.kafka import EventFormats, KafkaSecurity, KafkaSettings, TopicNames
from controller.settings.model import (
    ClockSettings,
    CountingSettings,
    LogSettings,
    RedisSettings,
    Settings,
    ShutdownSettings,
    WatchdogSettings,
)
from controller.settings.planes import (
    FilePlaneSettings,
    HttpPlaneSettings,
    PlanesSettings,
    RedisPlaneSettings,
    UnleashSettings,
)
from controller.settings.reading import load_settings
from controller.settings.showing import MASK, insecure_connections, show

__all__ = [
    "MASK",
    "AdvisorSettings",
    "ClockSettings",
    "CountingSettings",
    "EventFormats",
    "FilePlaneSettings",
    "FlagdSyncSettings",
    "HttpPlaneSettings",
    "HttpSettings",
    "KafkaSecurity",
    "KafkaSettings",
    "LogSettings",
    "PlanesSettings",
    "RedisPlaneSettings",
    "RedisSettings",
    "Settings",
    "ShutdownSettings",
    "TopicNames",
    "UnleashSettings",
    "WatchdogSettings",
    "insecure_connections",
    "load_settings",
    "show",
]
