"""The page's own files: what was vendored is what its authors published."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx

from tests.unit.web.conftest import Surface

STATIC = Path(__file__).parents[4] / "controller" / "web" / "page" / "static"
#: SHA-256 of the files in npm's htmx.org 4.0.1: `dist/htmx.min.js` and `dist/ext/hx-sse.min.js`.
VENDORED = {
    "htmx.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    "hx-sse.min.js": "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103",
}


def test_vendored_files_are_as_published() -> None:
    """Nobody edits them, and their license is beside them."""
    for name, expected in VENDORED.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == expected, name
    assert "Zero-Clause BSD" in (STATIC / "LICENSE.htmx").read_text()
    ours = {"page.css", "page.js", "icon.svg", "LICENSE.htmx"}
    assert {path.name for path in STATIC.iterdir()} == VENDORED.keys() | ours


async def test_a_file_is_kept_under_its_hash(client: httpx.AsyncClient, surface: Surface) -> None:
    """Under another address it is asked for again."""
    del surface
    plain = await client.get("/ui/files/page.css")
    assert plain.headers["cache-control"] == "no-cache"
    assert plain.headers["content-type"] == "text/css; charset=utf-8"
    tag = plain.headers["etag"]
    again = await client.get("/ui/files/page.css", headers={"if-none-match": tag})
    assert again.status_code == 304
    pinned = await client.get("/ui/files/page.css?v=" + tag.strip('"'))
    assert "immutable" in pinned.headers["cache-control"]


async def test_no_other_file_is_served(client: httpx.AsyncClient) -> None:
    """The names are a list, and no path is built from them."""
    for name in ("LICENSE.htmx", "..%2Fapp.py", "%2e%2e", "nothing.js"):
        assert (await client.get(f"/ui/files/{name}")).status_code == 404
