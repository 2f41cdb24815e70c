"""Words and estimates that the page shows: made once, from what the machine knows."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from controller.cli import operator
from controller.codec.decisions import to_judgement_record
from controller.core.judging.judgement import Gap
from controller.core.metrics.kind import ArmSummary
from controller.reporting.command_lines import WHAT, command_line
from controller.reporting.comparison import bound_words, comparison_of
from controller.reporting.evidence_words import ratio_legend, value_words
from controller.reporting.fitting import SHOWN, fitting_commands
from controller.reporting.headline import Tone, brief, headline, needs_attention, tone_of
from controller.reporting.progress import GateCheckState, evidence_share, gate_checks, proof_share
from schemas.decision import MetricRecord
from schemas.terms import Arm, HealthGap, Verdict
from tests.builders import (
    make_arm_summary,
    make_breach,
    make_judgement,
    make_report,
)
from tests.pages import judgement_at, phases_at, rollout_in, situation_in

NOW = datetime(2026, 11, 23, 9, 0, 7, tzinfo=UTC)
PHASES = phases_at(NOW)
TONES = {
    "scheduled": Tone.RESTS,
    "awaiting": Tone.WAITS,
    "paused": Tone.WAITS,
    "completed": Tone.DONE,
    "rolled_back": Tone.HARM,
    "aborted": Tone.RESTS,
}


def both_arms(treatment: float | None, control: float) -> dict[Arm, ArmSummary]:
    """Return two arms with these estimates."""
    return {
        Arm.TREATMENT: make_arm_summary(estimate=treatment),
        Arm.CONTROL: make_arm_summary(estimate=control),
    }


def metric(**fields: object) -> MetricRecord:
    """Return one metric as it is shown."""
    return to_judgement_record(make_judgement(metrics=(make_report(**fields),))).metrics[0]


@pytest.mark.parametrize("name", PHASES)
def test_every_phase_has_a_sentence_a_mark_and_a_short_form(name: str) -> None:
    """Nobody needs the color, and no phase is left without words."""
    head = headline(situation_in(PHASES[name], NOW))
    assert head.now.endswith(".")
    assert head.now[0].isupper()
    assert head.mark
    assert head.tone is TONES.get(name, Tone.MOVES)
    assert brief(situation_in(PHASES[name], NOW))


def test_harm_and_gaps_are_told_before_anything_else() -> None:
    """A gap is unknown, and never "no harm"."""
    bad = to_judgement_record(make_judgement(visit=1, metrics=(make_breach(),)))
    assert (
        "Worse than allowed: error_rate." in headline(situation_in(PHASES["baking"], NOW, bad)).now
    )
    assert tone_of(situation_in(PHASES["paused"], NOW, bad)) is Tone.HARM
    none = to_judgement_record(make_judgement(visit=1, exposures={}))
    assert (
        "No user of the new version was counted"
        in headline(situation_in(PHASES["baking"], NOW, none)).now
    )


def test_too_few_users_so_far_is_no_trouble() -> None:
    """Every stage begins so; a gap that something is wrong about is marked."""
    few = Gap(HealthGap.BELOW_MIN_SAMPLE, "treatment has 44 of 50 contexts")
    early = situation_in(
        PHASES["baking"], NOW, to_judgement_record(make_judgement(at=NOW, visit=1, gaps=(few,)))
    )
    assert tone_of(early) is Tone.MOVES
    assert brief(early) == "baking: treatment has 44 of 50 contexts"
    assert gate_checks(early)[0].state is GateCheckState.OPEN
    stale = Gap(HealthGap.STALE, "the freshest event is 90 s old")
    gaps = (few, stale)
    blind = situation_in(
        PHASES["baking"], NOW, to_judgement_record(make_judgement(at=NOW, visit=1, gaps=gaps))
    )
    assert tone_of(blind) is Tone.UNKNOWN
    assert brief(blind) == "stale: the freshest event is 90 s old"
    assert gate_checks(blind)[0].state is GateCheckState.BLOCKS


def test_a_person_looks_at_a_rollback_for_a_day() -> None:
    """Then it is history."""
    back = rollout_in(lambda _: PHASES["rolled_back"], "flag", 1, NOW)
    assert needs_attention(back, NOW)
    assert not needs_attention(back, NOW + timedelta(days=2))
    assert not needs_attention(rollout_in(lambda _: PHASES["baking"], "flag", 1, NOW), NOW)


def test_a_bar_is_full_only_for_what_is_proven() -> None:
    """However near the evidence is."""
    open_ = Verdict.INCONCLUSIVE
    assert proof_share(metric(safe=Verdict.PASS)) == 1.0
    half = metric(safe=open_, e_value_safe=20.0**0.5, threshold_safe=20.0)
    assert proof_share(half) == pytest.approx(0.5)
    assert proof_share(metric(safe=open_, e_value_safe=19.99, threshold_safe=20.0)) < 1
    for value in (None, 0.0, 1.0):
        assert proof_share(metric(safe=open_, e_value_safe=value, threshold_safe=20.0)) == 0
    record = to_judgement_record(judgement_at(NOW, 1_548))
    assert evidence_share(record) == pytest.approx(0.43, abs=0.01)


@pytest.mark.parametrize("name", PHASES)
def test_the_gate_is_shown_in_its_order(name: str) -> None:
    """Health, statistics, advice, people; outside a stage there is no gate."""
    checks = gate_checks(
        situation_in(PHASES[name], NOW, to_judgement_record(judgement_at(NOW, 1_548)))
    )
    has_stage = name in ("baking", "gating", "awaiting", "paused")
    expected = ["health", "statistics", "advice", "people"] if has_stage else []
    assert [one.name for one in checks] == expected
    assert all(one.why for one in checks)


def test_a_comparison_has_the_line_that_the_gate_uses() -> None:
    """A ratio with its margin, points with theirs, and a limit alone."""
    ratio = comparison_of(metric(gate_margin=0.5, ratio=1.13, ratio_low=0.7, ratio_high=1.8))
    assert (ratio.is_ratio, ratio.line, ratio.zero) == (True, 1.5, 1.0)
    assert ratio.words == "× 1 (tests: 0.7 to 1.8)"
    unbounded = comparison_of(metric(gate_margin=0.5, ratio=1.13, ratio_low=0.7))
    assert unbounded.words == "× 1 (tests: 0.7 to ?)"
    fall = metric(
        metric="conversion:buy",
        gate_margin=0.5,
        arms=both_arms(0.08, 0.1),
        ratio=1.25,
        ratio_low=1.0,
        ratio_high=2.0,
    )
    assert comparison_of(fall).words == "× 0.8 (tests: 0.5 to 1)"
    assert (comparison_of(fall).value, comparison_of(fall).line) == (1.25, 1.5)
    assert bound_words(fall) == "≥ 5 %; > 0.667 times control"
    points = comparison_of(metric(gate_margin=0.005, in_points=True))
    assert (points.is_ratio, points.line, points.zero) == (False, 0.005, 0.0)
    assert points.words.startswith("+0 pp (")
    alone = comparison_of(metric(margin=None, limit=0.05))
    assert (alone.line, alone.line_words) == (0.05, "< 5 %")
    floor = metric(metric="conversion:buy", margin=None, limit=0.02)
    assert comparison_of(floor).is_floor
    assert bound_words(floor) == "≥ 2 %"
    assert bound_words(metric(gate_margin=0.5)) == "< 5 %; < 1.5 times control"


@pytest.mark.parametrize(
    ("treatment", "control", "words"),
    [
        (0.00667, 0.00379, "× 1.76 (tests: 0.9 to 2.8)"),
        (29 / 1038, 13 / 1069, "× 2.29 (tests: 0.9 to 2.8)"),  # 2.30 before they are rounded
        (0.00379, 0.00667, "× 0.568 (tests: 0.9 to 2.8)"),
        (0.0, 0.1, "× 0 (tests: 0.9 to 2.8)"),
        (0.1, 0.0, "– (tests: 0.9 to 2.8)"),
        (None, 0.1, "– (tests: 0.9 to 2.8)"),
    ],
)
def test_a_ratio_beside_two_rates_is_their_quotient(
    treatment: float | None, control: float, words: str
) -> None:
    """The tests' own estimate, which compares within batches, is another number."""
    arms = both_arms(treatment, control)
    judged = metric(gate_margin=1.0, arms=arms, ratio=1.58, ratio_low=0.9, ratio_high=2.8)
    comparison = comparison_of(judged)
    assert comparison.words == words
    if treatment and control:
        new, old = (value_words("error_rate", one).split()[0] for one in (treatment, control))
        assert words.split()[1] == f"{float(new) / float(old):.3g}"
    record = to_judgement_record(make_judgement(metrics=(make_report(gate_margin=1.0),)))
    (explained,) = ratio_legend(record)
    assert explained.startswith("×: treatment's rate divided by control's, as shown.")


