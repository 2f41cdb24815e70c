"""A retired flag in the file of a file plane, on a real disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import make_plan, make_rollout
from tests.integration.test_file_plane import FORMATS, make_plane, read


@pytest.mark.parametrize(("form", "name"), FORMATS)
async def test_a_retired_flag_is_taken_out_of_the_file(
    tmp_path: Path, form: str, name: str
) -> None:
    """Other flags stay, a newer rollout of it too, and an older document does not come back."""
    plane, path = make_plane(tmp_path / name, form), tmp_path / name
    other = make_rollout(plan=make_plan(flag_key="other"), flag_key="other")
    for rollout in (make_rollout(revision=4), other):
        plane.update(rollout)
        await plane.serve(rollout)
    plane.drop("new-checkout", 5)
    await plane.serve(other)
    plane._write({"other": other}, False)
    assert list(read(path)) == ["other"]
    plane.update(make_rollout(revision=6))
    await plane.serve(make_rollout(revision=6))
    plane.drop("new-checkout", 5)
    plane._write({}, False)
    assert sorted(read(path)) == ["new-checkout", "other"]
