"""What people are told."""

import json

from controller.codec.alerts import alert_event
from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Harm
from schemas.alert import Alert
from schemas.terms import AlertKind, Severity
from tests.builders import T0, make_judgement, make_rollout


def test_alert_carries_what_the_rollout_has_cost() -> None:
    """An alert says how many contexts saw treatment and how many of their requests failed."""
    harm = Harm(exposed_contexts=1000, failed_requests=40, excess_failed_requests=30.5)
    effect = RaiseAlert(
        kind=AlertKind.ROLLED_BACK,
        severity=Severity.CRITICAL,
        summary="new-checkout rolled back",
        action="look at the release",
        dedup_key="new-checkout/start-1/rolled_back",
        judgement=make_judgement(harm=harm),
    )
    alert = Alert.model_validate(
        json.loads(alert_event(effect, make_rollout(), "new-checkout/1/0", T0))["data"]
    )
    assert alert.harm is not None
    assert alert.harm.model_dump() == {
        "exposed_contexts": 1000,
        "failed_requests": 40,
        "excess_failed_requests": 30.5,
    }
    assert alert.percent == 10.0
