"""Builds the two wheels of a release from the files of a commit, the same bytes every time.

Times in them are the commit's. `python -m wheels SOURCE INTO` builds both, as the image does, with
the time in SOURCE_DATE_EPOCH. Nothing of the machine gets in: no path, no order of files, no
permission of a checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Final

#: The native fold, with its `pyproject.toml` for maturin.
NATIVE: Final = Path("controller/counting/native")


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> None:
    """Run a program. Raises SystemExit when it fails, with what it printed."""
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        print(ran.stdout, file=sys.stderr)
        raise SystemExit(f"{' '.join(map(str, command[:4]))} failed; see above")


def export(repository: Path, commit: str, into: Path) -> None:
    """Write the files of a commit: what is not committed cannot get into a release."""
    packed = subprocess.run(
        ["git", "-C", str(repository), "archive", "--format=tar", commit],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(into, filter="data")


def build_wheel(source: Path, into: Path, committed: int) -> Path:
    """Build the wheel of Python alone, and return it."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(committed)}
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    run(*build, into, cwd=source, environment=environment)
    [wheel] = into.glob("rolloutd-*.whl")
    return wheel


def native_environment(source: Path, target: Path, committed: int) -> dict[str, str]:
    """Return the environment of cargo and maturin. It takes the paths of this machine out."""
    cargo_home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    # The last that fits wins, so the longer paths come after those that may contain them.
    remapped = [(cargo_home, "/cargo"), (source, "/source"), (target, "/target")]
    flags = [f"--remap-path-prefix={path}={name}" for path, name in remapped]
    environment = {name: value for name, value in os.environ.items() if name != "RUSTFLAGS"}
    return {
        **environment,
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags),
        "CARGO_TARGET_DIR": str(target),
        "CARGO_INCREMENTAL": "0",
        "SOURCE_DATE_EPOCH": str(committed),
    }


def build_native_wheel(source: Path, into: Path, environment: dict[str, str]) -> Path:
    """Build the wheel of the native fold for this platform, and return it.

    The crates are those of `crates.lock`, by hash; maturin is that of our own lock file.
    """
    native = source / NATIVE
    (native / "LICENSE").write_bytes((source / "LICENSE").read_bytes())
    run(sys.executable, "build.py", "pin", cwd=native, environment=environment)
    maturin = Path(sys.executable).with_name("maturin")
    run(
        maturin,
        "build",
        "--release",
        "--locked",
        "--out",
        into,
        cwd=native,
        environment=environment,
    )
    [wheel] = into.glob("rolloutd_native-*.whl")
    return wheel


def main() -> None:
    """Build both wheels of a directory with sources into another one."""
    source, into = (Path(word).resolve() for word in sys.argv[1:])
    committed = int(os.environ["SOURCE_DATE_EPOCH"])
    into.mkdir(parents=True, exist_ok=True)
    build_wheel(source, into, committed)
    with tempfile.TemporaryDirectory(prefix="rolloutd-target-") as target:
        build_native_wheel(source, into, native_environment(source, Path(target), committed))


if __name__ == "__main__":
    main()
