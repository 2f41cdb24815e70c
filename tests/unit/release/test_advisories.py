"""No answer of an advisory service is taken for a good one."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from advisories import Audit, read_answer, report

SKIPPED = {"name": "numpy", "skip_reason": "not found, and could not be audited"}
CLEAN = {"name": "httpx", "version": "0.28.1", "vulns": []}
HARMED = {
    "name": "redis",
    "version": "8.1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["8.1.1"], "aliases": [], "description": ""}],
}


def answer(*packages: Mapping[str, object]) -> Audit:
    """Return what is read of pip-audit's JSON."""
    return read_answer("pypi", json.dumps({"dependencies": packages, "fixes": []}), "")


def test_a_package_that_was_skipped_was_not_audited() -> None:
    """pip-audit ends with 0 and "no known vulnerabilities" where it has skipped every package."""
    audit = answer(CLEAN, SKIPPED)
    assert (audit.audited, audit.not_audited, audit.is_complete) == (1, ("numpy",), False)
    text, is_found, is_complete = report([audit])
    assert (is_found, is_complete) == (False, False)
    assert "NOT AUDITED: numpy" in text


@pytest.mark.parametrize("printed", ["", "<html>", "[]", "null", "{}", '{"dependencies": 1}'])
def test_what_is_no_answer_audits_nothing(printed: str) -> None:
    """A service that is not reached, a proxy's page, a form of another version."""
    audit = read_answer("osv", printed, "Traceback\nConnectionError: no such host\n")
    assert audit.not_audited == ("ConnectionError: no such host",)
    assert not audit.is_complete
    assert "NOT AUDITED" in report([audit])[0]


def test_no_package_at_all_is_no_audit() -> None:
    """An empty list says nothing about ours."""
    assert not answer().is_complete


def test_a_finding_is_found_also_where_others_were_skipped() -> None:
    """It names the package, the advisory, and what fixes it."""
    text, is_found, _ = report([answer(HARMED, SKIPPED), answer(CLEAN)])
    assert is_found
    assert "FOUND redis 8.1.0: PYSEC-1, fixed in 8.1.1" in text


def test_one_service_that_answers_for_all_is_enough() -> None:
    """The crates are named as not audited all the same."""
    text, is_found, is_complete = report([answer(SKIPPED), answer(CLEAN)])
    assert (is_found, is_complete) == (False, True)
    assert "Python packages: AUDITED" in text
    assert "Rust crates: NOT AUDITED" in text
