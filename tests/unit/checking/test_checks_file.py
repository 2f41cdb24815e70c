"""The checks file: each fault with its place."""

from __future__ import annotations

import pytest

from controller.checking.checks_file import parse_checks
from controller.errors import ConfigInvalid

FAULTS = [
    ("{name: a, at_least: 1}", "needs exactly one of prometheus, burn_rate"),
    ("{name: a, prometheus: up, better_stack: {monitor: '1'}, at_least: 1}", "needs exactly one"),
    ("{name: a, prometheus: up}", "needs at_least, at_most or both"),
    ("{name: a, prometheus: up, at_least: 1, misses: 4}", "misses is more than the 3 looks"),
    ("{name: a, prometheus: 'x or vector(0)', at_most: 1}", "makes no data look like zero"),
    ("{name: a, burn_rate: {errors: x, objective: 99}}", "has no {window}"),
    ("{name: a, burn_rate: {errors: 'x[{window}]', objective: 99}, at_most: 1}", "has its limits"),
    ("{name: a, burn_rate: {errors: 'x[{window}]', objective: 100}}", "less than 100"),
    ("{name: a, prometheus: up, at_least: 1, every: 0s}", "is less than a second"),
    ("{name: a, prometheus: up, at_least: .nan}", "write a number"),
    ("{name: a, better_stack: {monitor: x}, at_least: 1}", "monitor"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_each_fault_has_its_place(text: str, fault: str) -> None:
    """File, line and column, and what is there instead."""
    with pytest.raises(ConfigInvalid) as refused:
        parse_checks(f"version: 1\nchecks:\n  - {text}\n", "checks.yaml")
    assert str(refused.value).startswith("checks.yaml:3:")
    assert fault in str(refused.value)


def test_two_of_one_name_are_refused() -> None:
    """Their states would be mixed up."""
    one = "{name: a, prometheus: up, at_least: 1}"
    with pytest.raises(ConfigInvalid, match="there are two called a"):
        parse_checks(f"checks: [{one}, {one}]", "checks.yaml")
