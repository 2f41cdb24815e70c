"""Settings of the public page about releases."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from controller.settings.section import Section
from controller.text import one_line
from schemas.fields import Name


def _shown(name: str) -> str:
    if one_line(name) != name or not name.strip():
        raise ValueError("is a name in words on one line, as people read it")
    return name


PublicName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_shown)]


class StatusPageSettings(Section):
    """`/status`: what the public may know of releases. Nothing that is not named here is shown."""

    flags: dict[Name, PublicName] = Field(default={}, max_length=200)
    """Flags that are shown, by key, each with the name that the public reads: `new-checkout: New
    checkout`. Keys, plans, owners, reasons and numbers of users are never shown. Empty: there is no
    such page."""
    title: PublicName = "Releases"
    """Title of the page."""
    cache_seconds: int = Field(default=15, ge=1, le=3_600)
    """For how long browsers and caches between may show an answer again, and we make no new one."""
