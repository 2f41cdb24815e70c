"""The image of `ops/Dockerfile`, built by buildah without a Docker engine, and how it is run.

The official base cannot be had everywhere, so a Debian root with Python takes its place; everything
on top of it is what the Dockerfile says. A container is a chroot in namespaces of its own: a root
file system that is read-only, the image's user, no new rights, and no program but Python's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bare_root import debian_root

ROOT: Final = Path(__file__).parents[1]
_PACKAGES: Final = ("python3", "python3-venv", "python3-pip", "ca-certificates")
_LIKE_THE_BASE: Final = """\
FROM scratch
ADD base.tar /
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -sf /usr/bin/python3 /usr/local/bin/python
"""
#: Read-only, with what Docker and Kubernetes mount; /usr/bin and /usr/sbin are replaced by an empty
#: directory with Python alone, and there is no /bin/sh, because /bin is /usr/bin.
_ENTER: Final = """\
set -e
root=$1; volume=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$volume" "$root/var/lib/rolloutd"
tools=$(mktemp -d)
mount -t tmpfs tmpfs "$tools"
cp -a "$root"/usr/bin/python3* "$tools"
mount --move "$tools" "$root/usr/bin"
mount -t tmpfs tmpfs "$root/usr/sbin"
mount -o remount,bind,ro "$root/usr/bin"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$USER_OF_IMAGE" "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its root file system, and its configuration as Docker has it."""

    root: Path
    config: dict[str, Any]

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment that it gives every process."""
        return dict(line.split("=", 1) for line in self.config["Env"])

    def command(self, volume: Path, words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        """Return what runs a program in a container of it. `volume` is its one kept directory."""
        set_up = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        user = f"USER_OF_IMAGE={self.config['User']}"
        path = f"PATH={os.environ['PATH']}"
        enter = ["env", "-i", path, user, *set_up, "bash", "-c", _ENTER, "enter"]
        program = str(self.which(words[0]))
        inside = {**self.environ, **environ}
        # Python itself sets the environment, for there is no `env` inside.
        start = (
            "import json, os, sys; e = json.loads(sys.argv[1]); "
            "os.chdir(e.pop('PWD')); os.execve(sys.argv[2], sys.argv[2:], e)"
        )
        given = json.dumps({**inside, "PWD": self.config["WorkingDir"]})
        python = ["/opt/rolloutd/bin/python", "-I", "-c", start, given]
        return [*enter, str(self.root), str(volume), *python, program, *words[1:]]

    def which(self, program: str) -> Path:
        """Return where the image's PATH has a program."""
        for directory in self.environ["PATH"].split(":"):
            if (self.root / directory.lstrip("/") / program).exists():
                return Path(directory) / program
        raise FileNotFoundError(f"the image has no {program} on PATH")


def build_image(kept: Path) -> Image:
    """Build the image. `kept` is a directory for what the next build needs again.

    Raises RuntimeError where it cannot be built, with the reason.
    """
    if shutil.which("buildah") is None:
        raise RuntimeError("needs buildah; Debian: apt-get install --no-install-recommends buildah")
    base = debian_root(kept / "debian", _PACKAGES)
    context = kept / "base"
    context.mkdir(parents=True, exist_ok=True)
    (context / "Dockerfile").write_text(_LIKE_THE_BASE)
    tree = ["tar", "-C", str(base.root), "--one-file-system", "-cf", str(context / "base.tar"), "."]
    subprocess.run(tree, check=True)
    shutil.rmtree(kept / "storage", ignore_errors=True)
    _buildah(kept, "bud", *_HOW, "--tag", "base", str(context))
    dockerfile = str(ROOT / "ops" / "Dockerfile")
    names = ["--build-arg", "BASE=localhost/base", "--tag", "rolloutd", "--file", dockerfile]
    _buildah(kept, "bud", *_HOW, *names, str(ROOT))
    config = json.loads(_buildah(kept, "inspect", "--type", "image", "rolloutd"))["Docker"]
    container = _buildah(kept, "from", "--pull-never", "rolloutd").strip()
    root = _buildah(kept, "mount", container).strip()
    return Image(Path(root), config["config"])


#: Formats: Docker's has the health check. Isolation: what works without an engine.
_HOW: Final = ("--format", "docker", "--isolation", "chroot", "--network", "host", "--layers=false")


def _buildah(kept: Path, *words: str) -> str:
    place = ["--root", str(kept / "storage"), "--runroot", str(kept / "run")]
    ran = subprocess.run(
        ["buildah", *place, "--storage-driver", "vfs", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"buildah {words[0]}: {ran.stdout[-3000:]}{ran.stderr[-3000:]}")
    return ran.stdout
