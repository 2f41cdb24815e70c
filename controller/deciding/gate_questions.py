"""Asks the gate webhooks of the rollouts that run here, and keeps the newest replies.

A webhook is asked while its gate is open and everything that is measured passes, and asked again
every so often until the gate is over. Nothing is saved: after a crash it is asked once more. Each
question has its own deadline and its own task, so that one that hangs delays no other, and nothing
waits for a reply: a breach is found and acted on meanwhile.

Belongs here: when a webhook is asked, and which replies are kept. Does not belong here: how it is
asked (`adapters/gate_webhooks.py`), which replies count (`core/judging/webhooks.py`) and what they
lead to (`core/machine/`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

import structlog

from controller.cancellation import task_group
from controller.core.evidence import WebhookReply
from controller.core.judging.judgement import Judgement
from controller.core.judging.webhooks import is_about
from controller.core.machine.obstacles import asks_webhooks
from controller.core.rollout import Gating, Rollout
from controller.errors import NotAnswered
from controller.ports import Clock, GateWebhooks
from schemas.terms import HealthGap

#: How often it is looked what is due.
LOOK_SECONDS: Final = 0.25
_MOST_WORDS: Final = 200

log = structlog.get_logger(__name__)


Judged = Mapping[str, tuple[Rollout, Judgement]]
"""Rollouts that run here, as saved last, with their newest judgement, by flag."""


class GateQuestions:
    """The newest replies for the rollouts that run here."""

    def __init__(self, webhooks: GateWebhooks, judged: Callable[[], Judged], clock: Clock) -> None:
        """`judged` returns the rollouts that run here and wait at a gate that has webhooks."""
        self._webhooks = webhooks
        self._judged = judged
        self._clock = clock
        self._replies: dict[tuple[str, str], WebhookReply] = {}  # by flag and endpoint
        self._asked: set[tuple[str, str]] = set()  # under way

    def of(self, rollout: Rollout) -> Mapping[str, WebhookReply]:
        """Return the newest reply of each gate webhook of a rollout's plan, by endpoint."""
        keys = {
            one.endpoint: (rollout.flag_key, one.endpoint) for one in rollout.plan.gate_webhooks
        }
        return {name: self._replies[key] for name, key in keys.items() if key in self._replies}

    async def run(self) -> None:
        """Ask what is due until cancelled."""
        self._asked.clear()
        async with task_group() as questions:
            while True:
                judged = self._judged()
                self._forget(judged)
                now = self._clock.now()
                for flag_key, (rollout, judgement) in judged.items():
                    for endpoint in self._due(rollout, judgement, now):
                        self._asked.add((flag_key, endpoint))
                        question = self._ask(rollout, judgement, endpoint)
                        questions.create_task(question, name="gate webhook")
                await asyncio.sleep(LOOK_SECONDS)

    def _forget(self, judged: Judged) -> None:
        """Forget the replies about gates and plans that are over, and of flags that run elsewhere.

        So the webhooks of a gate that goes on under another plan are asked again at once.
        """
        for (flag_key, endpoint), reply in list(self._replies.items()):
            if flag_key not in judged or not is_about(reply, judged[flag_key][0]):
                del self._replies[flag_key, endpoint]

    def _due(self, rollout: Rollout, judgement: Judgement, now: datetime) -> list[str]:
        """Return the endpoints that are to be asked about a rollout now."""
        if not asks_webhooks(rollout, judgement, now):
            return []
        due = []
        for webhook in rollout.plan.gate_webhooks:
            key = (rollout.flag_key, webhook.endpoint)
            last = self._replies.get(key)
            if key not in self._asked and (last is None or now - last.at >= webhook.every):
                due.append(webhook.endpoint)
        return due

    async def _ask(self, rollout: Rollout, judgement: Judgement, endpoint: str) -> None:
        """Ask once, and keep the reply if it still is about what it was asked about."""
        gate, flag_key = rollout.phase, rollout.flag_key
        assert isinstance(gate, Gating)
        key = (flag_key, endpoint)
        try:
            reply = await self._reply(endpoint, rollout, gate, judgement)
            now, _ = self._judged().get(flag_key, (None, None))
            if now is None or not _is_same(rollout, now):
                log.info("gate_reply_ignored", flag_key=flag_key, reply=str(reply))
                return
            self._keep(key, reply)
        finally:
            self._asked.discard(key)

    def _keep(self, key: tuple[str, str], reply: WebhookReply) -> None:
        before = self._replies.get(key)
        self._replies[key] = reply
        if before is None or (before.answer, before.gap) != (reply.answer, reply.gap):
            log.info(
                "gate_webhook_replied",
                flag_key=key[0],
                gate_id=reply.gate_id,
                endpoint=reply.endpoint,
                answer=reply.answer,
                gap=reply.gap,
                words=reply.words,
            )

    async def _reply(
        self, endpoint: str, rollout: Rollout, gate: Gating, judgement: Judgement
    ) -> WebhookReply:
        at, about = self._clock.now(), (endpoint, gate.gate_id, rollout.plan.version)
        try:
            answer, reason = await self._webhooks.ask(endpoint, rollout, gate, judgement, at)
        except NotAnswered as trouble:
            return WebhookReply(*about, at, None, trouble.gap, str(trouble))
        except Exception as mistake:  # ours: the other webhooks go on, and this one is a gap
            log.exception("gate_webhook_failed", endpoint=endpoint)
            words = repr(mistake)[:_MOST_WORDS]
            gap = HealthGap.WEBHOOK_NO_ANSWER
            return WebhookReply(*about, at, None, gap, words)
        return WebhookReply(*about, at, answer, None, reason)


def _is_same(asked: Rollout, now: Rollout) -> bool:
    """Return whether a reply about the rollout as it was asked about may count for it now.

    A reply that comes late is about a gate that is over, or about a revision that is: then the
    webhook is asked again at once.
    """
    return (asked.rollout_id, asked.revision) == (now.rollout_id, now.revision)
