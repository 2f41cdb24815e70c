"""From templates to HTML: escaped, cut and isolated text, and pages in sections.

A screen is made of sections. Each has an id, so that a section that changed can be sent alone.
What people and models wrote is hostile: it passes through `said`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import xxhash
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.types import Send

from controller.text import plural, printable
from controller.web.answers import send_bytes
from controller.web.page.files import Files

#: Nothing but our own files and addresses, no inline script or style, in nobody's frame.
POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PAGE_HEADERS: Final = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", POLICY),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"vary", b"accept"),
)
#: Characters shown of a text that somebody wrote.
LONGEST_TEXT: Final = 600


@dataclass(frozen=True, slots=True)
class ScreenSection:
    """A part of a screen. Where it has `parts`, one that changed is sent without the others."""

    id: str
    html: str
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page, where people can sign in."""

    name: str  # empty: nobody is signed in
    form: str  # the token that this person's forms carry
    can_sign_out: bool
    sign_in: str  # the address of signing in; empty: not on a page of ours


class Renderer:
    """Fills templates."""

    def __init__(self, files: Files, environment: str, *, has_incidents: bool = False) -> None:
        """`environment` is the name that operators gave this installation.

        `has_incidents`: there is a screen of them.
        """
        self._everywhere: Mapping[str, Any] = {
            "file": files.url,
            "environment": environment,
            "has_incidents": has_incidents,
        }

    def blocks(self, template: str, values: Mapping[str, Any]) -> list[ScreenSection]:
        """Return each block of a template as a section, in order; an empty one too."""
        found = _templates().get_template(template)
        context = found.new_context({**self._everywhere, **values})
        return [
            ScreenSection(name, "".join(block(context)).strip())
            for name, block in found.blocks.items()
        ]

    def part(self, template: str, **values: Any) -> str:
        """Return a template's HTML."""
        return _templates().get_template(template).render(self._everywhere, **values).strip()

    def page(
        self,
        title: str,
        sections: Sequence[ScreenSection],
        *,
        live: str | None = None,
        here: str = "",
        visitor: Visitor | None = None,
    ) -> bytes:
        """Return a whole page. `live` is the address of its stream, None for none.

        `here` names the entry of the menu that is shown as present. `visitor` None: nobody can sign
        in.
        """
        body = Markup("\n".join(section.html for section in sections))  # noqa: S704
        if live is not None:
            live += ("&" if "?" in live else "?") + f"seen={digest(sections)}"
        return self.part(
            "layout.html",
            title=title,
            body=body,
            live=live,
            here=here,
            kind=here or "page",
            visitor=visitor,
        ).encode()


@cache
def _templates() -> Environment:
    """Return the templates. Whoever renders has the same ones: each takes 30 ms to compile."""
    environment = Environment(
        loader=PackageLoader("controller.web.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"said": said, "when": when, "percent": percent, "plural": plural}
    return environment


def digest(sections: Iterable[ScreenSection]) -> str:
    """Return a name of what a page shows: of its parts, a dot, and of their content."""
    parts, content = xxhash.xxh3_64(), xxhash.xxh3_64()
    for section in sections:
        parts.update(f"{section.id}\0".encode())
        content.update(f"{section.html}\0".encode())
    return f"{parts.hexdigest()}.{content.hexdigest()}"


def has_other_parts(digest_of_one: str, digest_of_other: str) -> bool:
    """Return whether two pages have other parts, so that one cannot be changed into the other."""
    return digest_of_one.partition(".")[0] != digest_of_other.partition(".")[0]


def said(text: object, longest: int = LONGEST_TEXT) -> Markup:
    """Return a text that somebody wrote: escaped, cut, and its direction kept to itself."""
    words = str(text)
    shown = printable(words[:longest], " ")
    more = f" … ({len(words):,} characters)" if len(words) > longest else ""
    return Markup("<bdi>{}</bdi>{}").format(shown, more)


def when(moment: datetime | None) -> Markup:
    """Return a moment in UTC; the page's script writes it in the reader's zone, with its age."""
    if moment is None:
        return Markup("–")
    utc = moment.astimezone(UTC)
    shown = f"{utc:%Y-%m-%d %H:%M:%S} UTC"
    stamp = utc.isoformat(timespec="seconds")
    return Markup('<time datetime="{}">{}</time>').format(stamp, shown)


def percent(value: float) -> Markup:
    """Return a percentage."""
    return escape(f"{value:g} %")


async def send_page(send: Send, page: bytes, status: int = 200, *cookies: bytes) -> None:
    """Send a page, with cookies."""
    set_cookies = [(b"set-cookie", one) for one in cookies]
    await send_bytes(send, status, page, (*PAGE_HEADERS, *set_cookies))
