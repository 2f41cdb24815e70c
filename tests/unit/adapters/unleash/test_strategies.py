"""What is wanted of Unleash, what stands there, and who did it: values in, values out."""

from __future__ import annotations

from typing import Any

import pytest

from controller.adapters.unleash.api import AuditEntry, Environment, Strategy
from controller.adapters.unleash.audit_trail import Trail, follow
from controller.adapters.unleash.comparison import compare
from controller.adapters.unleash.flag_state import UnleashFlagState
from controller.adapters.unleash.strategies import Content, Mark
from controller.adapters.unleash.target import Target, target_of
from controller.core.rollout import Aborted, Completed, Paused, Phase, RolledBack, Scheduled
from schemas.terms import HoldReason
from tests.builders import T0, make_rollout


def make_target(percent: float = 25.0, **overrides: Any) -> Target:
    """Return what a rollout at this percentage asks for."""
    return target_of(make_rollout(percent=percent, **overrides), stickiness="userId")


def make_strategy(target: Target, content: Content | None = None, **overrides: Any) -> Strategy:
    """Return our strategy as Unleash gives it back."""
    written = content or target.parts[0]
    fields = {"id": "1", "name": written.name, "title": target.mark(1, written), **written.fields()}
    return Strategy(**{**fields, **overrides})


def make_state(*strategies: Strategy, is_on: bool = True) -> UnleashFlagState:
    """Return a flag with these strategies."""
    return UnleashFlagState.of(Environment("production", is_on, list(strategies)))


