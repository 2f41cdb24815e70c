"""The flag workers of this replica: started, restarted after a mistake of ours, and stopped."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Gating, Retired, Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.flag_worker import FlagWorker
from controller.deciding.flag.outbox import EffectEncoder
from controller.errors import DocumentUnreadable
from controller.health import Scope
from schemas.terms import AlertKind, Severity

#: A worker that stopped by a mistake of ours is restarted after this: its flag must not stay
#: without guardrails. Each failure in a row doubles it. A command that lowers does not wait for it.
WORKER_RESTART_SECONDS = 5.0
LONGEST_RESTART_SECONDS = 300.0
#: A worker that ran for this long works: its fault is over. Longer than most mistakes need to show.
STEADY_SECONDS = 10.0
#: A failure this long after the one before begins a new row.
NEW_ROW_SECONDS = 600.0
#: Kafka may take this long for the alert that a worker stopped; the next failure tries again.
ALERT_SECONDS = 5.0
#: The reporter of stopped workers, which alone clears them.
_WORKER = "worker"


class FlagStandsStill(Exception):
    """A flag's stored state cannot be read, so that what waits for its worker waits in vain."""


@dataclass(slots=True)
class WorkerRun:
    """A flag's worker, and how it does."""

    worker: FlagWorker
    task: asyncio.Task[None] | None = None
    failures: int = 0  # in a row
    failed_at: float | None = None  # monotonic seconds
    restarted_at: float | None = None  # since when it runs after a failure, until that is over
    is_alerted: bool = False
    standing_still: str = ""  # why it can do nothing at all, not even refuse


