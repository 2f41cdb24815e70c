"""Runs one flag: its events in order, each decision saved before anything is done about it.

The way of an event:

1. `flag_inbox.py` holds it until its turn.
2. `command_answers.py` finds whether a command was answered before.
3. `flag_decision.py` decides, by `core/machine` and `core/judging`.
4. `flag_state.py` saves the new state and its effects in one step.
5. `registry.py` passes the new rollout to what serves and counts; `outbox.py` publishes effects;
   `advice.py` asks the model.

Belongs here: this order, and the recovery before it. Does not belong here: which flags run on this
replica (`worker_pool.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import structlog

from controller.cancellation import task_group
from controller.core.effects import AskAdvice, Effect, RaiseAlert
from controller.core.events import CommandReceived, CommandUnusable, Event, Restarted, Ticked
from controller.core.future_times import AHEAD_AT_MOST_SECONDS, healed, seconds_ahead
from controller.core.judging.judgement import Judgement
from controller.core.machine import next_deadline
from controller.core.rollout import Retired, Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.advice import AdviceAsker
from controller.deciding.flag.command_answers import Binding, CommandAnswers, digest_of
from controller.deciding.flag.decision_log import DecisionLog
from controller.deciding.flag.flag_decision import EvidenceJudge, FlagDecider, PendingSave
from controller.deciding.flag.flag_inbox import FlagInbox, NewTotals, Queued
from controller.deciding.flag.flag_state import FlagState
from controller.deciding.flag.outbox import EffectEncoder, Outbox
from controller.deciding.flag.safeguards import Safeguards
from controller.deciding.flag.store_trouble import StoreTrouble
from controller.health import Scope
from schemas.terms import AlertKind, CommandVerb, Severity

#: A deadline that changed nothing, while frozen for example, is checked again this often.
TICK_EVERY_SECONDS = 0.1
#: A command waits so long for evidence that was not given yet.
OBSERVED_WITHIN_SECONDS = 0.5
#: What is left of a wait may be less than a clock can measure. Waiting for it would never end.
SHORTEST_WAIT_SECONDS = 1e-6
#: The reporter of documents that cannot be read at start-up. It is over once a worker has read one.
START_UP = "start-up"


class FlagWorker:
    """Runs one flag."""

    def __init__(
        self,
        flag_key: str,
        dependencies: WorkerDependencies,
        on_rollout: Callable[[Rollout | None], None] = lambda _: None,
        on_judgement: Callable[[], object] = lambda: None,
        on_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_rollout` is called with each rollout that is saved or loaded.

        `on_judgement` is called after each new judgement, `on_waiting` when effects wait to be
        published or the store fails: the worker is not at rest then.
        """
        self.flag_key = flag_key
        self.inbox = FlagInbox()
        self._dependencies = dependencies
        self._clock = dependencies.clock
        self._encoder = EffectEncoder(flag_key, dependencies.clock, dependencies.source)
        self._store = StoreTrouble(flag_key, dependencies, on_waiting)
        self.outbox = Outbox(flag_key, dependencies, self._encoder, on_waiting)
        self._state = FlagState(
            flag_key, dependencies, self.outbox, self._encoder, self._store, on_rollout
        )
        self._answers = CommandAnswers(flag_key, dependencies, self.outbox, self._store)
        self._judge = EvidenceJudge(dependencies.clock, on_judgement)
        self._safeguards = Safeguards(flag_key, dependencies, self._state, self.outbox)
        self._decider = FlagDecider(self._state, self._judge, self._safeguards)
        self._advice = AdviceAsker(flag_key, dependencies, self.inbox)
        self._decisions = DecisionLog(flag_key, dependencies)
        self._ticked_at = float("-inf")  # monotonic seconds
        #: True after a failure: commands that lower come before totals, which may be its cause.
        self.has_failed = False
        #: Monotonic seconds at which totals were last handled, with what they led to saved.
        self.handled_at: float | None = None
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    # --- what others call ---

    @property
    def rollout(self) -> Rollout | None:
        """The rollout as saved last."""
        return self._state.rollout

    @property
    def judgement(self) -> Judgement | None:
        """The newest judgement, perhaps of an earlier rollout."""
        return self._judge.judgement

    def quiet_until(self, given_at: float) -> datetime | None:
        """Return until when totals given at `given_at` (monotonic seconds) need not be given again.

        Nothing follows from the same ones until then but what followed already. None: they are not
        handled yet, or more may follow at any time.
        """
        is_handled = self.handled_at is not None and self.handled_at >= given_at
        return self._judge.quiet_until if is_handled else None

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing waits to be published, and the store works."""
        return not len(self.outbox) and not self._store.lasts

    @property
    def is_retired(self) -> bool:
        """Whether the flag was retired, everybody was told, and nothing waits here."""
        is_over = self.rollout is not None and isinstance(self.rollout.phase, Retired)
        return is_over and not len(self.outbox) and not len(self.inbox)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored of the flag, and nothing waits here."""
        return self._state.is_empty and not len(self.outbox) and not len(self.inbox)

    async def bury(self) -> bool:
        """Delete what is stored of a retired flag. Raises StoreUnavailable."""
        return await self._state.bury()

    @property
    def unsaved(self) -> str | None:
        """Why nothing is decided, once the store has failed for too long; None while it works."""
        return self._store.reason

    def submit(self, event: Event) -> asyncio.Future[None]:
        """Queue an event. The future is done once its outcome is saved."""
        return self.inbox.put(event)

    def refuse(self, command: CommandReceived, why: str) -> asyncio.Future[None]:
        """Queue the refusal of a command. The future is done once it is saved.

        It is kept as the command's answer: a command that is read again gets the same.
        """
        digest, issuer = digest_of(command), command.issuer
        refusal = CommandUnusable(command.command_id, command.verb, why, digest, issuer)
        return self.inbox.put_refusal(refusal)

    def poke(self) -> None:
        """Look whether something newer was decided elsewhere. Returns at once."""
        self.inbox.poke()

    def abandon(self) -> None:
        """Drop what waits: the replica that runs the flag now reads it from the command topic."""
        self.inbox.cancel_all()
        self._safeguards.clear()
        self._store.end()
        self.outbox.abandon()

    def republish_state(self) -> None:
        """Publish the present document again: an older one was written over it."""
        if self.rollout is not None:
            self.outbox.add([self._encoder.state_entry(self.rollout)])

    def alert(self, alert: RaiseAlert) -> None:
        """Publish an alert that no transition caused. Returns at once, and needs no Redis.

        A crash may lose it; its cause is then detected again. While Kafka is away it waits in
        memory, the same alert once.
        """
        rollout = self.rollout or self._dependencies.registry.newest(self.flag_key)
        if rollout is None:
            return
        suffix = "" if alert.explanation is None else "/explained"
        occasion = f"/{alert.occasion}" if alert.occasion else ""
        effect_id = f"{alert.dedup_key}/{rollout.revision}{occasion}{suffix}"
        if not self.outbox.has(effect_id):
            if alert.judgement is None:
                alert = replace(alert, judgement=self._judge.newest_of(rollout))
            self.outbox.add([self._encoder.encode(alert, rollout, effect_id)])

    # --- the loop ---

    async def run(self) -> None:
        """Recover, then handle events until cancelled."""
        self.inbox.forget_totals()  # from before a failure, perhaps its cause
        async with task_group() as tasks:
            tasks.create_task(self.outbox.run(), name=f"outbox:{self.flag_key}")
            await self._load()
            self._dependencies.faults.clear(Scope.FLAG, self.flag_key, reporter=START_UP)
            await self._correct_times()
            await self._handle(Restarted())
            while True:
                queued = await self._next()
                for question in await self._process(queued):
                    if self.rollout is not None:
                        self._advice.start(tasks, self.rollout, question)
                queued.succeed()

    async def _process(self, queued: Queued) -> list[AskAdvice]:
        """Handle one event; return what the model is to be asked."""
        event = queued.event
        try:
            await self._follow_state_topic()
            await self._correct_times()
            effects = await self._handle(event)
        except asyncio.CancelledError:
            self.inbox.put_back(queued)  # handled after a restart, or dropped by `abandon`
            raise
        except Exception as mistake:  # ours: the worker stops, `worker_pool.py` restarts it
            queued.fail(mistake)
            raise
        if self.rollout is None or self.rollout.stage_index is None:
            self._store.end()  # nothing is watched, and nothing is left to be saved
        elif isinstance(event, NewTotals) and not self._store.lasts:
            self.handled_at = self._clock.monotonic()
        if not isinstance(event, Ticked):
            seconds = asyncio.get_running_loop().time() - queued.arrived_at
            self._dependencies.metrics.decision_duration_seconds.observe(seconds)
        return [effect for effect in effects if isinstance(effect, AskAdvice)]

    async def _next(self) -> Queued:
        """Return what comes next: an event, totals, a deadline, or at last a refusal."""
        while True:
            queued = self.inbox.take(lowering_first=self.has_failed)
            if queued is not None:
                return queued
            wait = self._seconds_to_deadline()
            if wait is not None and wait <= 0:
                self._ticked_at = self._clock.monotonic()
                return Queued(Ticked(), self._ticked_at)
            refusal = self.inbox.take_refusal()
            if refusal is not None:
                return refusal
            await self.inbox.wait(wait)

    def _seconds_to_deadline(self) -> float | None:
        now = self._clock.now()
        deadline = None if self.rollout is None else next_deadline(self.rollout, now)
        if deadline is None:
            return None
        since_tick = self._clock.monotonic() - self._ticked_at
        wait = max((deadline - now).total_seconds(), TICK_EVERY_SECONDS - since_tick)
        return wait if wait > SHORTEST_WAIT_SECONDS else 0.0

    async def _handle(self, event: Event | NewTotals) -> tuple[Effect, ...]:
        """Decide, save, then act; return the effects.

        When another worker saved first, decide again by what it saved.
        """
        while True:
            binding: Binding | None = None
            if isinstance(event, CommandReceived | CommandUnusable):
                binding = await self._answers.bind(event, self.rollout)
                if binding is None:
                    return ()
                if isinstance(event, CommandReceived):
                    event = replace(
                        event,
                        has_advisor=self._dependencies.has_advisor,
                        last_revision=self._state.last_revision,
                    )
                    event = await self._with_preflight(event)
                    await self._observe()
            now = self._clock.now()
            decision = self._decider.decide(event, binding, now)
            if decision is None:
                return ()
            if await self._save(decision):
                return decision.effects
            await self._load()
            if any(isinstance(effect, AskAdvice) for effect in decision.effects):
                # The question may be saved and was never sent: decide again as after a restart.
                event = Restarted()

    async def _with_preflight(self, command: CommandReceived) -> CommandReceived:
        """Return a start with what is not there or against the rules; others as they are."""
        preflight, rollout = self._dependencies.preflight, self.rollout
        plan = command.plan or (None if rollout is None else rollout.plan)
        is_start = command.verb in (CommandVerb.START, CommandVerb.RESTART)
        if preflight is None or plan is None or not is_start:
            return command
        if rollout is not None and not rollout.has_ended:
            return command  # it is refused
        if command.plan is not None:  # the plan of before is not judged again
            warnings, refusals = preflight.against_rules(command.plan)
            command = replace(command, warnings=warnings, refusals=refusals)
        return replace(command, missing=await preflight.missing(plan))

    async def _observe(self) -> None:
        """Read and judge the evidence where a command came before any was given.

        Briefly: a command that lowers must not wait for it.
        """
        rollout, reader = self.rollout, self._dependencies.evidence
        if reader is None or rollout is None or rollout.stage_index is None:
            return
        if self._judge.newest_of(rollout) is not None:
            return
        self._judge.trouble = None
        try:
            async with asyncio.timeout(OBSERVED_WITHIN_SECONDS):
                evidence = await reader.read(rollout)
            self._judge.observe(rollout, evidence, self._state.tests, self._clock.now())
        except Exception as trouble:  # also a mistake of ours: the command is what counts
            why = str(trouble) or f"no answer within {OBSERVED_WITHIN_SECONDS:g} s"
            self._judge.trouble = f"what was counted could not be read: {why}"
            self._logger.warning("evidence_not_at_hand", error=repr(trouble))

    async def _save(self, decision: PendingSave) -> bool:
        """Save state and effects, then perform them. False: not known to be saved."""
        before, after = self.rollout, decision.after
        is_transition = self._state.is_transition(after)
        entries = await self._state.save(after, decision.effects, decision.tests)
        if entries is None:
            return False
        if is_transition and after is not None:
            self._dependencies.registry.update_own(after)
        self.outbox.add(entries)
        self._decisions.record(before, after, decision.effects)
        return True

    # --- recovery ---

    async def _load(self, *, is_foreign: bool = False) -> None:
        """Read what is stored, and serve it. Raises DocumentUnreadable.

        `is_foreign`: the state topic has a newer document that no worker decided.
        """
        what_happened = await self._state.load()
        if self.rollout is not None:
            self._dependencies.registry.update_own(self.rollout)
            # After a loss of all of Redis, flags whose rollout has ended are not worth an alert.
            if what_happened == "damaged" or (what_happened and not self.rollout.has_ended):
                self._alert_recovery(self.rollout, what_happened, is_foreign=is_foreign)

    def _alert_recovery(self, rollout: Rollout, what_happened: str, *, is_foreign: bool) -> None:
        kind = AlertKind.FLAG_BROKEN
        to_do = "check that this is where it should be; roll back if not"
        if is_foreign:
            what_happened = "older than what the state topic has"
        elif what_happened == "lost":
            # The state topic has every decision, but those that waited in Redis for Kafka.
            to_do = f"nothing, unless Kafka was away when Redis was lost; then {to_do}"
        self.alert(
            RaiseAlert(
                kind,
                Severity.WARNING,
                f"what was stored of {self.flag_key} was {what_happened}; it goes on from revision "
                f"{rollout.revision}, at {rollout.served_words}",
                to_do,
                f"{self.flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{kind}",
            )
        )

    async def _follow_state_topic(self) -> None:
        """Continue from a document of the state topic that is newer than ours.

        What is decided next must be the newest. Another replica may have decided it; then it is
        stored as well. If no replica did, somebody else wrote to `rollout.state`: all replicas
        serve it, and a roll back with a lower revision would change nothing.
        """
        newest = self._dependencies.registry.newest(self.flag_key)
        if newest is None or self.rollout is None or newest.revision <= self.rollout.revision:
            return
        stored = await self._state.read()
        revision = 0 if stored.rollout is None else stored.rollout.revision
        is_foreign = not stored.trouble and revision < newest.revision
        if is_foreign:
            why = (
                f"rollout.state has revision {newest.revision}, Redis {revision}: "
                f"no worker decided it"
            )
            self._dependencies.metrics.invariant_violations.of("I7").inc()
            self._logger.error("invariant_violated", invariant="I7", error=why, is_saved=True)
        await self._load(is_foreign=is_foreign)

    async def _correct_times(self) -> None:
        """Correct stored times that a wrong clock wrote, or the rollout would wait for them.

        Only while the clocks agree: otherwise ours may be the wrong one.
        """
        while self.rollout is not None:
            now: datetime = self._clock.now()
            ahead = seconds_ahead(self.rollout, now)
            if ahead <= AHEAD_AT_MOST_SECONDS or self._dependencies.guard.why_not() is not None:
                return
            self._logger.error(
                "times_brought_back", seconds=round(ahead), revision=self.rollout.revision
            )
            tests = self._state.tests
            if tests.last_event_at is not None:
                tests = replace(tests, last_event_at=min(tests.last_event_at, now))
            if await self._save(PendingSave(healed(self.rollout, now), (), tests)):
                return
            await self._load()
