"""What a daemon asks of its operating system and its C library, once, as it starts.

Belongs here: limits and tuning of the process. Does not belong here: settings of users, and when
Python's garbage collector runs (`running/garbage_collection.py`).
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Mapping
from typing import Final

_DESCRIPTORS: Final = 65_536
# Of glibc's malloc.h, with what mallopt(3) says of them.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_CHOSEN: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
#: So much free memory at the end of the heap stays with the process: some fetches and saves of a
#: backlog. What is free between objects that are in use stays whatever is set.
_KEPT_BYTES: Final = 32 * 1024 * 1024
#: A block that is larger goes back at once.
_LARGEST_KEPT: Final = 16 * 1024 * 1024


def raise_descriptor_limit() -> None:
    """Take up to 65,536 file descriptors where we may.

    The soft limit is 1,024 on most machines, for old programs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> None:
    """Have glibc keep 32 MB at the end of its heap for what comes next.

    By itself it gives the megabytes of each fetch back, and the kernel clears each page of the next
    one: a fifth of what an event cost. It would keep as much for each thread in an arena of its
    own, so all threads share one. Other C libraries, and whoever chose in the environment, are left
    alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in environ for name in _CHOSEN):
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        if "MALLOC_ARENA_MAX" not in environ:
            mallopt(_M_ARENA_MAX, 1)
