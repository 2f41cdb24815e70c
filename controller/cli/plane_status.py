"""The standing of a daemon's flag planes, read over HTTP, since no topic carries it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
from rich.text import Text

from controller.text import one_line

#: Short, because a person waits, and the rest of the status is there without it.
DEADLINE_SECONDS = 2.0
MAX_BYTES = 1_000_000


def ask_planes(daemon: str, flag: str) -> tuple[list[dict[str, Any]] | None, str]:
    """Return one entry per plane from the daemon at this address, or None and the reason."""
    address = f"{daemon.rstrip('/')}/rollouts/{quote(flag, safe='')}/planes"
    try:
        with httpx.stream("GET", address, timeout=DEADLINE_SECONDS, trust_env=False) as answer:
            body = b""
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    return None, f"the answer is longer than {MAX_BYTES} bytes"
        document = json.loads(body)
        if answer.status_code == 200:
            planes = [entry for entry in document["planes"] if isinstance(entry, dict)]
            return planes, ""
        return None, f"{daemon} answered {answer.status_code}: {document['error']}"
    except (httpx.HTTPError, httpx.InvalidURL) as trouble:
        return None, f"{daemon} cannot be reached: {trouble}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, f"{daemon} does not answer as rolloutd does"


def plane_line(plane: dict[str, Any]) -> Text:
    """Return one line about a plane: its name, and why it does not serve what was decided."""
    name = one_line(str(plane.get("plane")))
    if plane.get("is_converged"):
        return Text(f"{name}: serves {plane.get('percent')} %")
    since = str(plane.get("since") or "")[11:19]
    return Text(
        f"{name}: NOT CONVERGED{f' since {since} UTC' if since else ''}: "
        f"{one_line(str(plane.get('reason')))}",
        "bold red",
    )
