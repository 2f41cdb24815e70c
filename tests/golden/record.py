"""Keep what this release stores: `make golden` writes a directory for its version.

A real daemon on a Kafka and a Redis of its own plays the scene. A release that was published is
never recorded again; `--again` is for one that is not published yet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.brokers import LocalKafka
from tests.golden.scene import COUNTED, FILTERED, MANY_USERS, USERS, Watched, play, until
from tests.golden.stored import ANSWERS_FILE, PREFIX, Servers, keep
from tests.live import Client
from tests.notification_services import Receiver, running
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]


async def record(directory: Path) -> None:
    """Play the scene and keep what it leaves."""
    receiver = Receiver()
    with LocalKafka() as kafka, RedisServer() as redis, tempfile.TemporaryDirectory() as own:
        servers = Servers(kafka.bootstrap, redis.url, PREFIX)
        async with running(receiver):
            daemon = Watched(servers, Path(own), receiver)
            async with daemon, Client(servers.bootstrap, PREFIX) as client:
                await play(daemon, client)
                await until(lambda: _is_settled(daemon, receiver), "all is counted and told")
                answers = await daemon.answers()
                assert await daemon.stop() == 0
                await keep(servers, directory)
    text = json.dumps(answers, indent=1, sort_keys=True, ensure_ascii=False)
    (directory / ANSWERS_FILE).write_text(text + "\n", encoding="utf-8")


async def _is_settled(daemon: Watched, receiver: Receiver) -> bool:
    counts = [await daemon.counts(flag) for flag in COUNTED]
    users = [MANY_USERS if flag == FILTERED else USERS for flag in COUNTED]
    signals = (await daemon.get("/api/v1/signals")).json()["signals"]
    return (
        [sum((one["exposures"] or {}).values()) for one in counts] == users
        and all(_user_actions(one) >= count for one, count in zip(counts, users, strict=True))
        and all(one["done"] for one in signals)
        and {one["data"]["kind"] for one in receiver.shown} >= {"rolled_back", "completed"}
    )


def _user_actions(counts: dict[str, dict[str, dict[str, list[int]]]]) -> int:
    """Return how many user actions of both arms an error rate has counted."""
    return sum(trials for trials, _, _ in counts["metrics"]["error_rate"].values())


def main() -> None:
    """Record this release, unless that was done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--again", action="store_true", help="in place of what is there")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    directory = ROOT / "tests" / "golden" / project["version"]
    if directory.exists() and not options.again:
        raise SystemExit(
            f"{directory} is there. If {project['version']} is published, raise the version in "
            f'pyproject.toml first; if not: make golden ARGS="--again"'
        )
    asyncio.run(record(directory))
    size = sum(path.stat().st_size for path in directory.iterdir())
    sys.stdout.write(f"{directory.relative_to(ROOT)}: {size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
