"""All that lets people and machines in, made from the settings, and read again on SIGHUP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.routing import Route

from controller.errors import ConfigInvalid
from controller.health import Faults, Scope
from controller.ports.people import IdentityProvider
from controller.settings import Settings
from controller.settings.access_file import read_access_file
from controller.web.access.reading import Explain, ReadGuard
from controller.web.access.recognition import REFUSED_PER_SECOND, Guardian
from controller.web.access.roles import Access
from controller.web.access.sessions import Sessions
from controller.web.access.signing import ValueSigner
from controller.web.clients import RateLimit, networks_of
from controller.web.commands import Commands, Desk, TakeCommand
from controller.web.flags import FlagBoard
from schemas.api import BASE

#: The name under which a file that cannot be read is a fault.
FAULT: Final = "access_file"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may do what, how they are recognized, and what takes their commands."""

    guardian: Guardian
    commands: Commands
    path: Path
    faults: Faults
    provider: IdentityProvider | None  # whom people sign in with; None: not on a page of ours

    @property
    def takes_browsers(self) -> bool:
        """Whether a person with a browser can be recognized; tokens are for machines."""
        return self.provider is not None or bool(self.guardian.proxies)

    def routes(self) -> list[Route]:
        """Return the routes that there are for who is signed in."""
        one = f"{BASE}/rollouts/{{flag_key}}"
        return [Route(f"{one}/commands", TakeCommand(self.commands), methods=["POST"])]

    def checked(
        self, routes: Sequence[Route], why_not_shown: str | None, explain: Explain
    ) -> list[Route]:
        """Return routes that are answered for those who may read; `explain` answers browsers."""
        has_page = self.provider is not None
        reading = ReadGuard(self.guardian, why_not_shown, explain, has_page=has_page)
        return [reading.checked(route) for route in routes]

    async def reload(self) -> None:
        """Read the access file again; one that cannot be used changes nothing, and is a fault."""
        try:
            file = await asyncio.to_thread(read_access_file, self.path)
        except ConfigInvalid as refused:
            log.warning("access_file_refused", error=str(refused))
            why = f"the access file cannot be used, what was read before counts: {refused}"
            self.faults.report(
                Scope.DEPENDENCY, FAULT, why, "fix the file, then send SIGHUP", reporter=FAULT
            )
            return
        self.guardian.access.replace(file)
        self.faults.clear(Scope.DEPENDENCY, FAULT, reporter=FAULT)
        log.info("access_file_read", grants=len(file.grants), tokens=len(file.tokens))


def make_admission(
    settings: Settings,
    desk: Desk,
    board: FlagBoard,
    faults: Faults,
    now: Callable[[], datetime],
    provider: IdentityProvider | None = None,
) -> Admission | None:
    """Return all of it; None where sign-in is off. Raises ConfigInvalid."""
    sign_in = settings.sign_in
    if sign_in.access_file is None:
        return None
    key = sign_in.session_key
    signer = ValueSigner(None if key is None else key.get_secret_value().encode())
    lasts = timedelta(hours=sign_in.session_hours)
    origin = None
    if sign_in.public_url is not None:
        public = urlsplit(sign_in.public_url)
        origin = f"{public.scheme}://{public.netloc}"
    guardian = Guardian(
        access=Access(read_access_file(sign_in.access_file)),
        sessions=Sessions(signer, now, lasts, is_secure=sign_in.is_secure),
        signer=signer,
        proxy=sign_in.proxy,
        proxies=networks_of(sign_in.proxy.addresses),
        now=now,
        refused=RateLimit(REFUSED_PER_SECOND, burst_seconds=5.0),
        public_origin=origin,
    )
    commands = Commands(guardian, desk, board, now)
    return Admission(guardian, commands, sign_in.access_file, faults, provider)
