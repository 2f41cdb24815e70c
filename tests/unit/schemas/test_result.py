"""The one answer to a command."""

from schemas.result import Result


def test_result_ignores_what_a_later_version_adds() -> None:
    """A reader of results survives fields that a later version adds."""
    fields = {
        "command_id": "c-1",
        "flag": "f",
        "verb": "pause",
        "status": "rejected",
        "reason": "there is no rollout",
        "revision": 0,
        "at": "2026-01-05T09:00:00Z",
    }
    assert Result.model_validate({**fields, "later": 1}) == Result.model_validate(fields)
