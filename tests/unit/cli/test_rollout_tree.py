"""The tree of `rolloutctl get`: what a person must see, in 80 columns and in a pipe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from rich.segment import Segment

from controller.cli.rollout_tree import bar, interval, rollout_tree
from controller.codec.decisions import to_judgement_record
from controller.reporting.situation import Situation
from schemas.decision import MetricRecord
from tests.builders import make_judgement, make_report
from tests.pages import judgement_at, phases_at, situation_in
from tests.unit.reporting.test_situation import make_decision

NOW = datetime(2026, 11, 23, 9, 0, 7, tzinfo=UTC)
PHASES = phases_at(NOW)
PLANES = [
    {"plane": "ofrep", "is_converged": True, "percent": 10.0},
    {"plane": "unleash", "is_converged": False, "percent": None, "reason": "HTTP 503\x1b[2J"},
]


def shown(situation: Situation, *, width: int = 80, trouble: str = "") -> str:
    """Return the tree as a terminal of so many columns shows it."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=False, color_system=None)
    console.print(rollout_tree(situation, PLANES, trouble))
    return stream.getvalue()


def judged_in(name: str) -> Situation:
    """Return a rollout in a phase, with evidence."""
    record = to_judgement_record(judgement_at(NOW - timedelta(seconds=3), 1548))
    return situation_in(PHASES[name], NOW, record)


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("width", [80, 120])
def test_a_tree_fits_the_terminal_in_every_phase(name: str, width: int) -> None:
    """No line is wider than the terminal, and every stage is there."""
    tree = shown(judged_in(name), width=width)
    assert max(map(len, tree.splitlines())) <= width
    for percent in ("1 %", "10 %", "25 %", "50 %", "100 %"):
        assert percent in tree


def test_a_low_terminal_keeps_the_evidence_and_the_decisions() -> None:
    """Without room for all, words, commands and gate give way, and the end says which did."""
    console = Console(file=io.StringIO(), width=80, force_terminal=False, color_system=None)
    tree = rollout_tree(judged_in("baking"), PLANES)
    whole = console.render_lines(tree, console.options, pad=False)

    def lines_in(height: int) -> list[str]:
        lines = console.render_lines(tree, console.options.update(height=height))
        return [text_of(line).rstrip() for line in lines]

    for height in range(8, len(whole)):
        lines = lines_in(height)
        assert len(lines) == height
        assert any(line.startswith("├─ evidence") for line in lines)
        assert any("● 10 %" in line for line in lines)
    assert any(line.startswith("├─ commands that fit") for line in lines_in(len(whole) - 1))
    low = lines_in(20)
    assert not any("commands that fit" in line for line in low)
    assert low[-1].startswith("└─ a terminal with more lines shows more words, gate")


def test_a_low_terminal_has_one_line_for_each_decision() -> None:
    """A long reason ends in an ellipsis there, and is told in full where there is room."""
    one = make_decision("a reason " + "that goes on " * 20)
    situation = replace(judged_in("baking"), decisions=(one,) * 5)
    console = Console(file=io.StringIO(), width=80, force_terminal=False, color_system=None)
    tree = rollout_tree(situation, PLANES)
    lines = console.render_lines(tree, console.options.update(height=24), pad=False)
    reasons = [line for line in map(text_of, lines) if "a reason that goes on" in line]
    assert len(reasons) == 3
    assert all(line.rstrip().endswith("…") for line in reasons)
    assert shown(situation).count("goes") == 5 * 20


def text_of(line: Sequence[Segment]) -> str:
    """Return a rendered line without its styles."""
    return "".join(part.text for part in line)


def test_every_phase_names_what_a_person_can_do() -> None:
    """The commands are whole lines to be copied, with the revision that was seen."""
    tree = shown(judged_in("awaiting"), width=200)
    assert "rolloutctl approve new-checkout --expected-revision 11" in tree
    assert "rolloutctl rollback new-checkout" in tree
    assert "rolloutctl restart new-checkout" in shown(judged_in("rolled_back"))


def test_what_others_wrote_moves_no_cursor() -> None:
    """A plane's answer and a trouble that hold an escape are shown without it."""
    tree = shown(judged_in("gating"), trouble="away\x1b[2J\nforged line")
    assert "\x1b" not in tree
    assert "HTTP 503" in tree
    assert tree.rstrip().splitlines()[-1].startswith("└─ away")


def test_a_tree_without_evidence_says_so() -> None:
    """Nothing stands there as zero."""
    tree = shown(situation_in(PHASES["baking"], NOW))
    assert "nothing was judged yet in this stage" in tree
    assert "users 0" not in tree


@pytest.mark.parametrize(("share", "filled"), [(-1.0, 0), (0.0, 0), (0.999, 9), (1.0, 10), (7, 10)])
def test_a_bar_is_full_only_for_what_is_proven(share: float, filled: int) -> None:
    """Rounding does not fill the last cell."""
    assert bar(share) == "█" * filled + "░" * (10 - filled)


def metric_of(**fields: object) -> MetricRecord:
    """Return a metric as it is published."""
    return to_judgement_record(make_judgement(metrics=(make_report(**fields),))).metrics[0]


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.8, 1.2, "├┤"), (None, 1.2, "┤"), (0.8, None, "├"), (1e-12, 1e12, "├┤")],
)
def test_an_interval_keeps_its_width_and_shows_open_ends(
    low: float | None, high: float | None, ends: str
) -> None:
    """Also far out, and where a side has no bound."""
    metric = metric_of(gate_margin=0.5, limit=None, ratio=1.0, ratio_low=low, ratio_high=high)
    drawn = interval(metric).plain
    assert len(drawn) == 31
    assert "●" in drawn
    assert "┃" in drawn
    assert {one for one in drawn if one in "├┤"} == set(ends)
