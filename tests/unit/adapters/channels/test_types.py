"""Every type of channel is known wherever it must be, or no operator could use it."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from controller.adapters.channels.types import channel_types
from controller.clock import SystemClock
from controller.settings import ChannelSettings
from controller.settings.notifications import ChannelType
from tests.notification_services import SERVICES

TYPES = get_args(ChannelType)


def test_each_type_can_be_made_and_is_tried() -> None:
    """Against a service of the tests; mail and Apprise have other tests than those of HTTP."""
    assert set(channel_types(SystemClock())) == set(TYPES)
    assert {*SERVICES, "email", "apprise"} == set(TYPES)


@pytest.mark.parametrize("kind", TYPES)
def test_settings_say_what_a_type_needs(kind: str) -> None:
    """Not that the type itself is missing somewhere."""
    with pytest.raises(ValidationError, match=f"a channel of type {kind} needs "):
        ChannelSettings.model_validate({"type": kind})
