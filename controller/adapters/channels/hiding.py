"""What a service says, without the secrets that it was sent.

Many servers and proxies repeat the address or a header of a request that they do not take, as in
`Cannot POST /services/T0/B0/...`. Their words go into logs, onto the page and into dead letters.

Belongs here: what of a channel's settings is secret, and hiding it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from controller.settings.notifications import ChannelSettings
from controller.text import excerpt

#: Characters of what a service says.
_MOST: Final = 200
HIDDEN: Final = "[hidden]"
#: Shorter ones would hide parts of ordinary words.
_SHORTEST: Final = 4
#: Of a part of an address: `api`, `v1` and the like say nothing.
_SHORTEST_PART: Final = 8


class Hiding:
    """Hides the secrets of one channel."""

    def __init__(self, settings: ChannelSettings) -> None:
        found = {one for one in _secrets(settings) if len(one) >= _SHORTEST}
        longest_first = sorted(found, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if found else None

    def hide(self, text: str) -> str:
        """Return the text without them."""
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)

    def excerpt(self, text: str) -> str:
        """Return the first words without them; cut after that, as half a secret is not found."""
        return excerpt(self.hide(text), _MOST)


def _secrets(settings: ChannelSettings) -> Iterator[str]:
    """Yield every form in which a server may repeat one."""
    for value in (settings.token, settings.secret, settings.password):
        if value is not None:
            yield value.get_secret_value()
    if settings.password is not None:
        pair = f"{settings.username}:{settings.password.get_secret_value()}"
        yield base64.b64encode(pair.encode()).decode()
    if settings.url is None:
        return
    url = settings.url.get_secret_value()
    yield url
    address = urlsplit(url)
    parts = [address.path, address.query, *address.path.split("/"), address.password or ""]
    parts += [value for _, value in parse_qsl(address.query)]
    parts += [one.partition("=")[2] for one in address.query.split("&")]  # as it is sent
    for part in parts:
        if len(part) >= _SHORTEST_PART:
            yield part
            yield unquote(part)
