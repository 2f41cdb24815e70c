"""The file of commands that wait for Redis: what it gives back, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.adapters.private_file import ReplicaDirectory
from controller.adapters.waiting_commands_file import WaitingCommandsFile
from controller.codec.last_known import Origin
from controller.codec.waiting_commands import WaitingCommand
from controller.errors import DocumentUnreadable, LastKnownUnavailable
from schemas.command import Command
from schemas.terms import CommandVerb
from tests.builders import T0

ORDER = Command(
    id="http-1", flag="a", verb=CommandVerb.ROLL_BACK, issuer="ann", reason="5xx", issued_at=T0
)
COMMAND = WaitingCommand(ORDER, "start-1")


def kept_in(directory: Path, environment: str = "test") -> WaitingCommandsFile:
    """Return the file of one replica."""
    return WaitingCommandsFile(ReplicaDirectory(directory, Origin(environment, ""), 8080))


async def test_what_waited_is_read_again(tmp_path: Path) -> None:
    """The same commands in the same order, by another process; nothing where nothing was kept."""
    assert list(await kept_in(tmp_path).read()) == []
    other = WaitingCommand(ORDER.model_copy(update={"id": "http-2"}))
    await kept_in(tmp_path).write([COMMAND, other])
    assert list(await kept_in(tmp_path).read()) == [COMMAND, other]
    await kept_in(tmp_path).write([])
    assert list(await kept_in(tmp_path).read()) == []


async def test_the_file_of_another_environment_is_refused(tmp_path: Path) -> None:
    """As the file of the last known state is; and so is one that is damaged or not private."""
    file, other = kept_in(tmp_path), kept_in(tmp_path, "other")
    await file.write([COMMAND])
    file.path.rename(other.path)
    with pytest.raises(DocumentUnreadable, match="another environment"):
        await other.read()
    for damage in ("{", "[]", "null", '{"format": 1}', "[" * 9999):
        other.path.write_text(damage)
        with pytest.raises(DocumentUnreadable, match="damaged"):
            await other.read()
    other.path.chmod(0o666)
    with pytest.raises(LastKnownUnavailable, match="written by other users"):
        await other.read()


async def test_what_cannot_be_read_is_kept_under_another_name(tmp_path: Path) -> None:
    """It may hold a roll back that is saved nowhere else: nobody is told to delete it."""
    file = kept_in(tmp_path)
    await file.write([COMMAND])
    content = file.path.read_bytes()
    file.path.chmod(0o620)
    with pytest.raises(LastKnownUnavailable) as refused:
        await file.read()
    assert "delete" not in str(refused.value)
    aside = Path(await file.set_aside())
    await file.write([])
    assert aside.read_bytes() == content
    assert list(await file.read()) == []
