"""Decisions as they stand in the audit log."""

import json
import sys

import numpy as np
import pytest

from controller.codec.decisions import to_judgement_record
from schemas.decision import ArmRecord, JudgementRecord
from tests.builders import make_breach, make_judgement


@pytest.mark.parametrize(
    ("computed", "written"),
    [
        (float("inf"), sys.float_info.max),
        (float("-inf"), -sys.float_info.max),
        (float("nan"), None),
    ],
)
def test_numbers_that_json_cannot_say_are_written_as_the_nearest_it_can(
    computed: float, written: float | None
) -> None:
    """An infinite e-value is written as the largest double.

    One that could not be computed as null.
    """
    record = to_judgement_record(make_judgement(metrics=(make_breach(e_value=computed),)))
    assert json.loads(record.model_dump_json())["metrics"][0]["e_value"] == written


def test_counts_may_come_from_an_array_library() -> None:
    """An array library's integer is a count like any other."""
    arm = ArmRecord.model_validate(
        {"trials": np.int64(3), "events": 1, "estimate": 0.3, "low": 0.1, "high": 0.6}
    )
    assert arm.trials == 3


def test_judgement_carries_its_verdict() -> None:
    """A decision's evidence names the verdict drawn from it.

    So that a reader need not know the rule.
    """
    record = to_judgement_record(make_judgement(metrics=(make_breach(),)))
    assert record.verdict == "fail"
    assert JudgementRecord.model_validate_json(record.model_dump_json()) == record
