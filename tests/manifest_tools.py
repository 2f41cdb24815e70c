"""Programs from Python packages that check manifests, in an environment of their own.

They agree with few of our versions, and their schemas take 100 MB: so they are installed at first
use and kept between runs. `tests/manifests.lock` pins them by hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

LOCK: Final = Path(__file__).parent / "manifests.lock"
_INSTALL_SECONDS: Final = 400


def manifest_tools() -> Path:
    """Return the directory of the programs. Skips the test where they cannot be installed."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rolloutd"
    version = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    place = base / f"manifest-tools-{version}-{sys.version_info.major}.{sys.version_info.minor}"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be installing the same
        if not (place / "installed").exists():
            _install(place)
            (place / "installed").touch()
    return place / "venv" / "bin"


def _install(place: Path) -> None:
    python = place / "venv" / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place / "venv")],
        [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)],
    ):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"NO MANIFEST IS CHECKED: pip took longer than {_INSTALL_SECONDS} s")
        if done.returncode != 0:
            pytest.skip(f"NO MANIFEST IS CHECKED: {LOCK.name}: {done.stderr[-300:]}")
