"""Tries plans in a process of their own, one at a time, with a deadline.

Belongs here: starting and ending the process. Does not belong here: what it does
(`controller/planning/trial_process.py`, which the daemon does not import).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final

import msgspec
import structlog

from controller.reporting.tried_plan import CPU_SECONDS, TrialAnswer, TrialOrder

#: `-I`: neither the directory that rolloutd was started in, nor variables, choose what is run.
COMMAND: Final = (sys.executable, "-I", "-m", "controller.planning.trial_process")
#: It has no secrets, and one thread.
_ENVIRON: Final = {"OPENBLAS_NUM_THREADS": "1"}
#: Of time by the clock. It rests as long as it works, and everything else comes before it.
DEADLINE_SECONDS: Final = 60.0
_LONGEST_LOG: Final = 2_000
_INSTEAD: Final = "`rolloutctl simulate plan.yaml` has no such limit"


class NotTried(Exception):
    """A plan that was not tried: the HTTP status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class PlanTrials:
    """Tries one plan at a time."""

    def __init__(
        self, command: tuple[str, ...] = COMMAND, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._command = command
        self._deadline_seconds = deadline_seconds
        self._is_busy = False
        self._logger = structlog.get_logger()

    async def tried(self, order: TrialOrder) -> TrialAnswer:
        """Return what a plan came to. Raises NotTried where another is tried, or it takes long."""
        if self._is_busy:
            raise NotTried(
                429,
                f"Another plan is being simulated, which takes {self._deadline_seconds:g} s at "
                f"most. Send it again, or use `rolloutctl simulate plan.yaml`.",
            )
        self._is_busy = True
        try:
            return await self._run(msgspec.json.encode(order))
        finally:
            self._is_busy = False

    async def _run(self, order: bytes) -> TrialAnswer:
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=_ENVIRON
            )
        except OSError as error:
            raise NotTried(503, f"No process can be started for it: {error}.") from error
        try:
            async with asyncio.timeout(self._deadline_seconds):
                answer, trouble = await process.communicate(order)
        except TimeoutError:
            raise NotTried(503, self._too_long) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return msgspec.json.decode(answer, type=TrialAnswer)
        if process.returncode == -signal.SIGXCPU:
            raise NotTried(503, self._too_long)
        said = trouble.decode(errors="replace")[-_LONGEST_LOG:]
        self._logger.error("plan_trial_failed", returncode=process.returncode, error=said)
        raise NotTried(500, "The simulation failed by a fault of rolloutd; its log says which.")

    @property
    def _too_long(self) -> str:
        return (
            f"It takes longer than {CPU_SECONDS} s of a processor, or than "
            f"{self._deadline_seconds:g} s in all; {_INSTEAD}."
        )