def make_change(
    number: int, kind: str, strategy: Strategy | None = None, who: str = "ada", **fields: Any
) -> AuditEntry:
    """Return an entry of the audit trail."""
    names = ("id", "name", "title", "disabled", "parameters", "constraints", "variants", "segments")
    data = None if strategy is None else {name: getattr(strategy, name) for name in names}
    return AuditEntry(
        **{
            "id": number,
            "type": kind,
            "created_by": who,
            "environment": "production",
            "data": data,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("percent", "whole"),
    [
        (0.01, 0),
        (0.99, 0),
        (1.0, 1),
        (28.999999999999996, 29),
        (29.99, 29),
        (99.99, 99),
        (100.0, 100),
    ],
)
def test_percents_are_rounded_down(percent: float, whole: int) -> None:
    """Unleash takes whole percents.

    Never more than was decided, and a float's last digit costs nobody a percent.
    """
    target = make_target(percent)
    assert target.parts[0].rollout == str(whole)
    assert target.is_fractional == (round(percent, 6) != whole)


@pytest.mark.parametrize(
    ("phase", "is_off"),
    [
        (Scheduled(T0), False),
        (Paused(T0, HoldReason.OPERATOR, Scheduled(T0)), False),
        (RolledBack(T0, "x"), True),
        (Aborted(T0, "x"), True),
    ],
)
def test_before_the_start_and_after_the_end_nobody_is_let_in(phase: Phase, is_off: bool) -> None:
    """Whatever percentage a damaged document names.

    After a rollback the switch goes off as well.
    """
    target = make_target(50.0, phase=phase)
    assert (target.served_percent, target.is_off) == (0, is_off)


def test_a_completed_rollout_stays_on() -> None:
    """At the end the last percentage stays."""
    assert make_target(100.0, phase=Completed(T0)).served_percent == 100


def test_what_unleash_says_back_is_the_same_content() -> None:
    """Order of fields, defaults said aloud, left out or null make no difference.

    Anything that lets in others does.
    """
    target = make_target()
    same = make_strategy(
        target,
        parameters={"groupId": "new-checkout", "stickiness": "userId", "rollout": 25},
        variants=None,
        segments=None,
        disabled=None,
    )
    assert Content.of(same) == target.parts[0]
    assert compare(target, make_state(same), environment="production").faults == ()
    constraint = {"contextName": "country", "operator": "IN", "values": ["DE"]}
    said_aloud = {**constraint, "inverted": False, "caseInsensitive": False, "value": None}
    one, other = (
        Content.of(make_strategy(target, constraints=[each])) for each in (constraint, said_aloud)
    )
    assert one == other
    assert one.digest != target.parts[0].digest
    inverted = Content.of(make_strategy(target, constraints=[{**constraint, "inverted": True}]))
    assert inverted.digest != one.digest


@pytest.mark.parametrize("rollout", ["", "abc", "NaN", "inf", "-inf", "1e999", "150"])
def test_a_percentage_nobody_can_read_counts_as_everybody(rollout: str) -> None:
    """Unleash checks nothing, so that any text may stand there; it is an edit upwards."""
    target = make_target()
    state = make_state(
        make_strategy(
            target,
            parameters={"rollout": rollout, "stickiness": "userId", "groupId": "new-checkout"},
        )
    )
    assert state.percent == 100


def test_a_mark_reads_back_as_written_and_nothing_else_is_one() -> None:
    """A title is ours to the letter, or not ours."""
    mark = Mark("25 %", 12, "0123abcd", 1, "89ef0123")
    assert Mark.read(str(mark)) == mark
    assert Mark.read(str(Mark("off", 1, "0123abcd", 2, "89ef0123"))) is not None
    for title in (
        None,
        "",
        "rolloutd",
        f"{mark} ",
        f"my {mark}",
        "rolloutd: 25 % by revision x (0123abcd.1.89ef0123)",
    ):
        assert Mark.read(title) is None


def test_a_late_writer_finds_itself_late() -> None:
    """A strategy by a newer revision of the same rollout is left alone, whatever it says."""
    newer = make_target(50.0, revision=9)
    found = compare(
        make_target(25.0, revision=8), make_state(make_strategy(newer)), environment="production"
    )
    assert found.faults == ("was written by revision 9, which is newer than our 8",)
    assert not found.needs_editor


def test_a_narrower_strategy_counts_as_lower() -> None:
    """Conditions that somebody added keep users out: the lower value stays."""
    target = make_target()
    constraint = {"contextName": "country", "operator": "IN", "values": ["DE"]}
    narrower = compare(
        target,
        make_state(make_strategy(target, constraints=[constraint])),
        environment="production",
    )
    assert (narrower.is_lower, narrower.needs_editor) == (True, True)
    raised = {"rollout": "60", "stickiness": "userId", "groupId": "new-checkout"}
    both = compare(
        target,
        make_state(make_strategy(target, constraints=[constraint], parameters=raised)),
        environment="production",
    )
    assert not both.is_lower
    other_group = {"rollout": "25", "stickiness": "userId", "groupId": "other"}
    moved = compare(
        target, make_state(make_strategy(target, parameters=other_group)), environment="production"
    )
    assert (moved.is_lower, moved.faults) == (
        False,
        ("has other group id in our strategy than decided",),
    )


def test_the_audit_trail_is_followed_back_to_our_last_write() -> None:
    """What came after our write is somebody's.

    What came before it is not, nor a switch the way our write says.
    """
    target = make_target()
    ours = make_strategy(target)
    edited = make_strategy(
        target, parameters={"rollout": "60", "stickiness": "userId", "groupId": "new-checkout"}
    )
    mine = make_change(5, "feature-strategy-update", ours, "rolloutd")
    edit = make_change(6, "feature-strategy-update", edited)
    earlier = make_change(4, "feature-strategy-update", edited, "bob")
    on, off = (make_change(7, f"feature-environment-{each}") for each in ("enabled", "disabled"))
    elsewhere = make_change(8, "feature-strategy-update", edited, "eve", environment="staging")
    archived = make_change(9, "feature-archived", environment=None)

    def trail(*newest_first: AuditEntry) -> Trail:
        return follow(newest_first, environment="production")

    assert trail() == Trail(None, has_been_ours=False)
    assert trail(earlier) == Trail(None, has_been_ours=False)
    assert trail(mine, earlier) == Trail(None, has_been_ours=True)
    assert trail(elsewhere, edit, mine) == Trail("ada", has_been_ours=True)
    assert trail(on, mine) == Trail(None, has_been_ours=True)
    assert trail(off, mine) == Trail("ada", has_been_ours=True)
    assert trail(archived, off, mine) == Trail("ada", has_been_ours=True)
    created = make_change(8, "feature-created", environment=None)
    assert trail(edit, created, mine) == Trail(None, has_been_ours=False)
    nobody = make_change(6, "feature-strategy-update", edited, None)  # type: ignore[arg-type]
    assert trail(nobody, mine) == Trail("somebody", has_been_ours=True)
    garbage = make_change(6, "feature-strategy-update", data=["?"])
    assert trail(garbage, mine) == Trail("ada", has_been_ours=True)
