from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.evaluation import Evaluation


def test_unknown_attributes_are_ignored() -> None:
    """Apps send more than we read; none of it refuses an event."""
    told = Evaluation.model_validate(
        {
            "feature_flag.key": "a",
            "feature_flag.result.variant": "on",
            "feature_flag.version": 3,
            "app.region": ["eu"],
        }
    )
    assert (told.flag_key, told.variant, told.context_id) == ("a", "on", None)


@pytest.mark.parametrize("value", [1, 1.5, [], {}, None, "", "not a name"])
def test_a_value_that_is_no_name_tells_no_variant(value: object) -> None:
    """Numbers and objects name no arm; the variant must be sent."""
    with pytest.raises(ValidationError):
        Evaluation.model_validate({"feature_flag.key": "a", "feature_flag.result.value": value})
