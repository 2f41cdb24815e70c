"""Bundles of the reference: the arms of many flags, stored together."""

from __future__ import annotations

from controller.counting.folding.bundles import Bundles
from schemas.totals import bundle_entry, encode_bundle


def test_a_bundle_is_stored_in_the_order_of_its_arms_names() -> None:
    """However they came into it: the native fold writes the same bytes."""
    bundles = Bundles()
    for name in ("c", "a"):
        bundles.put(1, name, b"{}")
    assert bundles.take(1) == encode_bundle(bundle_entry(name, b"{}") for name in "ac")
    bundles.put(1, "b", b"{}")
    assert bundles.take(1) == encode_bundle(bundle_entry(name, b"{}") for name in "abc")
