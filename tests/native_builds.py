"""Builds of the native fold with a mistake planted in its source."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
NATIVE = "controller/counting/native"
# The crates are built once for all: quickly, because a build is used for seconds.
_TARGET = ROOT / ".cache" / "native-planted"
_QUICK = {
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
}


def build(native: Path) -> Path:
    """Build the native fold whose source is in `native`; return the library, in its parent.

    Raises AssertionError when it cannot be built.
    """
    done = subprocess.run(
        [sys.executable, native / "build.py"],
        env={**os.environ, **_QUICK, "CARGO_TARGET_DIR": str(_TARGET)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return native.parent / "_native.abi3.so"


def planted_module(
    folder: Path, replacements: Iterable[tuple[str, str, str]], name: str
) -> ModuleType:
    """Return a native module, built in `folder`, with replacements made in its source.

    Each is a file below `src`, what is in it once, and what takes its place. `name` is the
    module's own in this process.
    """
    native = folder / "native"
    shutil.copytree(ROOT / NATIVE, native, ignore=shutil.ignore_patterns("__pycache__", "target"))
    for file, good, bad in replacements:
        path = native / "src" / file
        source = path.read_text()
        assert source.count(good) == 1, f"{file} has changed: {good!r} is not in it once"
        path.write_text(source.replace(good, bad))
    spec = importlib.util.spec_from_file_location(f"{name}._native", build(native))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
