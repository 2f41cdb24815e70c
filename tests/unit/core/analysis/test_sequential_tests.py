"""The stored state of the tests: what the first version wrote is still read."""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from controller.core.analysis.change_point import START_MASS, Bets
from controller.core.analysis.proportion import CURVE, SAFE_POINTS
from controller.core.analysis.sample_ratio import no_evidence
from controller.core.analysis.sequential_tests import (
    LimitTest,
    RatioTest,
    SequentialTests,
    decode_tests,
    encode_tests,
)

RELEASED = 0.9  # of the first version's mass, all by schedule


def first_version(bets_of_ratio: np.ndarray, bets_of_limit: np.ndarray) -> bytes:
    """Return bytes as the first version wrote them: one comparison and one limit."""
    body = {
        "identity": "start-1/0123",
        "visit": 2,
        "batches": 7,
        "closed_at": None,
        "heard": 5,
        "heard_at": None,
        "seen": [],
        "ratios": [[0, len(bets_of_ratio), RELEASED, [10, 1, 90, 9], 3, None]],
        "limits": [[1, len(bets_of_limit), RELEASED, 4, [[2, 10, 1]]]],
        "harm": [],
    }
    packed = zlib.compress(json.dumps(body).encode())
    arrays = (
        *(no_evidence(), bets_of_ratio, np.zeros(SAFE_POINTS), np.zeros(len(CURVE))),
        bets_of_limit,
    )
    numbers = np.concatenate(arrays).astype("<f8").tobytes()
    return struct.pack("<BI", 1, len(packed)) + packed + numbers


def test_state_of_the_first_version_goes_on() -> None:
    """Its evidence is kept, in proportion to what our schedule has begun, so alpha still holds."""
    ratio, limit = np.linspace(-2.0, 1.0, 30), np.linspace(-3.0, 0.5, 32)
    tests = decode_tests(first_version(ratio, limit))
    assert (tests.identity, tests.visit, tests.batches) == ("start-1/0123", 2, 7)
    of_ratio, of_limit = tests.ratios[0], tests.limits[1]
    lost = math.log(START_MASS / RELEASED)
    for bets, before in ((of_ratio.bets, ratio), (of_limit.bets, limit)):
        assert bets.evidence == pytest.approx(before + lost)
        assert bets.scheduled == START_MASS
        assert bets.begun.sum() == 0
        assert bets.recent.max() == 0
    assert of_ratio.counts == (10, 1, 90, 9)
    assert (of_ratio.harmed, of_limit.harmed) == (3, 4)
    assert of_limit.used == {2: (10, 1)}
    assert encode_tests(tests)[0] == 2


def test_bets_survive_their_bytes() -> None:
    """Suspicion that has begun bets, and what is recent, is stored."""
    bets = Bets.fresh(32).after(np.linspace(-1.0, 9.0, 32), np.full(32, -math.log(32)), 0.6)
    assert bets.begun.sum() > 0
    ratio = replace(RatioTest.fresh(32), bets=bets)
    limit = replace(LimitTest.fresh(32), bets=bets, recent=(120, 9))
    encoded = encode_tests(SequentialTests(ratios={0: ratio}, limits={3: limit}))
    decoded = decode_tests(encoded)
    assert decoded.limits[3].recent == (120, 9)
    for read in (decoded.ratios[0].bets, decoded.limits[3].bets):
        assert read.evidence.tolist() == bets.evidence.tolist()
        assert read.recent.tolist() == bets.recent.tolist()
        assert read.begun.tolist() == bets.begun.tolist()
        assert read.is_armed.tolist() == bets.is_armed.tolist()
    assert encode_tests(decoded) == encoded
