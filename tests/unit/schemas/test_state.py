"""The public document of a rollout."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from controller.codec.rollouts import to_state
from schemas.state import RolloutState
from tests.builders import make_rollout


def document(**overrides: Any) -> dict[str, Any]:
    """Return a valid document with some fields replaced."""
    fields: dict[str, Any] = json.loads(to_state(make_rollout()).model_dump_json())
    return {**fields, **overrides}


def test_document_says_what_an_app_needs_at_its_top() -> None:
    """Flag, percent and revision stand at the top: an app that follows needs nothing else."""
    assert {"flag": "new-checkout", "percent": 10.0, "revision": 1}.items() <= document().items()


@pytest.mark.parametrize(
    "overrides",
    [
        {"schema_version": 6},
        {"schema_version": 0},
        {"percent": 100.01},
        {"percent": -1},
        {"revision": -1},
        {"phase": {"name": "baking"}},
        {"phase": {"name": "resting"}},
        {"phase": {"name": "completed", "at": "2026-01-05T09:00:00Z", "stage": 3}},
        {"later": 1},
    ],
)
def test_document_that_is_not_of_this_version_is_refused(overrides: dict[str, Any]) -> None:
    """A newer version, an unknown phase or a field too many is refused, never guessed at."""
    with pytest.raises(ValidationError):
        RolloutState.model_validate(document(**overrides))
