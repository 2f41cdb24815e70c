"""The examples as a newcomer runs them: one command each, to the end that the chosen version must have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 120.0
LONGEST_WITH_PREFECT_SECONDS = 600.0
PREFECT_VARIABLE = "PREFECT_PYTHON"


def run(module: str, longest_seconds: float = LONGEST_SECONDS, **environ: str) -> tuple[int, str]:
    """Return the exit code and everything an example said."""
    path = os.pathsep.join([str(ROOT / "ops" / "examples"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=longest_seconds,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


ENDS = pytest.mark.parametrize(
    ("bad", "end"), [("", "completed at 100 %, as it must."), ("1", "rolled back at 0 %, as it must.")], ids=["good", "bad"]
)


@ENDS
def test_the_fastapi_example_ends_as_the_chosen_version_must(bad: str, end: str) -> None:
    """A good checkout reaches everybody; a bad one is rolled back by the requests it failed, and no event is dropped."""
    code, said = run("checkout.run", BAD=bad)
    assert code == 0, said
    assert end in said
    assert "guardrail error_rate" in said if bad else "gate has passed" in said
    counts = re.search(r"([\d,]+) queued, ([\d,]+) sent, (\d+) dropped, (\d+) lost", said)
    assert counts is not None, said
    assert (counts[3], counts[4]) == ("0", "0")


@pytest.mark.long
@ENDS
def test_the_prefect_example_ends_as_the_chosen_version_must(bad: str, end: str) -> None:
    """A good transform reaches all batches; a bad one is rolled back by the batches that did not add up."""
    if not os.environ.get(PREFECT_VARIABLE):
        pytest.skip(f"no Prefect here: `make test-prefect` installs it, or {PREFECT_VARIABLE} names a Python that has it")
    code, said = run("batches.run", LONGEST_WITH_PREFECT_SECONDS, BAD=bad)
    assert code == 0, said
    assert end in said
    assert "guardrail error_rate" in said if bad else "gate has passed" in said
