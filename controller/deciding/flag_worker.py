"""Runs one flag: its events in order.

One decision at a time, saved before anything is done about it.

Which flags run here, and where their events come from, is `workers.py`. What is decided is
`core/machine.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

import structlog

from controller.core.advice_outcome import agrees, is_outcome
from controller.core.analysis.sequential_tests import SequentialTests, decode_tests, encode_tests
from controller.core.evidence import Evidence
from controller.core.future_times import AHEAD_AT_MOST_SECONDS, healed, seconds_ahead
from controller.core.invariants import Step, Violation, raises_exposure, violations
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Judgement
from controller.core.machine import decide, hold_back, next_deadline
from controller.core.rollout import (
    AdviceReceived,
    AdviceUnavailable,
    AnswerCommand,
    AskAdvice,
    Baking,
    CommandReceived,
    CommandUnusable,
    Effect,
    Event,
    EvidenceJudged,
    Gating,
    PublishDecision,
    RaiseAlert,
    Restarted,
    Rollout,
    Ticked,
)
from controller.errors import (
    AdviceUnavailableError,
    DocumentUnreadable,
    EventLogUnavailable,
    StoreUnavailable,
)
from controller.health import Faults, Scope
from controller.metrics import UNKNOWN_VERB, Metrics
from controller.ports import Advisor, Clock, OutboxEntry, Publisher, Rollouts, StoredRollout
from schemas.terms import (
    ALWAYS_ACCEPTED,
    FINAL,
    AdviceChoice,
    AlertKind,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    Severity,
)

Message = PublishDecision | RaiseAlert | AnswerCommand | Rollout

#: The tests' state is saved with every transition, and otherwise this often: a crash forgets only
#: where batches were cut.
TESTS_SAVED_EVERY_SECONDS = 1.0
#: Away from a gate a look asks for harm alone, nearly all that it can lead to, at a third of the
#: price. Gaps, intervals and words are asked for this often.
JUDGED_EVERY_SECONDS = 1.0
#: A deadline that changed nothing (frozen, say) is looked at again this often.
TICK_EVERY_SECONDS = 0.1
#: What is left of a wait may be less than a clock can tell: waiting for it would never end.
SHORTEST_WAIT_SECONDS = 1e-6
#: Effects that may wait for Kafka; beyond it nothing that raises exposure is saved, lowering always
#: is.
OUTBOX_LIMIT = 200
#: More than any decision has: the token and the place in the save number the outbox's fields,
#: rising for ever.
EFFECTS_PER_SAVE = 100
#: Alerts and repeated answers wait in memory alone; of more than this the oldest are dropped.
UNSAVED_LIMIT = 200
LONGEST_RETRY_SECONDS = 5.0
#: Who reports a fault of the flag, and alone clears it. At start-up documents are read that cannot
#: be; that is over once a worker has read it.
START_UP = "start-up"
_INVARIANTS = "invariants"
_SAVING = "saving"
#: A store that fails for longer than this is a fault of the flag: nothing is decided meanwhile.
UNSAVED_SECONDS = 3.0

_NOT_OVERTAKEN = FINAL | {CommandVerb.START, CommandVerb.RESTART}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerDependencies:
    """What every worker of a replica shares."""

    rollouts: Rollouts
    publisher: Publisher
    advisor: (
        Advisor  # without a configured model it answers every question with AdviceUnavailableError
    )
    clock: Clock
    metrics: Metrics
    encode: Callable[
        [Message, str, Rollout | None, str, datetime], OutboxEntry
    ]  # message, flag, rollout, effect id, at
    on_transition: Callable[
        [Rollout], None
    ]  # serve it, and tell ingest: synchronous, so that 0 % is served at once
    newest_known: Callable[[str], Rollout | None]  # the state topic's document, to recover from
    faults: Faults  # what is contained in a flag or a command
    on_alert: Callable[[Rollout, RaiseAlert], None] = lambda _rollout, _alert: (
        None
    )  # somebody may explain it, later
    why_not_raise: Callable[[], str | None] = lambda: None  # why this replica may raise nothing now
    retry_seconds: float = 0.2  # first wait after Redis or Kafka failed; doubles up to 5 s


@dataclass(frozen=True, slots=True)
class NewTotals:
    """What was counted, and for which rollout: it may have ended while the totals were read."""

    rollout_id: str
    evidence: Evidence


class FlagWorker:
    """One flag's inbox, state and outbox."""

    def __init__(self, flag_key: str, tools: WorkerDependencies) -> None:
        self.flag_key = flag_key
        self.rollout: Rollout | None = None
        self.judgement: Judgement | None = None  # the newest look, perhaps at the rollout before
        self._tools = tools
        self._token = 0
        self._tests: SequentialTests = decode_tests(b"")
        self._tests_saved_at = 0.0
        self._judged_at = float("-inf")
        self._ticked_at = float("-inf")
        self._inbox: deque[tuple[Event, asyncio.Future[None] | None]] = deque()
        self._refusals: deque[tuple[Event, asyncio.Future[None] | None]] = (
            deque()
        )  # after all others
        self._look: NewTotals | None = None
        self._advised: dict[
            str, AdviceChoice
        ] = {}  # by gate, the last word at each; since this process runs the flag
        self._wake = asyncio.Event()
        self._outbox: deque[OutboxEntry] = deque()
        self._outbox_wake = asyncio.Event()
        self._held_back = ""  # why nothing was raised, as logged last
        self._baking: tuple[object, float, float] | None = None  # see `_note_bake`
        self._violated: set[tuple[str, int]] = set()  # (invariant, revision), each reported once
        self.urgent = asyncio.Event()  # an order that lowers waits: no pause before a restart
        self.has_failed = (
            False  # orders that lower go before evidence, which may be what it fails on
        )
        self._publishing_since: float | None = None
        #: Monotonic seconds at which a look was last seen through, what it led to saved.
        self.seen_at: float | None = None
        #: Since when the store takes or gives nothing for this flag, and why; None while it does.
        self.trouble_since: float | None = None
        self.trouble = ""
        self._is_unsaved = False  # the trouble is of a save: only a save shows that it is over
        self._log = structlog.get_logger().bind(flag_key=flag_key)

    # --- what others call
    # ---------------------------------------------------------------------------------------------

    @property
    def pending_effects(self) -> int:
        """Effects saved and not yet known to be published."""
        return len(self._outbox)

    @property
    def outbox_seconds(self) -> float:
        """For how long what waits has been tried to be published; 0 when nothing waits."""
        since = self._publishing_since
        return 0.0 if since is None else self._tools.clock.monotonic() - since

    def see(self, rollout_id: str, evidence: Evidence) -> None:
        """Take new totals of a rollout; only the newest wait."""
        self._look = NewTotals(rollout_id, evidence)
        self._wake.set()

    def submit(self, event: Event) -> asyncio.Future[None]:
        """Queue an event; the future is done once its outcome is saved."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.insert(self._place_of(event), (event, done))
        self._wake.set()
        if isinstance(event, CommandReceived) and event.verb in ALWAYS_ACCEPTED:
            self.urgent.set()
        return done

    def _place_of(self, event: Event) -> int:
        """Return an event's place in the inbox.

        A roll back overtakes all but roll backs and starts.

        What it is to lower may be started by an order before it.
        """
        if not (isinstance(event, CommandReceived) and event.verb in FINAL):
            return len(self._inbox)
        for place in range(len(self._inbox), 0, -1):
            waiting = self._inbox[place - 1][0]
            if isinstance(waiting, CommandReceived) and waiting.verb in _NOT_OVERTAKEN:
                return place
        return 0

    def refuse(self, command: CommandReceived, why: str) -> asyncio.Future[None]:
        """Queue a refusal behind all that is to be carried out.

        The future is done once it is saved.

        It is kept as the command's answer: whoever reads the command again gives the same.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refusal = CommandUnusable(command.command_id, command.verb, why, digest_of(command))
        self._refusals.append((refusal, done))
        self._wake.set()
        return done

    def abandon(self) -> None:
        """Let go of what waits.

        The replica that runs the flag now reads it again from the command topic.
        """
        while self._inbox or self._refusals:
            _, done = (self._inbox or self._refusals).popleft()
            if done is not None:
                done.cancel()
        self._tools.faults.clear(Scope.FLAG, self.flag_key, reporter=_INVARIANTS)
        self._store_works()

    def let_go(self, why: Exception) -> None:
        """Tell whoever waits for a command that it will not be carried out here."""
        while self._inbox or self._refusals:
            _, done = (self._inbox or self._refusals).popleft()
            if done is not None and not done.done():
                done.set_exception(why)

    def republish_state(self) -> None:
        """Say again where the rollout is: somebody late wrote an older document over it."""
        if self.rollout is not None:
            self._send([self._entry(self.rollout, self.rollout, self._effect_id(self.rollout, 0))])

    def alert(self, alert: RaiseAlert) -> None:
        """Publish an alert that no transition caused; Redis need not be there. Never waits.

        A crash may forget it; its cause is then seen again. While Kafka is away it waits in memory,
        the same one once and `UNSAVED_LIMIT` at most.
        """
        rollout = self.rollout or self._tools.newest_known(self.flag_key)
        if rollout is None:
            return
        suffix = "" if alert.explanation is None else "/explained"
        effect_id = f"{alert.dedup_key}/{rollout.revision}{suffix}"
        if not any(entry.effect_id == effect_id for entry in self._outbox):
            self._send([self._entry(alert, rollout, effect_id)])

    # --- the loop
    # ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Recover, then handle events until cancelled."""
        self._look = None  # from before a failure, perhaps its cause
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish_outbox(), name=f"outbox:{self.flag_key}")
            await self._load()
            self._tools.faults.clear(Scope.FLAG, self.flag_key, reporter=START_UP)
            await self._heal()
            await self._handle(Restarted())
            while True:
                event, done = await self._next()
                try:
                    await self._follow_state_topic()
                    await self._heal()
                    effects = await self._handle(event)
                except asyncio.CancelledError:
                    if done is not None and not isinstance(event, NewTotals):
                        self._inbox.appendleft(
                            (event, done)
                        )  # not answered: begun anew, or let go by `abandon`
                    raise
                except (
                    Exception
                ) as mistake:  # ours: the worker stops, `workers.py` says so and starts it anew
                    if done is not None and not done.done():
                        done.set_exception(mistake)
                    raise
                self._finished(event)
                for effect in effects:
                    if isinstance(effect, AskAdvice):
                        self._ask(tasks, effect)
                if done is not None and not done.done():
                    done.set_result(None)

    def _finished(self, event: Event | NewTotals) -> None:
        """Note that an event was seen through."""
        if self.rollout is None or self.rollout.stage_index is None:
            self._store_works()  # nothing is watched, and nothing is left to be saved
        elif isinstance(event, NewTotals) and self.trouble_since is None:
            self.seen_at = self._tools.clock.monotonic()

    async def _next(self) -> tuple[Event | NewTotals, asyncio.Future[None] | None]:
        """Return what happens next.

        Evidence before commands, so that no queue stands before a breach.
        """
        while True:
            self._wake.clear()
            if self.has_failed and self._is_next_urgent():
                return self._inbox.popleft()
            if self._look is not None:
                look, self._look = self._look, None
                return look, None
            if self._inbox:
                return self._inbox.popleft()
            wait = self._seconds_to_deadline()
            if wait is not None and wait <= 0:
                self._ticked_at = self._tools.clock.monotonic()
                return Ticked(), None
            if self._refusals:
                return self._refusals.popleft()
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _is_next_urgent(self) -> bool:
        event = self._inbox[0][0] if self._inbox else None
        return isinstance(event, CommandReceived) and event.verb in ALWAYS_ACCEPTED

    def _seconds_to_deadline(self) -> float | None:
        deadline = None if self.rollout is None else next_deadline(self.rollout)
        if deadline is None:
            return None
        since_tick = self._tools.clock.monotonic() - self._ticked_at
        wait = max((deadline - self._now()).total_seconds(), TICK_EVERY_SECONDS - since_tick)
        return wait if wait > SHORTEST_WAIT_SECONDS else 0.0

    async def _handle(self, event: Event | NewTotals) -> tuple[Effect, ...]:
        """Decide, save, then act. A save that was overtaken is decided again on what was saved."""
        while True:
            bond: Bond | None = None
            if isinstance(event, CommandReceived | CommandUnusable):
                bond = await self._bind(event)
                if bond is None:
                    return ()
            # Not when it was queued: an outage since then must neither shorten a bake nor freshen
            # evidence.
            now = self._now()
            outcome = self._decide(event, bond, now)
            if outcome is None:
                return ()
            after, effects, tests = outcome
            if await self._save(after, effects, tests):
                return effects
            await self._load()
            if any(isinstance(effect, AskAdvice) for effect in effects):
                event = Restarted()  # saved perhaps, and asked by nobody: the next look asks

    def _decide(
        self, event: Event | NewTotals, bond: Bond | None, now: datetime
    ) -> tuple[Rollout | None, tuple[Effect, ...], SequentialTests] | None:
        """Return what follows from an event, None for a look that says nothing.

        Pure but for what it logs.
        """
        tests, judgement = self._tests, None
        decided: Event
        if isinstance(event, NewTotals):
            if self.rollout is None or self.rollout.stage_index is None:
                return None
            if self.rollout.rollout_id != event.rollout_id:
                return None
            judgement, tests = self._judge(self.rollout, event.evidence, now)
            if judgement is None:
                return self.rollout, (), tests
            decided = EvidenceJudged(judgement)
        else:
            decided = event
        if bond is not None and bond.refusal:
            return self.rollout, (self._rejected(decided, bond.refusal, bond),), tests
        after, effects = decide(self.rollout, decided, now)
        if (why := self._why_not_raise(after)) is not None:
            after, effects, tests = self._stay(decided, judgement, why, now)
        found = self._broken_rules(Step(self.rollout, decided, now, after, effects))
        if any(one.forbids for one in found):
            why = f"the controller would break its own rule {found[0].rule}: {found[0].why}"
            after, tests = self.rollout, self._tests
            is_command = isinstance(decided, CommandReceived)
            effects = (self._rejected(decided, why, None),) if is_command else ()
        if bond is not None:
            effects = tuple(
                replace(effect, digest=bond.digest, event=bond.event)
                if isinstance(effect, AnswerCommand)
                else effect
                for effect in effects
            )
        return after, effects, tests

    def _why_not_raise(self, after: Rollout | None) -> str | None:
        """Return why this cannot be saved now; None for all that does not raise exposure."""
        if after is None or not raises_exposure(self.rollout, after):
            self._held_back = ""
            return None
        if len(self._outbox) >= OUTBOX_LIMIT:
            self._log.error("outbox_full", entries=len(self._outbox), limit=OUTBOX_LIMIT)
            return _OUTBOX_FULL
        why = self._tools.why_not_raise()
        if why is not None and why != self._held_back:
            self._held_back = why
            self._log.warning("raising_held_back", error=why)
        return why

    def _stay(
        self, event: Event, judgement: Judgement | None, why: str, now: datetime
    ) -> tuple[Rollout | None, tuple[Effect, ...], SequentialTests]:
        """Return the rollout as it stands, a command refused, and at a gate why it is held."""
        if isinstance(event, CommandReceived):
            return self.rollout, (self._rejected(event, why, None),), self._tests
        if why == _OUTBOX_FULL or self.rollout is None:
            return self.rollout, (), self._tests  # even the reason would wait in the outbox
        held, effects = hold_back(self.rollout, why, judgement, now)
        return held, effects, self._tests

    def _rejected(self, event: Event, why: str, bond: Bond | None) -> AnswerCommand:
        assert isinstance(event, CommandReceived | CommandUnusable)
        revision = 0 if self.rollout is None else self.rollout.revision
        answer = AnswerCommand(event.command_id, event.verb, CommandStatus.REJECTED, why, revision)
        return answer if bond is None else replace(answer, digest=bond.digest, event=bond.event)

    def _broken_rules(self, step: Step) -> list[Violation]:
        """Return the rules that a transition would break, each reported once.

        Nearly always none.
        """
        if step.after is step.before and not step.effects:
            return []
        found = violations(
            step,
            outbox=len(self._outbox),
            outbox_limit=OUTBOX_LIMIT,
            bake_left_seconds=self._bake_left_seconds(),
        )
        revision = 0 if self.rollout is None else self.rollout.revision
        for one in found:
            if (one.rule, revision) in self._violated:
                continue
            self._violated.add((one.rule, revision))
            self._tools.metrics.invariant_violations.of(one.rule).inc()
            self._log.error(
                "invariant_violated", invariant=one.rule, error=one.why, is_saved=not one.forbids
            )
            why = f"a decision would break invariant {one.rule}: {one.why}"
            fix = "report it with the log; decide by hand"
            self._tools.faults.report(Scope.FLAG, self.flag_key, why, fix, reporter=_INVARIANTS)
        if self._violated and not found and step.after is not step.before:
            self._violated.clear()
            self._tools.faults.clear(Scope.FLAG, self.flag_key, reporter=_INVARIANTS)
        return found

    def _note_bake(self, rollout: Rollout | None, at: datetime) -> None:
        """Keep by the clock that nobody can set when a bake was met here.

        And how much was left of it `at`.
        """
        if rollout is None or not isinstance(rollout.phase, Baking):
            self._baking = None
            return
        bake = (rollout.rollout_id, len(rollout.visits), rollout.phase.until)
        if self._baking is None or self._baking[0] != bake:
            left = (rollout.phase.until - at).total_seconds()
            self._baking = (bake, self._tools.clock.monotonic(), left)

    def _bake_left_seconds(self) -> float | None:
        """Return what is left of the bake by the monotonic clock; None when no bake lasts."""
        if self._baking is None:
            return None
        _, since, left = self._baking
        return left - (self._tools.clock.monotonic() - since)

    def _judge(
        self, rollout: Rollout, evidence: Evidence, now: datetime
    ) -> tuple[Judgement | None, SequentialTests]:
        """Return the judgement of one look, None where the tests say that it would change nothing, and the tests after it."""
        since = self._tools.clock.monotonic() - self._judged_at
        is_new = self.judgement is None or self.judgement.at < rollout.updated_at
        tests = self._tests
        if not is_new and since < JUDGED_EVERY_SECONDS and not isinstance(rollout.phase, Gating):
            seen, tests = check_harm(rollout, evidence, tests, now)
            if not any(harm.is_possible for harm in seen):
                return None, tests
        self.judgement, tests = judge(rollout, evidence, tests, now)
        self._judged_at = self._tools.clock.monotonic()
        return self.judgement, tests

    async def _save(
        self, after: Rollout | None, effects: Sequence[Effect], tests: SequentialTests
    ) -> bool:
        """Save state and effects in one step, before any effect.

        False: not known to be saved; look, and decide again.

        That is so when somebody else saved first, and when the store does not say. The write may
        then land late, which the token finds out; sending the same again would save an old decision
        after the outage, its bake over already.
        """
        before, now = self.rollout, self._tools.clock.monotonic()
        is_changed = after is not before
        is_due = (
            tests is not self._tests and now - self._tests_saved_at >= TESTS_SAVED_EVERY_SECONDS
        )
        if not (is_changed or effects or is_due or self._is_unsaved):
            self._tests = tests
            return True
        is_transition = after is not None and (before is None or after.revision != before.revision)
        entries, answer = self._entries(after, effects, is_transition=is_transition)
        saved_tests = encode_tests(tests)
        try:
            is_saved = await self._tools.rollouts.save(
                self.flag_key,
                expected_token=self._token,
                rollout=after if is_changed else None,
                tests=saved_tests,
                outbox=entries,
                answer=answer,
            )
        except StoreUnavailable as trouble:
            self._log.warning("save_unknown", token=self._token, error=str(trouble))
            self._store_fails(trouble, is_save=True)
            await asyncio.sleep(self._tools.retry_seconds * random.uniform(0.5, 1.0))
            return False
        self._store_works()
        if not is_saved:
            self._log.warning("save_overtaken", token=self._token)
            return False
        self.rollout, self._tests, self._token, self._tests_saved_at = (
            after,
            tests,
            self._token + 1,
            now,
        )
        if after is not None:
            self._note_bake(after, after.updated_at)
        if is_transition and after is not None:
            self._tools.on_transition(after)
        self._send(entries)
        self._note(before, effects)
        return True

    def _entries(
        self, after: Rollout | None, effects: Sequence[Effect], *, is_transition: bool
    ) -> tuple[list[OutboxEntry], tuple[str, bytes] | None]:
        """Return the outbox fields of a save, the new document first.

        And the answer to keep for a repeated command.
        """
        messages: list[Message] = [after] if is_transition and after is not None else []
        messages += [effect for effect in effects if not isinstance(effect, AskAdvice)]
        entries: list[OutboxEntry] = []
        answer: tuple[str, bytes] | None = None
        for n, message in enumerate(messages):
            effect_id = self._effect_id(after, n)
            number = (self._token + 1) * EFFECTS_PER_SAVE + n
            entry = replace(self._entry(message, after, effect_id), field=f"outbox:{number}")
            entries.append(entry)
            if isinstance(message, AnswerCommand):
                key = (
                    message.command_id
                    if not message.event
                    else _second_key(message.command_id, message.digest)
                )
                answer = (key, entry.value)
        return entries, answer

    def _entry(self, message: Message, rollout: Rollout | None, effect_id: str) -> OutboxEntry:
        return self._tools.encode(message, self.flag_key, rollout, effect_id, self._now())

    async def _bind(self, command: CommandReceived | CommandUnusable) -> Bond | None:
        """Tie an id to what it asks for.

        None when exactly this was answered, and gets that answer again.

        An id that comes a second time asking for something else was used twice by mistake: that is
        refused. But an order that lowers is carried out, under an id of its own: a script that
        rolls back under the same id in each rollout must not be told "accepted" by the rollout
        before.
        """
        digest = digest_of(command)
        first = await self._answer(command.command_id)
        if first is None:
            return Bond(digest)
        used = read_answer(first)
        if used.is_for(command, digest):
            self._repeat(command, first, command.command_id)
            return None
        event = f"{command.command_id}/{digest[:SHORT_DIGEST]}"
        second = await self._answer(_second_key(command.command_id, digest))
        if second is not None:
            self._repeat(command, second, event)
            return None
        self._log.warning("command_id_used_twice", command_id=command.command_id, verb=command.verb)
        if isinstance(command, CommandReceived) and command.verb in ALWAYS_ACCEPTED:
            return Bond(digest, event)
        verb = used.verb or "another command"
        return Bond(digest, event, f"this id was used for {verb} at {used.at}: use a new id")

    async def _answer(self, key: str) -> bytes | None:
        return await self._persistently(lambda: self._tools.rollouts.answer_to(self.flag_key, key))

    def _repeat(
        self, command: CommandReceived | CommandUnusable, answer: bytes, event: str
    ) -> None:
        """Give a repeated command the answer it got the first time."""
        self._log.info("command_repeated", command_id=command.command_id)
        self._send([OutboxEntry("", f"{self.flag_key}/{event}", "results", self.flag_key, answer)])

    # --- recovery
    # -------------------------------------------------------------------------------------------

    async def _follow_state_topic(self) -> None:
        """Go on from a document that is newer than ours: what is decided next must be the newest.

        Another replica may have decided it; then it is stored as well. If nobody did, a stranger
        wrote to `rollout.state`: all serve it, and a roll back with a lower revision would change
        nothing.
        """
        known = self._tools.newest_known(self.flag_key)
        if known is None or self.rollout is None or known.revision <= self.rollout.revision:
            return
        stored = await self._persistently(lambda: self._tools.rollouts.load(self.flag_key))
        if not stored.trouble and (
            stored.rollout is None or stored.rollout.revision < known.revision
        ):
            held = 0 if stored.rollout is None else stored.rollout.revision
            why = f"rollout.state has revision {known.revision}, Redis {held}: no worker decided it"
            self._tools.metrics.invariant_violations.of("I7").inc()
            self._log.error("invariant_violated", invariant="I7", error=why, is_saved=True)
        await self._load()

    async def _load(self) -> None:
        """Read what is stored; a newer document known elsewhere wins.

        Redis may have lost its last second, or everything. Raises DocumentUnreadable where nothing
        that can be read is known, or what is stored is a newer release's.
        """
        stored = await self._persistently(lambda: self._tools.rollouts.load(self.flag_key))
        known = self._tools.newest_known(self.flag_key)
        lost = self._lost(stored, known)
        if stored.trouble:
            rescued = stored.rollout
            if rescued is not None and (known is None or rescued.revision > known.revision):
                known = rescued  # its own copy in the outbox
            if stored.is_newer or known is None:
                raise DocumentUnreadable(
                    f"what is stored for {self.flag_key} cannot be read: {stored.trouble}"
                )
            self._log.error("recovered_from_damage", error=stored.trouble, revision=known.revision)
            stored = replace(stored, rollout=None)
        is_damaged = bool(stored.trouble)
        while known is not None and (
            stored.rollout is None or known.revision > stored.rollout.revision
        ):
            self._log.warning(
                "recovered_from_state_topic", revision=known.revision, token=stored.token
            )
            await self._restore(known, lost, stored.token)
            stored = await self._persistently(lambda: self._tools.rollouts.load(self.flag_key))
            lost = self._lost(stored, known)
        rollout, self._token = stored.rollout, stored.token
        self._tests = self._decoded(stored.tests)
        self.rollout = rollout
        self._note_bake(rollout, self._now())
        # What waits in memory alone: alerts, answers given again, and what Redis has lost. The
        # receivers drop what they have by its id.
        waiting = [entry for entry in self._outbox if not entry.field]
        waiting += [replace(entry, field="") for entry in lost]
        self._outbox = deque(waiting)
        self._send(stored.outbox)
        if rollout is not None:
            self._tools.on_transition(rollout)
            if is_damaged:
                self._alert_recovery(rollout)

    def _lost(self, stored: StoredRollout, known: Rollout | None) -> list[OutboxEntry]:
        """Return effects that were saved, are not known to be published.

        And are in the store no more.

        Redis fell back, or another replica has published them: receivers drop what they have by its
        id. Not so a state topic, which ends with what is written last: older documents stay out of
        it.
        """
        kept = {entry.effect_id for entry in stored.outbox}
        lost = [entry for entry in self._outbox if entry.field and entry.effect_id not in kept]
        newest = known
        if stored.rollout is not None and (
            known is None or stored.rollout.revision > known.revision
        ):
            newest = stored.rollout
        current = self._effect_id(newest, 0)
        return [entry for entry in lost if entry.topic != "state" or entry.effect_id == current]

    async def _restore(self, known: Rollout, lost: Sequence[OutboxEntry], token: int) -> None:
        """Store the newest document again, and what is still to be published about it.

        The effects get new numbers: the tokens that theirs are from will be used again.
        """
        first = (token + 1) * EFFECTS_PER_SAVE
        again = [
            replace(entry, field=f"outbox:{first + n}")
            for n, entry in enumerate(lost[:EFFECTS_PER_SAVE])
        ]
        await self._persistently(
            partial(
                self._tools.rollouts.save,
                self.flag_key,
                expected_token=token,
                rollout=known,
                tests=b"",
                outbox=again,
            )
        )

    def _decoded(self, tests: bytes) -> SequentialTests:
        """Return the stored state of the tests.

        The initial one where it is damaged: evidence starts again.
        """
        try:
            return decode_tests(tests)
        except Exception as damage:  # whatever is in those bytes
            self._log.error("tests_unreadable", error=repr(damage))
            return decode_tests(b"")

    def _alert_recovery(self, rollout: Rollout) -> None:
        self.alert(
            RaiseAlert(
                AlertKind.FLAG_BROKEN,
                Severity.WARNING,
                f"what was stored of {self.flag_key} was damaged; it goes on from revision "
                f"{rollout.revision}, at {rollout.served_words}",
                "check that this is where it should be; roll back if not",
                f"{self.flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{AlertKind.FLAG_BROKEN}",
            )
        )

    async def _persistently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent call to Redis until it answers.

        Until then nothing is decided: the flag stays where it is.
        """
        wait = self._tools.retry_seconds
        while True:
            try:
                answer = await call()
            except StoreUnavailable as trouble:
                self._log.warning("store_unavailable", error=str(trouble), retry_seconds=wait)
                self._store_fails(trouble)
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_RETRY_SECONDS)
            else:
                if not self._is_unsaved:
                    self._store_works()
                return answer

    @property
    def unsaved(self) -> str | None:
        """Why nothing is decided, once the store has failed for too long; None while it works."""
        if self.trouble_since is None:
            return None
        seconds = self._tools.clock.monotonic() - self.trouble_since
        if seconds <= UNSAVED_SECONDS:
            return None
        word = "saved" if self._is_unsaved else "read"
        return f"its state has not been {word} for {seconds:.0f} s: {self.trouble}"

    def _store_fails(self, trouble: StoreUnavailable, *, is_save: bool = False) -> None:
        """Note that the store took or gave nothing; a fault once that lasts."""
        if self.trouble_since is None:
            self.trouble_since = self._tools.clock.monotonic()
        self.trouble, self._is_unsaved = str(trouble), self._is_unsaved or is_save
        if (why := self.unsaved) is not None:
            fix = "see whether Redis takes writes of this flag's key: `rolloutctl doctor`"
            self._tools.faults.report(Scope.FLAG, self.flag_key, why, fix, reporter=_SAVING)

    def _store_works(self) -> None:
        """Note that it took what was to be saved, or that nothing is to be."""
        if self.trouble_since is not None:
            self.trouble_since, self.trouble, self._is_unsaved = None, "", False
            self._tools.faults.clear(Scope.FLAG, self.flag_key, reporter=_SAVING)

    async def _heal(self) -> None:
        """Bring times back that a wrong clock wrote: the rollout would stand still until they come.

        Only while the clocks agree: else it may be ours that is wrong.
        """
        while self.rollout is not None:
            now = self._now()
            ahead = seconds_ahead(self.rollout, now)
            if ahead <= AHEAD_AT_MOST_SECONDS or self._tools.why_not_raise() is not None:
                return
            self._log.error(
                "times_brought_back", seconds=round(ahead), revision=self.rollout.revision
            )
            last_event_at = self._tests.last_event_at
            if last_event_at is not None:
                last_event_at = min(last_event_at, now)
            tests = replace(self._tests, last_event_at=last_event_at)
            if await self._save(healed(self.rollout, now), (), tests):
                return
            await self._load()

    # --- effects
    # ----------------------------------------------------------------------------------------------

    def _send(self, entries: Sequence[OutboxEntry]) -> None:
        self._outbox.extend(entries)
        unsaved = [entry for entry in self._outbox if not entry.field]
        if len(unsaved) > UNSAVED_LIMIT:
            dropped = {id(entry) for entry in unsaved[:-UNSAVED_LIMIT]}
            self._outbox = deque(entry for entry in self._outbox if id(entry) not in dropped)
            self._log.error("unsaved_effects_dropped", entries=len(dropped))
        self._outbox_wake.set()

    async def _publish_outbox(self) -> None:
        """Publish saved effects in order, and only then forget them. Kafka away means they wait.

        While Redis is away they are published all the same, and forgotten when it is back: what was
        published is not published again meanwhile.
        """
        wait = self._tools.retry_seconds
        published: set[OutboxEntry] = set()  # only to be settled; a field alone may be used again
        while True:
            if not self._outbox:
                self._publishing_since = None
                self._outbox_wake.clear()
                await self._outbox_wake.wait()
            if self._publishing_since is None:
                self._publishing_since = self._tools.clock.monotonic()
            batch = list(self._outbox)
            published.intersection_update(batch)
            new = [entry for entry in batch if entry not in published]
            try:
                if new:
                    await self._tools.publisher.publish(new)
                    published.update(entry for entry in new if entry.field)
                    sent = {id(entry) for entry in new if not entry.field}
                    self._outbox = deque(entry for entry in self._outbox if id(entry) not in sent)
                fields = [entry.field for entry in batch if entry.field]
                if fields:
                    await self._tools.rollouts.settle(self.flag_key, fields)
            except (EventLogUnavailable, StoreUnavailable) as trouble:
                self._log.warning(
                    "outbox_waits",
                    error=str(trouble),
                    entries=len(self._outbox),
                    retry_seconds=wait,
                )
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_RETRY_SECONDS)
                continue
            wait = self._tools.retry_seconds
            self._publishing_since = None
            done = {id(entry) for entry in batch}
            self._outbox = deque(entry for entry in self._outbox if id(entry) not in done)

    def _ask(self, tasks: asyncio.TaskGroup, question: AskAdvice) -> None:
        """Put the question in a task of its own.

        A hanging model delays nothing but its own gate.
        """
        assert self.rollout is not None
        tasks.create_task(self._advise(self.rollout, question), name=f"advice:{self.flag_key}")

    async def _advise(self, rollout: Rollout, question: AskAdvice) -> None:
        """Turn whatever the model does into one event, at the deadline at the latest."""
        seconds = (question.until - self._now()).total_seconds()
        event: AdviceReceived | AdviceUnavailable
        try:
            async with asyncio.timeout(seconds):
                advice = await self._tools.advisor.ask(rollout, question)
            event = AdviceReceived(question.gate_id, question.round, advice)
            self._log.info(
                "advice_received",
                gate_id=question.gate_id,
                choice=advice.choice,
                advisor_model=advice.model,
                duration_ms=advice.latency_ms,
            )
            self._tools.metrics.advice.of(advice.choice).inc()
        except (AdviceUnavailableError, TimeoutError) as trouble:
            why = str(trouble) or f"no answer within {seconds:.0f} s"
            event = AdviceUnavailable(question.gate_id, question.round, why)
            self._log.warning("advice_unavailable", gate_id=question.gate_id, error=why)
            self._tools.metrics.advice.of("unavailable").inc()
        self.submit(event)

    # --- reports
    # ----------------------------------------------------------------------------------------------

    def _note(self, before: Rollout | None, effects: Sequence[Effect]) -> None:
        """Write one canonical line per decision, and count."""
        for effect in effects:
            match effect:
                case PublishDecision():
                    self._tools.metrics.decisions.of(effect.kind).inc()
                    self._log.info("decision_made", **decision_line(effect, self.rollout))
                    self._note_advice(effect)
                case AnswerCommand():
                    self._tools.metrics.commands.of(
                        effect.verb or UNKNOWN_VERB, effect.status
                    ).inc()
                    self._log.info(
                        "command_answered",
                        command_id=effect.command_id,
                        verb=effect.verb,
                        status=effect.status,
                        reason=effect.reason,
                    )
                case RaiseAlert():
                    self._tools.metrics.alerts.of(effect.kind, effect.severity).inc()
                    if self.rollout is not None:
                        self._tools.on_alert(self.rollout, effect)
                case AskAdvice():
                    self._log.info("advice_asked", gate_id=effect.gate_id, round=effect.round)
        after = self.rollout
        if (
            before is not None
            and after is not None
            and isinstance(before.phase, Gating)
            and not isinstance(after.phase, Gating)
        ):
            self._tools.metrics.gate_duration_seconds.observe(
                (after.updated_at - before.phase.since).total_seconds()
            )

    def _note_advice(self, decision: PublishDecision) -> None:
        """Keep the last advice of each gate.

        And count it as right or wrong once the evidence has ended the rollout.
        """
        if decision.kind is DecisionKind.START:
            self._advised.clear()
        if decision.advice is not None and decision.gate_id is not None:
            self._advised[decision.gate_id] = decision.advice.choice
        if is_outcome(decision.kind, decision.issuer):
            for choice in self._advised.values():
                self._tools.metrics.advice_agreement.of(
                    choice, "yes" if agrees(choice, decision.kind) else "no"
                ).inc()
            self._advised.clear()

    def _effect_id(self, rollout: Rollout | None, n: int | str) -> str:
        return f"{self.flag_key}/{0 if rollout is None else rollout.revision}/{n}"

    def _now(self) -> datetime:
        return self._tools.clock.now()


#: Digits of a digest that tell two uses of one id apart.
SHORT_DIGEST = 16
_OUTBOX_FULL = (
    "Kafka takes no records and the outbox is full: nothing is raised until it is empty; send "
    "it again then"
)


@dataclass(frozen=True, slots=True)
class Bond:
    """What a command's answer is bound to, besides its id."""

    digest: str  # of what it asks for
    event: str = (
        ""  # id of the result's event; empty: the command's own, which is used for the first time
    )
    refusal: str = ""  # why it is not carried out


