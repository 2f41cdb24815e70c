"""`make release`: everything that is published of a version, into `dist/`, from the last commit.

Two wheels, two bills of materials, the third-party licenses, the locked packages, and SHA256SUMS of
these. Run twice, also in another directory, the files are equal to the byte. `AUDIT.txt` says what
the advisory services said; it depends on the day, so SHA256SUMS does not have it.

Belongs here: the order of the steps, and what is printed. Runs in `.cache/release`, which has the
packages of `ops/release/requirements.lock`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

import advisories
from bill_of_materials import Released, bill, check_bill, is_spdx_expression
from license_texts import license_file
from locked_parts import crates, packages
from release_check import check_installed, runtime_environment
from wheels import NATIVE, build_native_wheel, build_wheel, export, native_environment

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = Path("ops/requirements-runtime.lock")
SUMS: Final = "SHA256SUMS"
AUDIT: Final = "AUDIT.txt"
#: What a release or `make wheel` may have left; nothing else is removed.
_OURS: Final = re.compile(rf"rolloutd[-_].+|THIRD-PARTY-LICENSES\.txt|{SUMS}|{re.escape(AUDIT)}")


def agreed_version(source: Path) -> str:
    """Return the version. Raises SystemExit where two places say different ones."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    crate = tomllib.loads((source / NATIVE / "Cargo.toml").read_text(encoding="utf-8"))["package"]
    version: str = project["version"]
    [pinned] = project["optional-dependencies"]["native"]
    changelog = (source / "CHANGELOG.md").read_text(encoding="utf-8")
    faults = []
    if crate["version"] != version:
        faults.append(f"{NATIVE}/Cargo.toml has {crate['version']}")
    if pinned != f"rolloutd-native=={version}":
        faults.append(f"the extra `native` needs {pinned}")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        faults.append("CHANGELOG.md has no section of it with a date")
    if faults:
        raise SystemExit(f"pyproject.toml has {version}, but {'; '.join(faults)}")
    return version


def unreleased_lines(source: Path) -> int:
    """Return how many lines CHANGELOG.md has of changes that are in no release."""
    changelog = (source / "CHANGELOG.md").read_text(encoding="utf-8")
    section = changelog.partition("## Unreleased\n")[2].partition("\n## ")[0]
    return len(section.split("\n- ")) - 1


def check_replaceable(out: Path) -> None:
    """Raise SystemExit where `out`, which is removed, holds anything but files of a release."""
    others = sorted(
        path.name
        for path in (out.iterdir() if out.is_dir() else ())
        if not (path.is_file() and _OURS.fullmatch(path.name))
    )
    if others:
        raise SystemExit(
            f"--out {out} is replaced whole, and it holds {others[0]}, which is no file of a "
            f"release: name an empty directory or a new one"
        )


def sha256(path: Path) -> str:
    """Return the hash of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git(*arguments: str) -> str:
    """Return what git prints about this repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def build(source: Path, out: Path, committed: int, target: Path) -> str:
    """Build everything that is equal every time into `out`, and return the version."""
    version = agreed_version(source)
    wheel = build_wheel(source, out, committed)
    cargo = native_environment(source, target, committed)
    native_wheel = build_native_wheel(source, out, cargo)
    with runtime_environment(source / LOCK) as runtime:
        python_parts = packages(source / LOCK, runtime.site_packages)
        check_installed(runtime, wheel, native_wheel, version)
    crate_parts = crates(source / NATIVE, cargo)
    for path, parts in ((wheel, python_parts), (native_wheel, crate_parts)):
        name = path.name.partition("-")[0].replace("_", "-")
        described = Released(name, version, sha256(path), committed)
        made = out / f"{name}-{version}.cdx.json"
        made.write_text(bill(described, parts, is_spdx_expression), encoding="utf-8")
        check_bill(made)
    texts = license_file(version, python_parts, crate_parts)
    (out / "THIRD-PARTY-LICENSES.txt").write_text(texts, encoding="utf-8")
    shutil.copyfile(source / LOCK, out / f"rolloutd-{version}-requirements.txt")
    names = sorted(path.name for path in out.iterdir())
    sums = "".join(f"{sha256(out / name)}  {name}\n" for name in names)
    (out / SUMS).write_text(sums, encoding="utf-8")
    return version


def main() -> None:
    """Build a release, then ask about its packages."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where to (dist)")
    parser.add_argument(
        "--require-audit", action="store_true", help="fail unless every package was audited"
    )
    options = parser.parse_args()
    check_replaceable(options.out)
    if shutil.which("cargo") is None:
        raise SystemExit("no cargo on PATH: the native wheel needs Rust 1.85 or newer")
    commit, committed = git("rev-parse", "HEAD"), int(git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory(prefix="rolloutd-release-") as temporary:
        base = Path(temporary).resolve()
        source, out = base / "source", base / "out"
        export(ROOT, commit, source)
        out.mkdir()
        version = build(source, out, committed, base / "target")
        warnings = [f"built from commit {commit[:12]}; what is not committed is NOT in it"]
        if not git("status", "--porcelain", "--untracked-files=no"):
            warnings.clear()
        if changes := unreleased_lines(source):
            warnings.append(
                f"CHANGELOG.md has {changes} changes under Unreleased: this is later than the "
                f"{version} that it describes. Raise the version before you publish it"
            )
        audits = advisories.ask(source / LOCK)
        report, is_found, is_complete = advisories.report(audits)
        (out / AUDIT).write_text(f"rolloutd {version}, commit {commit}\n{report}", encoding="utf-8")
        shutil.rmtree(options.out, ignore_errors=True)
        shutil.copytree(out, options.out)
    print((options.out / SUMS).read_text(encoding="utf-8"), end="")
    for warning in warnings:
        print(f"WARNING: {warning}.", file=sys.stderr)
    print(f"\n{report}", end="", file=sys.stderr)
    if is_found:
        raise SystemExit("known vulnerabilities: do not publish this")
    if not is_complete:
        print(
            f"THIS RELEASE WAS NOT AUDITED, and {AUDIT} says so. Audit it before you publish it, "
            "where the services are reached: make release ARGS=--require-audit",
            file=sys.stderr,
        )
        if options.require_audit:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
