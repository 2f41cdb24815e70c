"""The state of one flag as it is stored: loaded, saved, and restored after a loss.

State and effects are saved in one step, before any effect is performed. A crash then repeats
effects, each with the same id, and forgets none.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from controller.codec.outbox import Message
from controller.core.analysis.sequential_tests import (
    SequentialTests,
    decode_tests,
    differ_in_times_alone,
    encode_tests,
)
from controller.core.effects import AnswerCommand, AskAdvice, Effect
from controller.core.machine.retirement import retired_at
from controller.core.rollout import Baking, Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.command_answers import answer_key
from controller.deciding.flag.outbox import EffectEncoder, Outbox
from controller.deciding.flag.store_trouble import StoreTrouble
from controller.errors import DocumentUnreadable, StoreUnavailable
from controller.ports import Clock, OutboxEntry, StoredRollout

#: The tests' state is saved with every transition, and otherwise this often. A crash forgets only
#: where batches were cut.
TESTS_SAVED_EVERY_SECONDS = 1.0
#: ... and this often while nothing changes but times. Gaps that were there go on from the saved
#: time, unless a restart comes too long after it (`core/judging/gap_times.py`).
TIMES_SAVED_EVERY_SECONDS = 10.0
#: More than any decision has. The token and the place in the save number the outbox's fields, which
#: never fall.
EFFECTS_PER_SAVE = 100


class BakeClock:
    """Measures the present bake by the monotonic clock, which nobody can set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Which bake, when it was first observed here (monotonic), and the seconds left then.
        self._bake: tuple[object, float, float] | None = None

    def follow(self, rollout: Rollout | None, at: datetime) -> None:
        """Begin to measure when a new bake lasts `at`, and stop when none does."""
        if rollout is None or not isinstance(rollout.phase, Baking):
            self._bake = None
            return
        bake = (rollout.rollout_id, len(rollout.visits), rollout.phase.until)
        if self._bake is None or self._bake[0] != bake:
            left = (rollout.phase.until - at).total_seconds()
            self._bake = (bake, self._clock.monotonic(), left)

    @property
    def left_seconds(self) -> float | None:
        """What is left of the bake; None when no bake lasts."""
        if self._bake is None:
            return None
        _, since, left = self._bake
        return left - (self._clock.monotonic() - since)


