"""Builds the native fold beside its package: `controller/counting/_native.abi3.so`.

It needs Rust (cargo) 1.85 or newer and runs with any Python 3.11, without our packages. The crates
are those of `crates.lock`, by version and hash; `build.py lock` writes that file anew, and
`build.py pin` only holds cargo to it: `make release` builds the wheel with maturin.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
CRATES = HERE / "crates.lock"
LOCK = HERE / "Cargo.lock"
MADE = HERE.parent / "_native.abi3.so"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))


def cargo(*arguments: str) -> None:
    """Run cargo here. Raises SystemExit when it fails."""
    environment = {**os.environ, "PYO3_BUILD_EXTENSION_MODULE": "1"}
    environment["CARGO_TARGET_DIR"] = str(TARGET)
    done = subprocess.run(["cargo", *arguments], cwd=HERE, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"cargo {arguments[0]} failed; see above")


def locked() -> dict[str, tuple[str, str]]:
    """Return (version, hash) of each crate in cargo's own lock file."""
    packages = tomllib.loads(LOCK.read_text())["package"]
    return {
        package["name"]: (package["version"], package["checksum"])
        for package in packages
        if "checksum" in package
    }


def pinned() -> dict[str, tuple[str, str]]:
    """Return (version, hash) of each crate that we agreed to."""
    lines = (line.split() for line in CRATES.read_text().splitlines() if line[:1] not in ("", "#"))
    return {name: (version, checksum) for name, version, checksum in lines}


def write_lock() -> None:
    """Pin the crates that cargo has chosen."""
    lines = [f"{name} {version} {checksum}\n" for name, (version, checksum) in locked().items()]
    head = "# Crate, version, SHA-256 of its package; `build.py lock` writes this.\n"
    CRATES.write_text(head + "".join(sorted(lines)))


def hold_to_pins() -> None:
    """Let cargo's lock file have the pinned crates. Raises SystemExit when it cannot."""
    wanted = pinned()
    if LOCK.exists() and locked() == wanted:
        return
    cargo("generate-lockfile", "--quiet")
    for name, (version, _) in wanted.items():
        if name in locked() and locked()[name][0] != version:
            cargo("update", "--quiet", name, "--precise", version)
    if locked() != wanted:
        different = sorted(name for name, _ in locked().items() ^ wanted.items())
        raise SystemExit(f"not the crates of {CRATES.name}: {', '.join(different)}")


def main() -> None:
    """Build, unless only the crates are asked for."""
    if shutil.which("cargo") is None:
        raise SystemExit("no cargo on PATH: install Rust 1.85 or newer, such as by rustup")
    if sys.argv[1:] == ["lock"]:
        cargo("generate-lockfile", "--quiet")
        write_lock()
    hold_to_pins()
    if sys.argv[1:] == ["pin"]:
        return
    cargo("build", "--release", "--locked", "--quiet")
    part = MADE.with_suffix(".part")
    shutil.copy(TARGET / "release" / "librolloutd_native.so", part)
    part.replace(MADE)  # a process that has the old one loaded keeps it


if __name__ == "__main__":
    main()
