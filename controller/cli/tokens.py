"""`rolloutd token new`: a machine's token, and the lines of the access file that let it in."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import yaml

from controller.errors import ConfigInvalid
from controller.settings.access_file import (
    Role,
    checked_flag_pattern,
    checked_token_name,
    parse_access,
)

#: Secret scanners find tokens by such a beginning.
PREFIX: Final = "rolloutd_"
_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token, and what to add to the access file."""

    token: str
    lines: str


def make_token(name: str, role: str, flags: Sequence[str], days: int) -> NewToken:
    """Return a new random token of 256 bits. Raises ConfigInvalid for what no file may say.

    `flags` are patterns; `*` alone stands for all.
    """
    try:
        checked_token_name(name)
    except ValueError as fault:
        raise ConfigInvalid(f"{fault}") from None
    try:
        patterns = [checked_flag_pattern(pattern) for pattern in flags]
    except ValueError as fault:
        raise ConfigInvalid(f"{fault}: repeat --flags for more") from None
    roles = [one.word for one in Role]
    if role not in roles:
        raise ConfigInvalid(f"--role: {role!r} is no role; there are: {', '.join(roles)}")
    token = PREFIX + secrets.token_urlsafe(_BYTES)
    until = (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    grant = {"role": role, "tokens": [name]} | ({} if patterns == ["*"] else {"flags": patterns})
    digest = hashlib.sha256(token.encode()).hexdigest()
    document = {
        "tokens": {name: {"sha256": digest, "expires": until.isoformat()}},
        "grants": [grant],
    }
    text = yaml.safe_dump(document, sort_keys=False)
    parse_access(text, "the new entry")
    return NewToken(
        token,
        f"# Add this to sign_in.access_file, then send SIGHUP to each replica:\n{text}"
        f"# The token, which is shown only now:",
    )
