"""GO Feature Flag's own evaluation of the file that we write: `make flag-readers`.

Needs Go and its module proxy.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from controller.adapters.file_plane import FilePlane
from controller.core.rollout import RolledBack
from controller.settings.planes import FilePlaneSettings
from tests.builders import T0, make_rollout

SOURCE = Path(__file__).parents[1] / "go_feature_flag"
USERS = [f"user-{number}" for number in range(4_000)]

pytestmark = pytest.mark.long  # the first build takes two minutes


@pytest.fixture(scope="session")
def reader() -> Path:
    """A program that evaluates with GO Feature Flag, built once.

    Skips, saying why, where it cannot be had.
    """
    if shutil.which("go") is None:
        pytest.skip("GO Feature Flag files NOT tried with its own evaluation: no go on PATH")
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "rolloutd"
        / "go-feature-flag"
    )
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / "reader"
    built = subprocess.run(
        ["go", "build", "-o", str(program), "."],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if built.returncode != 0:
        pytest.skip(
            f"GO Feature Flag files NOT tried with its own evaluation: go cannot build it: "
            f"{built.stderr[-300:]}"
        )
    return program


def treated(reader: Path, path: Path) -> set[str]:
    """Return the users whom GO Feature Flag puts into treatment."""
    command = [str(reader), str(path), "new-checkout", path.suffix.removeprefix(".")]
    answer = subprocess.run(
        command, input="\n".join(USERS), capture_output=True, text=True, timeout=60, check=True
    )
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert [line[0] for line in lines] == USERS, answer.stderr
    assert {line[-1] for line in lines} == {"<nil>"}, "an evaluation failed"
    return {line[0] for line in lines if line[1:3] == ["on", "true"]}


@pytest.mark.parametrize("name", ["flags.json", "flags.yaml"])
async def test_it_serves_the_decided_share_and_nobody_falls_out(
    tmp_path: Path, reader: Path, name: str
) -> None:
    """From 1 to 100 % the share is right and everyone stays in; after a roll back nobody is in."""
    plane = FilePlane("goff", FilePlaneSettings(path=tmp_path / name, format="go-feature-flag"))
    before: set[str] = set()
    for revision, percent in enumerate([1.0, 10.0, 33.33, 50.0, 99.99, 100.0], start=1):
        await plane.serve(make_rollout(revision=revision, percent=percent))
        now = treated(reader, tmp_path / name)
        share = percent / 100
        assert abs(len(now) - len(USERS) * share) <= 4 * math.sqrt(len(USERS) * share * (1 - share))
        assert before <= now
        before = now
    await plane.serve(make_rollout(revision=7, percent=50.0, phase=RolledBack(T0, "breach")))
    assert treated(reader, tmp_path / name) == set()
