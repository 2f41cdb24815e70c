"""An event loop in which a name server that does not answer holds up only who asks it.

asyncio looks names up in the threads that everything else shares, and there are six of them on a
machine with two cores. A lookup cannot be called off: with a name server that hangs, each one keeps
its thread for 10 s and longer. A few channels of notifications then held up the flag planes' files
and `/metrics` for half a minute.

Belongs here: which thread looks a name up. Does not belong here: how long somebody waits for it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

#: Lookups under way, each of another name: the settings and plans hardly name as many hosts.
MOST_LOOKUPS: Final = 256

Lookup = tuple[Any, ...]


class LookupLoop(asyncio.SelectorEventLoop):
    """Looks each name up in a thread of its own, once for all who ask meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[Lookup, asyncio.Future[list[Any]]] = {}

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Return the addresses of a host. Raises socket.gaierror."""
        lookup = (host, port, family, type, proto, flags)
        found = self._lookups.get(lookup)
        if found is None:
            if len(self._lookups) >= MOST_LOOKUPS:
                why = f"{MOST_LOOKUPS} lookups of other names have no answer"
                raise socket.gaierror(socket.EAI_AGAIN, why)
            found = self._start(lookup)
            self._lookups[lookup] = found
            found.add_done_callback(lambda _: self._lookups.pop(lookup, None))
        return list(await asyncio.shield(found))

    def _start(self, lookup: Lookup) -> asyncio.Future[list[Any]]:
        """Look a name up in a thread; return what will have its addresses.

        Raises socket.gaierror where there may be no further thread, for this moment alone.
        """
        found: asyncio.Future[list[Any]] = self.create_future()
        # A daemon thread: the process ends without it.
        work = threading.Thread(
            target=self._look_up, args=(lookup, found), name="name lookup", daemon=True
        )
        try:
            work.start()
        except RuntimeError as error:
            raise socket.gaierror(socket.EAI_AGAIN, f"no thread looks it up: {error}") from error
        return found

    def _look_up(self, lookup: Lookup, found: asyncio.Future[list[Any]]) -> None:
        """Look a name up, in a thread."""
        try:
            addresses = socket.getaddrinfo(*lookup)
        except Exception as error:
            self._tell(found, found.set_exception, error)
        else:
            self._tell(found, found.set_result, addresses)

    def _tell(
        self, found: asyncio.Future[list[Any]], tell: Callable[[Any], None], what: object
    ) -> None:
        def tell_now() -> None:
            if not found.done():  # the loop that ends calls it off
                tell(what)

        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self.call_soon_threadsafe(tell_now)
