"""The access file: each fault is named with its place, and nothing that nobody can mean passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.tokens import make_token
from controller.errors import ConfigInvalid
from controller.settings.access_file import Role, parse_access, read_access_file

DIGEST = "0" * 64
GOOD = f"""\
tokens:
  deploy-bot: {{sha256: "{DIGEST}", expires: 2030-01-01T00:00:00Z}}
grants:
  - role: operator
    people: [ada@example.org]
    groups: [payments]
    tokens: [deploy-bot]
    flags: ["checkout-*"]
  - {{role: viewer, groups: [everybody]}}
"""


def test_a_file_is_read() -> None:
    """Roles, names and patterns."""
    access = parse_access(GOOD, "access.yaml")
    first, second = access.grants
    assert (first.role, second.role) == (Role.OPERATOR, Role.VIEWER)
    assert first.fits("checkout-new")
    assert not first.fits("new-checkout-x")
    assert second.fits("anything")


def test_an_empty_file_lets_nobody_in() -> None:
    """So the first start needs no roles yet."""
    assert parse_access("# nobody yet\n", "a").grants == ()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("grants: [{role: boss, people: [a]}]", "a:1:11: grants.0.role: a role is one of viewer"),
        ("grants: [{role: admin}]", "this grant names nobody"),
        ("grants: [{role: viewer, people: [a], flags: [x]}]", "a viewer sees every flag"),
        ("grants: [{role: admin, people: [a], flags: []}]", "grants.0.flags"),
        ("grants: [{role: admin, people: [a], flags: ['[ab]']}]", "grants.0.flags.0"),
        ("grants: [{role: admin, tokens: [bot]}]", "there is no token bot"),
        ("grants: [{role: admin, people: ['*']}]", "people are named one by one"),
        ("grants: [{role: admin, people: ['token:bot']}]", "machines belong under `tokens`"),
        ("grants: [{role: admin, people: [a], roles: 1}]", "grants.0.roles: is not known here"),
        ("tokens: {bot: {sha256: secret}}", "tokens.bot.sha256"),
        (f"tokens: {{bot: {{sha256: '{DIGEST}'}}}}", "no grant names the token bot"),
        ("grants: []\ngrants: []", "a:2:1: grants is given twice"),
        ("grants: [", "not YAML"),
        ("- 1", "the file"),
    ],
)
def test_each_fault_is_named_with_its_place(text: str, fault: str) -> None:
    """With the file's name in front."""
    with pytest.raises(ConfigInvalid) as refused:
        parse_access(text, "a")
    assert fault in str(refused.value)
    assert all(line.startswith("a:") for line in str(refused.value).splitlines())


def test_two_names_for_one_token_are_refused() -> None:
    """The audit log could not tell them apart."""
    text = f"""\
tokens: {{a: {{sha256: "{DIGEST}"}}, b: {{sha256: "{DIGEST}"}}}}
grants: [{{role: admin, tokens: [a, b]}}]
"""
    with pytest.raises(ConfigInvalid, match="b and a are the same token"):
        parse_access(text, "a")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing one and one that is no text, with the setting to fix."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "binary"):
        with pytest.raises(ConfigInvalid, match=r"sign_in\.access_file"):
            read_access_file(tmp_path / name)


def test_a_new_token_comes_with_lines_that_the_file_accepts() -> None:
    """They have its digest and not itself."""
    made = make_token("deploy-bot", "approver", ["checkout-*", "pay*"], 30)
    access = parse_access(made.lines, "a")
    assert made.token not in made.lines
    assert access.grants[0].role is Role.APPROVER
    assert access.grants[0].flags == ("checkout-*", "pay*")
    assert access.tokens["deploy-bot"].expires is not None
    assert made.token != make_token("deploy-bot", "approver", ["*"], 30).token


@pytest.mark.parametrize(
    ("name", "role", "flags"), [("a b", "admin", "*"), ("a", "boss", "*"), ("a", "admin", "[")]
)
def test_a_token_for_nobody_is_not_made(name: str, role: str, flags: str) -> None:
    """A name, role or pattern that the file would refuse is refused at once."""
    with pytest.raises(ConfigInvalid):
        make_token(name, role, [flags], 1)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("flags: ['new-*,pay*']", "grants.0.flags.0: 'new-*,pay*' is not a pattern of flag keys: "),
        ("flags: []", "grants.0.flags: is empty: name a pattern, or leave it out for all flags"),
        ("tokens: ['a b']", "grants.0.tokens.0: 'a b' is not a token's name: up to 100 of "),
    ],
)
def test_names_and_patterns_are_refused_in_words(text: str, fault: str) -> None:
    """Once each, and not with an expression of ours."""
    with pytest.raises(ConfigInvalid) as refused:
        parse_access(f"grants: [{{role: admin, people: [ada], {text}}}]", "a")
    (line,) = str(refused.value).splitlines()
    assert fault in line
