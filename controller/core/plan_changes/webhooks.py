"""What a change of the gate webhooks of a running plan does."""

from __future__ import annotations

from collections.abc import Iterator

from controller.core.plan import GateWebhook, Plan
from schemas.terms import ChangeEffect


def webhook_changes(old: Plan, new: Plan) -> Iterator[tuple[str, str, str, ChangeEffect]]:
    """Yield endpoint, words of before and after, and effect of each gate webhook that changes.

    They can only hold, stop or lower, so one that is left out voids no evidence.
    """
    before = {one.endpoint: one for one in old.gate_webhooks}
    after = {one.endpoint: one for one in new.gate_webhooks}
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        is_looser = one is not None and (other is None or _is_milder(one, other))
        effect = ChangeEffect.NEEDS_REASON if is_looser else ChangeEffect.AT_ONCE
        yield name, "" if one is None else one.words, "" if other is None else other.words, effect


def _is_milder(old: GateWebhook, new: GateWebhook) -> bool:
    """Return whether `fail` does less than before."""
    return new.on_fail.strength < old.on_fail.strength
