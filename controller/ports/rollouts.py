"""Where rollouts, their effects and their reports are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from controller.core.rollout import Rollout


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A record that is to be published, such as an effect that is saved."""

    field: str  # its name in the hash: outbox:<n>; empty: it is not saved
    effect_id: str  # of an effect flag/revision/n: receivers drop repeats by it
    topic: str  # logical topic name
    key: str
    value: bytes  # empty: a tombstone of the state topic

    @property
    def tombstone_of(self) -> int | None:
        """The revision that a tombstone retires its flag as; None for a record with a value."""
        return None if self.value else int(self.effect_id.split("/")[1])


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """What is kept for one flag."""

    rollout: Rollout | None
    token: int  # grows by one with every save; the compare-and-set is on it
    tests: bytes  # the sequential tests' state, opaque here; b"" for none
    outbox: Sequence[OutboxEntry]
    #: Why the document cannot be read; empty: it can, or there is none. `rollout` is then the copy
    #: that the outbox still holds, None for none.
    trouble: str = ""
    is_newer: bool = False  # a newer release wrote it: never to be written over
    retired_revision: int = 0  # of a flag that was retired and buried lately, else 0
    last_revision: int = 0  # of a flag that has nothing: the highest that it may have had


class Rollouts(Protocol):
    """The flags' hashes: document, tests' state, answers and outbox, written together."""

    async def load(self, flag_key: str) -> StoredRollout:
        """Return what is stored; a flag never seen has no rollout and token 0.

        A document that cannot be read is described in `trouble`. Raises DocumentUnreadable when not
        even the token can be read.
        """

    async def save(
        self,
        flag_key: str,
        *,
        expected_token: int,
        rollout: Rollout | None = None,
        tests: bytes | None = None,
        outbox: Sequence[OutboxEntry] = (),
        answer: tuple[str, bytes] | None = None,
    ) -> bool:
        """Write everything given in one atomic step with token `expected_token + 1`.

        None leaves a part as it is.

        Returns False, and writes nothing, when the token is another one: somebody else decided.
        Safe to repeat with the same arguments. Raises StoreUnavailable when the outcome is unknown.
        """

    async def answer_to(self, flag_key: str, command_id: str) -> bytes | None:
        """Return the stored result of a command id, None when it was never answered."""

    async def remove_effects(self, flag_key: str, fields: Sequence[str]) -> None:
        """Delete outbox fields that are published; idempotent."""

    async def bury(self, flag_key: str, *, expected_token: int, revision: int) -> bool:
        """Delete what is stored of a flag that was retired as `revision`; False: somebody saved.

        Its answers and this revision are kept for a day, so that a command which is read again gets
        its answer. The revision is also remembered for good, together with those of all other
        retired flags: the next rollout of any of them has a higher one. Idempotent.
        """

    async def unlist(self, flag_key: str) -> None:
        """Take a flag off the list of flags, unless something is stored of it."""

    async def flag_keys(self) -> Sequence[str]:
        """Return every flag that has a hash."""

    async def newer_than(self, revisions: Mapping[str, int]) -> Sequence[Rollout]:
        """Return the stored rollouts whose revision exceeds the one given for their flag.

        It is 0 for a flag that is not named. A document that cannot be read is left out and
        reported: it concerns its flag alone.
        """


@dataclass(frozen=True, slots=True)
class CourseKey:
    """One visit of a stage, whose points are kept."""

    rollout_id: str
    visit: int  # index into the rollout's visits


#: Logical topics whose newest events are kept and shown.
NEWS_TOPICS: Final = ("decisions", "alerts", "results")
#: Refused commands that are of no flag with a rollout are kept in one short list for all of them:
#: under this key, which no flag has, as results.
OF_NO_FLAG: Final = ""


class Reports(Protocol):
    """What every replica can show of every flag: evidence, its course, newest events.

    Nothing is decided by it. Each call raises StoreUnavailable. Everything goes some days after it
    was written last.
    """

    async def write(
        self,
        flag_key: str,
        report: bytes,
        course: CourseKey | None = None,
        points: Mapping[int, bytes] | None = None,
        gone: Sequence[int] = (),
    ) -> None:
        """Replace a flag's report; add points of a visit and drop others; idempotent.

        Points are by seconds since the epoch.
        """

    async def read(self, flag_key: str) -> bytes | None:
        """Return a flag's report, None when there is none."""

    async def course(self, flag_key: str, course: CourseKey) -> Mapping[int, bytes]:
        """Return the points of a visit by seconds since the epoch, oldest first."""

    async def append_news(self, flag_key: str, topic: str, events: Sequence[bytes]) -> None:
        """Keep events that were published, oldest first; one may come again."""

    async def news(self, flag_key: str, topic: str, *, most: int | None = None) -> Sequence[bytes]:
        """Return the newest events of a topic about a flag, newest first; some perhaps twice.

        `most` of them; None: all that are kept.
        """

    async def discard(self, flag_key: str, courses: Sequence[CourseKey]) -> None:
        """Delete everything about a flag; `courses` are all that are known."""
