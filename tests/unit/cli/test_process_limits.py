"""The daemon takes the file descriptors it may have, and keeps memory that it needs again.

So that held connections do not use up the usual 1,024, and a fetch costs no new pages.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Sets limits, raises them as the daemon does, and prints what came of it. In a process of its
#: own: they are the process's.
TRY = """
import resource
from controller.cli.process_limits import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "limits"), [(256, 2048, "2048 2048"), (512, 512, "512 512")]
)
def test_the_soft_limit_is_raised_to_what_is_allowed(soft: int, hard: int, limits: str) -> None:
    """It ends at the hard limit, which nobody but root may raise.

    At the limit already, nothing is changed.
    """
    done = subprocess.run(
        [sys.executable, "-c", TRY.format(soft=soft, hard=hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == limits


OF_GLIBC = ("MALLOC_", "GLIBC_TUNABLES")


def output_of(script: str, **chosen: str) -> str:
    """Return what a script prints without what somebody chose of glibc for the tests."""
    mine = {name: os.environ[name] for name in os.environ if not name.startswith(OF_GLIBC)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=mine | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


#: Takes and frees the memory of fifty fetches, and prints how many pages that needed.
FETCHES = """
import resource
from controller.cli.process_limits import keep_freed_memory
if {is_kept}:
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    fetched = [bytes(1_000_000).upper() for _ in range(6)]
    del fetched
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_of_fetches_is_used_again() -> None:
    """Less than a tenth of the pages; and as chosen where somebody chose in the environment."""

    def pages(*, is_kept: bool, **chosen: str) -> int:
        return int(output_of(FETCHES.format(is_kept=is_kept), **chosen))

    given_back = pages(is_kept=False)
    assert pages(is_kept=True) < given_back / 10
    assert pages(is_kept=True, MALLOC_ARENA_MAX="2") < given_back / 10
    assert pages(is_kept=True, MALLOC_TRIM_THRESHOLD_="131072") > given_back / 2
    assert pages(is_kept=True, MALLOC_MMAP_THRESHOLD_="131072") > given_back / 2
    chosen = "glibc.malloc.trim_threshold=131072"
    assert pages(is_kept=True, GLIBC_TUNABLES=chosen) > given_back / 2


#: Takes and frees memory in eight threads in turn, and prints what the process still has of it.
THREADS = """
import os
from concurrent.futures import ThreadPoolExecutor
from controller.cli.process_limits import keep_freed_memory
from tests.process_memory import resident_bytes
keep_freed_memory()
before = resident_bytes(os.getpid())
threads = [ThreadPoolExecutor(1) for _ in range(8)]
for one in threads:
    one.submit(lambda: len([bytes(1_000_000).upper() for _ in range(20)])).result()
print(resident_bytes(os.getpid()) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_is_kept_once_and_not_for_each_thread() -> None:
    """32 MB, where eight threads kept 160: glibc trims each arena for itself."""
    assert int(output_of(THREADS)) < 48 * 1024 * 1024


#: `rolloutd run` with a daemon that prints what was done before it.
RUN = """
import typer
import controller.bootstrap
from controller.cli import daemon, process_limits
from controller.running import garbage_collection
done = []
process_limits.raise_descriptor_limit = lambda: done.append("descriptors")
process_limits.keep_freed_memory = lambda: done.append("memory")
garbage_collection.limit_collections = lambda: done.append("collections")
class Daemon:
    def __init__(self, *_):
        pass
    async def run(self):
        print(*done)
        return 0
controller.bootstrap.Daemon = Daemon
try:
    daemon.run(None)
except typer.Exit:
    pass
"""


def test_the_daemon_takes_and_keeps_them_before_it_runs() -> None:
    """Without it thousands of open pages, or of rollouts, or a backlog, would show it first."""
    assert output_of(RUN) == "descriptors memory collections"