@dataclass(frozen=True, slots=True)
class Used:
    """What an id was used for."""

    digest: str  # empty: answered by a release that kept none
    verb: str | None
    at: str

    def is_for(self, command: CommandReceived | CommandUnusable, digest: str) -> bool:
        """Tell whether the command is the one that was answered."""
        if self.digest:
            return self.digest == digest
        if self.verb is not None and self.verb != command.verb:
            return False
        if isinstance(command, CommandUnusable) or command.verb not in ALWAYS_ACCEPTED:
            return True
        try:
            return command.issued_at <= datetime.fromisoformat(self.at)
        except ValueError:
            return True


def digest_of(command: CommandReceived | CommandUnusable) -> str:
    """Return what tells a command from another under its id: 32 hex digits of all that it asks for.

    When it was issued is left out, so that whoever repeats a command for want of an answer gets the
    answer; but not for one that lowers, where a repeat is harmless and an order not carried out is
    not.
    """
    if isinstance(command, CommandUnusable) and command.digest:
        return command.digest
    asked: list[object] = [command.verb]
    if isinstance(command, CommandUnusable):
        asked += ["unusable", command.why]
    else:
        plan = None if command.plan is None else command.plan.version
        asked += [command.issuer, command.reason, command.expected_revision, plan]
        if command.verb in ALWAYS_ACCEPTED:
            asked.append(command.issued_at.timestamp())
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def read_answer(answer: bytes) -> Used:
    """Return what a stored result says of the command it answered."""
    try:
        event = json.loads(answer)
        data = event["data"]
        return Used(event.get("rolloutddigest", ""), data.get("verb"), data.get("at", ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        return Used("", None, "")  # damaged: whoever asks gets it as it is


def _second_key(command_id: str, digest: str) -> str:
    """Return what the answer of a second use of an id is kept by; `#` is in no id."""
    return f"{command_id}#{digest[:SHORT_DIGEST]}"


def decision_line(decision: PublishDecision, rollout: Rollout | None) -> dict[str, object]:
    """Return the keys of the canonical log line: everything the decision rests on, in figures."""
    line: dict[str, object] = {
        "decision": decision.kind,
        "reason": decision.reason,
        "from_percent": decision.from_percent,
        "percent": decision.to_percent,
        "issuer": decision.issuer,
    }
    if rollout is not None:
        line |= {
            "rollout_id": rollout.rollout_id,
            "revision": rollout.revision,
            "phase": rollout.phase.name,
        }
    if decision.stage is not None:
        line["stage"] = decision.stage
    if decision.gate_id is not None:
        line["gate_id"] = decision.gate_id
    if decision.advice is not None:
        line |= {"advice": decision.advice.choice, "advisor_model": decision.advice.model}
    seen = decision.judgement
    if seen is not None:
        line |= {
            "exposures": {arm.value: count for arm, count in seen.exposures.items()},
            "gaps": [gap.kind.value for gap in seen.gaps],
            "metrics": {
                metric.metric: {
                    "harm": metric.harm.value,
                    "safe": metric.safe.value,
                    "e_value": metric.e_value,
                    "e_value_safe": metric.e_value_safe,
                    "estimates": {
                        arm.value: summary.estimate for arm, summary in metric.arms.items()
                    },
                }
                for metric in seen.metrics
            },
            "exposed_contexts": seen.harm.exposed_contexts,
            "failed_requests": seen.harm.failed_requests,
            "offsets": dict(seen.offsets),
        }
    return line