def test_a_ratio_beside_milliseconds_says_what_it_is_of() -> None:
    """204 against 208 ms, while twice as many requests are slow: no quotient of the two."""
    report = make_report(
        metric="latency_p99",
        gate_margin=1.0,
        arms=both_arms(204.0, 208.0),
        ratio=2.0,
        ratio_low=1.2,
        ratio_high=3.1,
    )
    record = to_judgement_record(make_judgement(metrics=(report,)))
    assert comparison_of(record.metrics[0]).words == "slow × 2 (tests: 1.2 to 3.1)"
    (explained,) = ratio_legend(record)
    assert "not a ratio of milliseconds" in explained


@pytest.mark.parametrize("name", PHASES)
def test_rolloutctl_understands_every_line_that_is_shown(name: str) -> None:
    """The line is copied, so each option must exist; the verb's help is asked with it."""
    rollout = rollout_in(lambda _: PHASES[name], "flag", 1, NOW)
    assert WHAT.keys() == set(SHOWN)
    for command in fitting_commands(rollout, NOW):
        line = command_line(command, replace(rollout, revision=14))
        words = shlex.split(line)
        assert words[0] == "rolloutctl"
        result = CliRunner().invoke(operator.app, [*words[1:], "--help"])
        assert result.exit_code == 0, line
        for word in words:
            assert not word.startswith("--") or word in result.output, line
