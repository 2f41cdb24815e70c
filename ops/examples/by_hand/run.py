"""A rollout by hand: `make example-curl` starts what is needed and types the README's commands.

Each is shown with what it answers. Belongs here: typing and waiting. The commands themselves are in
README.md.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

from staging import EXAMPLES

from controller.demo.environment import DemoEnvironment
from controller.demo.processes import ProcessTree
from controller.errors import BadInput, OperatingTrouble

_LONGEST_SECONDS = 120.0
_SETTLE_SECONDS = 1.5  # the plan's 1 s, in which nothing is counted, and some for the flag to come


class CommandFailed(OperatingTrouble):
    """A command of the README did not work. The message ends with what it said."""


@dataclass(frozen=True, slots=True)
class Shell:
    """Types commands where Kafka and rolloutd are."""

    environ: dict[str, str]

    async def type_in(self, command: str) -> str:
        """Return what a command prints. Raises CommandFailed."""
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-euo", "pipefail", "-c", command],
            env=self.environ,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise CommandFailed(f"exit code {done.returncode}: {command}\n{done.stderr}")
        return str(done.stdout)

    async def until_said(self, command: str, words: str) -> str:
        """Type it again and again, and return what it prints with `words` in it.

        Raises CommandFailed.
        """
        deadline = time.monotonic() + _LONGEST_SECONDS
        while words not in (answer := await self.type_in(command)):
            if time.monotonic() > deadline:
                raise CommandFailed(f"did not say {words} but {answer}: {command}")
            await asyncio.sleep(0.2)
        return answer


def plain_commands() -> list[str]:
    """Return the commands of the README, without the line that names the addresses.

    The first line of each is a comment that says what it is for.
    """
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(KAFKA=\S+ ROLLOUTD=.*?)```", text, re.DOTALL)
    if block is None:
        raise CommandFailed("README.md has no block that begins with KAFKA=… ROLLOUTD=")
    return block[1].split("\n\n")[1:]


def shell_for(environment: DemoEnvironment) -> Shell:
    """Return a shell with curl, and the small kcat of the checkout where there is no other."""
    programs = os.environ["PATH"]
    if shutil.which("kcat") is None:
        programs = f"{EXAMPLES.parent / 'kafka' / 'bin'}{os.pathsep}{programs}"
    addresses = {"KAFKA": environment.bootstrap, "ROLLOUTD": environment.http_url}
    return Shell({**os.environ, "PATH": programs, **addresses})


async def play() -> None:
    """Start everything and type the commands, each until it says what it must."""
    start, ask, served, ended, look, stop = plain_commands()
    with ProcessTree() as tree:
        environment = DemoEnvironment(tree)
        print("starting Kafka-protocol broker, Valkey and rolloutd …\n", flush=True)
        await environment.start_without_apps()
        shell = shell_for(environment)
        for command, words in (
            (start, ""),
            (ask, '"variant":"on"'),
            (served, ""),
            (ended, ""),
            (look, '"treatment":1'),
            (stop, ""),
            (ask, '"variant":"off"'),
        ):
            if command is served:
                await asyncio.sleep(_SETTLE_SECONDS)
            print(command, flush=True)
            answer = await shell.until_said(command, words)
            print(f"  → {answer.strip() or 'sent'}\n", flush=True)
    print("✓ started, served, counted and rolled back by hand.")


def main() -> None:
    """Exit with 0 when every command did what it must, with 1 otherwise."""
    try:
        asyncio.run(play())
    except (BadInput, OperatingTrouble) as trouble:
        sys.exit(f"by hand: {trouble}")


if __name__ == "__main__":
    main()
