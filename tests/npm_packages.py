"""JavaScript that tests run, installed with npm and kept between runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest


def installed(source: Path, cache_name: str, not_tried: str) -> Path:
    """Return the directory that has what `source` locks; skips the test where that cannot be had.

    `not_tried` begins the reason: what goes without a test then.
    """
    files = {name: (source / name).read_bytes() for name in ("package.json", "package-lock.json")}
    version = hashlib.sha256(files["package-lock.json"]).hexdigest()[:16]
    return _kept(f"{cache_name}-{version}", files, ["ci"], not_tried)


def installed_package(package: str, not_tried: str) -> Path:
    """Return the directory that has one package, named with its version.

    Skips the test where that cannot be had.
    """
    return _kept(
        package.replace("/", "-"),
        {"package.json": b'{"private": true}'},
        ["install", "--no-save", package],
        not_tried,
    )


def _kept(
    cache_name: str, files: Mapping[str, bytes], words: Sequence[str], not_tried: str
) -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(f"{not_tried}: no node and npm on PATH")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rolloutd"
    cache = base / cache_name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be installing the same
        _install(cache, files, words, not_tried)
    return cache


def _install(cache: Path, files: Mapping[str, bytes], words: Sequence[str], not_tried: str) -> None:
    if not (cache / "installed").exists():
        for name, content in files.items():
            (cache / name).write_bytes(content)
        command = ["npm", *words, "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            done = subprocess.run(
                command, cwd=cache, capture_output=True, text=True, timeout=240, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"{not_tried}: npm did not install it within 240 s")
        if done.returncode != 0:
            pytest.skip(f"{not_tried}: npm cannot install it: {done.stderr[-300:]}")
        (cache / "installed").touch()
