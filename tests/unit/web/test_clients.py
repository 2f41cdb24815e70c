"""Who a client is, and how much it may have."""

from __future__ import annotations

import pytest

from controller.web.clients import RateLimit, client_of


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (None, ""),
        (("10.0.0.1", 5), "10.0.0.1"),
        (("::ffff:10.0.0.1", 5), "10.0.0.1"),
        (("2001:db8::1", 5), "2001:db8::/64"),
        (("2001:db8::ffff:1", 5), "2001:db8::/64"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (("::no:address::", 5), "::no:address::"),
    ],
)
def test_a_client_is_its_address(peer: tuple[str, int] | None, client: str) -> None:
    """An IPv6 client has a /64 to choose addresses from, and is one client all the same."""
    assert client_of(peer) == client


def test_a_rate_allows_a_burst_and_then_its_pace() -> None:
    """Two seconds' worth at once, then one per period; what was refused costs nothing."""
    now = 0.0
    rate = RateLimit(10.0, monotonic=lambda: now)
    assert [rate.seconds_to_wait("a") for _ in range(20)] == [0.0] * 20
    assert rate.seconds_to_wait("a") == pytest.approx(0.1)
    assert rate.seconds_to_wait("b") == 0.0
    now = 0.1
    assert rate.seconds_to_wait("a") == 0.0
    assert rate.seconds_to_wait("a") > 0.0


def test_a_slow_rate_still_lets_one_through() -> None:
    """Less than one per second allows one, then waits its time."""
    now = 0.0
    rate = RateLimit(0.1, monotonic=lambda: now)
    assert rate.seconds_to_wait("a") == 0.0
    assert rate.seconds_to_wait("a") == pytest.approx(10.0)


def test_the_table_of_clients_is_bounded() -> None:
    """A million addresses cost no more memory than the table has room for."""
    rate = RateLimit(1.0, max_clients=100)
    for number in range(1_000):
        rate.seconds_to_wait(str(number))
    assert len(rate) == 100


def test_no_rate_is_no_limit() -> None:
    """0 asks nobody and remembers nobody."""
    rate = RateLimit(0)
    assert [rate.seconds_to_wait("a") for _ in range(1_000)] == [0.0] * 1_000
    assert len(rate) == 0
