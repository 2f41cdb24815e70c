"""One Kafka for all worker processes of a parallel test run.

Belongs here: which worker starts the broker, and when it stops. Does not belong here: how a broker
is started, which is `tests.brokers`.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.brokers import KafkaInUse


@contextmanager
def kafka_of_all_workers(directory: Path, start: Callable[[], KafkaInUse]) -> Iterator[KafkaInUse]:
    """Yield the same Kafka in every process that names the same `directory`.

    The first process that asks starts it, and stops it when no other process uses it any more. Each
    user holds a shared lock on a file. The operating system releases that lock even when the
    process is killed, so nobody is waited for in vain.
    """
    described = directory / "kafka.json"
    with (directory / "kafka.users").open("w") as users:
        with _locked(directory / "kafka.start"):
            own = None if described.exists() else start()
            if own is not None:
                described.write_text(json.dumps(_description(own)), encoding="utf-8")
            fields = json.loads(described.read_text(encoding="utf-8"))
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield KafkaInUse(**fields, stop=leave_running)
        finally:
            if own is not None:
                with _locked(directory / "kafka.start"):
                    described.unlink()  # a process that asks from now on starts its own
                fcntl.flock(users, fcntl.LOCK_EX)  # returns once no other process uses it
                own.stop()


def leave_running() -> None:
    """Do nothing: another process stops the broker."""


def _description(broker: KafkaInUse) -> dict[str, Any]:
    return {
        "bootstrap": broker.bootstrap,
        "description": broker.description,
        "is_real": broker.is_real,
        "attempts": broker.attempts,
    }


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
