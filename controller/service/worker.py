"""Runs one flag: its events in order, one decision at a time, saved before anything is done about it.

Which flags run here, and where their events come from, is `workers.py`. What is decided is `core/machine.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

import structlog

from controller.core.agreement import agrees, is_outcome
from controller.core.evidence import Evidence
from controller.core.gate import GateTests, decode_tests, encode_tests, judge, look_for_harm
from controller.core.healing import AHEAD_AT_MOST_SECONDS, healed, seconds_ahead
from controller.core.judgement import Judgement
from controller.core.machine import decide, next_deadline
from controller.core.rollout import (
    AdviceReceived,
    AdviceUnavailable,
    AnswerCommand,
    AskAdvice,
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
from controller.errors import AdviceUnavailableError, EventLogUnavailable, StoreUnavailable
from controller.metrics import UNKNOWN_VERB, Metrics
from controller.ports import Advisor, Clock, OutboxEntry, Publisher, Rollouts
from schemas.terms import AdviceChoice, CommandStatus, DecisionKind

Message = PublishDecision | RaiseAlert | AnswerCommand | Rollout

#: The tests' state is saved with every transition, and otherwise this often: a crash forgets only where batches were cut.
TESTS_SAVED_EVERY_SECONDS = 1.0
#: Away from a gate a look asks for harm alone, nearly all that it can lead to, at a third of the price. Gaps, intervals and
#: words are asked for this often.
JUDGED_EVERY_SECONDS = 1.0
#: A deadline that changed nothing (frozen, say) is looked at again this often.
TICK_EVERY_SECONDS = 0.1
#: Effects that may wait for Kafka; beyond it nothing that raises exposure is saved, lowering always is.
OUTBOX_LIMIT = 200
#: More than any decision has: the token and the place in the save number the outbox's fields, rising for ever.
EFFECTS_PER_SAVE = 100
LONGEST_RETRY_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tools:
    """What every worker of a replica shares."""

    rollouts: Rollouts
    publisher: Publisher
    advisor: Advisor  # without a configured model it answers every question with AdviceUnavailableError
    clock: Clock
    metrics: Metrics
    encode: Callable[[Message, str, Rollout | None, str, datetime], OutboxEntry]  # message, flag, rollout, effect id, at
    on_transition: Callable[[Rollout], None]  # serve it, and tell ingest: synchronous, so that 0 % is served at once
    newest_known: Callable[[str], Rollout | None]  # the state topic's document, to recover from
    on_alert: Callable[[Rollout, RaiseAlert], None] = lambda _rollout, _alert: None  # somebody may explain it, later
    why_not_raise: Callable[[], str | None] = lambda: None  # why this replica may raise nothing now
    retry_seconds: float = 0.2  # first wait after Redis or Kafka failed; doubles up to 5 s


@dataclass(frozen=True, slots=True)
class Look:
    """What was counted, and for which rollout: it may have ended while the totals were read."""

    rollout_id: str
    evidence: Evidence


class FlagWorker:
    """One flag's inbox, state and outbox."""

    def __init__(self, flag_key: str, tools: Tools) -> None:
        self.flag_key = flag_key
        self.rollout: Rollout | None = None
        self.judgement: Judgement | None = None  # the newest look, perhaps at the rollout before
        self._tools = tools
        self._token = 0
        self._tests: GateTests = decode_tests(b"")
        self._tests_saved_at = 0.0
        self._judged_at = float("-inf")
        self._ticked_at = float("-inf")
        self._inbox: deque[tuple[Event, asyncio.Future[None] | None]] = deque()
        self._look: Look | None = None
        self._advised: dict[str, AdviceChoice] = {}  # by gate, the last word at each; since this process runs the flag
        self._wake = asyncio.Event()
        self._outbox: deque[OutboxEntry] = deque()
        self._outbox_wake = asyncio.Event()
        self._publishing_since: float | None = None
        self._log = structlog.get_logger().bind(flag_key=flag_key)

    # --- what others call ---------------------------------------------------------------------------------------------

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
        self._look = Look(rollout_id, evidence)
        self._wake.set()

    def submit(self, event: Event) -> asyncio.Future[None]:
        """Queue an event; the future is done once its outcome is saved."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.append((event, done))
        self._wake.set()
        return done

    def abandon(self) -> None:
        """Let go of what waits: the replica that runs the flag now reads it again from the command topic."""
        while self._inbox:
            _, done = self._inbox.popleft()
            if done is not None:
                done.cancel()

    def republish_state(self) -> None:
        """Say again where the rollout is: somebody late wrote an older document over it."""
        if self.rollout is not None:
            self._send([self._entry(self.rollout, self.rollout, self._effect_id(self.rollout, 0))])

    def alert(self, alert: RaiseAlert) -> None:
        """Publish an alert that no transition caused. A crash may forget it; its cause is then seen again."""
        if self.rollout is not None:
            suffix = "" if alert.explanation is None else "/explained"
            self._send([self._entry(alert, self.rollout, f"{alert.dedup_key}/{self.rollout.revision}{suffix}")])

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Recover, then handle events until cancelled."""
        await self._load()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish_outbox(), name=f"outbox:{self.flag_key}")
            await self._heal()
            await self._handle(Restarted(self._now()))
            while True:
                event, done = await self._next()
                try:
                    await self._heal()
                    effects = await self._handle(event)
                except asyncio.CancelledError:
                    if done is not None and not isinstance(event, Look):
                        self._inbox.appendleft((event, done))  # not answered: begun anew, or let go by `abandon`
                    raise
                except Exception as mistake:  # ours: the worker stops, `workers.py` says so and starts it anew
                    if done is not None and not done.done():
                        done.set_exception(mistake)
                    raise
                for effect in effects:
                    if isinstance(effect, AskAdvice):
                        self._ask(tasks, effect)
                if done is not None and not done.done():
                    done.set_result(None)

    async def _next(self) -> tuple[Event | Look, asyncio.Future[None] | None]:
        """Return what happens next: evidence before commands, so that no queue stands before a breach."""
        while True:
            self._wake.clear()
            if self._look is not None:
                look, self._look = self._look, None
                return look, None
            if self._inbox:
                return self._inbox.popleft()
            wait = self._seconds_to_deadline()
            if wait is not None and wait <= 0:
                self._ticked_at = self._tools.clock.monotonic()
                return Ticked(self._now()), None
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _seconds_to_deadline(self) -> float | None:
        deadline = None if self.rollout is None else next_deadline(self.rollout)
        if deadline is None:
            return None
        since_tick = self._tools.clock.monotonic() - self._ticked_at
        return max((deadline - self._now()).total_seconds(), TICK_EVERY_SECONDS - since_tick)

    async def _handle(self, event: Event | Look) -> tuple[Effect, ...]:
        """Decide, save, then act. A save that somebody else overtook is decided again on what they saved."""
        while True:
            if isinstance(event, CommandReceived | CommandUnusable) and await self._is_answered(event):
                return ()
            now = self._now()  # not when it was queued: an outage since then must neither shorten a bake nor freshen evidence
            after: Rollout | None
            effects: tuple[Effect, ...]
            tests = self._tests
            if isinstance(event, Look):
                if self.rollout is None or self.rollout.stage_index is None or self.rollout.rollout_id != event.rollout_id:
                    return ()
                judgement, tests = self._judge(self.rollout, event.evidence, now)
                after, effects = self.rollout, ()
                if judgement is not None:
                    after, effects = decide(self.rollout, EvidenceJudged(now, judgement))
            else:
                after, effects = decide(self.rollout, replace(event, at=now))
            if self._would_overflow(after):
                self._log.error("outbox_full", entries=len(self._outbox), limit=OUTBOX_LIMIT)
                after, tests = self.rollout, self._tests
                effects = (self._outbox_full(event),) if isinstance(event, CommandReceived) else ()
            if await self._save(after, effects, tests):
                return effects
            await self._load()
            if any(isinstance(effect, AskAdvice) for effect in effects):
                event = Restarted(now)  # saved perhaps, and asked by nobody: the next look asks

    def _judge(self, rollout: Rollout, evidence: Evidence, now: datetime) -> tuple[Judgement | None, GateTests]:
        """Return the judgement of one look, None where the tests say that it would change nothing, and the tests after it."""
        since = self._tools.clock.monotonic() - self._judged_at
        is_new = self.judgement is None or self.judgement.at < rollout.updated_at
        tests = self._tests
        if not is_new and since < JUDGED_EVERY_SECONDS and not isinstance(rollout.phase, Gating):
            seen, tests = look_for_harm(rollout, evidence, tests, now)
            if not any(harm.is_possible for harm in seen):
                return None, tests
        self.judgement, tests = judge(rollout, evidence, tests, now)
        self._judged_at = self._tools.clock.monotonic()
        return self.judgement, tests

    def _would_overflow(self, after: Rollout | None) -> bool:
        """Tell whether this must wait for the outbox: only what raises exposure ever does."""
        before = 0.0 if self.rollout is None else self.rollout.percent
        return len(self._outbox) >= OUTBOX_LIMIT and after is not None and after.percent > before

    def _outbox_full(self, command: CommandReceived) -> AnswerCommand:
        """Return the answer to a command that would raise exposure now: every command gets one."""
        reason = "Kafka takes no records and the outbox is full: nothing is raised until it is empty; send it again then"
        revision = 0 if self.rollout is None else self.rollout.revision
        return AnswerCommand(command.command_id, command.verb, CommandStatus.REJECTED, reason, revision)

    async def _save(self, after: Rollout | None, effects: Sequence[Effect], tests: GateTests) -> bool:
        """Save state and effects in one step, before any effect. False: not known to be saved; look, and decide again.

        That is so when somebody else saved first, and when the store does not say. The write may then land late, which the
        token finds out; sending the same again would save an old decision after the outage, its bake over already.
        """
        before, now = self.rollout, self._tools.clock.monotonic()
        is_changed = after is not before
        is_due = tests is not self._tests and now - self._tests_saved_at >= TESTS_SAVED_EVERY_SECONDS
        if not (is_changed or effects or is_due):
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
            await asyncio.sleep(self._tools.retry_seconds * random.uniform(0.5, 1.0))
            return False
        if not is_saved:
            self._log.warning("save_overtaken", token=self._token)
            return False
        self.rollout, self._tests, self._token, self._tests_saved_at = after, tests, self._token + 1, now
        if is_transition and after is not None:
            self._tools.on_transition(after)
        self._send(entries)
        self._note(before, effects)
        return True

    def _entries(
        self, after: Rollout | None, effects: Sequence[Effect], *, is_transition: bool
    ) -> tuple[list[OutboxEntry], tuple[str, bytes] | None]:
        """Return the outbox fields of a save, the new document first, and the answer to keep for a repeated command."""
        messages: list[Message] = [after] if is_transition and after is not None else []
        messages += [effect for effect in effects if not isinstance(effect, AskAdvice)]
        entries: list[OutboxEntry] = []
        answer: tuple[str, bytes] | None = None
        for n, message in enumerate(messages):
            is_answer = isinstance(message, AnswerCommand)
            effect_id = message.command_id if isinstance(message, AnswerCommand) else self._effect_id(after, n)
            entry = replace(self._entry(message, after, effect_id), field=f"outbox:{(self._token + 1) * EFFECTS_PER_SAVE + n}")
            entries.append(entry)
            if is_answer:
                answer = (effect_id, entry.value)
        return entries, answer

    def _entry(self, message: Message, rollout: Rollout | None, effect_id: str) -> OutboxEntry:
        return self._tools.encode(message, self.flag_key, rollout, effect_id, self._now())

    async def _is_answered(self, command: CommandReceived | CommandUnusable) -> bool:
        """Give a repeated command the answer it got the first time."""
        answer = await self._persistently(lambda: self._tools.rollouts.answer_to(self.flag_key, command.command_id))
        if answer is None:
            return False
        self._log.info("command_repeated", command_id=command.command_id)
        self._send([OutboxEntry("", command.command_id, "results", self.flag_key, answer)])
        return True

    # --- recovery -----------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Read what is stored. A newer document in the state topic wins: Redis may have lost its last second, or everything."""
        stored = await self._persistently(lambda: self._tools.rollouts.load(self.flag_key))
        known = self._tools.newest_known(self.flag_key)
        while known is not None and (stored.rollout is None or known.revision > stored.rollout.revision):
            self._log.warning("recovered_from_state_topic", revision=known.revision, token=stored.token)
            await self._persistently(
                partial(self._tools.rollouts.save, self.flag_key, expected_token=stored.token, rollout=known, tests=b"")
            )
            stored = await self._persistently(lambda: self._tools.rollouts.load(self.flag_key))
        rollout, self._token, self._tests = stored.rollout, stored.token, decode_tests(stored.tests)
        self.rollout = rollout
        self._outbox = deque(entry for entry in self._outbox if not entry.field)  # repeated answers and alerts wait on
        self._send(stored.outbox)
        if rollout is not None:
            self._tools.on_transition(rollout)

    async def _persistently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat an idempotent call to Redis until it answers. Until then nothing is decided: the flag stays where it is."""
        wait = self._tools.retry_seconds
        while True:
            try:
                return await call()
            except StoreUnavailable as trouble:
                self._log.warning("store_unavailable", error=str(trouble), retry_seconds=wait)
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_RETRY_SECONDS)

    async def _heal(self) -> None:
        """Bring times back that a wrong clock wrote: the rollout would stand still until they come.

        Only while the clocks agree: else it may be ours that is wrong.
        """
        while self.rollout is not None:
            now = self._now()
            ahead = seconds_ahead(self.rollout, now)
            if ahead <= AHEAD_AT_MOST_SECONDS or self._tools.why_not_raise() is not None:
                return
            self._log.error("times_brought_back", seconds=round(ahead), revision=self.rollout.revision)
            heard_at = self._tests.heard_at
            heard_at = None if heard_at is None else min(heard_at, now)
            tests = replace(self._tests, heard_at=heard_at)
            if await self._save(healed(self.rollout, now), (), tests):
                return
            await self._load()

    # --- effects ------------------------------------------------------------------------------------------------------

    def _send(self, entries: Sequence[OutboxEntry]) -> None:
        self._outbox.extend(entries)
        self._outbox_wake.set()

    async def _publish_outbox(self) -> None:
        """Publish saved effects in order, and only then forget them. Kafka away means they wait, not that they are lost."""
        wait = self._tools.retry_seconds
        while True:
            if not self._outbox:
                self._publishing_since = None
                self._outbox_wake.clear()
                await self._outbox_wake.wait()
            if self._publishing_since is None:
                self._publishing_since = self._tools.clock.monotonic()
            batch = list(self._outbox)
            try:
                await self._tools.publisher.publish(batch)
                fields = [entry.field for entry in batch if entry.field]
                if fields:
                    await self._tools.rollouts.settle(self.flag_key, fields)
            except (EventLogUnavailable, StoreUnavailable) as trouble:
                self._log.warning("outbox_waits", error=str(trouble), entries=len(self._outbox), retry_seconds=wait)
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_RETRY_SECONDS)
                continue
            wait = self._tools.retry_seconds
            self._publishing_since = None
            done = {id(entry) for entry in batch}
            self._outbox = deque(entry for entry in self._outbox if id(entry) not in done)

    def _ask(self, tasks: asyncio.TaskGroup, question: AskAdvice) -> None:
        """Put the question in a task of its own: a hanging model delays nothing but its own gate."""
        assert self.rollout is not None
        tasks.create_task(self._advise(self.rollout, question), name=f"advice:{self.flag_key}")

    async def _advise(self, rollout: Rollout, question: AskAdvice) -> None:
        """Turn whatever the model does into one event, at the deadline at the latest."""
        seconds = (question.until - self._now()).total_seconds()
        event: AdviceReceived | AdviceUnavailable
        try:
            async with asyncio.timeout(seconds):
                advice = await self._tools.advisor.ask(rollout, question)
            event = AdviceReceived(self._now(), question.gate_id, question.round, advice)
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
            event = AdviceUnavailable(self._now(), question.gate_id, question.round, why)
            self._log.warning("advice_unavailable", gate_id=question.gate_id, error=why)
            self._tools.metrics.advice.of("unavailable").inc()
        self.submit(event)

    # --- reports ------------------------------------------------------------------------------------------------------

    def _note(self, before: Rollout | None, effects: Sequence[Effect]) -> None:
        """Write one canonical line per decision, and count."""
        for effect in effects:
            match effect:
                case PublishDecision():
                    self._tools.metrics.decisions.of(effect.kind).inc()
                    self._log.info("decision_made", **decision_line(effect, self.rollout))
                    self._note_advice(effect)
                case AnswerCommand():
                    self._tools.metrics.commands.of(effect.verb or UNKNOWN_VERB, effect.status).inc()
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
            self._tools.metrics.gate_duration_seconds.observe((after.updated_at - before.phase.since).total_seconds())

    def _note_advice(self, decision: PublishDecision) -> None:
        """Keep the last advice of each gate, and count it as right or wrong once the evidence has ended the rollout."""
        if decision.kind is DecisionKind.START:
            self._advised.clear()
        if decision.advice is not None and decision.gate_id is not None:
            self._advised[decision.gate_id] = decision.advice.choice
        if is_outcome(decision.kind, decision.issuer):
            for choice in self._advised.values():
                self._tools.metrics.advice_agreement.of(choice, "yes" if agrees(choice, decision.kind) else "no").inc()
            self._advised.clear()

    def _effect_id(self, rollout: Rollout | None, n: int | str) -> str:
        return f"{self.flag_key}/{0 if rollout is None else rollout.revision}/{n}"

    def _now(self) -> datetime:
        return self._tools.clock.now()


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
        line |= {"rollout_id": rollout.rollout_id, "revision": rollout.revision, "phase": rollout.phase.name}
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
                    "estimates": {arm.value: summary.estimate for arm, summary in metric.arms.items()},
                }
                for metric in seen.metrics
            },
            "exposed_contexts": seen.harm.exposed_contexts,
            "failed_requests": seen.harm.failed_requests,
            "offsets": dict(seen.offsets),
        }
    return line
