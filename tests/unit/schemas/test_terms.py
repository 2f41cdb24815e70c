"""Terms whose members have an order that decisions rely on."""

from __future__ import annotations

from schemas.terms import MetricRole, OnBreach, SignalAction


def test_what_does_more_is_stronger() -> None:
    """The order is that of the members: it is stated here once more, because it decides."""
    in_order = sorted(OnBreach, key=lambda action: action.strength)
    assert in_order == [OnBreach.PAUSE, OnBreach.STEP_BACK, OnBreach.ROLL_BACK]
    roles = sorted(MetricRole, key=lambda role: role.strength)
    assert roles == [MetricRole.OBSERVE, MetricRole.SIGNAL, MetricRole.GUARDRAIL]
    by_signal = sorted(SignalAction, key=lambda action: action.strength)
    assert by_signal[2:] == [SignalAction(action.value) for action in in_order]
    assert SignalAction.NOTE.strength == 0
