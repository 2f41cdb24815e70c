"""Mistakes in the state machine."""

from __future__ import annotations

from tests.planted import Bug

TABLES = "controller/core/machine/__init__.py"
ACTIONS = "controller/core/machine/actions.py"
BREACHES = "controller/core/machine/breaches.py"
COMMANDS = "controller/core/machine/commands.py"
EVIDENCE_FLOW = "controller/core/machine/evidence_flow.py"
GATE_FLOW = "controller/core/machine/gate_flow.py"
HEALTH = "controller/core/machine/health.py"
HOLDING = "controller/core/machine/holding.py"
PLAN_ACTIONS = "controller/core/machine/plan_actions.py"
OBSTACLES = "controller/core/machine/obstacles.py"
REVISIONS = "controller/core/machine/revisions.py"
TRANSITIONS = "controller/core/machine/transitions.py"
WINDOW_TRANSITIONS = "controller/core/machine/window_transitions.py"

ADVICE = "tests/property/test_advice.py"
CONTAINMENT = "tests/unit/deciding/test_containment.py"
GAP_HISTORIES = "tests/property/test_machine_gaps.py"
HISTORIES = "tests/property/test_machine.py"
I6 = "tests/property/test_machine_advice.py"
MACHINE_TESTS = "tests/unit/core/machine"
SCENARIOS = "tests/scenarios/test_scenarios.py"
CONTAINED_REFUSALS = "tests/unit/deciding/commands/test_containment_of_refusals.py"

