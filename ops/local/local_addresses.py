"""Where the programs of the local stack listen, and how that is remembered until `make down`.

What the daemon's settings say about addresses holds for all: Kafka and the store are started where
the daemon looks for them. A start keeps what was chosen for it in a file. A later `make up`, also
from another terminal, takes it from there, unless a variable says otherwise.

Does not belong here: the programs (`local_services.py`).
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from local_processes import LOOPBACK, StackError, is_taken

from controller.errors import ConfigInvalid
from controller.settings import Settings, load_settings

KAFKA: Final = "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS"
REDIS: Final = "ROLLOUTD_REDIS__URL"
HTTP: Final = "ROLLOUTD_HTTP__PORT"
OPS: Final = "ROLLOUTD_HTTP__OPS_PORT"
BAD: Final = "BAD"  # no address, but it is chosen at the start as they are
#: What the daemon has no setting for, as in `Addresses`: the variable, and the usual port.
_OTHER_PORTS: Final[Mapping[str, tuple[str, int]]] = {
    "shop": ("SHOP_PORT", 8000),
    "prometheus": ("PROMETHEUS_PORT", 9090),
    "alertmanager": ("ALERTMANAGER_PORT", 9093),
}
_VARIABLES: Final[Mapping[str, str]] = {
    "kafka": KAFKA,
    "redis": REDIS,
    "http": HTTP,
    "ops": OPS,
    **{name: variable for name, (variable, _) in _OTHER_PORTS.items()},
}
#: How a variable gives a port, by what listens there.
_FORMS: Final = {"kafka": LOOPBACK + ":{}", "redis": f"redis://{LOOPBACK}:{{}}/0"}
_LOCAL_NAMES: Final = frozenset({LOOPBACK, "localhost"})
_FILE: Final = "chosen.json"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything is; all on loopback."""

    kafka: int
    redis: int
    http: int
    ops: int
    shop: int
    prometheus: int
    alertmanager: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen for a stack: its addresses, and the variables that give the same again."""

    at: Addresses
    variables: Mapping[str, str]

    def exports(self) -> Iterator[str]:
        """Yield what a shell needs so that `rolloutd` and `rolloutctl` find this stack."""
        yield f"export ROLLOUTCTL_DAEMON=http://{LOOPBACK}:{self.at.http}"
        for variable, value in _setting_variables(Settings()).items():
            if self.variables[variable] != value:
                yield f"export {variable}={shlex.quote(self.variables[variable])}"

    def changes(self, kept: Mapping[str, str]) -> list[str]:
        """Return what was chosen otherwise than what was kept, as assignments of a shell."""
        return [
            f"{variable}={shlex.quote(value)}"
            for variable, value in self.variables.items()
            if kept.get(variable, value) != value
        ]

    def elsewhere(self, ports: Container[int]) -> str:
        """Return assignments of a shell that choose free ports in place of these."""
        taken = set(asdict(self.at).values())
        assignments: dict[str, str] = {}
        for name, port in asdict(self.at).items():
            if port in ports:
                free = _free_port(port, taken)
                taken.add(free)
                assignments[_VARIABLES[name]] = _FORMS.get(name, "{}").format(free)
        return " ".join(f"{variable}={value}" for variable, value in assignments.items())


def _free_port(port: int, taken: Container[int]) -> int:
    """Return a port that nobody listens on, one that is easily remembered if possible."""
    for other in chain(range(port + 10_000, 65_536, 10_000), range(20_000, 32_000)):
        if other not in taken and not is_taken(other):
            return other
    raise StackError("no port is free on this machine")


def choose(environ: Mapping[str, str], directory: Path) -> Chosen:
    """Return what the variables, the start before and the settings say. Raises StackError."""
    kept = read_kept(directory) or {}
    try:
        settings = load_settings(None, {**kept, **environ})
    except ConfigInvalid as error:
        raise StackError(f"the daemon's settings: {error}") from error
    kafka, redis = settings.kafka.bootstrap_servers, urlsplit(settings.redis.url)
    host, _, port = kafka.rpartition(":")
    if host not in _LOCAL_NAMES or not port.isdigit():
        raise StackError(
            f"kafka.bootstrap_servers is {kafka}, and `make up` starts Kafka on this machine: "
            f"unset {KAFKA}, or give it as 127.0.0.1:9092"
        )
    if redis.hostname not in _LOCAL_NAMES or redis.scheme != "redis":
        raise StackError(
            f"redis.url is on {redis.hostname}, and `make up` starts a store on this machine: "
            f"unset {REDIS}, or give it as redis://127.0.0.1:6379/0"
        )
    http = settings.http
    others = {
        name: _port(variable, environ.get(variable, kept.get(variable, "")) or str(usual))
        for name, (variable, usual) in _OTHER_PORTS.items()
    }
    addresses = Addresses(
        kafka=int(port),
        redis=redis.port or 6379,
        http=http.port,
        ops=http.port if http.ops_port is None else http.ops_port,
        **others,
    )
    if 0 in (addresses.http, addresses.ops):
        raise StackError("http.port and http.ops_port: name a port; 0 is another one each time")
    _refuse_shared_ports(addresses)
    variables = {
        **_setting_variables(settings),
        **{_VARIABLES[name]: str(number) for name, number in others.items()},
        BAD: environ.get(BAD, kept.get(BAD, "")),
    }
    return Chosen(addresses, variables)


def _setting_variables(settings: Settings) -> dict[str, str]:
    ops = settings.http.ops_port
    return {
        KAFKA: settings.kafka.bootstrap_servers,
        REDIS: settings.redis.url,
        HTTP: str(settings.http.port),
        OPS: "null" if ops is None else str(ops),
    }


def _refuse_shared_ports(at: Addresses) -> None:
    given: dict[int, str] = {}
    for name, port in asdict(at).items():
        other = given.setdefault(port, name)
        if other != name and (other, name) != ("http", "ops"):  # those two may be one
            raise StackError(
                f"port {port} is given to two programs, {other} and {name}: set {_VARIABLES[name]} "
                "to another port"
            )


def _port(variable: str, text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65_536:
        raise StackError(f"{variable} is {text!r}: a port is a number from 1 to 65535")
    return int(text)


def read_kept(directory: Path) -> dict[str, str] | None:
    """Return the variables that the start before has kept; None without one."""
    try:
        kept = json.loads((directory / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # never started, or a crash cut the file short: the variables decide
    return {str(name): str(value) for name, value in kept.items()} if type(kept) is dict else None


def keep(chosen: Chosen, directory: Path) -> None:
    """Keep what was chosen until `make down`. Raises StackError."""
    path = directory / _FILE
    try:
        path.unlink(missing_ok=True)
        # A URL may hold a password.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(dict(chosen.variables), file, indent=1)
    except OSError as error:
        raise StackError(f"{path} cannot be written: {error}") from error
