"""JavaScript that tests run, installed from a lock file with npm and kept between runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest


def installed(source: Path, cache_name: str, not_tried: str) -> Path:
    """Return the directory that has what `source` locks; skips the test where that cannot be had.

    `not_tried` begins the reason: what goes without a test then.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(f"{not_tried}: no node and npm on PATH")
    lock = (source / "package-lock.json").read_bytes()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rolloutd"
    cache = base / f"{cache_name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not (cache / "installed").exists():
        cache.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, cache / name)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=240, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{not_tried}: npm did not install it within 240 s")
        if done.returncode != 0:
            pytest.skip(f"{not_tried}: npm cannot install it: {done.stderr[-300:]}")
        (cache / "installed").touch()
    return cache
