"""Only the files named here make a rollout: checked over the syntax trees of all source files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from controller.core.machine import COMMANDS
from controller.core.rollout import Rollout
from schemas.terms import CommandVerb

ROOT = Path(__file__).parents[4] / "controller"
#: The files that change rollouts, and those with a reason to make one all the same.
MAKERS = {
    "core/machine/transitions.py",
    "core/machine/plan_transitions.py",
    "core/machine/window_transitions.py",
    "core/machine/holding.py",
    "core/machine/retirement.py",
    "core/machine/revisions.py",  # how those above do it
    "core/future_times.py",  # moves times back that a wrong clock wrote, and decides nothing
    "core/invariants.py",  # a copy without an advisor, to compare with; it is never saved
    "codec/rollouts.py",  # reads the stored document
}
#: Fields that no other value of ours is `replace`d in under the same name. Whether there is a model
#: is a fact of the replica, which sets it on what it loads.
CHANGED = {field.name for field in fields(Rollout)} - {
    "flag_key",
    "plan",
    "started_at",
    "has_advisor",
}


def rollouts_made(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that construct a rollout, or replace one of its fields."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        changes = {keyword.arg for keyword in node.keywords}
        if name in ("Rollout", "next_revision") or (name == "replace" and changes & CHANGED):
            yield node.lineno


def test_only_transitions_change_a_rollout() -> None:
    """No file makes a rollout but those in `MAKERS`; what is no transition has its reason there."""
    makers = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in ("planning", "scorecard")  # virtual rollouts
        and any(rollouts_made(ast.parse(path.read_text())))
    }
    assert makers == MAKERS


def test_the_check_sees_a_change() -> None:
    """A file that sets a phase or a hold would be found."""
    assert list(rollouts_made(ast.parse("replace(rollout, phase=Paused())"))) == [1]
    assert list(rollouts_made(ast.parse("dataclasses.replace(after, hold=None)"))) == [1]
    assert list(rollouts_made(ast.parse("Rollout(flag_key='f')"))) == [1]
    assert list(rollouts_made(ast.parse("revisions.next_revision(rollout, now)"))) == [1]
    assert list(rollouts_made(ast.parse("replace(judgement, gaps=())"))) == []


def test_every_file_of_the_machine_is_short() -> None:
    """A reader takes each file in at one sitting: at most 250 lines."""
    for path in (ROOT / "core/machine").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, path.name


def test_every_verb_is_in_the_table() -> None:
    """Each command works in some phase."""
    assert {verb for verb, _ in COMMANDS} == set(CommandVerb)
