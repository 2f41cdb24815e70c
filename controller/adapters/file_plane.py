"""A file of flag definitions as a flag plane, for flagd and GO Feature Flag on a shared disk.

Belongs here: reading, comparing and replacing the file. What a definition says is `codec/flagd.py`
and `codec/go_feature_flag_file.py`.

The file is replaced as a whole by a rename, so no reader ever sees a part of it. It is ours alone:
definitions by others are left as they are, but not maintained. Every replica may write it, on one
shared disk or each on its own. A lock keeps writers apart. A definition carries its revision, so
that a late writer changes nothing, and a digest of itself, so that an edit by others is recognized
also by a process that never wrote.
"""

from __future__ import annotations

import asyncio
import fcntl
import glob
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import structlog
import xxhash
import yaml

from controller.codec import flagd, go_feature_flag_file
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve, serving
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Clock, Served
from controller.settings.planes import FilePlaneSettings

#: Our mark in a definition's metadata: the percentage that it means, and a digest of the rest as we
#: wrote it.
WRITTEN: Final = "rolloutd.written"

#: The editor's name in reports: a file does not say who changed it.
SOMEBODY: Final = "somebody who writes to the file"

#: A longer file is not ours: 10,000 flags take 4 MB.
MAX_BYTES: Final = 50_000_000

#: A file that changed this recently is read again: clocks of file systems tick every 1 to 10 ms.
UNSETTLED_NS: Final = 50_000_000

#: How long another writer may hold the lock; a write takes milliseconds.
LOCK_SECONDS: Final = 1.0

#: Mode of a new file: every user may read it, we may write it.
MODE: Final = 0o644

#: Retired flags that are taken out of the file again if a late writer puts them back.
RETIRED_KEPT: Final = 10_000

#: How often documents of other replicas' flags are written again when the disk refused them.
REFRESH_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Content:
    """The file as read: the whole document and, in it, the flags."""

    document: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    broken: str | None = None  # why it could not be read
    is_missing: bool = False


