"""A plan is tried in a process of its own: one at a time, with a limit, and no trace of it left."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from controller.reporting.tried_plan import TrialAnswer, TrialOrder
from controller.web.page.trials import NotTried, PlanTrials

ORDER = TrialOrder("flag: x", traffic="50/s")


def trials(code: str, deadline_seconds: float = 60.0) -> PlanTrials:
    """Return trials by a process that runs this code."""
    return PlanTrials((sys.executable, "-I", "-c", code), deadline_seconds)


async def refusal(of: PlanTrials) -> NotTried:
    """Return why a plan is not tried."""
    with pytest.raises(NotTried) as caught:
        await of.tried(ORDER)
    return caught.value


async def test_the_process_gets_the_order_and_gives_the_answer() -> None:
    """Through its standard input and output."""
    code = "import json, sys; print(json.dumps({'refused': json.load(sys.stdin)['traffic']}))"
    assert await trials(code).tried(ORDER) == TrialAnswer(refused="50/s")


async def test_one_plan_is_tried_at_a_time(tmp_path: Path) -> None:
    """Another is refused at once, in words; afterwards it is taken."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    both = trials(f"open({str(gate)!r}).read(); print('{{}}')")
    first = asyncio.create_task(both.tried(ORDER))
    await asyncio.sleep(0)
    assert (await refusal(both)).status == 429
    await asyncio.to_thread(gate.write_text, "go")
    assert await first == TrialAnswer()
    again = asyncio.create_task(both.tried(ORDER))
    await asyncio.to_thread(gate.write_text, "go")
    assert await again == TrialAnswer()


def pid_in(path: Path) -> int:
    """Return the process that wrote its number there."""
    return int(path.read_text())


def is_running(pid: int) -> bool:
    """Return whether a process is there."""
    return Path(f"/proc/{pid}").exists()


async def test_a_plan_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """By the clock; the process is gone, and the words say what has no limit."""
    note = tmp_path / "pid"
    code = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    why = await refusal(trials(code, deadline_seconds=2))
    assert why.status == 503
    assert "rolloutctl simulate" in str(why)
    assert not is_running(pid_in(note))


async def test_a_process_that_has_used_its_time_is_told_so() -> None:
    """The system ends it by SIGXCPU."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True:\n    pass\n"
    )
    why = await refusal(trials(code))
    assert why.status == 503
    assert "s of a processor" in str(why)


async def test_a_fault_of_the_process_is_no_fault_of_the_plan() -> None:
    """It is logged, and the page says whose fault it is."""
    why = await refusal(trials("raise SystemExit('broken')"))
    assert why.status == 500
    assert "by a fault of rolloutd" in str(why)
    missing = await refusal(PlanTrials(("/no/such/program",)))
    assert missing.status == 503
    assert "No process can be started" in str(missing)


async def test_no_process_outlives_its_request(tmp_path: Path) -> None:
    """A replica that stops cancels the request, which ends the process."""
    note = tmp_path / "pid"
    os.mkfifo(note)
    code = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    task = asyncio.create_task(trials(code).tried(ORDER))
    pid = await asyncio.to_thread(pid_in, note)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_running(pid)
