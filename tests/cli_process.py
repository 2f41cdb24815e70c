"""`rolloutctl` as a process beside a broker."""

from __future__ import annotations

import asyncio
import os
import sys

from controller.settings import KafkaSettings


async def spawn(
    settings: KafkaSettings, *arguments: str, **environ: str
) -> asyncio.subprocess.Process:
    """Start `rolloutctl`."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "controller.cli.operator",
        *arguments,
        "--bootstrap-servers",
        settings.bootstrap_servers,
        "--topic-prefix",
        settings.topic_prefix,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def rolloutctl(
    settings: KafkaSettings, *arguments: str, **environ: str
) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of the command."""
    process = await spawn(settings, *arguments, **environ)
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert b"Traceback" not in err, err.decode()
    return process.returncode or 0, out.decode(), err.decode()
