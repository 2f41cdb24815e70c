"""Makes an event fit that is larger than a record may be.

Belongs here: which parts are left out, and how the event says so. Does not belong here: which
topics may be trimmed (`publisher.py`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def trim(value: bytes, limit: int) -> bytes | None:
    """Return a structured CloudEvent without its largest data members, at most `limit` bytes.

    The largest members are left out first. The extension attributes `trimmedmembers`,
    `trimmedbytes` and `trimmedsha256` name what is missing and identify the original. Returns None
    for a value that is no CloudEvent, and for one that does not fit without any member.
    """
    try:
        event = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        return None
    kept: dict[str, Any] = dict(event["data"])
    removed: list[str] = []
    sizes = {name: len(json.dumps(member)) for name, member in kept.items()}
    for name in sorted(sizes, key=lambda one: -sizes[one]):
        del kept[name]
        removed.append(name)
        smaller = {
            **event,
            "data": kept,
            "trimmedmembers": ",".join(removed),
            "trimmedbytes": len(value),
            "trimmedsha256": hashlib.sha256(value).hexdigest(),
        }
        encoded = json.dumps(smaller, separators=(",", ":"), ensure_ascii=False).encode()
        if len(encoded) <= limit:
            return encoded
    return None
