"""The file that holds what was decided last, for a restart without Kafka and Redis.

Belongs here: reading and replacing the file. What is in it is `codec/last_known.py`; when it is
written and served is `running/last_known.py`.

All methods block: call them in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controller.adapters.private_file import MAX_BYTES, ReplicaDirectory
from controller.codec.last_known import (
    LastKnownState,
    last_known_from_bytes,
    last_known_to_bytes,
)
from controller.codec.rollouts import is_as_written_now, rollout_to_json
from controller.core.rollout import Rollout
from controller.errors import LastKnownUnavailable


class LastKnownFile:
    """One replica's file. Whoever can write to it decides what is served after a restart."""

    def __init__(self, directory: ReplicaDirectory) -> None:
        """Touch nothing yet."""
        self._directory = directory
        self._file = directory.file("last-known", "jsonl")
        self.path = self._file.path
        self._documents: dict[str, tuple[Rollout, bytes]] = {}  # as read or written last, by flag

    def read(self) -> LastKnownState | None:
        """Return what the file holds, None where there is none.

        Raises LastKnownUnavailable, and DocumentUnreadable for a file that cannot be used.
        """
        content = self._file.read()
        if content is None:
            return None
        directory = self._directory
        state = last_known_from_bytes(content, directory.origin, directory.former_environments)
        # What a start finds unchanged in the state topic and in Redis is not encoded again. What an
        # early release wrote is: after two more upgrades nobody could read it.
        # After a write, as where the disk gave this read too late, that write is what counts.
        self._documents = self._documents or {
            rollout.flag_key: (rollout, document)
            for rollout, document in zip(state.rollouts, state.documents, strict=True)
            if is_as_written_now(document)
        }
        return state

    def write(
        self,
        known_at: datetime,
        rollouts: Sequence[Rollout],
        confirmed_at: datetime | None = None,
    ) -> None:
        """Replace the file. Raises LastKnownUnavailable, and leaves the old file then.

        The times are those of `LastKnownState`. It is durable where a rollout has changed; a new
        time alone is not worth waiting for the disk.
        """
        is_changed = self._encode(rollouts)
        documents = [document for _, document in self._documents.values()]
        content = last_known_to_bytes(self._directory.origin, known_at, documents, confirmed_at)
        if len(content) > MAX_BYTES:
            raise LastKnownUnavailable(
                f"{self.path}: {len(rollouts)} flags take {len(content)} bytes, and {MAX_BYTES} "
                f"are kept at most"
            )
        try:
            self._file.replace(content, is_durable=is_changed)
        except LastKnownUnavailable:
            self._documents.clear()  # what the disk has is not known
            raise

    def remove(self) -> None:
        """Remove the file, if there is one. Raises LastKnownUnavailable."""
        self._documents.clear()
        self._file.remove()

    def _encode(self, rollouts: Sequence[Rollout]) -> bool:
        """Encode the rollouts that changed since then; return whether any did."""
        known = self._documents
        self._documents = {
            rollout.flag_key: written
            if (written := known.get(rollout.flag_key)) is not None and written[0] is rollout
            else (rollout, rollout_to_json(rollout))
            for rollout in rollouts
        }
        return self._documents.keys() != known.keys() or any(
            known[key] is not written for key, written in self._documents.items()
        )

    def clear_temporaries(self) -> None:
        """Remove what a crash in the middle of a write left behind."""
        self._file.clear_temporaries()
