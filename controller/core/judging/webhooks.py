"""Gate webhooks: which replies count for the open gate, and what is a gap.

A reply counts for the gate and the plan that it was asked about, and not for long: an endpoint that
stops answering has said nothing about now. What an answer leads to is the state machine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from controller.core.evidence import Evidence, WebhookReply
from controller.core.judging.judgement import Gap
from controller.core.rollout import Gating, Rollout
from schemas.terms import HealthGap

#: Without another reply for so many times `every`, the last one says nothing about now.
_OLD_AFTER: Final = 3


def is_about(reply: WebhookReply, rollout: Rollout) -> bool:
    """Return whether a reply is about the gate that is open now, under the plan it has now.

    Other revisions of one gate, as by a freeze or a hold, ask the same question.
    """
    gate = rollout.phase
    return (
        isinstance(gate, Gating)
        and reply.gate_id == gate.gate_id
        and reply.plan_version == rollout.plan.version
    )


def current_replies(rollout: Rollout, evidence: Evidence, at: datetime) -> tuple[WebhookReply, ...]:
    """Return the replies about the open gate, in the plan's order; none outside a gate."""
    if rollout.closed_since is not None:
        return ()
    return tuple(
        reply
        for webhook in rollout.plan.gate_webhooks
        if (reply := evidence.replies.get(webhook.endpoint)) is not None
        and is_about(reply, rollout)
        and at - reply.at <= _OLD_AFTER * webhook.every
    )


def webhook_gaps(replies: tuple[WebhookReply, ...]) -> Iterator[Gap]:
    """Yield one gap for each kind of trouble with the webhooks."""
    found: dict[HealthGap, list[str]] = {}
    for reply in replies:
        if reply.gap is not None:
            found.setdefault(reply.gap, []).append(str(reply))
    for kind, details in found.items():
        yield Gap(kind, "; ".join(details))
