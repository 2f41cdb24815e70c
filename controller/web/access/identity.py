"""Somebody who is known, and the name under which the audit log has them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from pydantic import TypeAdapter, ValidationError

from controller.settings.access_file import MACHINE
from schemas.command import Issuer

_ISSUER: Final[TypeAdapter[str]] = TypeAdapter(Issuer)
#: Groups of one person that are looked at.
MOST_GROUPS: Final = 500


class Way(Enum):
    """How somebody is recognized."""

    TOKEN = "token"  # noqa: S105  # a machine, by its token in each request
    PROXY = "proxy"  # a person, by the header of a trusted proxy
    SESSION = "session"  # a person, by the cookie of a session


class IdentityRefused(Exception):
    """A request claims to be somebody's, and is not; or it is not known whose."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who is known."""

    name: str  # the issuer of their commands; a machine's begins with `token:`
    way: Way
    groups: frozenset[str] = frozenset()
    session: str = ""  # a session's id, empty without one

    @property
    def is_sent_by_browsers(self) -> bool:
        """Whether a browser proves it without being asked, so that another site could use it."""
        return self.way is not Way.TOKEN


def checked_name(name: str) -> str:
    """Return a person's name as it may be an issuer. Raises IdentityRefused for one that may not.

    Not allowed are the controller's own name, names as machines have them, and characters that
    cannot be printed, such as a zero-width space: two names would look the same.
    """
    try:
        checked = _ISSUER.validate_python(name)
    except ValidationError:
        raise IdentityRefused(403, "this name cannot be the issuer of a command") from None
    if checked != name or not name.isprintable():
        raise IdentityRefused(
            403, "a person's name must not contain control, format or other invisible characters"
        )
    if checked.casefold().startswith(MACHINE):
        raise IdentityRefused(403, f"a person's name must not begin with {MACHINE}")
    return checked
