"""What everybody may do: the role that each command needs, and the roles that everybody has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from controller.settings.access_file import MACHINE, AccessFile, Role, expired
from controller.web.access.identity import Identity, Way
from schemas.terms import CommandVerb

#: The least role for each command. Whoever may raise a percentage by hand, past a gate or with
#: another plan, needs more than who may stop it. A verb that is not here needs ADMIN.
NEEDED: Final[Mapping[CommandVerb, Role]] = {
    CommandVerb.PAUSE: Role.OPERATOR,
    CommandVerb.ROLL_BACK: Role.OPERATOR,
    CommandVerb.ABORT: Role.OPERATOR,
    CommandVerb.STEP_BACK: Role.OPERATOR,
    CommandVerb.FREEZE: Role.OPERATOR,
    CommandVerb.REJECT: Role.OPERATOR,
    CommandVerb.RESUME: Role.OPERATOR,
    CommandVerb.UNFREEZE: Role.OPERATOR,
    CommandVerb.RETRY: Role.OPERATOR,
    CommandVerb.START: Role.OPERATOR,
    CommandVerb.RESTART: Role.OPERATOR,
    CommandVerb.APPROVE: Role.APPROVER,
    CommandVerb.APPLY: Role.APPROVER,
    CommandVerb.PROMOTE: Role.ADMIN,
    CommandVerb.PROMOTE_FULL: Role.ADMIN,
    CommandVerb.RETIRE: Role.ADMIN,
}
#: The least role that may take an incident of a flag: whoever may stop the rollout may look after
#: it, and nobody else can end that others are told.
TAKE: Final = Role.OPERATOR


def needed(verb: CommandVerb) -> Role:
    """Return the least role that may give a command."""
    return NEEDED.get(verb, Role.ADMIN)


class Access:
    """The roles of everybody, as the access file says; it may be replaced at any time."""

    def __init__(self, file: AccessFile) -> None:
        self.replace(file)

    def replace(self, file: AccessFile) -> None:
        """Go by another version of the file from now on."""
        self._grants = file.grants
        self._tokens = {entry.sha256: (name, entry) for name, entry in file.tokens.items()}

    def machine(self, token: str, now: datetime) -> Identity | None:
        """Return the machine that has a token; None for an unknown or expired one.

        Digests of long random tokens are looked up, so the time that it takes tells nothing.
        """
        digest = hashlib.sha256(token.encode("utf-8", errors="replace")).hexdigest()
        name, entry = self._tokens.get(digest, ("", None))
        if entry is None or expired(entry, now):
            return None
        return Identity(f"{MACHINE}{name}", Way.TOKEN)

    def known_groups(self, groups: frozenset[str]) -> frozenset[str]:
        """Return those groups that a grant names: the others never matter."""
        return groups & {group for grant in self._grants for group in grant.groups}

    def role(self, who: Identity, flag_key: str) -> Role | None:
        """Return somebody's highest role for a flag, None for none."""
        return max((role for role, fits in self._roles(who, flag_key) if fits), default=None)

    def may_read(self, who: Identity) -> bool:
        """Return whether somebody may see rollouts: with any role, all of them."""
        return bool(self._roles(who, ""))

    def _roles(self, who: Identity, flag_key: str) -> list[tuple[Role, bool]]:
        """Return the roles that somebody is granted, each with whether it is for a flag."""
        is_machine = who.way is Way.TOKEN
        machine = who.name.removeprefix(MACHINE)
        return [
            (grant.role, grant.fits(flag_key))
            for grant in self._grants
            if (
                machine in grant.tokens
                if is_machine
                else who.name in grant.people or not who.groups.isdisjoint(grant.groups)
            )
        ]