class FlagState:
    """The rollout and the tests' state of one flag, as saved last."""

    def __init__(
        self,
        flag_key: str,
        dependencies: WorkerDependencies,
        outbox: Outbox,
        encoder: EffectEncoder,
        store: StoreTrouble,
        on_rollout: Callable[[Rollout | None], None],
    ) -> None:
        """`on_rollout` is called with each rollout that is saved or loaded."""
        self._flag_key = flag_key
        self._dependencies = dependencies
        self._outbox = outbox
        self._encoder = encoder
        self._store = store
        self._rollout: Rollout | None = None
        self._on_rollout = on_rollout
        self.tests = SequentialTests()
        self.bake = BakeClock(dependencies.clock)
        self._token = 0  # of the last save; the store compares it
        self._is_loaded = False
        self._last_revision = 0  # of a flag that has nothing: the highest that it may have had
        self._tests_saved_at = 0.0
        self._saved_tests = self.tests
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    @property
    def rollout(self) -> Rollout | None:
        """The rollout as saved last."""
        return self._rollout

    def _take(self, rollout: Rollout | None) -> None:
        self._rollout = rollout
        self._on_rollout(rollout)

    # --- saving ---

    async def save(
        self, after: Rollout | None, effects: Sequence[Effect], tests: SequentialTests
    ) -> Sequence[OutboxEntry] | None:
        """Save state and effects in one step; return the effects as saved.

        None: the save is not known to have been made. Load, and decide again. That is so when
        another worker saved first, and when the store does not answer. The write may then arrive
        late, which the token detects. The same save is not repeated: after an outage it would be an
        old decision, whose bake is over.
        """
        now = self._dependencies.clock.monotonic()
        is_changed = after is not self.rollout
        since = now - self._tests_saved_at
        is_due = (
            tests is not self.tests
            and since >= TESTS_SAVED_EVERY_SECONDS
            and (
                since >= TIMES_SAVED_EVERY_SECONDS
                or not differ_in_times_alone(self._saved_tests, tests)
            )
        )
        if not (is_changed or effects or is_due or self._store.is_of_save):
            self.tests = tests
            return ()
        entries, answer = self._entries(after, effects)
        try:
            is_saved = await self._dependencies.rollouts.save(
                self._flag_key,
                expected_token=self._token,
                rollout=after if is_changed else None,
                tests=encode_tests(tests),
                outbox=entries,
                answer=answer,
            )
        except StoreUnavailable as trouble:
            self._logger.warning("save_unknown", token=self._token, error=str(trouble))
            self._store.begin(trouble, is_save=True)
            await asyncio.sleep(self._dependencies.retry_seconds * random.uniform(0.5, 1.0))
            return None
        self._store.end()
        if not is_saved:
            self._logger.warning("save_overtaken", token=self._token)
            return None
        if is_changed:
            self._take(after)
        self.tests = tests
        self._token, self._tests_saved_at, self._saved_tests = self._token + 1, now, tests
        if after is not None:
            self.bake.follow(after, after.updated_at)
        return entries

    def is_transition(self, after: Rollout | None) -> bool:
        """Return whether `after` is another revision than the present one."""
        before = self.rollout
        return after is not None and (before is None or after.revision != before.revision)

    def _entries(
        self, after: Rollout | None, effects: Sequence[Effect]
    ) -> tuple[list[OutboxEntry], tuple[str, bytes] | None]:
        """Return the outbox fields of a save, the new document first, and the answer to keep."""
        messages: list[Message] = []
        if after is not None and self.is_transition(after):
            messages.append(after)
        messages += [effect for effect in effects if not isinstance(effect, AskAdvice)]
        entries: list[OutboxEntry] = []
        answer: tuple[str, bytes] | None = None
        first = (self._token + 1) * EFFECTS_PER_SAVE
        for number, message in enumerate(messages):
            effect_id = self._encoder.effect_id(after, number)
            entry = self._encoder.encode(message, after, effect_id)
            entries.append(replace(entry, field=f"outbox:{first + number}"))
            if isinstance(message, AnswerCommand):
                answer = (answer_key(message), entry.value)
        return entries, answer

    # --- retired flags ---

    @property
    def is_empty(self) -> bool:
        """Whether it was loaded, and nothing is stored of the flag."""
        return self._is_loaded and self.rollout is None and self._token == 0

    @property
    def last_revision(self) -> int:
        """The highest revision that a flag without a rollout may have had before."""
        return max(
            self._last_revision, self._dependencies.registry.retired_revision(self._flag_key) or 0
        )

    async def bury(self) -> bool:
        """Delete what is stored of a retired flag; False: somebody has saved since."""
        rollout = self.rollout
        assert rollout is not None
        return await self._dependencies.rollouts.bury(
            self._flag_key, expected_token=self._token, revision=rollout.revision
        )

    def _newest_of_topic(self, stored: StoredRollout) -> Rollout | None:
        """Return the newest rollout by the state topic, None where it has none.

        What the topic says of a retired flag counts too: Redis may have fallen back to an older
        document, and the topic may end with an old document that was written late.
        """
        registry = self._dependencies.registry
        newest = registry.newest(self._flag_key)
        if newest is not None and newest.revision <= stored.retired_revision:
            self._logger.warning("retired_flag_in_topic", revision=newest.revision)
            registry.retire(self._flag_key, stored.retired_revision)
            registry.republish(self._flag_key)
            return None
        retired_as = registry.retired_revision(self._flag_key) or 0
        if stored.rollout is not None and stored.rollout.revision < retired_as:
            now = self._dependencies.clock.now()
            return retired_at(stored.rollout, retired_as, "the state topic says so", now)
        return newest

    # --- loading ---

    async def load(self) -> str:
        """Read what is stored; return what had happened to it, if it had to be replaced.

        Empty: nothing. "damaged": it could not be read. "lost": Redis had none, or an older one.
        A newer document of the state topic wins: Redis may have lost its last second, or
        everything. Raises DocumentUnreadable where no readable document is known, or where a newer
        release wrote the stored one.
        """
        stored = await self.read()
        newest = self._newest_of_topic(stored)
        lost = self._lost(stored, newest)
        what_happened = "damaged" if stored.trouble else ""
        if what_happened:
            newest = self._replacement(stored, newest)
            self._logger.error(
                "recovered_from_damage", error=stored.trouble, revision=newest.revision
            )
            stored = replace(stored, rollout=None)
        while newest is not None and (
            stored.rollout is None or newest.revision > stored.rollout.revision
        ):
            self._logger.warning(
                "recovered_from_state_topic", revision=newest.revision, token=stored.token
            )
            await self._restore(newest, lost, stored.token)
            what_happened = what_happened or "lost"
            stored = await self.read()
            lost = self._lost(stored, newest)
        rollout, self._token = stored.rollout, stored.token
        self._last_revision, self._is_loaded = stored.last_revision, True
        if rollout is not None and rollout.has_advisor != self._dependencies.has_advisor:
            # This replica's settings count, not those of the replica that saved it.
            rollout = replace(rollout, has_advisor=self._dependencies.has_advisor)
        self._take(rollout)
        self.tests = self._saved_tests = self._decoded(stored.tests)
        self.bake.follow(stored.rollout, self._dependencies.clock.now())
        self._outbox.reload(stored.outbox, lost)
        return what_happened

    async def read(self) -> StoredRollout:
        """Return what is stored, as soon as Redis answers."""
        return await self._store.until_done(
            lambda: self._dependencies.rollouts.load(self._flag_key)
        )

    def _replacement(self, stored: StoredRollout, newest: Rollout | None) -> Rollout:
        """Return the document that replaces a damaged one. Raises DocumentUnreadable."""
        copy = stored.rollout  # its own copy in the outbox
        if copy is not None and (newest is None or copy.revision > newest.revision):
            newest = copy
        if stored.is_newer or newest is None:
            raise DocumentUnreadable(
                f"what is stored for {self._flag_key} cannot be read: {stored.trouble}"
            )
        return newest

    def _lost(self, stored: StoredRollout, newest: Rollout | None) -> list[OutboxEntry]:
        """Return the effects that were saved and are in the store no longer."""
        if stored.rollout is not None and (
            newest is None or stored.rollout.revision > newest.revision
        ):
            newest = stored.rollout
        return self._outbox.lost_entries(stored.outbox, newest)

    async def _restore(self, newest: Rollout, lost: Sequence[OutboxEntry], token: int) -> None:
        """Store the newest document again, and what is still to be published about it.

        The effects get new numbers: the tokens that theirs come from will be used again.
        """
        first = (token + 1) * EFFECTS_PER_SAVE
        outbox = [
            replace(entry, field=f"outbox:{first + number}")
            for number, entry in enumerate(lost[:EFFECTS_PER_SAVE])
        ]
        await self._store.until_done(
            lambda: self._dependencies.rollouts.save(
                self._flag_key, expected_token=token, rollout=newest, tests=b"", outbox=outbox
            )
        )

    def _decoded(self, tests: bytes) -> SequentialTests:
        """Return the stored state of the tests, the initial one where it is damaged."""
        try:
            return decode_tests(tests)
        except Exception as damage:  # those bytes may be anything
            self._logger.error("tests_unreadable", error=repr(damage))  # noqa: TRY400
            return SequentialTests()
