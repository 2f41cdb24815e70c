"""The rules file: each fault with its place, and which signals a rule is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.errors import ConfigInvalid
from controller.settings.signal_rules import SignalFilter, fits, parse_rules, read_rules
from schemas.signal import Signal
from schemas.terms import SignalAction, SignalStatus

GOOD = """\
version: 1
rules:
  - name: checkout-down
    when:
      hooks: alertmanager/*
      service: [checkout, pay*]
      severity: critical
      labels: {env: prod}
    flags: checkout-*
    do: roll_back
  - {name: who-rose, when: {title: "*availability*"}, flags: recent, within: 20m, do: step_back}
  - {name: try, flags: "*", do: pause, dry_run: true, quiet: 1h, most: 2}
"""


def make_signal(**overrides: Any) -> Signal:
    """Return a critical alert about checkout."""
    fields: dict[str, Any] = {
        "id": "1",
        "hook": "alertmanager/prod",
        "status": SignalStatus.FIRING,
        "condition": "c",
        "title": "Checkout is down",
        "service": "checkout",
        "severity": "critical",
        "labels": {"env": "prod"},
        "received_at": datetime(2026, 11, 22, tzinfo=UTC),
    }
    return Signal.model_validate({**fields, **overrides})


def test_a_file_is_read() -> None:
    """One word stands for a list of one; the rest has defaults."""
    first, second, third = parse_rules(GOOD, "rules.yaml").rules
    assert (first.do, first.quiet, first.most_flags) == (
        SignalAction.ROLL_BACK,
        timedelta(minutes=10),
        None,
    )
    assert first.names("checkout-new")
    assert not first.names("new-checkout")
    assert second.is_recent
    assert (second.within, second.most_flags) == (timedelta(minutes=20), 3)
    assert (third.dry_run, third.most_flags, third.quiet) == (True, 2, timedelta(hours=1))


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"service": "CHECKOUT"}, True),
        ({"service": "payments"}, True),
        ({"service": "search"}, False),
        ({"hook": "grafana/prod"}, False),
        ({"severity": "warning"}, False),
        ({"labels": {}}, False),
        ({"labels": {"env": "dev"}}, False),
        ({"labels": {"env": "prod", "more": "x"}}, True),
    ],
)
def test_a_signal_fits_everything_that_a_rule_names(changes: dict[str, Any], fits: bool) -> None:
    """Letter case does not matter."""
    when = parse_rules(GOOD, "rules.yaml").rules[0].when
    assert when.fits(make_signal(**changes)) is fits
    assert SignalFilter().fits(make_signal(**changes))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rules: [{name: a, flags: x}]", "r:1:9: rules.0.do"),
        ("rules: [{name: a, flags: x, do: raise}]", "rules.0.do"),
        ("rules: [{name: A b, flags: x, do: pause}]", "rules.0.name"),
        ("rules: [{name: a, flags: [], do: pause}]", "name a flag or a pattern"),
        ("rules: [{name: a, flags: [recent, x], do: pause}]", "`recent` stands alone"),
        ("rules: [{name: a, flags: x, within: 5m, do: pause}]", "goes with `flags: recent` alone"),
        ("rules: [{name: a, flags: recent, within: 0s, do: pause}]", "within no time"),
        ("rules: [{name: a, flags: recent, within: 20, do: pause}]", "needs a unit"),
        ("rules: [{name: a, flags: '*', do: pause}]", "every signal would pause every flag"),
        ("rules: [{name: a, flags: x, do: pause}, {name: a, flags: y, do: note}]", "two rules a"),
        (
            "rules: [{name: a, flags: x, do: pause, when: {team: x}}]",
            "rules.0.when.team: is not known here; write one of",
        ),
        ("rules: [{name: a, flags: x, do: pause, most: 0}]", "rules.0.most"),
        (
            "rules: [{name: a, flags: x, do: pause, when: {service: true}}]",
            "r:1:47: rules.0.when.service: is no text, because YAML reads it as true: put it in",
        ),
        ("rules: [{name: a, flags: 7, do: pause}]", "reads it as 7: put it in quotes"),
        (
            "rules: [{name: a, flags: x, do: pause, when: {service: }}]",
            "is empty: write text, or leave the line out",
        ),
        ("rules: [{name: a, flags: {a: b}, do: pause}]", "write a list"),
        ("version: 2", "version"),
        ("rules: [", "not YAML"),
        ("- 1", "the file"),
    ],
)
def test_each_fault_has_its_place(text: str, fault: str) -> None:
    """And says how to fix it."""
    with pytest.raises(ConfigInvalid) as refused:
        parse_rules(text, "r")
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "text", "is_like"),
    [
        ("[Prod] checkout*", "[prod] Checkout is down", True),
        ("[prod] checkout*", "p checkout is down", False),
        ("*down?", "checkout down?", True),
        ("*down?", "checkout downs", False),
        ("a*[b*", "a and [b]", True),
    ],
)
def test_only_a_star_is_special(pattern: str, text: str, is_like: bool) -> None:
    """Brackets and question marks stand for themselves: monitors put them into titles."""
    assert fits(text, (pattern,)) is is_like


def test_a_file_that_is_not_there_names_its_setting(tmp_path: Path) -> None:
    """So that the path is found where it is written."""
    with pytest.raises(ConfigInvalid, match=r"hooks\.rules_file"):
        read_rules(tmp_path / "rules.yaml")
