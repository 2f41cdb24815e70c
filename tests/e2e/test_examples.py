"""The examples as a newcomer runs them.

One command each, to the end that the chosen version must have.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 280.0
LONGEST_WITH_PREFECT_SECONDS = 1_200.0
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


BAD = pytest.mark.parametrize(
    "bad", [pytest.param("", marks=pytest.mark.rare, id="good"), pytest.param("1", id="bad")]
)
COMPLETED, ROLLED_BACK = "completed at 100 %, as it must.", "rolled back at 0 %, as it must."


@BAD
def test_the_fastapi_example_ends_as_the_chosen_version_must(bad: str) -> None:
    """A good checkout reaches everybody.

    A bad one is rolled back by the requests it failed, and no event is dropped.
    """
    code, said = run("checkout.run", BAD=bad)
    assert code == 0, said
    assert f"checkout-v2: {ROLLED_BACK if bad else COMPLETED}" in said
    assert "guardrail error_rate" in said if bad else "gate has passed" in said
    counts = re.search(r"([\d,]+) queued, ([\d,]+) sent, (\d+) dropped, (\d+) lost", said)
    assert counts is not None, said
    assert (counts[3], counts[4]) == ("0", "0")


@pytest.mark.rare
@pytest.mark.parametrize("bad", ["", "1"], ids=["good", "bad"])
def test_the_flagd_example_ends_as_the_chosen_version_must(bad: str) -> None:
    """The same with flagd's evaluation in the app, which follows the gRPC sync source."""
    code, said = run("checkout.flagd", BAD=bad)
    assert code == 0, said
    assert f"checkout-v2: {ROLLED_BACK if bad else COMPLETED}" in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("bad", "guardrail"),
    [
        pytest.param("", "", id="good"),
        pytest.param("1", "latency_p95", id="slow"),
        pytest.param("errors", "error_rate", id="failing"),
    ],
)
def test_the_prefect_example_ends_as_the_chosen_version_must(bad: str, guardrail: str) -> None:
    """All four steps reach all batches.

    Of a bad transform only that is rolled back: by how long its runs took, or by those that failed.
    """
    if not os.environ.get(PREFECT_VARIABLE):
        pytest.skip(
            f"no Prefect here: `make test-prefect` installs it, or {PREFECT_VARIABLE} "
            f"names a Python that has it"
        )
    code, said = run("batches.run", LONGEST_WITH_PREFECT_SECONDS, BAD=bad)
    assert code == 0, said
    ends = {"transform-v2": ROLLED_BACK if bad else COMPLETED}
    ends |= dict.fromkeys(("batch-validation", "batch-caching", "batch-notification"), COMPLETED)
    for flag, end in ends.items():
        assert f"{flag}: {end}" in said
    if bad:
        assert re.search(rf"transform-v2 .*roll back .*guardrail {guardrail}", said), said


def test_the_plain_commands_work_as_they_stand() -> None:
    """Copied into a shell, the README's curl and kcat start a rollout, serve, count and stop it."""
    code, said = run("by_hand.run")
    assert code == 0, said
    assert said.endswith("✓ started, served, counted and rolled back by hand.\n")
    for answer in ('"variant":"on"', '"treatment":1', '"variant":"off"'):
        assert answer in said
