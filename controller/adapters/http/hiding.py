"""What a server says, without the secrets that it was sent.

Many servers and proxies repeat the address or a header of a request that they do not take, as in
`Cannot POST /services/T0/B0/...`. Their words go into logs, onto the page and into alerts.

Belongs here: hiding given secrets, and the forms of those that any service may have. Does not
belong here: which others one service has.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from typing import Final

from pydantic import SecretStr

from controller.text import excerpt

#: Characters of what a service says.
MOST_WORDS: Final = 200
HIDDEN: Final = "[hidden]"
#: Shorter ones would hide parts of ordinary words.
_SHORTEST: Final = 4


class Hiding:
    """Hides the secrets of one service."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """`secrets`: every form in which a server may repeat one."""
        found = {one for one in secrets if len(one) >= _SHORTEST}
        longest_first = sorted(found, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if found else None

    def hide(self, text: str) -> str:
        """Return the text without them."""
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)

    def excerpt(self, text: str, most: int = MOST_WORDS) -> str:
        """Return the first words without them; cut after that, as half a secret is not found."""
        return excerpt(self.hide(text), most)


def basic_pair(username: str, password: str) -> str:
    """Return a name and its password as basic authentication sends them."""
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def sign_in_secrets(
    username: str, password: SecretStr | None, *others: SecretStr | None
) -> Iterator[str]:
    """Yield every form in which a server may repeat what we sign in with; None: we do not use it.

    `others` are sent as they are, such as a token.
    """
    for value in (password, *others):
        if value is not None:
            yield value.get_secret_value()
    if password is not None:
        yield basic_pair(username, password.get_secret_value())
