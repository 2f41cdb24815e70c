"""The image: what is in its root file system, and that it runs with nothing but that.

`make test-image` runs this; it builds `ops/Dockerfile` by buildah on a base of our own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from tests.brokers import free_port
from tests.image import Image, build_image

pytestmark = pytest.mark.long

KEPT = Path(__file__).parents[2] / ".cache" / "image"
USER = 10001
LONGEST_SECONDS = 180.0
#: Where every user may write in any Debian; a read-only root file system closes the other two.
WRITABLE = {"/tmp", "/var/tmp", "/run/lock", "/var/lib/rolloutd"}
_WRITABLE_PLACES = """
import os
for top, directories, files in os.walk("/"):
    if top in ("/proc", "/dev", "/sys"):
        directories.clear()
        continue
    for name in (".", *files):
        path = os.path.normpath(os.path.join(top, name))
        if not os.path.islink(path) and os.access(path, os.W_OK):
            print(path)
"""


@pytest.fixture(scope="module")
def image() -> Image:
    """Build it once."""
    return build_image(KEPT)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The directory that is kept, as a volume gives it to the image's user."""
    path = tmp_path / "volume"
    path.mkdir(mode=0o700)
    os.chown(path, USER, USER)
    return path


def run(image: Image, volume: Path, words: Sequence[str], **environ: str) -> str:
    """Run a program in a container and return what it printed. It must exit with 0."""
    ran = subprocess.run(
        image.command(volume, words, environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def test_it_runs_as_a_user_without_rights(image: Image) -> None:
    """The user is a number, so Kubernetes can check it; it has no shell and no home."""
    assert image.config["User"] == f"{USER}:{USER}"
    assert image.config["Entrypoint"] == ["rolloutd"]
    assert image.config["Cmd"] == ["run"]
    users = (image.root / "etc" / "passwd").read_text().splitlines()
    [ours] = [line for line in users if line.startswith("rolloutd:")]
    assert ours.split(":")[2:] == [str(USER), str(USER), "", "/nonexistent", "/usr/sbin/nologin"]


def test_nothing_in_it_gives_rights_or_runs_unasked(image: Image) -> None:
    """No setuid file, no `.pth` file, no pip in the environment, and no compiler."""
    found = subprocess.run(
        ["find", str(image.root), "-xdev", "-type", "f", "-perm", "/6000"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert found == ""
    ours = image.root / "opt" / "rolloutd"
    assert list(ours.rglob("*.pth")) == []
    assert list(ours.glob("lib/*/site-packages/pip")) == []
    assert not (image.root / "usr" / "bin" / "cargo").exists()
    owners = {path.lstat().st_uid for path in ours.rglob("*")}
    assert owners == {0}, "the user could change what it runs"


def test_its_user_can_write_in_one_place_only(image: Image) -> None:
    """Beside what Debian leaves open to everybody."""
    ran = subprocess.run(
        [
            *("chroot", f"--userspec={USER}:{USER}", str(image.root)),
            *("/opt/rolloutd/bin/python", "-I", "-c", _WRITABLE_PLACES),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(ran.stdout.split()) <= WRITABLE
    assert "/var/lib/rolloutd" in ran.stdout.split()


def test_the_native_fold_counts_in_it(image: Image, volume: Path) -> None:
    """On a read-only root file system, without a shell or any other program."""
    told = run(image, volume, ["rolloutd", "--version"])
    assert "counting native" in told
    assert run(image, volume, ["rolloutctl", "--version"]).endswith("counting native)\n")
    none = image.command(volume, ["python", "-c", "import os; os.execv('/bin/sh', ['sh'])"], {})
    assert subprocess.run(none, capture_output=True, check=False).returncode != 0


def test_it_serves_and_stops_as_docker_asks(
    image: Image, volume: Path, kafka: str, redis_url: str, topic_prefix: str
) -> None:
    """A real Kafka and store, the image's own health check, SIGTERM; it keeps what it decided."""
    ports = {"http": free_port(), "ops": free_port()}
    environ = {
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": kafka,
        "ROLLOUTD_KAFKA__TOPIC_PREFIX": topic_prefix,
        "ROLLOUTD_REDIS__URL": redis_url,
        "ROLLOUTD_HTTP__HOST": "127.0.0.1",
        "ROLLOUTD_HTTP__PORT": str(ports["http"]),
        "ROLLOUTD_HTTP__OPS_PORT": str(ports["ops"]),
    }
    words = [*image.config["Entrypoint"], *image.config["Cmd"]]
    log = volume.parent / "log"
    with log.open("w") as output:
        daemon = subprocess.Popen(
            image.command(volume, words, environ), stdout=output, stderr=output
        )
    try:

        def is_ready() -> bool:
            assert daemon.poll() is None, log.read_text()[-3000:]
            try:
                answer = httpx.get(f"http://127.0.0.1:{ports['ops']}/readyz", timeout=5)
            except httpx.TransportError:
                return False
            return answer.status_code == 200

        wait_until(is_ready)
        kind, *check = image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        run(image, volume, check, **environ)
        # It is process 1 of its namespace, as in a container, and a child of what made that.
        [process] = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        os.kill(int(process), signal.SIGTERM)
        assert daemon.wait(LONGEST_SECONDS) == 0, log.read_text()[-3000:]
    finally:
        daemon.kill()
        daemon.wait()
    assert "daemon_stopped" in log.read_text()
