"""What of a channel's settings is secret, and must not be in what its service says.

Belongs here: the forms in which a server may repeat one. Does not belong here: hiding them
(`controller/adapters/http/hiding.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from controller.adapters.http.hiding import Hiding, sign_in_secrets
from controller.settings.notifications import ChannelSettings

#: Of a part of an address: `api`, `v1` and the like say nothing.
_SHORTEST_PART: Final = 8


def hiding_of(settings: ChannelSettings) -> Hiding:
    """Return what hides the secrets of one channel."""
    return Hiding(_secrets(settings))


def _secrets(settings: ChannelSettings) -> Iterator[str]:
    """Yield every form in which a server may repeat one."""
    others = settings.token, settings.secret
    yield from sign_in_secrets(settings.username, settings.password, *others)
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
