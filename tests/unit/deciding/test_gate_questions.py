"""Asking gate webhooks: when, how often, and which replies are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

from controller.core.judging.judgement import Gap, Judgement
from controller.core.plan import GateWebhook
from controller.core.rollout import Baking, Gating, Rollout
from controller.deciding.gate_questions import GateQuestions
from schemas.terms import GateAnswer, HealthGap
from tests.builders import HOUR, T0, make_judgement, make_plan, make_rollout
from tests.gate_webhooks import Webhooks
from tests.virtual_time import LoopClock, in_virtual_time

SECOND = timedelta(seconds=1)
GATE = Gating(0, "gate-1", T0, T0 + HOUR)


def at_gate(*endpoints: str, flag_key: str = "f", every: timedelta = 10 * SECOND) -> Rollout:
    """Return a rollout at a gate with these webhooks."""
    webhooks = tuple(GateWebhook(one, every) for one in endpoints)
    plan = make_plan(flag_key=flag_key, gate_webhooks=webhooks)
    return make_rollout(plan=plan, phase=GATE, updated_at=T0)


class Running:
    """The rollouts that run here, with evidence that passes."""

    def __init__(self, *rollouts: Rollout) -> None:
        self.judged: dict[str, tuple[Rollout, Judgement]] = {}
        for one in rollouts:
            self.put(one)

    def put(self, rollout: Rollout, *gaps: HealthGap) -> None:
        """Let a rollout be as given, as after a save."""
        judgement = make_judgement(gaps=tuple(Gap(kind, "a gap") for kind in gaps))
        self.judged[rollout.flag_key] = (rollout, judgement)


@asynccontextmanager
async def asking(webhooks: Webhooks, running: Running) -> AsyncIterator[GateQuestions]:
    """Yield questions that are asked meanwhile."""
    questions = GateQuestions(webhooks, lambda: running.judged, LoopClock())
    task = asyncio.create_task(questions.run())
    yield questions
    task.cancel()
    await asyncio.wait({task})


@in_virtual_time
async def test_each_webhook_is_asked_at_once_and_then_every_so_often() -> None:
    """Also while it answers nothing of use: it may do so the next time."""
    webhooks = Webhooks({"a": GateAnswer.HOLD, "b": HealthGap.WEBHOOK_HTTP_ERROR})
    rollout = at_gate("a", "b")
    async with asking(webhooks, Running(rollout)) as questions:
        await asyncio.sleep(31)
        replies = questions.of(rollout)
    assert [one[0] for one in webhooks.asked].count("a") == 4
    assert [one[0] for one in webhooks.asked].count("b") == 4
    assert replies["a"].answer is GateAnswer.HOLD
    assert (replies["b"].answer, replies["b"].gap) == (None, HealthGap.WEBHOOK_HTTP_ERROR)


@in_virtual_time
async def test_one_that_hangs_delays_no_other() -> None:
    """Neither of the same flag nor of another, and it is not asked twice meanwhile."""
    webhooks = Webhooks({"a": GateAnswer.PASS})
    one, other = at_gate("hangs", "a"), at_gate("a", flag_key="g")
    async with asking(webhooks, Running(one, other)) as questions:
        await asyncio.sleep(25)
        assert questions.of(one).keys() == {"a"}
        assert questions.of(other).keys() == {"a"}
    assert [asked[0] for asked in webhooks.asked].count("hangs") == 1
    assert [asked[0] for asked in webhooks.asked].count("a") == 6


@in_virtual_time
async def test_nothing_is_asked_before_everything_measured_passes() -> None:
    """Not in a bake, not while there is a gap of another kind."""
    webhooks = Webhooks({"a": GateAnswer.PASS})
    rollout = at_gate("a")
    running = Running(replace(rollout, phase=Baking(0, T0 + HOUR)))
    async with asking(webhooks, running):
        await asyncio.sleep(5)
        running.put(rollout, HealthGap.STALE)
        await asyncio.sleep(5)
        assert webhooks.asked == []
        running.put(rollout, HealthGap.WEBHOOK_NO_ANSWER)
        await asyncio.sleep(1)
    assert webhooks.asked == [("a", "gate-1", rollout.revision)]


class Late(Webhooks):
    """Answers when the test says so."""

    def __init__(self) -> None:
        super().__init__({"a": GateAnswer.PASS})
        self.gate = asyncio.Event()

    async def ask(self, *args: object) -> tuple[GateAnswer, str]:
        """Return `pass`, later."""
        answer = await super().ask(*args)  # type: ignore[arg-type]
        await self.gate.wait()
        return answer


@in_virtual_time
async def test_a_late_answer_about_what_is_over_is_ignored() -> None:
    """Another gate, another revision, another rollout, and a flag that runs elsewhere now."""
    rollout = at_gate("a")
    later = replace(rollout, phase=replace(GATE, gate_id="gate-2"), revision=rollout.revision + 2)
    held = replace(rollout, revision=rollout.revision + 1)
    restarted = replace(rollout, rollout_id="another")
    for now in (later, held, restarted, None):
        webhooks, running = Late(), Running(rollout)
        async with asking(webhooks, running) as questions:
            await asyncio.sleep(1)
            running.judged.clear()
            if now is not None:
                running.put(now)
            webhooks.gate.set()
            await asyncio.sleep(0.1)
            assert questions.of(rollout) == {}
            await asyncio.sleep(1)  # and what it is now is asked about, at once
            assert len(webhooks.asked) == (1 if now is None else 2)


@in_virtual_time
async def test_what_was_heard_of_a_gate_that_is_over_is_forgotten() -> None:
    """The next gate of the same flag is asked about for itself."""
    webhooks, rollout = Webhooks({"a": GateAnswer.PASS}), at_gate("a")
    running = Running(rollout)
    async with asking(webhooks, running) as questions:
        await asyncio.sleep(1)
        assert questions.of(rollout)["a"].gate_id == "gate-1"
        running.put(replace(rollout, phase=replace(GATE, gate_id="gate-2")))
        await asyncio.sleep(1)
        assert questions.of(rollout)["a"].gate_id == "gate-2"
        running.put(replace(rollout, phase=Baking(1, T0 + HOUR)))
        await asyncio.sleep(1)
        assert questions.of(rollout) == {}


@in_virtual_time
async def test_a_gate_that_goes_on_under_another_plan_is_asked_about_at_once() -> None:
    """However much of `every` is left; a freeze or a hold changes nothing that is asked."""
    webhooks, rollout = Webhooks({"a": GateAnswer.PASS}), at_gate("a", every=HOUR)
    running = Running(rollout)
    async with asking(webhooks, running) as questions:
        await asyncio.sleep(1)
        running.put(replace(rollout, revision=2))
        await asyncio.sleep(1)
        assert len(webhooks.asked) == 1
        applied = replace(rollout, plan=replace(rollout.plan, version="another"), revision=3)
        running.put(applied)
        await asyncio.sleep(1)
        assert questions.of(applied)["a"].plan_version == "another"
    assert [asked[2] for asked in webhooks.asked] == [rollout.revision, 3]


class Broken(Webhooks):
    """Has a mistake of ours."""

    async def ask(self, *args: object) -> tuple[GateAnswer, str]:
        """Raise what no adapter should."""
        if args[0] == "broken":
            raise KeyError("x")
        return await super().ask(*args)  # type: ignore[arg-type]


@in_virtual_time
async def test_a_mistake_of_ours_is_a_gap_and_no_pass() -> None:
    """The loop goes on, and the other webhooks are asked."""
    rollout = at_gate("broken", "a")
    async with asking(Broken({"a": GateAnswer.PASS}), Running(rollout)) as questions:
        await asyncio.sleep(1)
        replies = questions.of(rollout)
    assert replies["a"].answer is GateAnswer.PASS
    assert (replies["broken"].answer, replies["broken"].gap) == (
        None,
        HealthGap.WEBHOOK_NO_ANSWER,
    )
