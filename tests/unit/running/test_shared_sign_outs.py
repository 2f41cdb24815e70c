"""A session that is ended on one replica is over on all, also after an outage of Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from controller.adapters.memory import ManualClock
from controller.errors import StoreUnavailable
from controller.health import Faults, Scope
from controller.running.shared_sign_outs import SIGN_OUTS, SharedSignOuts
from controller.web.access.sessions import Sessions
from controller.web.access.signed_out import MOST_ENDED, SignedOut
from controller.web.access.signing import ValueSigner
from tests.builders import T0

HOUR = timedelta(hours=1)
KEY = b"k" * 32


class Store:
    """What all replicas share, while it is there."""

    def __init__(self) -> None:
        self.sessions: dict[str, int] = {}
        self.is_away = False

    async def write(self, sessions: Mapping[str, int]) -> None:
        """Keep these."""
        self._check()
        self.sessions |= sessions

    async def read(self) -> Mapping[str, int]:
        """Return all."""
        self._check()
        return dict(self.sessions)

    async def drop(self, sessions: Iterable[str]) -> None:
        """Forget these."""
        self._check()
        for session in sessions:
            del self.sessions[session]

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailable("write the signed-out: no answer")


class Replica:
    """One that reads the sessions of all."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.faults = Faults(clock.now)
        self.sessions = Sessions(ValueSigner(KEY), clock.now, HOUR, is_secure=False)
        self.shared = SharedSignOuts(self.sessions.ended, store, clock.now, self.faults)

    def knows(self, cookie: str) -> bool:
        """Return whether a cookie is somebody's session here."""
        return self.sessions.of(request(cookie)) is not None

    def sign_out(self, cookie: str) -> None:
        """End the session of a cookie."""
        who = self.sessions.of(request(cookie))
        assert who is not None
        self.sessions.end(who)


def request(cookie: str) -> dict[str, Any]:
    """Return a request with a cookie."""
    return {"type": "http", "headers": [(b"cookie", cookie.encode())]}


def cookie_of(replica: Replica, name: str) -> str:
    """Return the cookie of a new session."""
    return replica.sessions.begin(name, frozenset()).decode().partition(";")[0]


async def test_a_copy_of_the_cookie_is_void_everywhere() -> None:
    """Only the session that was ended: another one of the same person goes on."""
    clock, store = ManualClock(T0), Store()
    here, there = Replica(store, clock), Replica(store, clock)
    ended, other = cookie_of(here, "rita"), cookie_of(here, "rita")
    here.sign_out(ended)
    assert not here.knows(ended)
    assert there.knows(ended), "nobody has told it yet"
    await here.shared.beat()
    await there.shared.beat()
    assert not there.knows(ended)
    assert there.knows(other)
    assert not Replica(store, clock).knows("rolloutd-session=forged")


async def test_a_replica_that_starts_later_hears_of_it() -> None:
    """Redis keeps it until the cookie is void by itself, and no longer."""
    clock, store = ManualClock(T0), Store()
    here = Replica(store, clock)
    ended = cookie_of(here, "rita")
    here.sign_out(ended)
    await here.shared.beat()
    clock.advance(timedelta(minutes=59))
    late = Replica(store, clock)
    await late.shared.beat()
    assert not late.knows(ended)
    assert len(store.sessions) == 1
    clock.advance(timedelta(minutes=2))
    await late.shared.beat()
    assert store.sessions == {}
    assert not late.knows(ended)
    await late.shared.beat()


async def test_what_redis_did_not_take_is_told_when_it_is_back() -> None:
    """Meanwhile it is a fault, and the session has ended here."""
    clock, store = ManualClock(T0), Store()
    here, there = Replica(store, clock), Replica(store, clock)
    ended = cookie_of(here, "rita")
    store.is_away = True
    here.sign_out(ended)
    for _ in range(2):
        await here.shared.beat()
    fault = here.faults.of(Scope.DEPENDENCY, SIGN_OUTS)
    assert fault is not None
    assert "sign-outs are not shared" in fault.why
    assert not here.knows(ended)
    store.is_away = False
    await here.shared.beat()
    await there.shared.beat()
    assert here.faults.of(Scope.DEPENDENCY, SIGN_OUTS) is None
    assert not there.knows(ended)


def test_what_is_remembered_is_bounded() -> None:
    """However many people sign out, and whatever stands in Redis."""
    ended = SignedOut()
    for number in range(MOST_ENDED + 5):
        ended.end(f"own-{number}", 10)
    assert len(ended.untold) == MOST_ENDED
    assert "own-4" not in ended
    assert "own-5" in ended
    ended.heard({f"other-{number}": 10 for number in range(MOST_ENDED)}, 5)
    assert "own-5" not in ended
    assert "other-0" in ended
    ended.heard({}, 11)
    assert "other-0" not in ended


async def test_an_emptied_redis_is_told_again() -> None:
    """Else the next replica that starts would take a copy of the cookie."""
    clock, store = ManualClock(T0), Store()
    here, there = Replica(store, clock), Replica(store, clock)
    ended = cookie_of(here, "rita")
    here.sign_out(ended)
    await here.shared.beat()
    await there.shared.beat()
    store.sessions.clear()
    for _ in range(2):
        await there.shared.beat()  # it ended none itself, but has heard
    late = Replica(store, clock)
    await late.shared.beat()
    assert not late.knows(ended)
    clock.advance(2 * HOUR)
    for _ in range(2):
        await there.shared.beat()
    assert store.sessions == {}
