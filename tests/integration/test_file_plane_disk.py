"""The file plane on a disk that refuses."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Served
from tests.builders import make_plan, make_rollout
from tests.integration.test_file_plane import kept, make_plane, read


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process become longer than ten bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_a_disk_that_refuses_is_said_in_words(tmp_path: Path) -> None:
    """No directory, no room, a lock that is not given back.

    Each is trouble with a name, and the file stays whole.
    """
    with pytest.raises(ConfigInvalid, match=r"planes\.files\.edge\.path"):
        make_plane(tmp_path / "missing" / "flags.json")
    path = tmp_path / "flags.json"
    plane = make_plane(path)
    await plane.serve(make_rollout())
    before = path.read_bytes()
    with (tmp_path / ".flags.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FlagPlaneUnavailable, match="another process holds the lock"):
            await plane.serve(make_rollout(revision=2, percent=50.0))
    with full_disk(), pytest.raises(FlagPlaneUnavailable, match=r"flags\.json"):
        await plane.serve(make_rollout(revision=2, percent=50.0))
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [".flags.json.lock", "flags.json"]
    await plane.serve(make_rollout(revision=2, percent=50.0))
    assert await plane.look(make_rollout(revision=2, percent=50.0)) == Served(50.0, None)


async def test_what_a_full_disk_refused_was_deleted_by_nobody(tmp_path: Path) -> None:
    """A flag that never stood in the file is written once there is room.

    It passed for deleted by somebody, and stayed away until its next change.
    """
    path = tmp_path / "flags.json"
    plane, new = make_plane(path), make_rollout(plan=make_plan(flag_key="new"))
    await plane.serve(make_rollout())
    with full_disk(), pytest.raises(FlagPlaneUnavailable, match=r"flags\.json"):
        await plane.serve(new)
    assert (await plane.look(new)).edited_by is None
    await kept(plane)
    assert set(read(path)) == {"new-checkout", "new"}
