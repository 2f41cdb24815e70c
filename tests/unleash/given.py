"""What tests of the Unleash plane begin with: settings, and documents with a percentage."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from controller.clock import SystemClock
from controller.core.rollout import RolledBack, Rollout
from controller.settings.planes import UnleashSettings
from tests.builders import make_plan, make_rollout
from tests.unleash.server import ADMIN_TOKEN, ENVIRONMENT


def make_settings(url: str, **overrides: Any) -> UnleashSettings:
    """Return settings for the tests' environment, with flags made as needed."""
    fields = {
        "url": url,
        "token": SecretStr(ADMIN_TOKEN),
        "environment": ENVIRONMENT,
        "create_flags": True,
    }
    return UnleashSettings(**{**fields, **overrides})


def decided(flag_key: str, percent: float, revision: int = 1, **overrides: Any) -> Rollout:
    """Return a document with this percentage."""
    return make_rollout(
        plan=make_plan(flag_key=flag_key), percent=percent, revision=revision, **overrides
    )


def rolled_back(flag_key: str, revision: int) -> Rollout:
    """Return the document after a breach."""
    return decided(flag_key, 0.0, revision, phase=RolledBack(SystemClock().now(), "a breach"))
