"""Hostile deliveries of every monitoring system: no crash, no guess, none lost, none doubled.

10,000 of each, by command: `pytest -m long tests/hostile/test_hooks.py -s`.
"""

from __future__ import annotations

import logging

import pytest
import structlog

from controller.web.hooks.sources import READERS
from tests.hostile.edges import run
from tests.hostile.hooks import SOURCES, HookEdge


def test_every_source_is_tried() -> None:
    """Also one that is added later."""
    assert set(SOURCES) == set(READERS)


@pytest.mark.parametrize("bodies", [200, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("source", SOURCES)
def test_no_hostile_delivery_gets_further_than_a_refusal(source: str, bodies: int) -> None:
    """Without the proof nothing is stored; with it each firing acts once, and honest ones go on."""
    # Each delivery is several lines of the log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    edge = HookEdge(source)
    try:
        report = run(source, edge, seed=1, cases=bodies)
    finally:
        edge.close()
    print(report)
    assert report.outcomes["400"], f"{report}: bodies without a refusal have lost their teeth"
    assert report.outcomes["fires: 202"], f"{report}: nothing gets in at all"