class WorkerPool:
    """Runs one worker for each flag of this replica."""

    def __init__(self, dependencies: WorkerDependencies) -> None:
        self._dependencies = dependencies
        self._clock = dependencies.clock
        self._runs: dict[str, WorkerRun] = {}
        #: Kept up to date by the workers: several loops ask for them each second.
        self._rollouts: dict[str, Rollout] = {}
        self._at_gates_with_webhooks: set[str] = set()
        self._with_external: dict[str, Rollout] = {}
        #: Grows with each flag that begins to run here, or runs here no longer.
        self.version = 0
        self._broken: dict[str, str] = {}
        #: Flags whose worker had effects to publish, or trouble with the store, when asked last.
        self._restless: set[str] = set()
        self._restarted: set[str] = set()  # flags whose worker runs again after a failure
        self._group: asyncio.TaskGroup | None = None
        self._stop_listeners: list[Callable[[str], None]] = []
        self._news_listeners: list[Callable[[str], None]] = []
        self._logger = structlog.get_logger()

    # --- what others see ---

    def __contains__(self, flag_key: str) -> bool:
        """Return whether a flag runs here."""
        return flag_key in self._runs

    @property
    def flag_keys(self) -> Sequence[str]:
        """The flags that run here; a copy."""
        return list(self._runs)

    @property
    def broken(self) -> Mapping[str, str]:
        """Flags whose worker stopped by a mistake of ours, with the mistake."""
        return dict(self._broken)

    @property
    def unsaved(self) -> Mapping[str, str]:
        """Flags of which nothing is decided because the store fails, with the reason."""
        reasons = ((worker.flag_key, worker.unsaved) for worker in self._restless_workers())
        return {key: why for key, why in reasons if why is not None}

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The rollouts that run here, without those of flags that were retired."""
        return dict(self._rollouts)

    @property
    def with_external_metrics(self) -> Mapping[str, Rollout]:
        """Those whose plan has metrics that a monitoring system measures; mostly few."""
        return dict(self._with_external)

    @property
    def judgements(self) -> Mapping[str, tuple[Rollout, Judgement]]:
        """The newest judgement of the present visit of each rollout that is in a stage here."""
        return self._judged(self._runs)

    @property
    def judged_gates(self) -> Mapping[str, tuple[Rollout, Judgement]]:
        """Those of rollouts with gate webhooks that wait at a gate."""
        return self._judged(self._at_gates_with_webhooks)

    def _judged(self, flag_keys: Iterable[str]) -> Mapping[str, tuple[Rollout, Judgement]]:
        present = {}
        for key in flag_keys:
            worker = self.worker(key)
            if worker is None:
                continue
            rollout, judgement = worker.rollout, worker.judgement
            if rollout is None or judgement is None or rollout.stage_index is None:
                continue
            if judgement.at >= rollout.started_at and judgement.visit == rollout.visit_index:
                present[key] = (rollout, judgement)
        return present

    @property
    def pending_effects(self) -> int:
        """Effects saved and not yet published, over all flags."""
        return sum(len(worker.outbox) for worker in self._restless_workers())

    @property
    def outbox_seconds(self) -> float:
        """For how long the oldest of them has been tried."""
        return max((worker.outbox.seconds for worker in self._restless_workers()), default=0.0)

    def _restless_workers(self) -> Sequence[FlagWorker]:
        """Return the workers that wait for Kafka or Redis; most wait for nothing."""
        restless = [
            run.worker
            for flag_key in self._restless
            if (run := self._runs.get(flag_key)) is not None and not run.worker.is_at_rest
        ]
        self._restless.intersection_update([worker.flag_key for worker in restless])
        return restless

    def worker(self, flag_key: str) -> FlagWorker | None:
        """Return the worker of a flag that runs here."""
        run = self._runs.get(flag_key)
        return None if run is None else run.worker

    def judgement_of(self, flag_key: str) -> Judgement | None:
        """Return the newest judgement of a flag's present rollout; None when it runs elsewhere."""
        worker = self.worker(flag_key)
        if worker is None or worker.judgement is None or worker.rollout is None:
            return None
        return worker.judgement if worker.judgement.at >= worker.rollout.started_at else None

    # --- messages to a worker ---

    def alert(self, flag_key: str, alert: RaiseAlert) -> None:
        """Publish an alert about a flag that runs here."""
        worker = self.worker(flag_key)
        if worker is not None:
            worker.alert(alert)

    def alert_about(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Publish an alert about a rollout, unless its flag has begun another since."""
        worker = self.worker(rollout.flag_key)
        present = None if worker is None else worker.rollout
        if worker is not None and present is not None and present.rollout_id == rollout.rollout_id:
            worker.alert(alert)

    def republish_state(self, flag_key: str) -> None:
        """Publish a flag's document again: the state topic ends with an older one, or with none."""
        worker = self.worker(flag_key)
        if worker is not None:
            worker.republish_state()

    def on_stop(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each flag that runs here no longer."""
        self._stop_listeners.append(listener)

    def on_news(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each flag that has another rollout document, or is judged again."""
        self._news_listeners.append(listener)

    def _tell_news(self, flag_key: str) -> None:
        for listener in self._news_listeners:
            listener(flag_key)

    # --- starting and stopping ---

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Start workers in this group from now on. Those of a group before are gone."""
        for flag_key, run in list(self._runs.items()):
            del self._runs[flag_key]
            self.version += 1
            self._follow(flag_key, None)
            self._leave(flag_key, run)
        self._group = group

    def start(self, flag_key: str) -> WorkerRun:
        """Return a flag's worker, started unless it runs."""
        run = self._runs.get(flag_key)
        if run is None:
            assert self._group is not None
            worker = FlagWorker(
                flag_key,
                self._dependencies,
                on_rollout=partial(self._follow, flag_key),
                on_judgement=partial(self._tell_news, flag_key),
                on_waiting=partial(self._restless.add, flag_key),
            )
            run = self._runs[flag_key] = WorkerRun(worker)
            self.version += 1
            work = self._keep_running(flag_key, run)
            run.task = self._group.create_task(work, name=f"worker:{flag_key}")
        return run

    async def stop(self, flag_key: str) -> None:
        """Stop a worker: another replica runs the flag now."""
        run = self._runs.pop(flag_key)
        self.version += 1
        self._follow(flag_key, None)
        if run.task is not None:
            run.task.cancel()
            await asyncio.wait([run.task])
            run.task = None  # it ends in an error whose frames hold the run: again a cycle
        self._leave(flag_key, run)

    def _follow(self, flag_key: str, rollout: Rollout | None) -> None:
        """Note the rollout that a worker has saved or loaded."""
        if flag_key not in self._runs:
            rollout = None  # its worker is being stopped, and saved once more
        if rollout is None or isinstance(rollout.phase, Retired):
            self._rollouts.pop(flag_key, None)
            self._with_external.pop(flag_key, None)
        else:
            self._rollouts[flag_key] = rollout
            if rollout.plan.external:
                self._with_external[flag_key] = rollout
            else:
                self._with_external.pop(flag_key, None)
        if rollout is not None and isinstance(rollout.phase, Gating) and rollout.plan.gate_webhooks:
            self._at_gates_with_webhooks.add(flag_key)
        else:
            self._at_gates_with_webhooks.discard(flag_key)
        self._tell_news(flag_key)

    def _leave(self, flag_key: str, run: WorkerRun) -> None:
        """Clear what was reported about a flag that runs here no longer."""
        run.worker.abandon()
        self._broken.pop(flag_key, None)
        self._dependencies.faults.clear(Scope.FLAG, flag_key, reporter=_WORKER)
        for listener in self._stop_listeners:
            listener(flag_key)
        self._dependencies.registry.release(flag_key)

    async def _keep_running(self, flag_key: str, run: WorkerRun) -> None:
        """Run a worker. When it fails, report its flag, and start it again from what is stored."""
        while True:
            mistake: BaseException | None = None
            run.worker.inbox.urgent.clear()
            try:
                await run.worker.run()
            except asyncio.CancelledError as end:
                # Its traceback and the frames below hold each other, and they hold the worker. What
                # was frozen (`gc.freeze`) is in no collection: such a cycle would stay for ever.
                traceback.clear_frames(end.__traceback__)
                raise
            except Exception as failure:  # the worker's edge: reported, and restarted
                _clear_groups(failure)
                mistake = _cause(failure)
            wait = self._note_failure(run)
            why, fix = self._explain_failure(flag_key, run, mistake)
            stopped = f"its worker stopped: {why}"
            self._dependencies.faults.report(Scope.FLAG, flag_key, stopped, fix, reporter=_WORKER)
            self._logger.error(
                "worker_stopped",
                flag_key=flag_key,
                error=why,
                failures=run.failures,
                restart_seconds=wait,
                exc_info=mistake,
            )
            await self._alert_once(flag_key, run, why, fix)
            mistake = None  # its traceback holds this frame
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await run.worker.inbox.urgent.wait()
            run.worker.has_failed = True
            self._broken.pop(flag_key, None)
            run.standing_still, run.restarted_at = "", self._clock.monotonic()
            self._restarted.add(flag_key)

    def _note_failure(self, run: WorkerRun) -> float:
        """Count a failure; return the seconds until the worker is started again."""
        now = self._clock.monotonic()
        is_new_row = run.failed_at is None or now - run.failed_at > NEW_ROW_SECONDS
        run.failures = 1 if is_new_row else run.failures + 1
        run.is_alerted = run.is_alerted and not is_new_row
        run.failed_at, run.restarted_at = now, None
        wait = WORKER_RESTART_SECONDS * 2.0 ** min(run.failures - 1, 10)
        return min(wait, LONGEST_RESTART_SECONDS)

    def _explain_failure(
        self, flag_key: str, run: WorkerRun, mistake: BaseException | None
    ) -> tuple[str, str]:
        """Return why a worker stopped, and how to fix it."""
        why = "its worker ended" if mistake is None else repr(mistake)
        self._broken[flag_key] = why
        if not isinstance(mistake, DocumentUnreadable):
            return why, "report it with the log; roll the flag back if it cannot wait"
        why = str(mistake)
        fix = f"rolloutd repair flag {flag_key}, or run the release that wrote it"
        run.standing_still = f"{why}; fix: {fix}"
        run.worker.inbox.fail_all(FlagStandsStill(run.standing_still))
        return why, fix

    async def _alert_once(self, flag_key: str, run: WorkerRun, why: str, fix: str) -> None:
        """Alert that nothing watches a flag: once in a row of failures, past its own outbox."""
        registry = self._dependencies.registry
        rollout = run.worker.rollout or registry.newest(flag_key)
        if run.is_alerted or rollout is None:
            return
        key = f"{flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{AlertKind.FLAG_BROKEN}"
        alert = RaiseAlert(
            AlertKind.FLAG_BROKEN,
            Severity.CRITICAL,
            f"{flag_key} stands at {rollout.served_words} and nobody watches it: {why}",
            fix,
            key,
        )
        encoder = EffectEncoder(flag_key, self._clock, self._dependencies.source)
        try:
            effect_id = f"{key}/{self._clock.now().isoformat()}"
            entry = encoder.encode(alert, rollout, effect_id)
            async with asyncio.timeout(ALERT_SECONDS):
                await self._dependencies.publisher.publish([entry])
        except Exception as trouble:  # Kafka's or ours: the next failure tries again
            self._logger.warning("alert_not_published", flag_key=flag_key, error=repr(trouble))
        else:
            run.is_alerted = True

    def clear_recovered(self) -> None:
        """Clear the fault of each worker that runs again for some time."""
        now = self._clock.monotonic()
        for flag_key in list(self._restarted):
            run = self._runs.get(flag_key)
            if run is None or run.restarted_at is None:  # stopped, or it failed again
                self._restarted.discard(flag_key)
            elif now - run.restarted_at >= STEADY_SECONDS:
                self._restarted.discard(flag_key)
                run.restarted_at = None
                run.worker.has_failed = False
                self._dependencies.faults.clear(Scope.FLAG, flag_key, reporter=_WORKER)


def _clear_groups(failure: BaseException) -> None:
    """Have the frames that a group of exceptions came through forget what they held: also it.

    Not those of the exceptions in it. They are given to whoever waits for the event that failed,
    and clearing the frame of a coroutine that waits would end it.
    """
    if isinstance(failure, BaseExceptionGroup):
        traceback.clear_frames(failure.__traceback__)
        for one in failure.exceptions:
            _clear_groups(one)


def _cause(failure: BaseException) -> BaseException:
    """Return the one exception in a task group's, or the group where there are more."""
    while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]
    return failure
