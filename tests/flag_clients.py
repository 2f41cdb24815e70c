"""Real OpenFeature clients as tests use them.

The flagd provider for Python, the OFREP clients for JavaScript.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.contrib.provider.flagd.config import ResolverType
from openfeature.evaluation_context import EvaluationContext

from tests import npm_packages

_OFREP_JS = Path(__file__).parent / "ofrep_js"


def flagd_sync(port: int) -> FlagdProvider:
    """Return a provider that evaluates in process and follows the gRPC sync source at `port`."""
    return FlagdProvider(
        resolver_type=ResolverType.IN_PROCESS,
        host="127.0.0.1",
        port=port,
        tls=False,
        deadline_ms=10_000,
    )


def flagd_file(path: Path) -> FlagdProvider:
    """Return a provider that evaluates in its own process and watches a file."""
    return FlagdProvider(resolver_type=ResolverType.FILE, offline_flag_source_path=str(path))


@asynccontextmanager
async def openfeature_client(provider: FlagdProvider) -> AsyncIterator[OpenFeatureClient]:
    """Run a client of a provider, beside a loop that may be what serves it."""
    await asyncio.to_thread(api.set_provider_and_wait, provider)
    try:
        yield api.get_client()
    finally:
        await asyncio.to_thread(api.shutdown)
        api.clear_providers()


def users_in(client: OpenFeatureClient, flag_key: str, users: Sequence[str]) -> set[str]:
    """Return the users to whom a boolean flag is served as true."""
    return {
        user for user in users if client.get_boolean_value(flag_key, False, EvaluationContext(user))
    }


def installed_ofrep_clients() -> Path:
    """Return the directory that has them, kept between runs.

    Skips the test, saying why, where they cannot be had.
    """
    return npm_packages.installed(_OFREP_JS, "ofrep-js", "OFREP NOT tried with JavaScript clients")


@asynccontextmanager
async def ofrep_client(
    installed: Path, kind: str, address: str, flag_key: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a `server`, `cached`, `web` or `pages` client of one flag: see `ofrep_js/clients.mjs`.

    It ends with its standard input.
    """
    program = str(_OFREP_JS / "clients.mjs")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "node",
        program,
        kind,
        address,
        flag_key,
        cwd=installed,
        stdin=pipe,
        stdout=pipe,
        limit=1 << 24,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def line_of(process: asyncio.subprocess.Process) -> Any:
    """Return what an OFREP client says next."""
    assert process.stdout is not None
    async with asyncio.timeout(240):
        return json.loads(await process.stdout.readline())


async def details_of(
    process: asyncio.subprocess.Process, users: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what a `server` or `pages` client is served for each user."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(users).encode() + b"\n")
    details: list[dict[str, Any]] = await line_of(process)
    return details
