"""The examples as a newcomer runs them.

One command each, to the end that the chosen version must have.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from controller.demo.environment import DemoEnvironment
from controller.demo.processes import ProcessTree

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 280.0
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
    ("bad", "end"),
    [
        pytest.param("", "completed at 100 %, as it must.", marks=pytest.mark.rare, id="good"),
        pytest.param("1", "rolled back at 0 %, as it must.", id="bad"),
    ],
)


@ENDS
def test_the_fastapi_example_ends_as_the_chosen_version_must(bad: str, end: str) -> None:
    """A good checkout reaches everybody.

    A bad one is rolled back by the requests it failed, and no event is dropped.
    """
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
    """A good transform reaches all batches.

    A bad one is rolled back by the batches that did not add up.
    """
    if not os.environ.get(PREFECT_VARIABLE):
        pytest.skip(
            f"no Prefect here: `make test-prefect` installs it, or {PREFECT_VARIABLE} "
            f"names a Python that has it"
        )
    code, said = run("batches.run", LONGEST_WITH_PREFECT_SECONDS, BAD=bad)
    assert code == 0, said
    assert end in said
    assert "guardrail error_rate" in said if bad else "gate has passed" in said


def plain_commands() -> list[str]:
    """Return the commands of the examples' README.

    One a paragraph, without the line that names the addresses.
    """
    text = (ROOT / "ops" / "examples" / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(KAFKA=.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1].split("\n\n")[1:]


async def test_the_plain_commands_work_as_they_stand(tmp_path: Path) -> None:
    """Copied into a shell, the README's curl and kcat start a rollout, serve, count and stop it."""
    programs = os.environ["PATH"]
    if shutil.which("kcat") is None:
        programs = f"{ROOT / 'ops' / 'kafka' / 'bin'}{os.pathsep}{programs}"
    start, ask, served, ended, look, stop = plain_commands()
    with ProcessTree() as tree:
        environment = DemoEnvironment(tree)
        await environment.start_without_apps()
        environ = {
            **os.environ,
            "PATH": programs,
            "KAFKA": environment.bootstrap,
            "ROLLOUTD": environment.http_url,
        }

        async def type_in(command: str) -> str:
            shell = ["bash", "-euo", "pipefail", "-c", command]
            done = await asyncio.to_thread(
                subprocess.run, shell, env=environ, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return str(done.stdout)

        async def until_said(command: str, words: str) -> None:
            async with asyncio.timeout(120):
                while words not in await type_in(command):
                    await asyncio.sleep(0.2)

        await type_in(start)
        await until_said(ask, '"variant":"on"')
        await asyncio.sleep(1.5)  # while settling, nothing is counted
        await type_in(served)
        await type_in(ended)
        await until_said(look, '"treatment":1')
        await type_in(stop)
        await until_said(ask, '"variant":"off"')
