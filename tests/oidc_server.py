"""A real OpenID Connect provider as a process, and a person who signs in there by requests."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx

from tests.brokers import free_port
from tests.npm_packages import installed_package

PROVIDER = "oidc-provider@9.13.3"
SECRET = "a secret: with/odd+characters"
NOT_TRIED = "SIGN-IN IS NOT TRIED AGAINST A REAL PROVIDER"
_SCRIPT = Path(__file__).parent / "oidc_js" / "provider.mjs"


@asynccontextmanager
async def oidc_provider(redirect: str) -> AsyncIterator[str]:
    """Run a provider that sends people back to `redirect`; yield its issuer."""
    directory = await asyncio.to_thread(installed_package, PROVIDER, NOT_TRIED)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "node",
        str(_SCRIPT),
        str(directory),
        str(port),
        redirect,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    lines = []
    try:
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()) != b"ready\n":
                lines.append(line.decode())
                assert line, "".join(lines)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.communicate()


async def sign_in_as(browser: httpx.AsyncClient, name: str, at: str) -> httpx.Response:
    """Go to `at`, which leads to the provider, and sign in there; return where that ends."""
    answer = await browser.get(at)
    for _ in range(20):
        if answer.is_redirect:
            answer = await browser.get(urljoin(str(answer.url), answer.headers["location"]))
        elif (form := re.search(r'<form[^>]*action="([^"]+)"', answer.text)) is not None and (
            "/interaction/" in str(answer.url)
        ):
            prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
            assert prompt is not None, answer.text
            fields = {"prompt": prompt[1], "login": name, "password": "any"}
            target = urljoin(str(answer.url), html.unescape(form[1]))
            answer = await browser.post(target, data=fields)
        else:
            return answer
    raise AssertionError(f"no end of redirects: {answer.url}")
