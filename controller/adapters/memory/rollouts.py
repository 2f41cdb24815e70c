"""The flags' rollouts in memory: `controller.ports.Rollouts`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.adapters.memory.outage import Outage
from controller.codec.merging import (
    outbox_number,
)
from controller.core.rollout import Rollout
from controller.errors import (
    StoreUnavailable,
)
from controller.ports import (
    OutboxEntry,
    StoredRollout,
)


@dataclass(slots=True)
class _Flag:
    """One flag's hash."""

    token: int = 0
    last_save: object = None  # the arguments of the last save
    rollout: Rollout | None = None
    tests: bytes = b""
    outbox: dict[str, OutboxEntry] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    trouble: str = ""
    is_newer: bool = False


class MemoryRollouts:
    """The flags' hashes as objects, with compare-and-set and repeats as in the Redis adapter."""

    def __init__(self) -> None:
        self.outage = Outage(StoreUnavailable)
        self._flags: dict[str, _Flag] = {}
        self._buried: dict[str, tuple[int, dict[str, bytes]]] = {}  # revision and answers

    async def load(self, flag_key: str) -> StoredRollout:
        self.outage.before()
        self.outage.after()
        if flag_key not in self._flags:
            retired, _ = self._buried.get(flag_key, (0, {}))
            last = max((revision for revision, _ in self._buried.values()), default=0)
            return StoredRollout(None, 0, b"", [], retired_revision=retired, last_revision=last)
        flag = self._flags[flag_key]
        return StoredRollout(
            None if flag.trouble else flag.rollout,
            flag.token,
            flag.tests,
            sorted(flag.outbox.values(), key=lambda entry: outbox_number(entry.field)),
            flag.trouble,
            flag.is_newer,
        )

    def damage(self, flag_key: str, trouble: str, *, is_newer: bool = False) -> None:
        """Make a flag's document unreadable, until it is written or discarded."""
        flag = self._flags.setdefault(flag_key, _Flag())
        flag.trouble, flag.is_newer = trouble, is_newer

    def snapshot(self) -> object:
        """Return everything that is stored, for `restore`."""
        return copy.deepcopy(self._flags)

    def restore(self, snapshot: object) -> None:
        """Fall back to a snapshot, as a promoted replica with old data does."""
        assert isinstance(snapshot, dict)
        self._flags = copy.deepcopy(snapshot)

    async def discard(self, flag_key: str) -> bool:
        """Delete everything stored for a flag; False when there was nothing."""
        self.outage.before()
        gone = self._flags.pop(flag_key, None)
        self.outage.after()
        return gone is not None

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
        for entry in outbox:
            outbox_number(entry.field)
        self.outage.before()
        is_done = self._save(flag_key, expected_token, rollout, tests, tuple(outbox), answer)
        self.outage.after()
        return is_done

    def _save(
        self,
        flag_key: str,
        expected_token: int,
        rollout: Rollout | None,
        tests: bytes | None,
        outbox: tuple[OutboxEntry, ...],
        answer: tuple[str, bytes] | None,
    ) -> bool:
        arguments = (rollout, tests, outbox, answer)
        flag = self._flags.get(flag_key, _Flag())
        if flag.token == expected_token + 1 and flag.last_save == arguments:
            return True
        if flag.token != expected_token:
            return False
        self._flags[flag_key] = _Flag(
            token=expected_token + 1,
            last_save=arguments,
            rollout=flag.rollout if rollout is None else rollout,
            tests=flag.tests if tests is None else tests,
            outbox={**flag.outbox, **{entry.field: entry for entry in outbox}},
            answers=flag.answers if answer is None else {**flag.answers, answer[0]: answer[1]},
            trouble=flag.trouble if rollout is None else "",
            is_newer=flag.is_newer and rollout is None,
        )
        return True

    async def answer_to(self, flag_key: str, command_id: str) -> bytes | None:
        self.outage.before()
        self.outage.after()
        _, buried = self._buried.get(flag_key, (0, {}))
        return {**buried, **self._flags.get(flag_key, _Flag()).answers}.get(command_id)

    async def bury(self, flag_key: str, *, expected_token: int, revision: int) -> bool:
        self.outage.before()
        flag = self._flags.get(flag_key)
        is_done = flag is None or flag.token == expected_token
        if flag is not None and is_done:
            self._buried[flag_key] = (revision, flag.answers)
            del self._flags[flag_key]
        self.outage.after()
        return is_done

    async def unlist(self, flag_key: str) -> None:
        self.outage.before()
        self.outage.after()

    async def remove_effects(self, flag_key: str, fields: Sequence[str]) -> None:
        for name in fields:
            outbox_number(name)
        self.outage.before()
        flag = self._flags.get(flag_key, _Flag())
        for name in fields:
            flag.outbox.pop(name, None)
        self.outage.after()

    async def flag_keys(self) -> Sequence[str]:
        self.outage.before()
        self.outage.after()
        return sorted(self._flags)

    async def newer_than(self, revisions: Mapping[str, int]) -> Sequence[Rollout]:
        self.outage.before()
        self.outage.after()
        readable = (self._flags[key] for key in sorted(self._flags) if not self._flags[key].trouble)
        stored = (flag.rollout for flag in readable)
        return [
            each
            for each in stored
            if each is not None and each.revision > revisions.get(each.flag_key, 0)
        ]
