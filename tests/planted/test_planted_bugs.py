"""Shows that the tests of what decides and of what counts find the mistakes one would fear.

Each mistake in `tests/planted` is one replacement in a copy of the source; the tests named beside
it must fail on it. The checkout is not touched. By default this only checks that each mistake can
be made; `pytest -m long tests/planted/test_planted_bugs.py` makes them all, in some minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native_builds import NATIVE, build
from tests.planted import Bug, deciding, evidence, machine, native

ROOT = Path(__file__).parents[2]
BUGS = (*machine.BUGS, *deciding.BUGS, *evidence.BUGS, *native.BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_the_bug_can_be_planted(bug: Bug) -> None:
    """The source has the place of the mistake exactly once, and the test that finds it exists."""
    assert (ROOT / bug.file).read_text().count(bug.good) == 1
    path, _, name = bug.found_by.partition("::")
    assert (ROOT / path).exists()
    assert not name or f"def {name}(" in (ROOT / path).read_text()


@pytest.fixture(scope="module")
def copy_of_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything the tests import."""
    target = tmp_path_factory.mktemp("planted")
    for name in ("controller", "schemas", "tests", "ops/kafka"):
        shutil.copytree(
            ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_the_bug_is_found(bug: Bug, copy_of_source: Path) -> None:
    """The named tests fail on the planted bug by an assertion, not by an import error.

    A bug in Rust is built first; the tests of everything else run with the reference.
    """
    path = copy_of_source / bug.file
    source = path.read_text()
    assert source.count(bug.good) == 1, f"{bug.file} has changed: {bug.good!r} is not in it once"
    path.write_text(source.replace(bug.good, bug.bad))
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not long"]
    library = build(copy_of_source / NATIVE) if bug.file.endswith(".rs") else None
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options, bug.found_by],
            cwd=copy_of_source,
            env={**os.environ, "HYPOTHESIS_PROFILE": "thorough", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=1200 if library else 300,
            check=False,
        )
    finally:
        path.write_text(source)
        if library is not None:
            library.unlink()
    assert run.returncode == 1, run.stdout[-2000:]
    assert " failed" in run.stdout, run.stdout[-2000:]