COMMAND_AGE = (
    Bug(
        "an order that is read again lowers a later rollout",
        COMMANDS,
        "    if command.is_backlog and is_earlier and",
        "    if False and",
        f"{CONTAINED_REFUSALS}::test_last_week_s_roll_back_does_not_lower_this_week_s_rollout",
    ),
    Bug(
        "an operator with a slow clock is not heard",
        COMMANDS,
        "    if command.is_backlog and is_earlier and",
        "    if is_earlier and",
        f"{CONTAINED_REFUSALS}::test_an_operator_with_a_slow_clock_is_obeyed",
    ),
    Bug(
        "a command for one rollout lowers another",
        COMMANDS,
        '    if command.for_rollout not in ("", rollout.rollout_id):',
        "    if False:",
        "tests/unit/core/machine/test_commands.py::test_a_command_for_one_rollout_lowers_no_other",
    ),
    Bug(
        "an order to lower never grows old",
        COMMANDS,
        "    if request.received_at - command.issued_at > LOWERING_MAX_AGE:",
        "    if False:",
        f"{MACHINE_TESTS}/test_commands.py",
    ),
)
REPORTS = (
    Bug(
        "a second breach during a pause is not told",
        BREACHES,
        "return next((one for one in new if one.metric not in rollout.told_breaches), None)",
        "return None if new else None",
        f"{MACHINE_TESTS}/test_breaches.py",
    ),
    Bug(
        "repeated outcomes are found and nobody is told before the gate",
        HEALTH,
        "        if gap.kind is HealthGap.REPEATED_OUTCOMES\n        or (gap.kind is H",
        "        if (gap.kind is H",
        f"{SCENARIOS}::test_the_machine_does_as_the_transcript_says",
    ),
    Bug(
        "a gap that lasts is told at a gate only",
        TABLES,
        "case (_, EvidenceJudged(new)) if gaps := health.news(",
        "case (Gating(), EvidenceJudged(new)) if gaps := health.news(",
        f"{GAP_HISTORIES}::test_i17_no_gap_that_lasts_stays_untold",
    ),
    Bug(
        "a gap of a moment acts",
        HEALTH,
        "    return lasts(rollout, judgement, gap)\n",
        "    return True\n",
        f"{GAP_HISTORIES}::test_i17_a_gap_of_a_moment_changes_nothing_during_a_bake",
    ),
)
I1 = (
    Bug(
        "a restart closes the gate as passed",
        TABLES,
        "return Transition(gate_flow.reopen_round(rollout, gate, now))",
        'return transitions.advance(rollout, Cause("restarted"), now)',
        f"{HISTORIES}::"
        "test_i1_percent_rises_only_by_a_passed_gate_a_command_or_the_scheduled_start",
    ),
    Bug(
        "a gate skips a stage",
        TRANSITIONS,
        "following = 0 if rollout.stage_index is None else rollout.stage_index + 1",
        "following = 0 if rollout.stage_index is None else rollout.stage_index + (1 if "
        "cause.command else 2)",
        f"{HISTORIES}::"
        "test_i1_percent_rises_only_by_a_passed_gate_a_command_or_the_scheduled_start",
    ),
)
I3 = (
    Bug(
        "a freeze stands before a breach",
        TABLES,
        "if (breach := breaches.due(rollout, new)) is not None:",
        "if (\n            breach := breaches.due(rollout, new)\n"
        "        ) is not None and not is_frozen(rollout, now):",
        f"{HISTORIES}::test_i3_a_breach_acts_at_once_in_every_live_phase",
    ),
    Bug(
        "a pause stands before a breach",
        "controller/core/rollout.py",
        "    name: ClassVar = PhaseName.PAUSED\n    is_guarded: ClassVar = True\n",
        "    name: ClassVar = PhaseName.PAUSED\n",
        f"{HISTORIES}::test_i3_a_breach_acts_at_once_in_every_live_phase",
    ),
)
I4 = (
    Bug(
        "a rolled back rollout can be resumed",
        TABLES,
        "    (V.PROMOTE,        (*STAGE, PAUSED),      actions.promote, ",
        "    (V.PROMOTE,        (*STAGE, PAUSED, *OFF), actions.promote, ",
        f"{HISTORIES}::test_i4_a_roll_back_is_final_until_another_command_starts_another_rollout",
    ),
    Bug(
        "a start read again begins another rollout",
        PLAN_ACTIONS,
        "if previous is not None and command.command_id == previous.rollout_id:",
        "if False:",
        f"{HISTORIES}::test_i4_a_roll_back_is_final_until_another_command_starts_another_rollout",
    ),
    Bug(
        "silence passes a gate",
        OBSTACLES,
        "return not judgement.gaps and judgement.statistics is Verdict.PASS",
        "return judgement.statistics is Verdict.PASS",
        f"{HISTORIES}::test_i17_gaps_never_raise",
    ),
    Bug(
        "inconclusive passes a gate",
        OBSTACLES,
        "return not judgement.gaps and judgement.statistics is Verdict.PASS",
        "return not judgement.gaps and judgement.statistics in (Verdict.PASS, "
        "Verdict.INCONCLUSIVE)",
        f"{HISTORIES}::test_i4_nothing_advances_without_a_pass_that_has_no_gap",
    ),
    Bug(
        "an earlier visit's evidence passes this gate",
        TABLES,
        "case (Gating() as gate, EvidenceJudged(new)) if obstacles.is_current(rollout, new):",
        "case (Gating() as gate, EvidenceJudged(new)):",
        f"{HISTORIES}::test_i4_nothing_advances_without_a_pass_that_has_no_gap",
    ),
    Bug(
        "a request to a person outlives its evidence",
        OBSTACLES,
        "    return judgement.statistics is not Verdict.PASS or stands(rollout, judgement)\n",
        "    return False\n",
        f"{HISTORIES}::test_i17_what_a_person_approves_still_passed_a_minute_ago",
    ),
    Bug(
        "a gap of a moment withdraws a request",
        OBSTACLES,
        "is not Verdict.PASS or stands(rollout, judgement)\n",
        "is not Verdict.PASS or bool(judgement.gaps)\n",
        f"{HISTORIES}::test_i17_what_a_person_approves_still_passed_a_minute_ago",
    ),
)
I5 = (
    Bug(
        "a command that changes nothing gets no answer",
        ACTIONS,
        'return nothing_to_do(rollout, request, "paused already")',
        "return Transition(rollout)",
        f"{HISTORIES}::test_i5_each_command_gets_one_answer_and_a_rejected_one_changes_nothing",
    ),
    Bug(
        "a stale roll back is refused",
        COMMANDS,
        "    if verb in ALWAYS_ACCEPTED:\n",
        "    if False:\n",
        f"{HISTORIES}::test_i5_lowering_always_works",
    ),
)
I6_BUGS = (
    Bug(
        "proceed closes a gate that has not passed",
        GATE_FLOW,
        "    if not passes(judgement):\n        reason, why",
        "    if not passes(judgement) and not (gate.advice and gate.advice.answer):\n"
        "        reason, why",
        f"{I6}::test_i6_no_step_is_higher_with_advice_than_without",
    ),
    Bug(
        "proceed stands in for an approval",
        GATE_FLOW,
        "if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED:",
        "if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED and not "
        "(gate.advice and gate.advice.answer):",
        f"{I6}::test_i6_no_history_is_higher_with_advice_than_without_an_advisor",
    ),
    Bug(
        "observed advice holds",
        "controller/core/machine/obstacles.py",
        "advice.choice is not AdviceChoice.PROCEED and mode is not AdvisorMode.OBSERVE",
        "advice.choice is not AdviceChoice.PROCEED",
        f"{I6}::test_i6_observed_advice_moves_nothing",
    ),
    Bug(
        "a good opinion softens a breach",
        EVIDENCE_FLOW,
        "    if breach.on_breach is OnBreach.PAUSE:\n",
        "    if breach.on_breach is OnBreach.PAUSE or (\n"
        "        isinstance(rollout.phase, Gating) and rollout.phase.advice and "
        "rollout.phase.advice.answer\n    ):\n",
        f"{I6}::test_i6_no_step_is_higher_with_advice_than_without",
    ),
    Bug(
        "an overdue question swallows the evidence that ends it",
        TABLES,
        "return decide(gate_flow.close_round(rollout, gate, None, now), event, received_at)",
        "return Transition(gate_flow.close_round(rollout, gate, None, now))",
        SCENARIOS,
    ),
    Bug(
        "proceed passes a gate that does not",
        GATE_FLOW,
        "    if not passes(judgement):\n        reason, why",
        "    has_yes = gate.advice and gate.advice.answer and gate.advice.answer.choice is "
        "AdviceChoice.PROCEED\n"
        "    if not passes(judgement) and not has_yes:\n        reason, why",
        f"{I6}::test_i6_no_step_is_higher_with_advice_than_without",
    ),
    Bug(
        "proceed is approval enough",
        GATE_FLOW,
        "    if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED:",
        "    has_yes = gate.advice and gate.advice.answer and gate.advice.answer.choice is "
        "AdviceChoice.PROCEED\n"
        "    if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED and not has_yes:",
        f"{ADVICE}::test_i6_raw_answers_in_some_histories",
    ),
)
I7 = (
    Bug(
        "a pause keeps the revision",
        TRANSITIONS,
        "    after = next_revision(rollout, now, phase=paused, **changes)\n",
        "    after = replace(rollout, phase=paused, **changes)\n",
        f"{HISTORIES}::test_i7_the_revision_grows_by_one_per_transition_and_time_never_falls",
    ),
    Bug(
        "time runs backwards with the clock",
        TABLES,
        "received_at, now = now, now if rollout is None else max(now, rollout.updated_at)",
        "received_at = now",
        f"{HISTORIES}::test_i7_the_revision_grows_by_one_per_transition_and_time_never_falls",
    ),
)
I16 = (
    Bug(
        "an asked round waits for its answer for ever",
        TABLES,
        "        ) if now >= until:\n            return decide(gate_flow.close_round",
        "        ) if False:\n            return decide(gate_flow.close_round",
        f"{HISTORIES}::test_i16_an_asked_round_is_closed_at_its_deadline_whatever_comes",
    ),
    Bug(
        "late advice counts",
        TABLES,
        "            Ticked() | EvidenceJudged() | AdviceReceived() | AdviceUnavailable(),\n",
        "            Ticked() | EvidenceJudged(),\n",
        f"{HISTORIES}::test_i16_an_asked_round_is_closed_at_its_deadline_whatever_comes",
    ),
    Bug(
        "a bake has no alarm clock",
        TABLES,
        "            return until, expires_at\n",
        "            return (expires_at,)\n",
        f"{HISTORIES}::test_i16_a_live_phase_has_a_deadline_and_its_tick_makes_progress",
    ),
    Bug(
        "a gate waits for ever",
        TABLES,
        "            return undecided, asked_until, expires_at\n",
        "            return (asked_until,)\n",
        f"{HISTORIES}::test_i16_a_live_phase_has_a_deadline_and_its_tick_makes_progress",
    ),
)
I19 = (
    Bug(
        "a pause shortens the bake",
        ACTIONS,
        "phase = Baking(stage, at + max(until - min(paused.since, at), timedelta(0)))",
        "phase = Baking(stage, until)",
        f"{HISTORIES}::test_i19_a_clock_set_back_never_shortens_a_bake",
    ),
    Bug(
        "settle counts as bake",
        TRANSITIONS,
        "baking = Baking(stage_index, counts_from + stage.bake)",
        "baking = Baking(stage_index, now + stage.bake)",
        f"{HISTORIES}::test_i19_a_clock_set_back_never_shortens_a_bake",
    ),
)
FREEZES_AND_IDS = (
    Bug(
        "an approval goes through a freeze",
        ACTIONS,
        "    if (why := why_not_now(rollout, request.now)) is not None:\n"
        "        return rejected(rollout, request, why)\n"
        "    if gaps",
        "    if gaps",
        f"{HISTORIES}::test_nothing_advances_in_a_freeze",
    ),
    Bug(
        "gates of one stage share an id",
        HOLDING,
        'gate_id = f"{rollout.rollout_id}.{rollout.revision + 1}"',
        'gate_id = f"{rollout.rollout_id}.{stage}"',
        f"{HISTORIES}::test_gate_ids_name_one_gate_each",
    ),
    Bug(
        "a visit is left open",
        TRANSITIONS,
        "visits=(*left(rollout.visits, now), visit),",
        "visits=(*rollout.visits, visit),",
        f"{HISTORIES}::test_the_timeline_is_closed",
    ),
)
ACTIVE_WINDOWS = (
    Bug(
        "a step back serves people while it is closed",
        REVISIONS,
        "    if after.closed_since is not None:\n",
        "    if False:\n",
        f"{HISTORIES}::test_no_history_breaks_a_rule_that_is_checked_in_production",
    ),
    Bug(
        "a closed night is a part of the bake",
        WINDOW_TRANSITIONS,
        "            return replace(phase, until=max(phase.until, since) + by)\n",
        "            return phase\n",
        "tests/property/test_active_windows.py",
    ),
    Bug(
        "a paused rollout opens by itself",
        "controller/core/machine/times.py",
        "    is_kept = isinstance(rollout.phase, Paused) or rollout.freeze is not None\n",
        "    is_kept = rollout.freeze is not None\n",
        f"{HISTORIES}::test_no_history_breaks_a_rule_that_is_checked_in_production",
    ),
    Bug(
        "a closed time is a gap",
        "controller/core/machine/health.py",
        "    if rollout.closed_since is not None:\n",
        "    if False:\n",
        f"{MACHINE_TESTS}/test_active_edges.py",
    ),
    Bug(
        "an opening of a wrong clock counts nothing for a day",
        "controller/core/future_times.py",
        "min(one.counts_from, now + settle)",
        "one.counts_from",
        "tests/unit/core/test_future_times.py",
    ),
    Bug(
        "harm that is counted after a closing opens first",
        "controller/deciding/flag/flag_decision.py",
        "            if rollout.rollout_id != event.rollout_id:\n",
        "            if rollout.rollout_id != event.rollout_id or rollout.closed_since:\n",
        "tests/unit/deciding/flag/test_flag_worker_windows.py",
    ),
)
PLAN_CHANGES = (
    Bug(
        "a grown stage is served at once",
        "controller/core/plan_changes/stages.py",
        "if new[index].percent <= here.percent]",
        "if new[index].percent <= 100]",
        "tests/property/test_plan_changes.py"
        "::test_the_present_stage_keeps_its_place_and_never_grows",
    ),
    Bug(
        "a rollout climbs for ever",
        OBSTACLES,
        "    if climbs >= MOST_CLIMBS:\n",
        "    if False:\n",
        f"{MACHINE_TESTS}/test_gate.py",
    ),
    Bug(
        "less careful needs no reason",
        PLAN_ACTIONS,
        "    if change.needs_reason and not is_reasoned:",
        "    if change.needs_reason and change.refusals and not is_reasoned:",
        "tests/property/test_plan_changes.py"
        "::test_applying_never_raises_and_loses_evidence_only_where_it_says",
    ),
    Bug(
        "a limit that is chosen later uses what was counted before",
        "controller/core/judging/batches.py",
        "    if mark == NOT_MARKED:\n",
        "    mark = (0, 0) if mark == NOT_MARKED else mark\n    if mark == NOT_MARKED:\n",
        "tests/unit/core/judging/test_carried_tests.py"
        "::test_an_added_guardrail_has_a_part_of_its_own_and_begins_now",
    ),
    Bug(
        "a stage that begins again breaches on its old evidence",
        "controller/core/judging/batches.py",
        "        if (after.stage, after.percent) <= (before.stage, before.percent):",
        "        if (after.stage, after.percent) < (before.stage, before.percent):",
        "tests/unit/core/judging/test_carried_tests.py"
        "::test_a_stage_that_begins_again_takes_no_evidence_along",
    ),
    Bug(
        "a freeze keeps a plan from ending",
        "controller/core/machine/times.py",
        "return ends_at is not None and at >= ends_at and not is_off",
        "return ends_at is not None and at >= ends_at and not is_off and rollout.freeze is None",
        "tests/scenarios/test_scenarios.py::test_the_machine_does_as_the_transcript_says",
    ),
)
BUGS = (
    *ACTIVE_WINDOWS,
    *PLAN_CHANGES,
    *COMMAND_AGE,
    *REPORTS,
    *I1,
    *I3,
    *I4,
    *I5,
    *I6_BUGS,
    *I7,
    *I16,
    *I19,
    *FREEZES_AND_IDS,
)
