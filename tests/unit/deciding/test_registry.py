"""Every listener receives the newest document of a flag, and no older one."""

from __future__ import annotations

from collections.abc import Sequence

from controller.core.rollout import Rollout
from controller.deciding.registry import RolloutRegistry
from tests.builders import make_plan, make_rollout


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
