"""Describes a replica in one log line at its start: version, build, addresses, what is on and off.

Belongs here: what an operator has to know first when reading a log. Secrets are not part of it:
addresses hold none, because the settings refuse them there.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version

import structlog

from controller.counting.folding.native import ENGINE, REFUSED
from controller.settings import Settings


def log_start(settings: Settings, planes: Iterable[str]) -> None:
    """Write the line `daemon_starting`. `planes` are the names of the flag planes.

    A native fold that is there and not used gets a warning before it.
    """
    log = structlog.get_logger()
    if REFUSED is not None:
        log.warning("native_fold_refused", reason=REFUSED)
    log.info("daemon_starting", **start_line(settings, planes))


def start_line(settings: Settings, planes: Iterable[str]) -> dict[str, object]:
    """Return the keys of the line. A port of 0 is chosen later: `http_started` has it."""
    http, advisor, sync = settings.http, settings.advisor, settings.flagd_sync
    ops_host = http.host if http.ops_host is None else http.ops_host
    return {
        "version": version("rolloutd"),
        "counting": ENGINE,
        "python": platform.python_version(),
        "pid": os.getpid(),
        "environment": settings.environment,
        "kafka": settings.kafka.bootstrap_servers,
        "topic_prefix": settings.kafka.topic_prefix,
        "redis": settings.redis.url,
        "redis_key_prefix": settings.redis_key_prefix,
        "advisor": "off" if advisor.url is None else f"{advisor.model} at {advisor.url}",
        "planes": list(planes),
        "http": f"{http.host}:{http.port}",
        "ops_http": "off" if http.ops_port is None else f"{ops_host}:{http.ops_port}",
        "flagd_sync": "off" if sync.port is None else f"{sync.host}:{sync.port}",
        "log_level": settings.log.level,
    }
