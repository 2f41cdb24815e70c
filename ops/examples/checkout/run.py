"""The whole example: `make example-fastapi`, with BAD=1 for a new checkout that loses payments."""

from __future__ import annotations

import httpx
from staging import EXAMPLES, Example, environ_of, last_json, main, wants_bad_version

from controller.demo.environment import DemoEnvironment, until
from controller.demo.processes import Child, ProcessTree
from controller.demo.store import LOOPBACK, free_port

REQUESTS_PER_SECOND = 100


class Shop:
    """The FastAPI app and its visitors, a process each."""

    def __init__(self, flagd_sync: str = "") -> None:
        """Take variants from OFREP, or from the sync source at that host:port."""
        self.url = ""
        self._flagd_sync = flagd_sync
        self._visitors: Child | None = None

    async def start(self, tree: ProcessTree, environment: DemoEnvironment) -> None:
        """Start both and return when visitors are served."""
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        environ = environ_of(
            ROLLOUTD_URL=environment.http_url,
            KAFKA=environment.bootstrap,
            FLAGD_SYNC=self._flagd_sync,
        )
        uvicorn = (
            "-m",
            "uvicorn",
            "--factory",
            "checkout.app:make_app",
            "--port",
            str(port),
            "--log-level",
            "warning",
        )
        app = tree.start_python("shop", *uvicorn, environ=environ)
        await until(app, self._is_open, "did not open")
        visitors = tree.start_python(
            "visitors",
            "-m",
            "checkout.visitors",
            self.url,
            str(REQUESTS_PER_SECOND),
            environ=environ,
        )
        self._visitors = visitors
        await until(
            visitors, lambda: last_json(visitors).get("requests", {}).get("old"), "met nobody"
        )

    def _is_open(self) -> bool:
        try:
            return httpx.get(f"{self.url}/telemetry", timeout=1.0).is_success
        except httpx.HTTPError:
            return False

    async def summary(self) -> list[str]:
        """Return what the visitors met, and what became of the app's events."""
        assert self._visitors is not None
        met = last_json(self._visitors)
        requests, failed = met["requests"], met["failed"]
        async with httpx.AsyncClient(timeout=1.0) as client:
            events = (await client.get(f"{self.url}/telemetry")).json()
        old = f"{requests['old']:,} requests to the old checkout, {failed['old']:,} of them failed"
        new = f"{requests['new']:,} to the new one, {failed['new']:,} failed"
        fates = ", ".join(
            f"{events[fate]:,} {fate}" for fate in ("queued", "sent", "dropped", "lost")
        )
        return [
            f"Visitors: {old}; {new}; {met['unanswered']:,} got no answer.",
            f"Events of the app: {fates}.",
        ]


if __name__ == "__main__":
    main(
        Example(
            title="FastAPI checkout",
            plans=[EXAMPLES / "checkout" / "plan.yaml"],
            is_bad=wants_bad_version(),
            apps=Shop(),
            longest_seconds=120.0,
        )
    )
