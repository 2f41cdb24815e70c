"""What is in a release that others wrote: the packages of a lock file, and the crates.

Belongs here: names, versions, hashes, licenses, and what needs what. How they are listed for people
and for machines is in `license_texts.py` and `bill_of_materials.py`.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final

_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ; ([^\\\n]+?))? \\$")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_TEXT_OF_LICENSE: Final = re.compile(
    r"(licen[cs]e|copying|notice|copyright|authors)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Part:
    """One package or crate of others."""

    kind: str  # "pypi" or "cargo", as in a package URL
    name: str
    version: str
    sha256: tuple[str, ...]  # of each file that the lock allows; of a crate its one file
    needed_by: frozenset[str]  # names
    marker: str | None = None  # where it is installed; None is everywhere
    license: str | None = None  # an SPDX expression, or what its metadata says in its place
    texts: dict[str, str] = field(default_factory=dict)  # file name to license text

    @property
    def url(self) -> str:
        """Return its package URL, unique in a release."""
        return f"pkg:{self.kind}/{self.name}@{self.version}"


def packages(lock: Path, installed_in: Path) -> list[Part]:
    """Return the packages of a lock file of uv, in its order.

    `installed_in` is a directory with the installed packages: their licenses are read there. Raises
    ValueError where the lock has a line that is not understood.
    """
    here = {normal(one.name): one for one in distributions(path=[str(installed_in)])}
    found = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8")):
        first, *more = [line for line in block.splitlines() if not line.startswith("#")] or [""]
        if not first:
            continue
        if (pin := _PIN.match(first)) is None:
            raise ValueError(f"{lock.name}: {first!r} is not a pinned package")
        name, version, marker = pin.groups()
        one = here.get(normal(name))
        found.append(
            Part(
                "pypi",
                normal(name),
                version,
                tuple(_HASH.findall(block)),
                frozenset(_needing(more)),
                marker,
                None if one is None else _license(one),
                {} if one is None else _license_files(one),
            )
        )
    return found


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _needing(lines: list[str]) -> set[str]:
    """Return the names below `# via`, where uv says who needs a package."""
    comments = (line.strip() for line in lines if line.lstrip().startswith("#"))
    texts = (line.lstrip("# ").removeprefix("via").strip() for line in comments)
    names = (text.removesuffix(" (pyproject.toml)") for text in texts)
    return {normal(name) for name in names if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)}


def _license(one: Distribution) -> str | None:
    """Return what the metadata says: an SPDX expression where there is one."""
    said: Any = one.metadata  # an email's header: it has `get`, and its type has not
    if expression := said.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in said.get_all("Classifier") or ()
        if line.startswith("License :: ")
    ]
    written = str(said.get("License") or "").strip()
    if written and "\n" not in written and len(written) <= 60:
        return written
    return " AND ".join(sorted(classifiers)) or None


def _license_files(one: Distribution) -> dict[str, str]:
    """Return the texts that the package brought beside its metadata."""
    texts = {}
    for path in one.files or ():
        in_metadata = path.parts[0].endswith(".dist-info")
        if in_metadata and _TEXT_OF_LICENSE.search("/".join(path.parts[1:])):
            texts["/".join(path.parts[1:])] = path.read_text(encoding="utf-8")
    return texts


def crates(directory: Path, cargo_environment: dict[str, str]) -> list[Part]:
    """Return the crates of cargo's lock file in a directory, by name. cargo must have fetched them.

    `cargo_environment` is the environment of cargo. Raises CalledProcessError where it fails.
    """
    locked = tomllib.loads((directory / "Cargo.lock").read_text(encoding="utf-8"))["package"]
    told = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version=1"],
        cwd=directory,
        env=cargo_environment,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    described: dict[tuple[str, str], dict[str, Any]] = {
        (one["name"], one["version"]): one for one in json.loads(told)["packages"]
    }
    found = []
    for one in sorted(locked, key=lambda one: (one["name"], one["version"])):
        if "checksum" not in one:
            continue  # ours
        metadata = described[one["name"], one["version"]]
        needed_by = (
            other["name"]
            for other in locked
            if any(line.split()[0] == one["name"] for line in other.get("dependencies", ()))
        )
        source = Path(metadata["manifest_path"]).parent
        found.append(
            Part(
                "cargo",
                one["name"],
                one["version"],
                (one["checksum"],),
                frozenset(needed_by),
                license=(metadata["license"] or "").replace("/", " OR ") or None,
                texts={
                    path.name: path.read_text(encoding="utf-8")
                    for path in sorted(source.iterdir())
                    if path.is_file() and _TEXT_OF_LICENSE.match(path.name)
                },
            )
        )
    return found
