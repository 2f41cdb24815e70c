"""The wheel holds what the code reads, and nothing else.

It is built as `make wheel` builds it, without a network.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Return a wheel of this checkout."""
    directory = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = directory.glob("rolloutd-*-py3-none-any.whl")
    return ZipFile(path)


def test_every_file_of_the_packages_is_in_it(wheel: ZipFile) -> None:
    """Templates, scripts, prompts and static files are read from the installed package."""
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    listing = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard", "controller", "schemas"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rust = "controller/counting/native/"  # a wheel of Python alone: `make native`
    tree = {
        name
        for name in listing.split("\0")
        if name and not name.startswith(rust) and (ROOT / name).is_file()
    }
    assert names == tree
    assert {name for name in tree if name.endswith((".html", ".css", ".lua", ".yaml", ".md"))}


def test_it_has_both_commands_and_every_extra(wheel: ZipFile) -> None:
    """What `pipx install` needs: the commands, and the extras that the documents name."""
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    scripts = wheel.read(entry_points).decode()
    assert "rolloutd = controller.cli.entry:rolloutd" in scripts
    assert "rolloutctl = controller.cli.entry:rolloutctl" in scripts
    [metadata] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    said = Parser().parsestr(wheel.read(metadata).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["Version"] == project["version"]
    extras = set(said.get_all("Provides-Extra") or ())
    page = (ROOT / "ops" / "running.md").read_text(encoding="utf-8")
    table = page.partition("| extra | gives |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == extras - {"dev"}


def test_the_extra_native_names_our_own_distribution(wheel: ZipFile) -> None:
    """In the very version, because another one is not used; the lock file has all other extras."""
    [metadata] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    said = Parser().parsestr(wheel.read(metadata).decode())
    needed = [line for line in said.get_all("Requires-Dist") or () if "'native'" in line]
    assert needed == [f"rolloutd-native=={said['Version']}; extra == 'native'"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [locked] = re.findall(r"^LOCKED_EXTRAS := (.*)$", makefile, re.MULTILINE)
    assert set(locked.split()) == set(said.get_all("Provides-Extra") or ()) - {"native"}


def test_no_path_of_this_machine_is_in_it(wheel: ZipFile) -> None:
    """It is the same wherever it is built."""
    for name in wheel.namelist():
        assert str(ROOT).encode() not in wheel.read(name), name
