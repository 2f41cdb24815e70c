"""What `make release` builds, installed where there is nothing of ours, used, and removed.

`make test-install` builds it and runs this: `ROLLOUTD_TEST_RELEASE` says where it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bare_root import Place, debian_root, empty_home
from tests.shells import commands_typed, write_stand_in

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
RELEASE_VARIABLE = "ROLLOUTD_TEST_RELEASE"
KEPT = ROOT / ".cache" / "install" / "debian"
#: What pipx keeps for itself and for the next program.
OF_PIPX = re.compile(
    r"/srv/newcomer/\.(local/(share|state)/pipx/(shared|logs?|trash|\.cache|py)|cache/pipx)/"
)
VERSION = re.compile(r"(rolloutd|rolloutctl) \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+, counting (\w+)\)")


@pytest.fixture(scope="module")
def release() -> Path:
    """Return the directory with the files of a release."""
    given = os.environ.get(RELEASE_VARIABLE)
    if given is None:
        pytest.fail(f"{RELEASE_VARIABLE} names no release: make test-install")
    return Path(given).resolve()


def brought(place: Place, release: Path) -> Path:
    """Copy the wheels to the place, and return the directory as commands there see it."""
    there = Path("/srv/release") if place.root != Path("/") else place.home / "release"
    shutil.rmtree(place.outside(there), ignore_errors=True)
    shutil.copytree(release, place.outside(there))
    return there


def must(place: Place, script: str, **environ: str) -> str:
    """Run a script there and return what it printed. It must exit with 0."""
    ran = place.run(script, **environ)
    sys.stdout.write(f"\n$ {script}\n{ran.stdout[-1500:]}")
    assert ran.returncode == 0, ran.stdout[-4000:]
    return ran.stdout


def is_completed(place: Place, shell: str, programs: str) -> None:
    """Type into a shell there, with TAB keys; what ran is what was meant."""
    home, record = place.home, place.home / f"typed-{shell}"
    stand_in = place.outside(home / "stand-in")
    write_stand_in(stand_in, f"{programs}/rolloutctl", str(record))
    path = {
        "PATH": f"{home}/stand-in:/usr/bin:/bin",
        "TERM": "dumb",
        "PS1": "> ",
        "HISTFILE": "/dev/null",
    }
    typed = ["rolloutctl plan li\t", "rolloutctl pause --exp\t7"]
    within = place.entering(path)
    ran = commands_typed(shell, typed, place.outside(record), os.environ, within)
    assert ran == ["plan lint", "pause --expected-revision 7"]
    shutil.rmtree(stand_in)
    place.outside(record).unlink()


def first_line(place: Place, command: str, **environ: str) -> str:
    """Return the first line that a daemon there logs, and end it."""
    words = [*place.entering(environ), *command.split()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as daemon:
        assert daemon.stdout is not None
        line = daemon.stdout.readline().decode()
        daemon.kill()
    return line


def counting(place: Place, programs: str) -> set[str]:
    """Return what both programs say that counts."""
    lines = [must(place, f"{programs}/{name} --version") for name in ("rolloutd", "rolloutctl")]
    found = [VERSION.fullmatch(line.strip()) for line in lines]
    assert [match and match[1] for match in found] == ["rolloutd", "rolloutctl"]
    return {match[2] for match in found if match}


def test_pipx_in_a_bare_debian_root(release: Path) -> None:
    """Install with both extras, run the demo, complete a command, uninstall: nothing is left."""
    place = debian_root(KEPT)
    wheels = brought(place, release)
    before = place.files()
    wheel = f'"$(echo {wheels}/rolloutd-*.whl)[demo,native]"'
    must(place, f'pipx install --pip-args="--find-links {wheels}" {wheel}')
    programs = f"{place.home}/.local/bin"
    assert counting(place, programs) == {"native"}
    assert "100 %" in must(place, "rolloutd demo")
    for shell in ("bash", "zsh", "fish"):
        is_completed(place, shell, programs)
    metadata = "$(echo ~/.local/share/pipx/venvs/rolloutd/lib/*/*/rolloutd_native-*/METADATA)"
    must(place, f'sed -i "s/^Version: .*/Version: 9.9.9/" "{metadata}"')
    assert counting(place, programs) == {"python"}
    away = {
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "ROLLOUTD_REDIS__URL": "redis://127.0.0.1:1/0",
    }
    assert "native_fold_refused" in first_line(place, f"{programs}/rolloutd run", **away)
    must(place, "pipx uninstall rolloutd")
    left = {path for path in place.files() - before if not OF_PIPX.match(path)}
    assert left == set()
    assert not [path for path in place.files() - before if "/rolloutd" in path.lower()]
    assert before <= place.files()


def test_pip_in_a_bare_environment_with_an_empty_home(release: Path, tmp_path: Path) -> None:
    """The same without pipx and without rights to change the machine; without the native fold."""
    place = empty_home(tmp_path)
    wheels = brought(place, release)
    must(place, "python3 -m venv ~/env")
    before = place.files()
    must(place, f'~/env/bin/pip install "$(echo {wheels}/rolloutd-*.whl)[demo]"')
    programs = f"{place.home}/env/bin"
    assert counting(place, programs) == {"python"}
    assert "100 %" in must(place, f"{programs}/rolloutd demo")
    is_completed(place, "bash", programs)
    must(place, f"{programs}/pip uninstall --yes rolloutd")
    left = place.files() - before
    assert not [path for path in left if not path.startswith("/env/")]
    assert not [path for path in left if re.search(r"/(rolloutd|rolloutctl|controller)\b", path)]
