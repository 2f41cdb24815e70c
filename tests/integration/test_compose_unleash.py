"""Unleash as docker-compose.yml configures it, and rolloutd with it. `make unleash` runs this."""

from __future__ import annotations

from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import SystemClock
from controller.settings import load_settings
from tests.compose import environment_of, variables_of
from tests.unleash.given import decided
from tests.unleash.server import UnleashServer, installed

INSTALLED = installed()
VARIABLES = variables_of("ops/unleash.env")
#: Of this machine, in place of the container's.
DATABASE = {
    "DATABASE_HOST": "127.0.0.1",
    "DATABASE_NAME": "postgres",
    "DATABASE_USERNAME": "postgres",
}


async def test_rolloutd_drives_the_unleash_of_the_compose_file() -> None:
    """The token of `.env` is Unleash's and rolloutd's, and lets it create and serve a flag."""
    environ = environment_of("unleash", VARIABLES) | DATABASE
    with UnleashServer(INSTALLED, environ) as server:
        settings = load_settings(
            None,
            environment_of("rolloutd", VARIABLES) | {"ROLLOUTD_PLANES__UNLEASH__URL": server.url},
        )
        plane = UnleashPlane(settings.planes.unleash, SystemClock())
        try:
            rollout = decided("checkout-v2", 25.0)
            await plane.serve(rollout)
            served = await plane.look(rollout)
        finally:
            await plane.close()
    assert served.percent == 25.0
    assert served.difference is None
