"""How many examples a property test draws when it needs more than its Hypothesis profile gives."""

from __future__ import annotations

from hypothesis import settings

#: The profiles are registered in conftest.py.
IS_THOROUGH = settings.get_current_profile_name() in ("thorough", "ci")


def examples(number: int) -> settings:
    """Return the decorator for `number` examples; a quick run draws a tenth, at least 50."""
    return settings(max_examples=number if IS_THOROUGH else max(number // 10, 50))
