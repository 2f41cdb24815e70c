"""Identifies the client of a request, and limits how many requests one client may make.

A client is the address of its connection; headers that name another address are ignored. Behind a
proxy all clients are one, and the limits per client are the proxy's task: see `ops/security.md`.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Clients remembered at once. Beyond that, the client that was quiet for longest is forgotten.
MAX_CLIENTS = 10_000


def client_of(peer: tuple[str, int] | None) -> str:
    """Return the name of a client by the address of its connection; empty when it has none."""
    return "" if peer is None else _network_of(peer[0])


@lru_cache(maxsize=1_024)
def _network_of(host: str) -> str:
    """Return an IPv4 address as it is, and the /64 of an IPv6 one: one host has a whole /64."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def networks_of(addresses: Iterable[str]) -> Sequence[Network]:
    """Return addresses and networks of the settings in a form that is compared fast."""
    return [ipaddress.ip_network(text, strict=False) for text in addresses]


def comes_from(peer: tuple[str, int] | None, networks: Sequence[Network]) -> bool:
    """Return whether the address of a connection is in one of these networks."""
    try:
        address = ipaddress.ip_address((peer or ("", 0))[0].partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


class RateLimit:
    """A limit of requests per second and client, with bursts of two seconds' requests."""

    def __init__(
        self,
        per_second: float,
        *,
        burst_seconds: float = 2.0,
        max_clients: int = MAX_CLIENTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second` 0: no limit."""
        self._per_second = per_second
        self._burst = max(1.0, per_second * burst_seconds)
        self._max_clients = max_clients
        self._monotonic = monotonic
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def __len__(self) -> int:
        """Return how many clients are remembered."""
        return len(self._left)

    def seconds_to_wait(self, client: str) -> float:
        """Count one request of a client; return 0, or the seconds until it may ask again."""
        if not self._per_second:
            return 0.0
        now = self._monotonic()
        tokens, at = self._left.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_second)
        is_allowed = tokens >= 1
        self._left[client] = (tokens - 1 if is_allowed else tokens, now)
        if len(self._left) > self._max_clients:
            self._left.popitem(last=False)
        return 0.0 if is_allowed else (1 - tokens) / self._per_second
