"""flagd's fractional bucketing: rolloutd and every flagd evaluator agree about each context.

A context falls into one of `WEIGHT_TOTAL` buckets by a hash of flag key and targeting key.
Treatment comes first and the total never changes, so a higher percentage only adds buckets at the
end: no context loses the treatment, and lowering it removes the latest first. Nothing here knows
rollouts or HTTP.

Source: open-feature/flagd, fractional operator; the generations differ in the bytes that are
hashed, and the assignments of two generations are statistically independent: pin one per fleet, and
never change it during a rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import mmh3

from controller.codec.flagd import SPLIT_SALT, WEIGHT_TOTAL


class Generation(StrEnum):
    """Which flagd evaluators the fleet runs: it determines the bytes that are hashed."""

    # flagd 0.15 and 0.16, provider-flagd 0.4 to 0.5: flag key and targeting key, concatenated
    V2 = "v2"
    # flagd-core 2, provider-flagd from 0.6: CBOR of [flag key, targeting key]. flagd is moving to
    # it, so an upgrade does not shuffle a fleet that starts with it. It also distinguishes what
    # concatenation confuses ("a" + "b1", "ab" + "1").
    V3 = "v3"


def bucketer(flag_key: str, generation: Generation) -> Callable[[str], int]:
    """Return the function from targeting key to bucket, in [0, `WEIGHT_TOTAL`), for one flag.

    What does not depend on the targeting key is computed here, once. A targeting key with a lone
    surrogate raises UnicodeEncodeError.
    """
    digest: Callable[[bytes, int, bool], int] = (
        mmh3.hash
    )  # MurmurHash3 x86 32-bit, seed 0, unsigned
    if generation == Generation.V2:
        plain = flag_key.encode()
        return lambda targeting_key: (
            digest(plain + targeting_key.encode(), 0, False) * WEIGHT_TOTAL >> 32
        )
    pair = b"\x82" + _cbor_text(flag_key)
    return lambda targeting_key: (
        digest(pair + _cbor_text(targeting_key), 0, False) * WEIGHT_TOTAL >> 32
    )


def lot_drawer(flag_key: str, generation: Generation) -> Callable[[str], int]:
    """Return the function from targeting key to the 32-bit hash that selects a variant.

    It divides treatment among its variants. It is the hash of another text than the bucket's, so it
    does not depend on the bucket. Errors as in `bucketer`.
    """
    digest: Callable[[bytes, int, bool], int] = mmh3.hash
    salted = flag_key + SPLIT_SALT
    if generation == Generation.V2:
        return lambda targeting_key: digest((salted + targeting_key).encode(), 0, False)
    return lambda targeting_key: digest(_cbor_text(salted + targeting_key), 0, False)


def _cbor_text(text: str) -> bytes:
    """Return canonical CBOR of a text string; only its length needs encoding.

    Source: RFC 8949, sections 3.1 (major type 3) and 4.2.1 (the shortest head).
    """
    encoded = text.encode()
    length = len(encoded)
    if length < 24:
        return bytes((0x60 + length,)) + encoded
    if length < 0x100:
        return bytes((0x78, length)) + encoded
    if length < 0x1_0000:
        return b"\x79" + length.to_bytes(2, "big") + encoded
    return b"\x7a" + length.to_bytes(4, "big") + encoded
