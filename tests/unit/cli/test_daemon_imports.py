"""What `rolloutd run` imports: a replica without a feature does not pay for its library."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Our libraries bring these along only where they are installed; nothing here uses them.
NEVER = ("greenlet", "opentelemetry", "pygments", "rich")
#: Each takes 1 to 12 MB of memory, and belongs to what the settings below do not name.
OPTIONAL = (
    "aiosmtplib",
    "apprise",
    "authlib",
    "confluent_kafka",
    "controller.adapters.channels",
    "controller.adapters.http.pool",
    "controller.adapters.http_plane",
    "controller.adapters.llm.advisor",
    "controller.adapters.oidc",
    "controller.adapters.unleash",
    "controller.checking.checker",
    "controller.demo",
    "controller.responding.responder",
    "controller.scorecard",
    "controller.web.hooks",
    "google.protobuf",
    "grpc",
    "httpcore",
    "httpx",
)
#: What every rollout needs.
OF_ROLLOUTS = (
    "controller.core.analysis",
    "controller.deciding.flag.flag_worker",
    "jinja2",
    "numpy",
)

#: Runs the command with an event loop that ends where it would begin to run.
_RUN = """
import asyncio, sys

class Runner(asyncio.Runner):
    def run(self, made, **_):
        made.close()
        print("modules:", *sys.modules)
        return 0

asyncio.Runner = Runner
sys.argv = ["rolloutd", "run"]
from controller.cli.entry import rolloutd
rolloutd()
"""


def modules_of_a_daemon(**environ: str) -> list[str]:
    """Return what a process has imported when its event loop would begin."""
    ran = subprocess.run(
        [sys.executable, "-c", _RUN],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.rpartition("modules:")[2].split()


def found(modules: list[str], names: tuple[str, ...]) -> list[str]:
    """Return those of `names` that were imported, themselves or something in them."""
    return [each for each in names if any(f"{one}.".startswith(f"{each}.") for one in modules)]


def test_a_daemon_without_features_imports_nothing_of_them() -> None:
    """Only Kafka and Redis are set: no model, plane, channel, hook, check or sign-in."""
    loaded = modules_of_a_daemon()
    assert {"aiokafka", "redis", "starlette", "controller.bootstrap"} <= set(loaded)
    assert found(loaded, (*NEVER, *OPTIONAL)) == []


def test_what_judges_is_imported_before_the_loop_runs() -> None:
    """To import it takes 0.3 s, for which the first rollout of all would hold the loop."""
    assert found(modules_of_a_daemon(), OF_ROLLOUTS) == list(OF_ROLLOUTS)


@pytest.mark.parametrize(
    ("environ", "needed"),
    [
        ({"ROLLOUTD_ADVISOR__URL": "http://127.0.0.1:1"}, "controller.adapters.llm.advisor"),
        ({"ROLLOUTD_CHECKS__PROMETHEUS__URL": "http://127.0.0.1:1"}, "httpx"),
        ({"ROLLOUTD_PLANES__REDIS__URL": "redis://127.0.0.1:1"}, "controller.adapters.redis.plane"),
    ],
)
def test_a_feature_is_imported_before_the_loop_runs(environ: dict[str, str], needed: str) -> None:
    """No question, and no write to a plane, waits for an import."""
    assert found(modules_of_a_daemon(), (needed,)) == []
    assert found(modules_of_a_daemon(**environ), (needed,)) == [needed]
