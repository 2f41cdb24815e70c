"""A real Unleash with a PostgreSQL of its own, as child processes.

`make unleash` installs what it needs.

`python -m tests.unleash.server` serves one until its standard input ends and prints its address: to
try things by hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.brokers import OrphanGuard, free_port
from tests.servers import OwnServer

HERE = Path(__file__).parent

#: Where `make unleash` put Unleash (node_modules) and its Python SDK (venv).
INSTALLED_VARIABLE = "ROLLOUTD_TEST_UNLEASH"

ADMIN_TOKEN = "*:*.tests-admin-token"
BACKEND_TOKEN = "default:development.tests-backend-token"
ENVIRONMENT = "development"
READY_SECONDS = 120.0


def installed() -> Path:
    """Return the directory that `make unleash` fills. Skips a whole test module without one."""
    named = os.environ.get(INSTALLED_VARIABLE)
    if not named:
        why = (
            f"NO REAL UNLEASH: `make unleash` installs one, and names its directory by "
            f"{INSTALLED_VARIABLE}"
        )
        pytest.skip(why, allow_module_level=True)
    return Path(named).absolute()


def _postgres_binaries() -> Path:
    """Return the directory of `initdb` and `postgres`; Debian keeps them off PATH."""
    on_path = shutil.which("initdb")
    places = [] if on_path is None else [Path(on_path).resolve().parent]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise RuntimeError(
        "no PostgreSQL on this machine: install it (Debian: apt-get install postgresql)"
    )


def _node(directory: Path) -> str:
    """Return a Node.js of at least 22: the one installed beside Unleash, else the machine's."""
    packed = sorted((directory / "node_modules").glob("node-*-*/bin/node"))
    found = str(packed[0]) if packed else shutil.which("node")
    if found is None:
        raise RuntimeError("no Node.js: none in node_modules for this machine, and none on PATH")
    return found


