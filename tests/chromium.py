"""The machine's Chromium, with which the page is tried."""

from __future__ import annotations

import os
import shutil

#: The browser to use in place of the one on PATH.
CHROMIUM_VARIABLE = "ROLLOUTD_TEST_CHROMIUM"
NOT_TRIED = "THE PAGE IS NOT TRIED IN A BROWSER"
HOW = "Debian: apt-get install --no-install-recommends chromium"


def chromium() -> str | None:
    """Return the path of the machine's Chromium, None where there is none."""
    given = os.environ.get(CHROMIUM_VARIABLE)
    names = ("chromium", "chromium-browser", "google-chrome")
    return given or next((found for name in names if (found := shutil.which(name))), None)


def describe_chromium() -> str:
    """Return which browser tests use, or loudly that there is none, and how to get one."""
    return chromium() or f"NONE: {NOT_TRIED}; {HOW}"
