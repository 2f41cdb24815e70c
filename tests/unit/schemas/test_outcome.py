from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.outcome import MAX_CONVERSIONS, MAX_DURATION_SECONDS, MAX_FLAGS, Outcome

FLAG = {"feature_flag.key": "a", "feature_flag.result.variant": "on"}


def test_informative_attributes_never_refuse_an_outcome() -> None:
    """A wrong status code costs the status code, not the outcome."""
    data = {"http.response.status_code": "teapot", "http.route": 5, "rolloutd.flags": []}
    assert Outcome.model_validate(data).error_type is None


def test_bounds_are_inclusive() -> None:
    """The stated limits are the last values accepted."""
    told = Outcome.model_validate(
        {
            "http.server.request.duration": MAX_DURATION_SECONDS,
            "rolloutd.flags": [FLAG] * MAX_FLAGS,
            "rolloutd.conversions": ["buy"] * MAX_CONVERSIONS,
        }
    )
    assert told.duration_seconds == MAX_DURATION_SECONDS


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"duration": 0.2},
        {"error.type": None},
        {"http.server.request.duration": MAX_DURATION_SECONDS + 1},
        {"http.server.request.duration": float("nan")},
        {"http.server.request.duration": False},
        {"rolloutd.flags": [FLAG] * (MAX_FLAGS + 1)},
        {"rolloutd.flags": [{"feature_flag.key": "a"}]},
        {"rolloutd.conversions": ["buy"] * (MAX_CONVERSIONS + 1)},
        {"rolloutd.conversions": "buy"},
        {"error.type": ""},
        {"error.type": 500},
    ],
)
def test_beyond_the_bounds_is_refused(data: dict[str, object]) -> None:
    """What is counted must be what was meant."""
    with pytest.raises(ValidationError):
        Outcome.model_validate(data)
