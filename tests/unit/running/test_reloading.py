"""SIGHUP applies the log level, names what needs a restart, and never ends the daemon."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from structlog.testing import capture_logs

from controller.errors import ConfigInvalid
from controller.running.reloading import SettingsReload
from controller.settings import Settings


def settings(**sections: Any) -> Settings:
    """Return settings with these sections."""
    return Settings.model_validate(sections)


async def test_the_level_is_applied_and_the_rest_is_named() -> None:
    """A second reload of the same file names only what is still not in force."""
    levels: list[str] = []
    found = settings(log={"level": "debug"}, http={"port": 1234}, redis={"password": "canary"})
    reload = SettingsReload(settings(), lambda: found, levels.append)
    with capture_logs() as logs:
        await reload.reload()
        await reload.reload()
    assert levels == ["debug"]
    assert [line["event"] for line in logs] == ["settings_reloaded"] * 2
    assert logs[0]["applied"] == ["log.level"]
    assert logs[0]["needs_restart"] == ["redis.password", "http.port"]
    assert (logs[1]["applied"], logs[1]["needs_restart"]) == ([], logs[0]["needs_restart"])
    assert "canary" not in str(logs)


async def test_settings_that_cannot_be_read_change_nothing() -> None:
    """The daemon goes on with those in force, and says why."""

    def read() -> Settings:
        raise ConfigInvalid("rolloutd.yaml:3: no such setting")

    levels: list[str] = []
    with capture_logs() as logs:
        await SettingsReload(settings(), read, levels.append).reload()
    assert levels == []
    assert logs[0]["event"] == "settings_not_reloaded"
    assert "rolloutd.yaml:3" in logs[0]["error"]


async def test_two_signals_at_once_are_one_reload() -> None:
    """A reload that has not begun yet is not requested a second time."""
    reads: list[int] = []

    def read() -> Settings:
        reads.append(1)
        return settings()

    reload = SettingsReload(settings(), read, lambda _: None)
    with capture_logs():
        reload.begin()
        reload.begin()
        assert reload._task is not None
        await reload._task
    assert reads == [1]


async def test_a_signal_during_a_reload_is_one_more_after_it() -> None:
    """The file may have changed after it was read: however many signals came, once more."""
    is_reading, may_end = threading.Event(), threading.Event()
    reads: list[int] = []

    def read() -> Settings:
        reads.append(1)
        is_reading.set()
        assert may_end.wait(30)
        return settings()

    reload = SettingsReload(settings(), read, lambda _: None)
    with capture_logs() as logs:
        reload.begin()
        assert await asyncio.to_thread(is_reading.wait, 30)
        reload.begin()
        reload.begin()
        may_end.set()
        assert reload._task is not None
        await reload._task
    assert reads == [1, 1]
    assert [line["event"] for line in logs] == ["settings_reloaded"] * 2
