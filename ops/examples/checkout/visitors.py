"""Visitors of the shop.

`python -m checkout.visitors URL REQUESTS_PER_SECOND` until SIGTERM, with a JSON line a second.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import httpx

_USERS = 100_000
_AT_ONCE = 64  # a shop that answers slowly gets fewer visitors, not a pile of them


class Visitors:
    """What they met, by the version of the checkout that served them."""

    def __init__(self, url: str) -> None:
        """Visit the shop at `url`."""
        self._url = url
        self.requests = {"old": 0, "new": 0}
        self.failed = {"old": 0, "new": 0}
        self.unanswered = 0

    async def visit(self, client: httpx.AsyncClient) -> None:
        """Make one request of one user."""
        user = f"user-{random.randrange(_USERS)}"
        try:
            answer = await client.get(f"{self._url}/checkout", params={"user": user})
            version = answer.json()["version"]
        except (httpx.HTTPError, ValueError, KeyError):
            self.unanswered += 1
            return
        self.requests[version] += 1
        self.failed[version] += answer.is_error


async def serve(url: str, requests_per_second: float) -> None:
    """Visit without end."""
    visitors = Visitors(url)
    under_way: set[asyncio.Task[None]] = set()
    report_at = 0.0
    async with httpx.AsyncClient(timeout=2.0) as client:
        while True:
            if len(under_way) < _AT_ONCE:
                task = asyncio.create_task(visitors.visit(client))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            if time.monotonic() - report_at >= 1:
                report_at = time.monotonic()
                report = {
                    name: value
                    for name, value in vars(visitors).items()
                    if not name.startswith("_")
                }
                print(json.dumps(report), flush=True)
            await asyncio.sleep(1 / requests_per_second)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
