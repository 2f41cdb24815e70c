"""Bare places to install into: a Debian root with one user and an empty home, or an empty home.

The root is made once by debootstrap and kept; it has Python, pipx and three shells, and nothing of
ours. Commands in it see their own processes and files only, and run without rights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUITE: Final = "trixie"
PACKAGES: Final = ("python3", "python3-venv", "pipx", "ca-certificates", "bash", "zsh", "fish")
_USER: Final = 1000
_CERTIFICATES: Final = Path("etc/ssl/certs/ca-certificates.crt")
_ENTER: Final = (
    'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && '
    f'exec chroot --userspec={_USER}:{_USER} "$0" "$@"'
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody installs. Paths that commands see begin below `root`."""

    root: Path  # "/" is this machine
    home: Path  # as commands see it

    def outside(self, path: Path | str) -> Path:
        """Return where a path of theirs is for us."""
        return self.root / str(path).lstrip("/")

    def entering(self, environ: Mapping[str, str]) -> list[str]:
        """Return the words in front of a command that runs there, with no other environment."""
        words = [f"{name}={value}" for name, value in {**self.environ(), **environ}.items()]
        inside: list[str] = []
        if self.root != Path("/"):
            inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
            inside += ["sh", "-c", _ENTER, str(self.root)]
        return [*inside, "env", "-i", *words]

    def environ(self) -> dict[str, str]:
        """Return what a login gives, and what says where packages come from."""
        of_pip = {
            name: value
            for name, value in os.environ.items()
            if name in ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE")
        }
        return {
            "HOME": str(self.home),
            "PATH": f"{self.home}/.local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PIP_NO_CACHE_DIR": "1",
            **of_pip,
        }

    def run(self, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script at home, and return what it printed and its exit code."""
        return subprocess.run(
            [*self.entering(environ), "sh", "-c", f"cd && {script}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=1200,
        )

    def files(self) -> set[str]:
        """Return every file below home, and in a root of its own every file of it."""
        top = self.outside(self.home) if self.root == Path("/") else self.root
        listing = subprocess.run(
            ["find", str(top), "-xdev", "-not", "-type", "d", "-printf", "/%P\\n"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return set(listing.splitlines())


def debian_root(kept: Path, packages: Sequence[str] = PACKAGES) -> Place:
    """Return a root with an empty home. `kept` is where it stays; its name ends with the suite.

    Raises RuntimeError where it cannot be made, with the reason and what to do.
    """
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise RuntimeError("needs root and debootstrap; Debian: apt-get install debootstrap")
    if not (kept / "made").exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        make = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE]
        made = subprocess.run(
            [*make, str(kept / "root")], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise RuntimeError(f"debootstrap failed: {made.stdout[-2000:]}{made.stderr[-500:]}")
        (kept / "made").touch()
    place = Place(kept / "root", Path("/srv/newcomer"))
    for path in ("etc/pip.conf", str(_CERTIFICATES)):  # this machine's way to packages
        if Path("/", path).exists():
            shutil.copyfile(Path("/", path), place.outside(path))
    return _emptied(place, owner=_USER)


def empty_home(directory: Path) -> Place:
    """Return a home without anything, on this machine."""
    return _emptied(Place(Path("/"), directory / "home"), owner=os.geteuid())


def _emptied(place: Place, owner: int) -> Place:
    home = place.outside(place.home)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    os.chown(home, owner, owner)
    return place
