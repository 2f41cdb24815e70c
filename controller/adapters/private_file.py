"""A file that one replica keeps for its next start, and that nobody else may have written.

It is replaced as a whole by a rename, so that a crash leaves the old one or the new one. Every
method blocks: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.codec.last_known import Origin
from controller.errors import LastKnownUnavailable

#: A larger file is neither read nor written.
MAX_BYTES: Final = 64_000_000


@dataclass(frozen=True, slots=True)
class ReplicaDirectory:
    """Where one replica keeps its files, and whose files it reads there."""

    path: Path
    origin: Origin
    #: Tells replicas on one machine apart.
    port: int
    former_environments: Collection[str] = ()

    def file(self, kind: str, suffix: str) -> PrivateFile:
        """Return one file of the replica. A digest tells environments of similar names apart."""
        origin = self.origin
        names = f"{origin.environment}\n{origin.topic_prefix}".encode()
        digest = hashlib.sha256(names).hexdigest()[:8]
        name = f"{kind}-{origin.environment}-{digest}-{self.port}.{suffix}"
        return PrivateFile(self.path / name)


class PrivateFile:
    """Whoever can write to the file decides what a replica does after a restart."""

    def __init__(self, path: Path) -> None:
        """Touch nothing yet."""
        self.path = path

    def read(self) -> bytes | None:
        """Return the content, None where there is no file. Raises LastKnownUnavailable."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._check_owner(os.fstat(descriptor))
                with open(descriptor, "rb", closefd=False) as file:
                    content = file.read(MAX_BYTES + 1)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._trouble("read", error) from error
        if len(content) > MAX_BYTES:
            raise LastKnownUnavailable(f"{self.path} is larger than {MAX_BYTES} bytes")
        return content

    def replace(self, content: bytes, *, is_durable: bool) -> None:
        """Replace the file. Raises LastKnownUnavailable.

        `is_durable` waits for the disk, so that the content outlives the machine's crash, too.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._replace(content, is_durable=is_durable)
        except OSError as error:
            raise self._trouble("written", error) from error

    def _replace(self, content: bytes, *, is_durable: bool) -> None:
        # The name cannot be guessed, and the file must be new: in a directory that others may write
        # to, we could otherwise write through their link.
        temporary = self.path.with_name(f".{self.path.name}-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if is_durable:
                    os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        if is_durable:
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def remove(self) -> None:
        """Remove the file, if there is one. Raises LastKnownUnavailable."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._trouble("removed", error) from error

    def set_aside(self) -> Path:
        """Rename the file, so that it is not replaced; return its new path.

        Raises LastKnownUnavailable.
        """
        aside = self.path.with_name(f"{self.path.name}.unread")
        try:
            with suppress(FileNotFoundError):
                os.replace(self.path, aside)
        except OSError as error:
            raise self._trouble("renamed", error) from error
        return aside

    def clear_temporaries(self) -> None:
        """Remove what a crash in the middle of a write left behind."""
        with suppress(OSError):
            for left in self.path.parent.glob(f".{self.path.name}-*.tmp"):
                left.unlink()

    def _check_owner(self, status: os.stat_result) -> None:
        """Raise LastKnownUnavailable for a file that other users may have written."""
        why = None
        if not stat.S_ISREG(status.st_mode):
            why = "is no regular file"
        elif status.st_uid not in (os.geteuid(), 0):
            why = f"belongs to user {status.st_uid}"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why = "may be written by other users"
        if why is not None:
            raise LastKnownUnavailable(f"{self.path} {why}, so it is not used")

    def _trouble(self, done: str, error: OSError) -> LastKnownUnavailable:
        return LastKnownUnavailable(f"{self.path} cannot be {done}: {error.strerror or error}")
