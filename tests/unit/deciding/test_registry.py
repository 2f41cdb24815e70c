"""Every listener receives the newest document of a flag, and no older one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controller.core.rollout import Retired, Rollout
from controller.deciding.registry import RolloutRegistry
from tests.builders import T0, make_plan, make_rollout


class Own:
    """What runs here, as a listener receives it."""

    def __init__(self) -> None:
        self.requested: list[int] = []
        self.dropped: list[str] = []

    def request(self, rollout: Rollout) -> None:
        """Note a document."""
        self.requested.append(rollout.revision)

    def drop(self, flag_keys: Sequence[str]) -> None:
        """Note flags that left."""
        self.dropped += flag_keys


def test_listeners_receive_the_newest_document_in_order() -> None:
    """An older document than the known one reaches nobody; the same revision does."""
    registry, received = RolloutRegistry(), list[tuple[str, int]]()
    registry.subscribe(lambda rollout: received.append(("first", rollout.revision)))
    registry.subscribe(lambda rollout: received.append(("second", rollout.revision)))
    for revision in (2, 1, 2, 3):
        registry.update(make_rollout(revision=revision))
    assert received == [(name, revision) for revision in (2, 2, 3) for name in ("first", "second")]
    newest = registry.newest("new-checkout")
    assert newest is not None
    assert newest.revision == 3
    assert registry.newest("other") is None


def test_what_runs_here_reaches_its_listeners_too() -> None:
    """A document of another replica does not; a flag that left is dropped."""
    registry, own = RolloutRegistry(), Own()
    registry.subscribe_own(own)
    registry.update(make_rollout(revision=1))
    registry.update_own(make_rollout(revision=2))
    registry.release("new-checkout")
    assert (own.requested, own.dropped) == ([2], ["new-checkout"])


def test_flags_in_the_store_are_known_before_their_documents() -> None:
    """Their commands are commands of flags that exist."""
    registry = RolloutRegistry()
    registry.add_stored_flags(["b"])
    registry.update(make_rollout(plan=make_plan(flag_key="a")))
    assert registry.flag_keys == ["a", "b"]


def test_an_overtaken_document_is_published_again() -> None:
    """Whoever can publish it is called with the flag."""
    registry, flags = RolloutRegistry(), list[str]()
    registry.on_overtaken(flags.append)
    registry.republish("new-checkout")
    assert flags == ["new-checkout"]


def test_a_retired_flag_is_let_go_and_late_documents_are_refused() -> None:
    """Whoever serves or counts is told once; only a newer rollout brings the flag back."""
    registry = RolloutRegistry()
    given: list[int] = []
    retired: list[tuple[str, int]] = []
    registry.subscribe(lambda rollout: given.append(rollout.revision))
    registry.on_retired(lambda flag_key, revision: retired.append((flag_key, revision)))
    registry.update(make_rollout(revision=4))
    registry.retire("new-checkout", 5)
    registry.retire("new-checkout", 5)
    registry.update(make_rollout(revision=4))
    assert registry.newest("new-checkout") is None
    assert registry.flag_keys == []
    assert retired == [("new-checkout", 5)]
    assert registry.retired_revision("new-checkout") == 5
    registry.update(make_rollout(revision=6))
    registry.retire("new-checkout", 5)  # late, too
    assert given == [4, 6]
    assert registry.newest("new-checkout") is not None
    assert registry.retired_revision("new-checkout") is None


def test_a_document_that_is_retired_retires_its_flag() -> None:
    """Redis may have it before the state topic has the tombstone."""
    registry = RolloutRegistry()
    registry.update(make_rollout(revision=4))
    registry.update(make_rollout(revision=5, percent=0.0, phase=Retired(T0, "because")))
    assert registry.newest("new-checkout") is None
    assert registry.retired_revision("new-checkout") == 5


def test_whoever_lists_the_flags_learns_that_they_have_changed() -> None:
    """A new revision changes no list; a flag that comes or goes does."""
    registry = RolloutRegistry()
    changes: list[Callable[[], object]] = [
        lambda: registry.update(make_rollout(revision=1)),
        lambda: registry.add_stored_flags(["b"]),
        lambda: registry.drop_stored("b"),
        lambda: registry.retire("new-checkout", 3),
        lambda: registry.update(make_rollout(revision=4)),
    ]
    for change in changes:
        before, known = registry.flags_version, registry.flag_keys
        change()
        assert registry.flag_keys != known
        assert registry.flags_version > before
    before = registry.flags_version
    registry.update(make_rollout(revision=5))
    assert registry.flags_version == before
