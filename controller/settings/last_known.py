"""Settings of the last known state: what is served before anything newer can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from controller.settings.section import Section


class LastKnownSettings(Section):
    """What a replica serves from its start on, until Kafka has been read. See ops/serving.md."""

    directory: Path | None = None
    """Directory of the file that holds every flag as it was decided last, so that a restart serves
    it although Kafka and Redis are away. It is created if need be, and each replica needs its own.
    Without this setting: `$STATE_DIRECTORY` (systemd sets it), else `$XDG_STATE_HOME/rolloutd`,
    else `~/.local/state/rolloutd`. None: no file; then only Redis is read."""
    max_age_seconds: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 3_600.0
    """Oldest file that is served where neither Kafka nor Redis answers at the start. The age counts
    from the last moment at which one of them said that nothing newer was decided. Another replica
    may have lowered a flag since, so an old file is not served: clients then get 503, and keep what
    they have. 1 h rides out most outages; 0 never serves a file."""
