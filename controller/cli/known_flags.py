"""The flags that shell completion offers: from a short-lived file, else from the state topic.

Somebody waits at a prompt, so it takes at most a second, and whatever is wrong it offers nothing
and says nothing. What is offered may be some seconds old: the command itself reads the truth.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.errors import BadInput, EventLogUnavailable
from controller.settings import load_settings
from schemas.terms import NAME

if TYPE_CHECKING:
    from controller.settings import KafkaSettings

#: Seconds that names are taken from the file without asking Kafka.
FRESH_SECONDS: Final = 30.0
#: Seconds that Kafka has to answer, connecting included; imports have taken half a second before.
_PATIENCE_SECONDS: Final = 0.5
_CLOSE_SECONDS: Final = 0.1
#: Nobody chooses among more, and the file stays small.
MOST_FLAGS: Final = 5_000


def flags_beginning(typed: str, config: Path | None, environ: Mapping[str, str]) -> list[str]:
    """Return the flags with a rollout whose keys begin with `typed`, sorted.

    The settings file and the variables, overlaid by the options typed so far, say which Kafka.
    """
    try:
        settings = load_settings(config, environ).kafka
    except BadInput:
        return []
    return [flag for flag in _known(settings) if flag.startswith(typed)]


def _known(settings: KafkaSettings) -> list[str]:
    """Return all flags: those of the file while it is fresh, or while Kafka is away."""
    path = cache_file(settings)
    kept, age = _read(path)
    if age < FRESH_SECONDS:
        return kept
    try:
        flags = asyncio.run(_ask(settings))
    except (EventLogUnavailable, TimeoutError, BadInput):
        return kept
    _write(path, flags)
    return flags


async def _ask(settings: KafkaSettings) -> list[str]:
    hurried = {"start_seconds": _PATIENCE_SECONDS, "stop_seconds": _CLOSE_SECONDS}
    flags: dict[str, None] = {}
    async with (
        asyncio.timeout(_PATIENCE_SECONDS),
        KafkaReader(settings.model_copy(update=hurried), ["state"]) as reader,
    ):
        async for record in reader.read_to(await reader.ends("state")):
            key = (record.key or b"").decode(errors="replace")
            if record.value is None:
                flags.pop(key, None)
            elif NAME.match(key) and len(flags) < MOST_FLAGS:
                flags[key] = None
    return sorted(flags)


def cache_file(settings: KafkaSettings) -> Path:
    """Return where the flags of one Kafka and one prefix are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = f"{settings.bootstrap_servers} {settings.topic_prefix}"
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return Path(base).expanduser() / "rolloutctl" / f"flags-{name}.json"


def _read(path: Path) -> tuple[list[str], float]:
    """Return the names in the file, and its age in seconds; infinite without a readable one."""
    try:
        names = json.loads(path.read_text(encoding="ascii"))
        age = time.time() - path.stat().st_mtime
    except (OSError, ValueError, RecursionError, RuntimeError):
        return [], float("inf")
    if not isinstance(names, list):
        return [], float("inf")
    # A shell reads what is printed here: nothing but keys of flags gets there.
    kept = [name for name in names[:MOST_FLAGS] if isinstance(name, str) and NAME.match(name)]
    return kept, age if age >= 0 else float("inf")


def _write(path: Path, flags: list[str]) -> None:
    """Replace the file in one step; without the right to write, nothing is kept."""
    with suppress(OSError, RuntimeError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                json.dump(flags, file)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
