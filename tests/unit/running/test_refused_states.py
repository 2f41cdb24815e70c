"""Records of the state topic that are of no use, as faults with a fix that can be carried out."""

from __future__ import annotations

from controller.cli.operator_client import NewestRollouts
from controller.codec.rollouts import state_event
from controller.codec.tombstones import DELETED
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults, Scope
from controller.running.flag_faults import RefusedStates
from tests.builders import T0, make_rollout
from tests.unit.adapters.kafka.test_state_feed import FakeRecord


def test_a_stray_record_of_no_rollout_is_deleted_by_whoever_wrote_it() -> None:
    """No decision follows about such a flag, so none writes a good record."""
    registry, faults = RolloutRegistry(), Faults(lambda: T0)
    registry.update(rollout := make_rollout())
    refused = RefusedStates(registry, faults, topic="rollout.state")
    refused.report({"stray": "no state record", rollout.flag_key: "no state record"})
    stray, known = faults.of(Scope.FLAG, "stray"), faults.of(Scope.FLAG, rollout.flag_key)
    assert stray is not None
    assert "write one with the same key and no value" in stray.fix
    assert known is not None
    assert "the next decision about the flag writes a good one" in known.fix
    refused.report({"stray": DELETED, rollout.flag_key: DELETED})
    assert faults.of(Scope.FLAG, "stray") is None, "it was deleted as the fix says"
    assert faults.of(Scope.FLAG, rollout.flag_key) is not None, "its document is gone"


def test_rolloutctl_no_longer_names_a_stray_record_that_was_deleted() -> None:
    """A rollout that was decided stays, also where its record is deleted by somebody else."""
    newest, rollout = NewestRollouts(), make_rollout()
    document = state_event(rollout, "e", T0)
    newest.update(FakeRecord(rollout.flag_key.encode(), document))
    for key in (b"stray", rollout.flag_key.encode()):
        newest.update(FakeRecord(key, b"{}"))
        newest.update(FakeRecord(key, None))
    assert list(newest.unreadable) == [rollout.flag_key]
    assert list(newest.rollouts) == [rollout.flag_key]