class UnleashServer(OwnServer):
    """One Unleash with one PostgreSQL, both on loopback; a context manager."""

    def __init__(self, directory: Path, environ: Mapping[str, str] | None = None) -> None:
        """`directory` holds node_modules; `environ` beats what we tell Unleash."""
        self._installed = directory
        self._environ = dict(environ or {})
        self._processes: list[subprocess.Popen[bytes]] = []
        self._guard: OrphanGuard | None = None
        self._work = Path(tempfile.mkdtemp(prefix="rolloutd-unleash-"))
        self.url = f"http://127.0.0.1:{free_port()}"

    def start(self) -> None:
        """Start both and return once Unleash is healthy.

        Raises RuntimeError with the end of its log when it is not in time.
        """
        self._guard = OrphanGuard()
        self._guard.remove(self._work)
        postgres_port = free_port()
        self._start_postgres(postgres_port)
        port = self.url.rpartition(":")[2]
        ours = {
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_NAME": "postgres",
            "DATABASE_USERNAME": "postgres",
            "DATABASE_PASSWORD": "none",
            "DATABASE_SSL": "false",
            "HTTP_HOST": "127.0.0.1",
            "TZ": "UTC",
            "LOG_LEVEL": "warn",
            "CHECK_VERSION": "false",
            "SEND_TELEMETRY": "false",
            "INIT_ADMIN_API_TOKENS": ADMIN_TOKEN,
            "INIT_BACKEND_API_TOKENS": BACKEND_TOKEN,
        }
        ports = {"DATABASE_PORT": str(postgres_port), "HTTP_PORT": port}
        command = [_node(self._installed), str(self._script())]
        self._spawn(command, "unleash", **{**ours, **self._environ, **ports})
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._processes[-1].poll() is not None:
                break
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).status_code == httpx.codes.OK:
                    return
            time.sleep(0.2)
        raise RuntimeError(
            f"Unleash did not start:\n{(self._work / 'unleash.log').read_text()[-3000:]}"
        )

    def _script(self) -> Path:
        """Return the start script beside node_modules.

        Node.js looks packages up from where a script is.
        """
        script = self._installed / "server.mjs"
        if script.resolve() != (HERE / "server.mjs").resolve():
            shutil.copyfile(HERE / "server.mjs", script)
        return script

    def _start_postgres(self, port: int) -> None:
        binaries, data = _postgres_binaries(), self._work / "data"
        # PostgreSQL refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(self._work, user)
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=self._work)
        options = (
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
        )
        self._spawn(
            [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options],
            "postgres",
            user=user,
        )

    def _spawn(
        self, command: list[str], name: str, *, user: str | None = None, **environ: str
    ) -> None:
        with (self._work / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={"PATH": os.environ.get("PATH", ""), **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._work,
                user=user,
            )
        self._processes.append(process)
        assert self._guard is not None
        self._guard.watch(process.pid)

    def stop(self) -> None:
        """End both and remove what they wrote."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._guard is not None:
                self._guard.forget(process.pid)
        self._processes.clear()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        shutil.rmtree(self._work, ignore_errors=True)


class Console:
    """A person in Unleash's own console, or a script with its Admin API."""

    def __init__(
        self, url: str, *, project: str = "default", environment: str = ENVIRONMENT
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": ADMIN_TOKEN}, timeout=10
        )
        self._features = f"/api/admin/projects/{project}/features"
        self._environment = environment

    async def close(self) -> None:
        """Close what is open."""
        await self._http.aclose()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make a request below the project's features.

        Return the answer's JSON, None for an empty one.
        """
        headers = {"Content-Type": "application/json"}
        answer = await self._http.request(
            method, f"{self._features}{path}", json=body, headers=headers
        )
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def here(self, method: str, flag_key: str, path: str, body: Any = None) -> Any:
        """Make a request below the flag's environment."""
        return await self.call(method, f"/{flag_key}/environments/{self._environment}{path}", body)

    async def create(self, flag_key: str) -> None:
        """Make a flag."""
        await self.call("POST", "", {"name": flag_key, "type": "release"})

    async def environment(self, flag_key: str) -> Any:
        """Return the flag's environment: enabled, strategies."""
        feature = await self.call("GET", f"/{flag_key}")
        return next(each for each in feature["environments"] if each["name"] == self._environment)

    async def strategy(self, flag_key: str) -> Any:
        """Return the flag's only strategy."""
        (strategy,) = (await self.environment(flag_key))["strategies"]
        return strategy

    async def edit(self, flag_key: str, **fields: Any) -> None:
        """Replace fields of the flag's first strategy; `rollout` is one of its parameters."""
        first = (await self.environment(flag_key))["strategies"][0]
        paths = {
            ("/parameters/rollout" if name == "rollout" else f"/{name}"): value
            for name, value in fields.items()
        }
        patch = [{"op": "replace", "path": path, "value": value} for path, value in paths.items()]
        await self.here("PATCH", flag_key, f"/strategies/{first['id']}", patch)

    async def add(self, flag_key: str, rollout: int, **fields: Any) -> None:
        """Add a strategy that lets in `rollout` percent."""
        parameters = {"rollout": str(rollout), "stickiness": "userId", "groupId": flag_key}
        await self.here(
            "POST",
            flag_key,
            "/strategies",
            {"name": "flexibleRollout", "parameters": parameters, **fields},
        )

    async def admin_get(self, path: str) -> Any:
        """GET below /api/admin."""
        answer = await self._http.get(f"/api/admin{path}")
        assert answer.is_success, answer.text
        return answer.json()

    async def admin_post(self, path: str, body: Any) -> Any:
        """POST below /api/admin."""
        answer = await self._http.post(
            f"/api/admin{path}", json=body, headers={"Content-Type": "application/json"}
        )
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None


def _main() -> None:
    with UnleashServer(installed()) as server:
        sys.stdout.write(f"url={server.url} token={ADMIN_TOKEN}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _main()