class FilePlane:
    """Implements `controller.ports.FlagPlane`, `FollowingPlane` and `RunningPlane`."""

    def __init__(self, name: str, settings: FilePlaneSettings) -> None:
        """Read nothing yet. Raises ConfigInvalid when we may not write to the directory."""
        self.name = f"file:{name}"
        self._path = settings.path.resolve()  # a link stays: the file that it points to is replaced
        self._is_flagd = settings.format == "flagd"
        self._is_yaml = self._path.suffix != ".json"
        self._define = flagd.definition_of if self._is_flagd else go_feature_flag_file.definition_of
        self._newest: dict[str, Rollout] = {}
        self._retired: dict[str, int] = {}  # by flag, the revision that did it; oldest first
        # by flag, the revision in the file when we read or wrote it last
        self._revisions: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._read_at: tuple[int, ...] | None = None
        self._content = _Content()
        self._reading = threading.Lock()
        self._is_cleared = False
        directory = self._path.parent
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigInvalid(
                f"planes.files.{name}.path: {directory} is no directory that we may write to"
            )
        if (why := _open_to_others(directory)) is not None:
            _log.warning(
                "open_door",
                warning=f"planes.files.{name}.path: {why}: whoever can write there decides what is "
                f"served; "
                "make it a directory of rolloutd's own user with mode 0755",
            )

    @classmethod
    def from_settings(cls, name: str, settings: FilePlaneSettings, clock: Clock) -> Self:
        return cls(name, settings)

    @staticmethod
    def can_serve_audiences(settings: FilePlaneSettings) -> bool:
        """Return whether the format can say more than a share of all contexts."""
        return settings.format == "flagd"

    # --- the port ---

    async def serve(self, rollout: Rollout) -> None:
        self.update(rollout)
        await asyncio.to_thread(
            self._translating_errors, self._write, {rollout.flag_key: rollout}, True
        )

    async def look(self, rollout: Rollout) -> Served:
        content = await asyncio.to_thread(self._translating_errors, self._read)
        decided = percent_to_serve(rollout)
        if content.broken is not None:
            return Served(None, f"cannot be read: {content.broken}", SOMEBODY)
        definition = content.flags.get(rollout.flag_key)
        if definition is None and not content.is_missing and rollout.flag_key in self._revisions:
            # Deleting a flag switches it off.
            return Served.compared(0.0, decided, edited_by=SOMEBODY)
        if definition is None:
            return Served.compared(None, decided)
        percent, revision = _percent_in(definition, rollout), _revision_in(definition)
        self._revisions[rollout.flag_key] = revision
        if revision > rollout.revision:
            why = (
                f"was written by revision {revision}, newer than ours, {rollout.revision}; if "
                f"that is an old installation's, "
            )
            return Served(percent, f"{why}delete the flag from {self._path}")
        edited_by = SOMEBODY if _is_edited(definition) else None
        if definition == self._definition(rollout):
            return Served(percent, None).short_of(
                None if self._is_flagd else serving(rollout).beyond_share
            )
        if percent == decided:
            return Served(
                percent, f"does not serve revision {rollout.revision} as it was written", edited_by
            )
        return Served.compared(percent, decided, edited_by=edited_by)

    # --- flags of other replicas ---

    def update(self, rollout: Rollout) -> None:
        """Record a document of any replica; one older than the recorded one changes nothing."""
        newest = self._newest.get(rollout.flag_key)
        if newest is None or rollout.revision > newest.revision:
            self._newest[rollout.flag_key] = rollout
            self._retired.pop(rollout.flag_key, None)
            self._changed.set()

    def drop(self, flag_key: str, revision: int) -> None:
        """Take a flag that was retired as this revision out of the file."""
        newest = self._newest.get(flag_key)
        if newest is None or newest.revision <= revision:
            self._newest.pop(flag_key, None)
            self._retired[flag_key] = revision
            if len(self._retired) > RETIRED_KEPT:
                del self._retired[next(iter(self._retired))]
            self._changed.set()

    async def run(self) -> None:
        """Write the recorded documents until cancelled.

        The file may be this replica's own, and then no other replica writes it.
        """
        while True:
            self._changed.clear()
            try:
                await asyncio.to_thread(
                    self._translating_errors, self._write, dict(self._newest), False
                )
            except FlagPlaneUnavailable as trouble:
                _log.warning("flag_file_not_written", plane=self.name, error=str(trouble))
            except Exception as error:
                # The file may hold anything, and that must stop nothing but this plane.
                why = f"{type(error).__name__}: {error}"[:200]
                _log.error("flag_file_not_written", plane=self.name, error=why)
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._changed.wait()

    # --- in a thread ---

    def _translating_errors(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of `act`. Raises FlagPlaneUnavailable for an OSError."""
        try:
            return act(*arguments)
        except OSError as error:
            raise FlagPlaneUnavailable(f"{self._path}: {error.strerror or error}") from error

    def _read(self) -> _Content:
        """Return the file's content, parsed once per change."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return _Content(is_missing=True)
        if not stat.S_ISREG(status.st_mode):
            # To read a pipe or a device may never end, and to replace one is not for us.
            raise FlagPlaneUnavailable(f"{self._path} is no regular file: set another path")
        read_at = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._reading:
            if read_at != self._read_at:
                self._content = self._parse()
                # Two writes within one tick of the file system's clock may have the same number,
                # time and size.
                is_settled = abs(time.time_ns() - status.st_mtime_ns) > UNSETTLED_NS
                self._read_at = read_at if is_settled else None
            return self._content

    def _parse(self) -> _Content:
        # Without waiting: it may have become a pipe since, which nobody writes to.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            raw = file.read(MAX_BYTES + 1) or b""
        if len(raw) > MAX_BYTES:
            return _Content(broken=f"it has more than {MAX_BYTES:,} bytes")
        try:
            document = yaml.safe_load(raw) if self._is_yaml else json.loads(raw)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            return _Content(broken=" ".join(str(error).split())[:200])
        flags = document.get("flags") if self._is_flagd and isinstance(document, dict) else document
        if not isinstance(flags, dict):
            return _Content(broken="it holds no flags")
        return _Content(document, flags)

    def _write(self, rollouts: Mapping[str, Rollout], is_decided: bool) -> None:
        """Bring these flags up to date in one replacement of the file.

        `is_decided`: also undo an edit of the same revision.
        """
        with self._locked():
            self._clear_temporaries()
            content = self._read()
            flags, written = dict(content.flags), dict[str, int]()
            if content.broken is not None or content.is_missing:  # no part of it can be kept
                rollouts = {**self._newest, **rollouts}
                self._revisions.clear()
            for key, rollout in rollouts.items():
                if self._has_to_be_written(flags.get(key), rollout, is_decided=is_decided):
                    flags[key] = self._definition(rollout)
                    written[key] = rollout.revision
            for key, retired_as in tuple(self._retired.items()):
                if key in flags and _revision_in(flags[key]) <= retired_as:
                    del flags[key]
                    self._revisions.pop(key, None)
            if flags != content.flags or content.broken is not None:
                flags = dict(sorted(flags.items()))
                document = {"$schema": flagd.SCHEMA, **content.document, "flags": flags}
                self._replace(document if self._is_flagd else flags)
            # Not before: what a full disk refused would pass for deleted by somebody.
            self._revisions.update(written)

    def _has_to_be_written(self, definition: Any, rollout: Rollout, *, is_decided: bool) -> bool:
        if definition is None:
            return is_decided or self._revisions.get(rollout.flag_key, -1) < rollout.revision
        revision = _revision_in(definition)
        if revision == rollout.revision:
            # Of two documents of one revision the lower percentage is served.
            percent = _percent_in(definition, rollout) or 0
            is_lower = not _is_edited(definition) and percent < percent_to_serve(rollout)
            return is_decided and not is_lower
        return revision < rollout.revision

    def _definition(self, rollout: Rollout) -> dict[str, Any]:
        definition = self._define(rollout)
        mark = f"{percent_to_serve(rollout):g} {_digest_of(definition)}"
        return {**definition, "metadata": {**definition["metadata"], WRITTEN: mark}}

    def _replace(self, document: dict[str, Any]) -> None:
        """Replace the file, durably.

        Every reader gets the old one or the new one, also after a power failure.
        """
        if self._is_yaml:
            body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        else:
            body = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        mode = self._mode()
        # The name cannot be guessed, and the file must be new. In a directory that others may write
        # to, we could otherwise write through their link, or into a file that stays theirs.
        temporary = self._path.with_name(f"{self._temporary_prefix}{secrets.token_hex(16)}.tmp")
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body.encode())
                file.flush()
                os.fchmod(file.fileno(), mode)  # its readers are other users, whatever our umask is
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _mode(self) -> int:
        """Return the file's mode: as an operator set it, without the right to write for others."""
        with suppress(OSError):
            status = self._path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                return stat.S_IMODE(status.st_mode) & 0o755
        return MODE

    @property
    def _temporary_prefix(self) -> str:
        return f".{self._path.name}.rolloutd-"

    def _clear_temporaries(self) -> None:
        """Remove what a crash in the middle of a write left behind; the lock must be held."""
        if self._is_cleared:
            return
        early = self._path.with_name(f".{self._path.name}.tmp")  # the name in early releases
        for left in early, *self._path.parent.glob(f"{glob.escape(self._temporary_prefix)}*.tmp"):
            with suppress(OSError):
                left.unlink()
        self._is_cleared = True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of all writers, on a second file.

        The file itself is a new one after each write. Raises FlagPlaneUnavailable.
        """
        descriptor = os.open(
            self._path.with_name(f".{self._path.name}.lock"),
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o644,
        )
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise FlagPlaneUnavailable(
                            f"another process holds the lock of {self._path}"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)  # releases the lock


def _open_to_others(directory: Path) -> str | None:
    """Return why other users may replace files in a directory, None when they may not."""
    status = directory.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"{directory} belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return f"{directory} may be written by everybody"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        return f"{directory} may be written by group {status.st_gid}"
    return None


def _metadata_in(definition: Any) -> dict[str, Any]:
    metadata = definition.get("metadata") if isinstance(definition, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _revision_in(definition: Any) -> int:
    """Return the revision that wrote a definition, -1 when it has none."""
    version = str(_metadata_in(definition).get("version", ""))
    is_number = version.isascii() and version.isdigit() and len(version) <= 15
    return int(version) if is_number else -1


def _is_edited(definition: Any) -> bool:
    """Return whether we wrote a definition and somebody else changed it; False without our mark."""
    mark = _metadata_in(definition).get(WRITTEN)
    if mark is None:
        return False
    metadata = {key: value for key, value in _metadata_in(definition).items() if key != WRITTEN}
    return str(mark).partition(" ")[2] != _digest_of({**definition, "metadata": metadata})


def _digest_of(definition: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(definition, sort_keys=True, default=str).encode())


def _percent_in(definition: Any, rollout: Rollout) -> float | None:
    """Return the share of treatment in a definition of either format.

    None when others wrote it and it is no plain split.
    """
    mark = _metadata_in(definition).get(WRITTEN)
    if mark is not None and not _is_edited(definition):
        with suppress(ValueError):  # an editor can make the digest match, too
            return float(str(mark).partition(" ")[0])
    match definition:
        case {"state": "DISABLED"} | {"disable": True}:
            return 0.0
        case {"defaultRule": {"percentage": dict(shares)}} if "targeting" not in definition:
            return _share_of(rollout.plan.treatment, list(shares.items()))
        case {"defaultRule": {"variation": variation}} if "targeting" not in definition:
            return 100.0 if variation == rollout.plan.treatment else 0.0
        case {"targeting": {"fractional": list(shares)}}:
            return _share_of(rollout.plan.treatment, shares)
        case {"defaultVariant": variation} if not definition.get("targeting"):
            return 100.0 if variation == rollout.plan.treatment else 0.0
        case _:
            return None


def _share_of(variant: str, shares: list[Any]) -> float | None:
    """Return the percentage of one of several [name, weight]."""
    try:
        weights = [(str(name), float(weight)) for name, weight in shares]
        total = sum(weight for _, weight in weights)
        return round(100 * sum(weight for name, weight in weights if name == variant) / total, 6)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
