"""Asks advisory services about the packages of a lock file, by pip-audit.

pip-audit ends with 0 when a service has not answered for a package, or does not know it. Here that
is "not audited", which is neither a pass nor a finding.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: In the order in which they are asked. Any of them that answers for every package is enough.
SERVICES: Final = ("pypi", "osv")
_SECONDS: Final = 300.0  # a service that hangs ends no release


@dataclass(frozen=True, slots=True)
class Audit:
    """What one service has said of one lock file."""

    service: str
    audited: int  # packages it answered for
    findings: tuple[str, ...]  # one line for each advisory that concerns us
    not_audited: tuple[str, ...]  # names, or why nothing was audited

    @property
    def is_complete(self) -> bool:
        """Return whether it answered for every package."""
        return not self.not_audited and self.audited > 0


def ask(lock: Path) -> list[Audit]:
    """Ask the services in turn, until one has answered for every package."""
    audits: list[Audit] = []
    for service in SERVICES:
        audits.append(read_answer(service, *_pip_audit(service, lock)))
        if audits[-1].is_complete:
            break
    return audits


def _pip_audit(service: str, lock: Path) -> tuple[str, str]:
    """Return what pip-audit printed on standard output and on standard error."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip"]
    command += ["--requirement", str(lock), "--format", "json", "--progress-spinner", "off"]
    command += ["--vulnerability-service", service]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"no answer in {_SECONDS:.0f} s"
    return ran.stdout, ran.stderr


def read_answer(service: str, printed: str, complaint: str) -> Audit:
    """Return what pip-audit's JSON says. What is no such JSON is "not audited", with its reason."""
    try:
        packages: list[dict[str, Any]] = list(json.loads(printed)["dependencies"])
    except (ValueError, KeyError, TypeError):
        why = ([line for line in complaint.splitlines() if line.strip()] or ["no answer"])[-1]
        return Audit(service, 0, (), (why[:300],))
    answered = [one for one in packages if "skip_reason" not in one]
    findings = tuple(
        f"{one['name']} {one['version']}: {found['id']}"
        + (f", fixed in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "")
        for one in answered
        for found in one["vulns"]
    )
    skipped = tuple(one["name"] for one in packages if "skip_reason" in one)
    return Audit(service, len(answered), findings, skipped)


def report(audits: list[Audit]) -> tuple[str, bool, bool]:
    """Return the text for people, whether anything was found, and whether all was audited."""
    lines = []
    for audit in audits:
        lines.append(f"{audit.service}: {audit.audited} packages audited")
        lines += [f"  FOUND {line}" for line in audit.findings]
        if audit.not_audited:
            first = ", ".join(audit.not_audited[:3])
            more = len(audit.not_audited) - 3
            lines.append(f"  NOT AUDITED: {first}" + (f" and {more} more" if more > 0 else ""))
    is_complete = any(audit.is_complete for audit in audits)
    is_found = any(audit.findings for audit in audits)
    verdict = "AUDITED" if is_complete else "NOT AUDITED: no advisory service answered for all"
    lines += [f"Python packages: {verdict}", "Rust crates: NOT AUDITED by this; run `cargo audit`"]
    return "\n".join(lines) + "\n", is_found, is_complete
