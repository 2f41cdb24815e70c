"""Signing people in with a provider that knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SignInBegun:
    """A sign-in under way. All but the address stays with the browser that began it."""

    address: str  # at the provider, where the person goes
    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody whom the provider knows."""

    name: str
    groups: frozenset[str]


class IdentityProvider(Protocol):
    """Asks people who they are. Both raise ProviderUnavailable."""

    async def begin(self) -> SignInBegun:
        """Return where a person goes to sign in."""

    async def finish(self, code: str, begun: SignInBegun) -> Person:
        """Return who came back with a code. Raises SignInRefused for whoever is not known."""
