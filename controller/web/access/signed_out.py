"""Sessions that people ended before their time, here and on other replicas.

Belongs here: which they are. Does not belong here: how replicas tell each other
(`running/shared_sign_outs.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

#: Ended sessions that are remembered. The oldest are forgotten first.
MOST_ENDED: Final = 10_000


class SignedOut:
    """Session ids, each until the moment after which its cookie is void by itself.

    Moments are Unix seconds.
    """

    def __init__(self) -> None:
        self._until: OrderedDict[str, int] = OrderedDict()
        self._untold: dict[str, int] = {}

    def __contains__(self, session: str) -> bool:
        return session in self._until

    def end(self, session: str, until: int) -> None:
        """Note a session that was ended here; other replicas are to be told."""
        self._note(session, until)
        self._untold[session] = until
        if len(self._untold) > MOST_ENDED:
            del self._untold[next(iter(self._untold))]

    @property
    def untold(self) -> Mapping[str, int]:
        """What other replicas were not told yet."""
        return dict(self._untold)

    def told(self, sessions: Mapping[str, int]) -> None:
        """Note that other replicas can read these."""
        for session in sessions:
            self._untold.pop(session, None)

    def heard(self, sessions: Mapping[str, int], now: int) -> None:
        """Note sessions that were ended elsewhere, and forget those whose time is over.

        `sessions` are all that replicas can read: others that are known here were lost, as by
        FLUSHDB, and are to be told again.
        """
        for session, until in sessions.items():
            self._note(session, until)
        for session in [one for one, until in self._until.items() if until < now]:
            del self._until[session]
        self._untold |= {one: until for one, until in self._until.items() if one not in sessions}

    def _note(self, session: str, until: int) -> None:
        self._until[session] = until
        if len(self._until) > MOST_ENDED:
            self._until.popitem(last=False)
