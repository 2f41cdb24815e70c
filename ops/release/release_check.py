"""Installs what was built, as a user would, and asks both programs who they are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wheels import run

PROGRAMS: Final = ("rolloutd", "rolloutctl")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A virtual environment without pip."""

    directory: Path
    site_packages: Path

    def install(self, *arguments: str | Path) -> None:
        """Install by the pip that runs us. Raises SystemExit when it fails."""
        python = self.directory / "bin" / "python"
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
        ]
        run(*pip, *arguments, cwd=self.directory)


@contextmanager
def runtime_environment(lock: Path) -> Iterator[Runtime]:
    """Make an environment that has the packages of a lock file and nothing else."""
    with tempfile.TemporaryDirectory(prefix="rolloutd-runtime-") as temporary:
        directory = Path(temporary)
        venv.create(directory, with_pip=False)
        [site_packages] = directory.glob("lib/python3*/site-packages")
        runtime = Runtime(directory, site_packages)
        runtime.install("--require-hashes", "--only-binary=:all:", "--requirement", lock)
        yield runtime


def check_installed(runtime: Runtime, wheel: Path, native_wheel: Path, version: str) -> None:
    """Install both wheels one after the other. Raises SystemExit where an answer is wrong."""
    for path, counting in ((wheel, "python"), (native_wheel, "native")):
        runtime.install("--no-deps", "--no-index", path)
        for program in PROGRAMS:
            command = [str(runtime.directory / "bin" / program), "--version"]
            ran = subprocess.run(
                command, cwd=runtime.directory, capture_output=True, text=True, check=False
            )
            starts, ends = f"{program} {version} (Python ", f", counting {counting})\n"
            if not (ran.stdout.startswith(starts) and ran.stdout.endswith(ends)):
                raise SystemExit(
                    f"with {path.name}, {program} --version said {ran.stdout!r} {ran.stderr!r}, "
                    f"not {starts!r} … {ends!r}"
                )
