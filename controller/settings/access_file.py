"""The access file: who has which role for which flags. Its form, its rules, and reading it.

Belongs here: what the file may say, and each fault with its place. Does not belong here: which
command needs which role (`controller/web/access/roles.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, field_validator

from controller.settings.checked_file import FilePart, parse, read_text
from controller.yaml_places import Path as KeyPath

#: Machines' names as issuers begin so. No person's does.
MACHINE: Final = "token:"


class Role(IntEnum):
    """What somebody may do; each role may also do what the roles before it may."""

    VIEWER = 1
    OPERATOR = 2
    APPROVER = 3
    ADMIN = 4

    @property
    def word(self) -> str:
        """The role as people write it."""
        return self.name.lower()


def _role_named(value: object) -> object:
    names = {role.word: role for role in Role}
    if isinstance(value, str) and value in names:
        return names[value]
    raise ValueError(f"a role is one of {', '.join(names)}")


def checked_token_name(text: str) -> str:
    """Return the name of a machine's token. Raises ValueError, in words, for what is none."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) is None:
        raise ValueError(
            f"{text!r} is not a token's name: up to 100 of A-Z a-z 0-9 . _ -, beginning with a "
            f"letter or digit"
        )
    return text


def checked_flag_pattern(text: str) -> str:
    """Return a pattern of flag keys. Raises ValueError, in words, for what is none."""
    if re.fullmatch(r"[A-Za-z0-9._:*-]{1,128}", text) is None:
        raise ValueError(
            f"{text!r} is not a pattern of flag keys: up to 128 of A-Z a-z 0-9 . _ : - and *, and "
            f"one pattern each"
        )
    return text


TokenName = Annotated[str, AfterValidator(checked_token_name)]
WhoName = Annotated[str, Field(min_length=1, max_length=200)]
FlagPattern = Annotated[str, AfterValidator(checked_flag_pattern)]


class TokenEntry(FilePart):
    """A machine's token, by its digest: the token itself is stored nowhere."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    expires: AwareDatetime | None = None
    """From when on it is refused. None: never."""


class Grant(FilePart):
    """A role for some people, groups and machines, for flags whose keys fit a pattern."""

    role: Annotated[Role, BeforeValidator(_role_named)]
    people: tuple[WhoName, ...] = ()
    groups: tuple[WhoName, ...] = ()
    tokens: tuple[TokenName, ...] = ()
    flags: tuple[FlagPattern, ...] = ("*",)
    """Flag keys; `*` stands for any characters."""

    @field_validator("flags")
    @classmethod
    def _names_a_flag(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        # Not by min_length: it would call a list of one wrong pattern empty.
        if not flags:
            raise ValueError("is empty: name a pattern, or leave it out for all flags")
        return flags

    def fits(self, flag_key: str) -> bool:
        """Return whether a flag is one of these."""
        return any(fnmatchcase(flag_key, pattern) for pattern in self.flags)


class AccessFile(FilePart):
    """Everything that the file says."""

    tokens: dict[TokenName, TokenEntry] = Field(default={})
    grants: tuple[Grant, ...] = ()


def read_access_file(path: Path) -> AccessFile:
    """Return the file. Raises ConfigInvalid with every fault, one per line, each with its place."""
    text = read_text(path, "sign_in.access_file", "name groups, not people")
    return parse_access(text, str(path))


def parse_access(text: str, name: str) -> AccessFile:
    """Return what a file's text says; `name` stands before each fault. Raises ConfigInvalid."""
    return parse(text, name, AccessFile, _broken_rules)


def _broken_rules(access: AccessFile) -> Iterator[tuple[KeyPath, str]]:
    """Yield what the form allows and nobody can mean, each with its place."""
    granted: set[str] = set()
    for index, grant in enumerate(access.grants):
        at: tuple[Any, ...] = ("grants", index)
        granted.update(grant.tokens)
        if not (grant.people or grant.groups or grant.tokens):
            yield at, "this grant names nobody: add people, groups or tokens"
        if grant.role is Role.VIEWER and "*" not in grant.flags:
            yield (*at, "flags"), "a viewer sees every flag: leave `flags` out"
        for token in grant.tokens:
            if token not in access.tokens:
                why = f"there is no token {token}: make one with `rolloutd token new {token}`"
                yield (*at, "tokens"), why
        for person in grant.people:
            if person.casefold().startswith(MACHINE):
                yield (*at, "people"), f"{person}: machines belong under `tokens`, by name"
            elif "*" in person:
                yield (*at, "people"), f"{person}: people are named one by one, or by groups"
    owners: dict[str, str] = {}
    for name, entry in access.tokens.items():
        if (other := owners.setdefault(entry.sha256, name)) != name:
            yield ("tokens", name), f"{name} and {other} are the same token: make another"
        if name not in granted:
            yield ("tokens", name), f"no grant names the token {name}: it can do nothing"


def expired(entry: TokenEntry, now: datetime) -> bool:
    """Return whether a token is refused by now."""
    return entry.expires is not None and entry.expires <= now
