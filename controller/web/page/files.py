"""The page's own files: a style sheet, our script, and htmx with its stream extension.

Each has an address with its hash, so browsers keep it for good and load a new one at once.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import xxhash
from starlette.types import Receive, Scope, Send

from controller.web.answers import header, is_named, send_bytes, send_error

PATH: Final = "/ui/files"
_TYPES: Final = {
    "page.css": b"text/css; charset=utf-8",
    "page.js": b"text/javascript; charset=utf-8",
    "htmx.min.js": b"text/javascript; charset=utf-8",
    "hx-sse.min.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}


class Files:
    """GET /ui/files/{name}: style and scripts of the page."""

    def __init__(self) -> None:
        directory = files("controller.web.page") / "static"
        self._files = {name: (directory / name).read_bytes() for name in _TYPES}
        self._tags = {name: xxhash.xxh3_64_hexdigest(body) for name, body in self._files.items()}

    def url(self, name: str) -> str:
        """Return the address of a file as it is now. Raises KeyError for an unknown one."""
        return f"{PATH}/{name}?v={self._tags[name]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the file; it may be kept for good under the address that has its hash."""
        name = scope["path_params"]["name"]
        if name not in self._files:
            await send_error(send, 404, "the page has no such file")
            return
        tag = f'"{self._tags[name]}"'
        is_pinned = scope["query_string"] == f"v={self._tags[name]}".encode()
        kept = b"public, max-age=31536000, immutable" if is_pinned else b"no-cache"
        headers = [(b"cache-control", kept), (b"etag", tag.encode())]
        if is_named(header(scope, b"if-none-match"), tag):
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            headers.append((b"content-type", _TYPES[name]))
            await send_bytes(send, 200, self._files[name], headers)
