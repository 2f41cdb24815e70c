"""The file of the last known state, on a real disk."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from controller.adapters import last_known_file, private_file
from controller.adapters.last_known_file import LastKnownFile
from controller.adapters.private_file import ReplicaDirectory
from controller.codec.last_known import Origin, last_known_to_bytes
from controller.codec.rollouts import rollout_to_json
from controller.core.rollout import Rollout
from controller.errors import DocumentUnreadable, LastKnownUnavailable
from tests.builders import T0, make_plan, make_rollout

OURS = Origin("production", "")


def make_file(directory: Path, origin: Origin = OURS, port: int = 8080) -> LastKnownFile:
    """Return the file of one replica."""
    return LastKnownFile(ReplicaDirectory(directory / "state", origin, port))


def rollout_of(flag_key: str, revision: int = 1) -> Rollout:
    """Return a rollout of a flag."""
    return make_rollout(flag_key=flag_key, plan=make_plan(flag_key=flag_key), revision=revision)


def test_the_newest_state_replaces_the_one_before(tmp_path: Path) -> None:
    """Nothing was there; then what was written last is, in a file that only we may read."""
    file = make_file(tmp_path)
    assert file.read() is None
    file.write(T0, [rollout_of("a"), rollout_of("b")])
    file.write(T0 + timedelta(seconds=9), [rollout_of("a", 2)])
    state = make_file(tmp_path).read()
    assert state is not None
    assert state.known_at == T0 + timedelta(seconds=9)
    assert list(state.rollouts) == [rollout_of("a", 2)]
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_environments_and_replicas_of_one_machine_have_files_of_their_own(tmp_path: Path) -> None:
    """Environment, topic prefix and port each make another name."""
    origins = [OURS, Origin("staging", ""), Origin("production", "staging.")]
    files = [make_file(tmp_path, origin) for origin in origins] + [make_file(tmp_path, port=1)]
    assert len({file.path for file in files}) == 4


def test_a_copied_file_of_another_environment_is_refused(tmp_path: Path) -> None:
    """The name may be ours; the content is not."""
    theirs = make_file(tmp_path, Origin("staging", ""))
    theirs.write(T0, [rollout_of("a")])
    ours = make_file(tmp_path)
    theirs.path.rename(ours.path)
    with pytest.raises(DocumentUnreadable, match="staging"):
        ours.read()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_not_served(tmp_path: Path, mode: int) -> None:
    """Whoever can write it would decide what is served."""
    file = make_file(tmp_path)
    file.write(T0, [rollout_of("a")])
    file.path.chmod(mode)
    with pytest.raises(LastKnownUnavailable, match="other users"):
        file.read()


def test_neither_links_nor_directories_are_followed(tmp_path: Path) -> None:
    """A link is refused when read, and replaced when written."""
    file, target = make_file(tmp_path), tmp_path / "target"
    file.path.parent.mkdir()
    target.write_text("precious")
    file.path.symlink_to(target)
    with pytest.raises(LastKnownUnavailable):
        file.read()
    file.write(T0, [rollout_of("a")])
    assert target.read_text() == "precious"
    assert file.read() is not None
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(LastKnownUnavailable, match="no regular file"):
        file.read()


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """A place that takes no file is reported with the path, and a later write is complete."""
    file = make_file(tmp_path)
    file.path.parent.write_text("a file where the directory should be")
    with pytest.raises(LastKnownUnavailable, match="cannot be written"):
        file.write(T0, [rollout_of("a")])
    file.path.parent.unlink()
    file.write(T0, [rollout_of("a")])
    assert file.read() is not None


def test_a_state_that_is_too_large_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and disk stay bounded, both ways."""
    file = make_file(tmp_path)
    file.write(T0, [rollout_of("a")])
    for module in (last_known_file, private_file):
        monkeypatch.setattr(module, "MAX_BYTES", 1_000)
    with pytest.raises(LastKnownUnavailable, match="2 flags take"):
        file.write(T0, [rollout_of("a"), rollout_of("b")])
    with pytest.raises(LastKnownUnavailable, match="larger than"):
        file.read()


def test_what_a_crash_left_behind_is_removed(tmp_path: Path) -> None:
    """Only temporary files of this very file."""
    file = make_file(tmp_path)
    file.write(T0, [])
    left = file.path.with_name(f".{file.path.name}-0123.tmp")
    other = file.path.with_name(".other-0123.tmp")
    left.touch()
    other.touch()
    file.clear_temporaries()
    assert (left.exists(), other.exists(), file.path.exists()) == (False, True, True)


def test_an_unchanged_state_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new time alone is written without fsync; a new revision with it."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file, rollout = make_file(tmp_path), rollout_of("a")
    file.write(T0, [rollout])
    first = len(synced)
    file.write(T0 + timedelta(seconds=1), [rollout])
    second = len(synced)
    file.write(T0 + timedelta(seconds=2), [rollout_of("a", 2)])
    assert (first, second, len(synced)) == (2, 2, 4)


def test_a_start_encodes_only_what_has_changed_since_the_file_was_written(tmp_path: Path) -> None:
    """Documents that were read and are the same are kept as they are, unless they are old ones."""
    kept, changed, old = (rollout_to_json(rollout_of(flag_key)) for flag_key in "abc")
    kept = kept.replace(b'"hold":null', b'"hold": null')  # as nothing here would write it
    old = old.replace(b'"schema_version":5', b'"schema_version":4')
    file = make_file(tmp_path)
    file.path.parent.mkdir()
    file.path.write_bytes(last_known_to_bytes(OURS, T0, [kept, changed, old]))
    file.path.chmod(0o600)
    state = file.read()
    assert state is not None
    a, _, c = state.rollouts
    file.write(T0, [a, rollout_of("b", 2), c])
    _, _, *documents = file.path.read_bytes().split(b"\n")
    assert documents == [
        kept,
        rollout_to_json(rollout_of("b", 2)),
        rollout_to_json(rollout_of("c")),
    ]
