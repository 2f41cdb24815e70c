"""docker-compose.yml as its readers see it: the document, and what Compose makes of variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[1]
#: What a person puts into `.env`: README.md and ops/unleash.env say so.
GIVEN: Final[Mapping[str, str]] = {
    "REDIS_PASSWORD": "redis-password",
    "POSTGRES_PASSWORD": "postgres-password",
    "UNLEASH_TOKEN": "*:*.unleash-token",
}


@cache
def compose() -> dict[str, Any]:
    """Return the document, with what its anchors stand for."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def variables_of(name: str) -> dict[str, str]:
    """Return the variables that a file for `--env-file` gives beside those of `.env`."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = dict(re.findall(r"^(\w+)=(.+)$", text, flags=re.MULTILINE))
    return {key: _replaced(value, GIVEN) for key, value in lines.items()}


def environment_of(service: str, variables: Mapping[str, str] = {}) -> dict[str, str]:
    """Return the environment of a service's container.

    `variables` are those of further files. A key without a value passes a variable of the same name
    on, and is left out where there is none.
    """
    given = {**GIVEN, **variables}
    environment = compose()["services"][service]["environment"]
    return {
        name: _replaced(given[name] if value is None else value, given)
        for name, value in environment.items()
        if value is not None or name in given
    }


def _replaced(text: str, given: Mapping[str, str]) -> str:
    """Return a text without `${NAME:-default}` and `${NAME:?why}`."""
    return re.sub(r"\$\{(\w+):[-?]([^}]*)\}", lambda match: given.get(match[1], match[2]), text)
