"""Shows that the tests of the machine, its timeline and its workers find the bugs one would fear.

Each bug is one replacement in a copy of the source; the tests named beside it must fail on it. The
checkout is not touched. Collected only when named: `pytest -m long tests/planted_bugs.py`. Takes
some minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MACHINE = "controller/core/machine.py"
TIMELINE = "controller/core/timeline.py"
DECIDING = "controller/deciding"
ACTUATION = "controller/actuating/reconciler.py"
ADVICE = "tests/property/test_advice.py"
HISTORIES = "tests/property/test_machine.py"
SCENARIOS = "tests/scenarios/test_scenarios.py"
WORKER_TESTS = "tests/unit/deciding/test_flag_worker.py"
WORKERS_TESTS = "tests/unit/deciding/test_flag_workers.py"
CONTAINMENT = "tests/unit/deciding/test_containment.py"
SAFEGUARDS = "tests/unit/deciding/test_flag_worker_safeguards.py"
MACHINE_TESTS = "tests/unit/core/test_machine.py"
ACTUATION_TESTS = "tests/unit/actuating/test_reconciler.py"
TIMELINE_TESTS = "tests/unit/core/test_timeline.py"
FREEZE_TESTS = "tests/property/test_freeze_windows.py"
SERVING = "controller/core/serving.py"
SERVING_TESTS = "tests/unit/core/test_serving.py"
FLAGD = "controller/codec/flagd.py"
RULES_TESTS = "tests/property/test_rules.py"
DRIFT = "controller/core/analysis/drift.py"
DRIFT_TESTS = "tests/unit/core/test_drift.py"
REPEATS = "controller/counting/duplicates.py"
REPEATS_TESTS = "tests/unit/counting/test_duplicates.py"


@dataclass(frozen=True)
class Bug:
    """One mistake: what it would mean, where it stands, and who has to find it."""

    name: str
    file: str
    good: str
    bad: str
    found_by: str  # a test file, or one test in it


BUGS = (
    # what one command, flag or document breaks
    Bug(
        "a mistake in reading a command is nobody's",
        f"{DECIDING}/command_inbox.py",
        "        except Exception as mistake:\n            self._log.exception(\n",
        "        except MemoryError as mistake:\n            self._log.exception(\n",
        f"{CONTAINMENT}::test_a_command_that_we_fail_to_read_is_refused_and_nothing_else_stops",
    ),
    Bug(
        "one flag's totals blind all others",
        f"{DECIDING}/totals_reader.py",
        "        except Exception as mistake:  # perhaps one flag's totals: the others must stay watched",
        "        except MemoryError as mistake:",
        f"{CONTAINMENT}::test_totals_of_one_flag_that_cannot_be_read_blind_no_other",
    ),
    Bug(
        "a worker that fails is restarted every five seconds for ever",
        f"{DECIDING}/worker_pool.py",
        "2.0 ** min(run.failures - 1, 10)",
        "1.0",
        f"{CONTAINMENT}::test_a_worker_that_fails_is_restarted_ever_later_and_the_others_go_on",
    ),
    Bug(
        "a roll back waits for the restart of its worker",
        f"{DECIDING}/flag_inbox.py",
        "            self.urgent.set()\n",
        "            pass\n",
        f"{CONTAINMENT}::test_a_roll_back_does_not_wait_for_the_restart_of_a_failing_worker",
    ),
    Bug(
        "a newer release's document is written over",
        f"{DECIDING}/flag_state.py",
        "if stored.is_newer or newest is None:",
        "if newest is None:",
        f"{CONTAINMENT}::test_a_flag_that_cannot_be_read_stands_still_alone",
    ),
    Bug(
        "a damaged document is never replaced",
        f"{DECIDING}/flag_state.py",
        "if stored.is_newer or newest is None:",
        "if True:",
        f"{CONTAINMENT}::test_a_damaged_document_is_replaced_by_the_state_topic_s_and_said_loudly",
    ),
    # the command topic
    Bug(
        "a command goes round in circles",
        f"{DECIDING}/command_handler.py",
        "return command.hops == 0 and self._topic.home_of(flag_key) != record.partition",
        "return self._topic.home_of(flag_key) != record.partition",
        f"{CONTAINMENT}::test_a_command_is_forwarded_once_at_most",
    ),
    Bug(
        "flags stay where they were when the topic grows",
        f"{DECIDING}/command_topic.py",
        "            self._homes.clear()\n",
        "",
        f"{CONTAINMENT}::test_roll_back_works_throughout_when_the_command_topic_grows",
    ),
    Bug(
        "commands are read on from beyond the log's end",
        f"{DECIDING}/command_follower.py",
        "        if is_beyond:\n            start = first\n",
        "        if is_beyond:\n",
        f"{CONTAINMENT}::test_a_committed_offset_beyond_the_end_reads_the_log_from_its_start",
    ),
    Bug(
        "every flag in a command gets a worker",
        f"{DECIDING}/command_follower.py",
        "if not self._known.has(command.flag_key) or partition.queued[command.flag_key]:",
        "if False:",
        f"{CONTAINMENT}::test_commands_of_flags_that_do_not_exist_leave_nothing",
    ),
    Bug(
        "a later command of a new flag passes an earlier one",
        f"{DECIDING}/command_follower.py",
        "if not self._known.has(command.flag_key) or partition.queued[command.flag_key]:",
        'if str(command.verb) != "start" and not self._known.has(command.flag_key):',
        f"{CONTAINMENT}::test_commands_of_one_flag_keep_their_order_whether_it_exists_or_not",
    ),
    Bug(
        "a flood is answered before what lowers",
        f"{DECIDING}/unknown_flags.py",
        "            if not partition.has_enough_unknown:\n                await self.all_read.wait()\n",
        "",
        f"{CONTAINMENT}::test_an_honest_order_does_not_wait_behind_a_flood",
    ),
    Bug(
        "one flag may have any number of commands under way",
        f"{DECIDING}/command_follower.py",
        "        elif self._commands.refuse_excess(command):\n",
        "        elif False:\n",
        f"{CONTAINMENT}::test_of_one_flag_only_so_many_commands_wait",
    ),
    # ids, effects, raising
    Bug(
        "an id is answered whatever it asks for",
        f"{DECIDING}/command_answers.py",
        "            return self.digest == digest\n",
        "            return True\n",
        SAFEGUARDS,
    ),
    Bug(
        "what lowers under a used id is refused",
        f"{DECIDING}/command_answers.py",
        "            return Binding(digest, event)\n",
        "            pass\n",
        SAFEGUARDS,
    ),
    Bug(
        "effects that Redis lost are not stored again",
        f"{DECIDING}/flag_state.py",
        "await self._restore(newest, lost, stored.token)",
        "await self._restore(newest, [], stored.token)",
        SAFEGUARDS,
    ),
    Bug(
        "effects that Redis lost are forgotten",
        f"{DECIDING}/outbox.py",
        "        return [entry for entry in lost if entry.topic",
        "        return [entry for entry in lost[:0] if entry.topic",
        SAFEGUARDS,
    ),
    Bug(
        "an alert is sent again for as long as Redis is away",
        f"{DECIDING}/outbox.py",
        "            self._forget({id(entry) for entry in new if not entry.field})\n",
        "",
        SAFEGUARDS,
    ),
    Bug(
        "a replica that must not raise does",
        f"{DECIDING}/safeguards.py",
        "        why = self._dependencies.guard.why_not()\n",
        "        why = None\n",
        SAFEGUARDS,
    ),
    Bug(
        "a broken rule is only logged",
        f"{DECIDING}/flag_decision.py",
        "        if not any(violation.forbids for violation in broken):\n",
        "        if True:\n",
        SAFEGUARDS,
    ),
    Bug(
        "an order that is read again lowers a later rollout",
        MACHINE,
        "    if command.is_backlog and command.issued_at",
        "    if False and command.issued_at",
        f"{CONTAINMENT}::test_last_week_s_roll_back_does_not_lower_this_week_s_rollout",
    ),
    Bug(
        "an operator with a slow clock is not heard",
        MACHINE,
        "    if command.is_backlog and command.issued_at",
        "    if command.issued_at",
        f"{CONTAINMENT}::test_an_operator_with_a_slow_clock_is_obeyed",
    ),
    Bug(
        "an order to lower never grows old",
        MACHINE,
        "    if command.at - command.issued_at > LOWERING_MAX_AGE:",
        "    if False:",
        MACHINE_TESTS,
    ),
    # audiences
    Bug(
        "the newest ring decides in place of the widest",
        SERVING,
        "    rings.sort(key=lambda ring: (-ring.percent, not ring.is_compared))\n",
        "",
        f"{SERVING_TESTS}::test_widening_takes_nobody_out_and_changes_nobodys_variant",
    ),
    Bug(
        "who was in before is counted in the ring of a later stage",
        SERVING,
        "return (Part.EARLIER, weight), (Part.UNASSIGNED, WEIGHT_TOTAL - weight)",
        "return (Part.TREATMENT, weight), (Part.CONTROL, WEIGHT_TOTAL - weight)",
        f"{SERVING_TESTS}::test_of_who_counts_exactly_the_decided_share_has_treatment",
    ),
    Bug(
        "flagd takes nothing for a number",
        FLAGD,
        '_all([{"!": [_is_written_as_switch(attribute)]}, {"===": [{"+": [attribute]}, '
        "attribute]}])",
        '{"!!": [True]}',
        f"{RULES_TESTS}::test_one_condition_means_the_same_in_flagd",
    ),
    # repetition
    Bug(
        "a record that is read again counts as sent again",
        REPEATS,
        "        return first != record.offset",
        "        return first is not None",
        f"{REPEATS_TESTS}::test_a_record_read_again_is_no_second_one",
    ),
    Bug(
        "what is remembered of records grows without end",
        REPEATS,
        "if len(self._offsets) >= REMEMBERED:",
        "if False:",
        f"{REPEATS_TESTS}::test_memory_is_bounded_and_reaches_back_as_far_as_promised",
    ),
    Bug(
        "repeated outcomes are found and nobody is told before the gate",
        MACHINE,
        "gap.kind is HealthGap.REPEATED_OUTCOMES or (",
        "(",
        f"{SCENARIOS}::test_the_machine_does_as_the_transcript_says",
    ),
    # the closed loop
    Bug(
        "each stay may raise a false drift anew",
        DRIFT,
        "return stay * (stay + 1) / ALPHA_DRIFT",
        "return 1 / ALPHA_DRIFT",
        f"{DRIFT_TESTS}::test_alpha_is_shared_out_over_all_stays",
    ),
    Bug(
        "control says nothing of a drift",
        DRIFT,
        " + _scaled_log(control, (1 - before) / (1 - decided))",
        "",
        f"{DRIFT_TESTS}::test_the_e_value_expects_no_more_than_it_stakes",
    ),
    # I1
    Bug(
        "a restart closes the gate as passed",
        MACHINE,
        "return _reopen_round(rollout, gate, now), ()",
        'return _advance(rollout, now, "restarted", gate=gate)',
        f"{HISTORIES}::"
        "test_i1_percent_rises_only_by_a_passed_gate_a_command_or_the_scheduled_start",
    ),
    Bug(
        "a gate skips a stage",
        MACHINE,
        "following = 0 if rollout.stage_index is None else rollout.stage_index + 1",
        "following = 0 if rollout.stage_index is None else rollout.stage_index + (1 if "
        "command else 2)",
        f"{HISTORIES}::"
        "test_i1_percent_rises_only_by_a_passed_gate_a_command_or_the_scheduled_start",
    ),
    # I3
    Bug(
        "a freeze stands before a breach",
        MACHINE,
        "if seen.breach is not None:",
        "if seen.breach is not None and not is_frozen(rollout, now):",
        f"{HISTORIES}::test_i3_a_breach_acts_at_once_in_every_live_phase",
    ),
    Bug(
        "a pause stands before a breach",
        MACHINE,
        "AwaitingApproval() | Paused(), EvidenceJudged(judgement=seen)) if seen.breach is "
        "not None:",
        "AwaitingApproval(), EvidenceJudged(judgement=seen)) if seen.breach is not None:",
        f"{HISTORIES}::test_i3_a_breach_acts_at_once_in_every_live_phase",
    ),
    # I4
    Bug(
        "a rolled back rollout can be resumed",
        MACHINE,
        "        case (_, Completed() | RolledBack() | Aborted()):\n            return "
        "rollout, (_rejected(",
        "        case (CommandVerb.PROMOTE, RolledBack()):\n"
        "            outcome = _advance(rollout, now, command.reason, command=command)\n"
        "        case (_, Completed() | RolledBack() | Aborted()):\n            return "
        "rollout, (_rejected(",
        f"{HISTORIES}::test_i4_a_roll_back_is_final_until_another_command_starts_another_rollout",
    ),
    Bug(
        "a start read again begins its rollout anew",
        MACHINE,
        "if previous is not None and command.command_id == previous.rollout_id:",
        "if False:",
        f"{HISTORIES}::test_i4_a_roll_back_is_final_until_another_command_starts_another_rollout",
    ),
    # I4', I17
    Bug(
        "silence passes a gate",
        MACHINE,
        "return not judgement.gaps and judgement.statistics is Verdict.PASS",
        "return judgement.statistics is Verdict.PASS",
        f"{HISTORIES}::test_i17_gaps_never_raise",
    ),
    Bug(
        "inconclusive passes a gate",
        MACHINE,
        "return not judgement.gaps and judgement.statistics is Verdict.PASS",
        "return not judgement.gaps and judgement.statistics in (Verdict.PASS, "
        "Verdict.INCONCLUSIVE)",
        f"{HISTORIES}::test_i4_nothing_advances_without_a_pass_that_has_no_gap",
    ),
    Bug(
        "an earlier stay's evidence passes this gate",
        MACHINE,
        "case (Gating() as gate, EvidenceJudged(judgement=seen)) if seen.visit == "
        "len(rollout.visits) - 1:",
        "case (Gating() as gate, EvidenceJudged(judgement=seen)):",
        f"{HISTORIES}::test_i4_nothing_advances_without_a_pass_that_has_no_gap",
    ),
    Bug(
        "a request to a person outlives its evidence",
        MACHINE,
        "if _no_longer_passes(rollout, seen, now):",
        "if False:",
        f"{HISTORIES}::test_i17_what_a_person_approves_still_passed_a_minute_ago",
    ),
    # I5
    Bug(
        "a command that changes nothing gets no answer",
        MACHINE,
        'return rollout, (_accepted(command, rollout, "paused already"),)',
        "return rollout, ()",
        f"{HISTORIES}::test_i5_each_command_gets_one_answer_and_a_rejected_one_changes_nothing",
    ),
    Bug(
        "a stale roll back is refused",
        MACHINE,
        "if verb not in ALWAYS_ACCEPTED:",
        "if True:",
        f"{HISTORIES}::test_i5_lowering_always_works",
    ),
    Bug(
        "a repeated command is obeyed again",
        f"{DECIDING}/command_answers.py",
        "        if earlier.is_of(command, digest):\n",
        "        if False:\n",
        WORKER_TESTS,
    ),
    Bug(
        "a command that lost the race to its own repeat is obeyed again",
        f"{DECIDING}/flag_worker.py",
        """        while True:
            binding: Binding | None = None
            if isinstance(event, CommandReceived | CommandUnusable):
""",
        """        binding: Binding | None = None
        while True:
            if binding is None and isinstance(event, CommandReceived | CommandUnusable):
""",
        WORKER_TESTS,
    ),
    # I6
    Bug(
        "proceed closes a gate that has not passed",
        MACHINE,
        "    if not _passes(judgement):\n        return _hold(rollout, "
        "*_why_not(judgement), judgement, now)\n    if is_frozen",
        "    if not _passes(judgement) and not (gate.advice and gate.advice.answer):\n"
        "        return _hold(rollout, *_why_not(judgement), judgement, now)\n    if is_frozen",
        f"{HISTORIES}::test_i6_no_step_is_higher_with_advice_than_without",
    ),
    Bug(
        "proceed stands in for an approval",
        MACHINE,
        "if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED:",
        "if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED and not "
        "(gate.advice and gate.advice.answer):",
        f"{HISTORIES}::test_i6_no_history_is_higher_with_advice_than_without_an_advisor",
    ),
    Bug(
        "observed advice holds",
        MACHINE,
        "objects and policy.mode is not AdvisorMode.OBSERVE",
        "objects",
        f"{HISTORIES}::test_i6_observed_advice_moves_nothing",
    ),
    Bug(
        "a good opinion softens a breach",
        MACHINE,
        "    if found.on_breach is OnBreach.PAUSE:\n",
        "    if found.on_breach is OnBreach.PAUSE or (\n"
        "        isinstance(rollout.phase, Gating) and rollout.phase.advice and "
        "rollout.phase.advice.answer\n    ):\n",
        f"{HISTORIES}::test_i6_no_step_is_higher_with_advice_than_without",
    ),
    Bug(
        "an overdue question swallows the evidence that ends it",
        MACHINE,
        "return decide(_close_round(rollout, gate, None, now), event)",
        "return _close_round(rollout, gate, None, now), ()",
        SCENARIOS,
    ),
    # I7
    Bug(
        "a pause keeps the revision",
        MACHINE,
        "    after = _move(rollout, now, phase=paused, hold=reason)\n",
        "    after = replace(rollout, phase=paused, hold=reason)\n",
        f"{HISTORIES}::test_i7_the_revision_grows_by_one_per_transition_and_time_never_falls",
    ),
    Bug(
        "time runs backwards with the clock",
        MACHINE,
        "now = max(event.at, rollout.updated_at)",
        "now = event.at",
        f"{HISTORIES}::test_i7_the_revision_grows_by_one_per_transition_and_time_never_falls",
    ),
    # I12
    Bug(
        "the document forgets a freeze",
        "controller/codec/rollouts.py",
        "        freeze=optional_record(state.FreezeRecord, rollout.freeze),\n",
        "        freeze=None,\n",
        f"{HISTORIES}::test_i12_a_replay_gives_the_same_rollout_and_a_round_trip_changes_nothing",
    ),
    # I16
    Bug(
        "an asked round waits for its answer for ever",
        MACHINE,
        "        ) if now >= until:\n            return decide(_close_round(rollout, gate, "
        "None, now), event)",
        "        ) if False:\n            return decide(_close_round(rollout, gate, None, "
        "now), event)",
        f"{HISTORIES}::test_i16_an_asked_round_is_closed_at_its_deadline_whatever_comes",
    ),
    Bug(
        "late advice counts",
        MACHINE,
        "            Ticked() | EvidenceJudged() | AdviceReceived() | AdviceUnavailable(),\n",
        "            Ticked() | EvidenceJudged(),\n",
        f"{HISTORIES}::test_i16_an_asked_round_is_closed_at_its_deadline_whatever_comes",
    ),
    Bug(
        "a bake has no alarm clock",
        MACHINE,
        "            soonest = [until]\n",
        "            soonest = []\n",
        f"{HISTORIES}::test_i16_a_live_phase_has_a_deadline_and_its_tick_makes_progress",
    ),
    Bug(
        "a gate waits for ever",
        MACHINE,
        "            soonest = [_unfrozen(rollout, max(until, now))]\n            if advice",
        "            soonest = []\n            if advice",
        f"{HISTORIES}::test_i16_a_live_phase_has_a_deadline_and_its_tick_makes_progress",
    ),
    # I19
    Bug(
        "a pause shortens the bake",
        MACHINE,
        "phase = Baking(stage, now + max(until - paused.since, timedelta(0)))",
        "phase = Baking(stage, until)",
        f"{HISTORIES}::test_i19_a_clock_set_back_never_shortens_a_bake",
    ),
    Bug(
        "settle counts as bake",
        MACHINE,
        "phase=Baking(stage_index, counts_from + stage.bake),",
        "phase=Baking(stage_index, now + stage.bake),",
        f"{HISTORIES}::test_i19_a_clock_set_back_never_shortens_a_bake",
    ),
    # I6, with raw answers
    Bug(
        "proceed passes a gate that does not",
        MACHINE,
        "    if not _passes(judgement):\n        return _hold(",
        "    has_yes = gate.advice and gate.advice.answer and gate.advice.answer.choice is "
        "AdviceChoice.PROCEED\n"
        "    if not _passes(judgement) and not has_yes:\n        return _hold(",
        f"{HISTORIES}::test_i6_no_step_is_higher_with_advice_than_without",
    ),
    Bug(
        "proceed is approval enough",
        MACHINE,
        "    if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED:",
        "    has_yes = gate.advice and gate.advice.answer and gate.advice.answer.choice is "
        "AdviceChoice.PROCEED\n"
        "    if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED and not has_yes:",
        f"{ADVICE}::test_i6_raw_answers_in_some_histories",
    ),
    # Freezes and ids
    Bug(
        "an approval goes through a freeze",
        MACHINE,
        "case (CommandVerb.APPROVE | CommandVerb.PROMOTE | CommandVerb.PROMOTE_FULL, _) if "
        "is_frozen(rollout, now):",
        "case (CommandVerb.PROMOTE | CommandVerb.PROMOTE_FULL, _) if is_frozen(rollout, now):",
        f"{HISTORIES}::test_nothing_advances_in_a_freeze",
    ),
    Bug(
        "gates of one stage share an id",
        MACHINE,
        'gate_id = f"{rollout.rollout_id}.{rollout.revision + 1}"',
        'gate_id = f"{rollout.rollout_id}.{stage}"',
        f"{HISTORIES}::test_gate_ids_name_one_gate_each",
    ),
    Bug(
        "a visit is left open",
        MACHINE,
        "visits = (*_left(rollout.visits, now), Visit(",
        "visits = (*rollout.visits, Visit(",
        f"{HISTORIES}::test_the_timeline_is_closed",
    ),
    # Timeline
    Bug(
        "settling events count",
        TIMELINE,
        "event_time < visit.counts_from",
        "event_time < visit.entered_at",
        TIMELINE_TESTS,
    ),
    Bug(
        "a window past midnight is lost in the morning",
        TIMELINE,
        "yield start, start + window.minutes * 60",
        "yield start, start + min(window.minutes, _DAY_MINUTES - window.start_minute) * 60",
        TIMELINE_TESTS,
    ),
    Bug(
        "a freeze ends with the fortnight it was worked out for",
        TIMELINE,
        "        end = probe = later\n",
        "        return later\n",
        FREEZE_TESTS,
    ),
    # The contract
    Bug(
        "a record's own timestamp is believed",
        "schemas/envelope.py",
        "if timestamp_ms > latest_ms:",
        "if False:",
        "tests/unit/schemas/test_wire.py",
    ),
    Bug(
        "a default is stored that its reader refuses",
        "schemas/plan.py",
        "min(3 * self.bake, LONGEST)",
        "3 * self.bake",
        "tests/unit/schemas/test_plan.py",
    ),
    Bug(
        "a command of the future never grows old",
        "controller/codec/command_records.py",
        "command.issued_at - now > MAX_AHEAD",
        "False",
        "tests/unit/codec/test_command_records.py",
    ),
    # The shell
    Bug(
        "effects before the save",
        f"{DECIDING}/flag_state.py",
        "        try:\n            is_saved = await",
        "        self._outbox.add(entries)\n        await asyncio.sleep(0.05)\n        try:\n            is_saved = await",
        WORKER_TESTS,
    ),
    Bug(
        "the compare-and-set's answer is ignored",
        f"{DECIDING}/flag_state.py",
        "        if not is_saved:\n",
        "        if False:\n",
        WORKER_TESTS,
    ),
    Bug(
        "evidence is as fresh as when it was read",
        f"{DECIDING}/flag_decision.py",
        "self._judge.judge(rollout, event.evidence, tests, now)",
        "self._judge.judge(rollout, event.evidence, tests, event.evidence.at)",
        WORKER_TESTS,
    ),
    Bug(
        "another rollout's totals are judged",
        f"{DECIDING}/flag_decision.py",
        "            if rollout.rollout_id != event.rollout_id:\n                return None\n",
        "",
        WORKER_TESTS,
    ),
    Bug(
        "commands stand before evidence",
        f"{DECIDING}/flag_inbox.py",
        "        if self._totals is not None:\n",
        "        if self._totals is not None and not self._events:\n",
        WORKER_TESTS,
    ),
    Bug(
        "an unpublished effect is forgotten",
        f"{DECIDING}/outbox.py",
        "        if new:\n",
        "        first = [entry.field for entry in batch if entry.field]\n        await self._dependencies.rollouts.settle(self._flag_key, first)\n        if new:\n",
        WORKER_TESTS,
    ),
    Bug(
        "a full outbox blocks lowering too",
        f"{DECIDING}/safeguards.py",
        "if after is None or not raises_exposure(self._state.rollout, after):",
        "if after is None or after is self._state.rollout:",
        WORKER_TESTS,
    ),
    Bug(
        "a full outbox swallows a command",
        f"{DECIDING}/flag_decision.py",
        "            return Decision(rollout, (self._rejected(event, why),), tests)\n        if why",
        "            return Decision(rollout, (), tests)\n        if why",
        WORKER_TESTS,
    ),
    Bug(
        "the state topic is not believed",
        f"{DECIDING}/flag_state.py",
        "        while newest is not None and (\n",
        "        while False and newest is not None and (\n",
        WORKER_TESTS,
    ),
    Bug(
        "the model is awaited in line",
        f"{DECIDING}/advice.py",
        '        tasks.create_task(self._ask(rollout, question), name=f"advice:{self._flag_key}")\n',
        "        self._hanging = self._ask(rollout, question)\n",
        WORKER_TESTS,
    ),
    Bug(
        "a commit passes an open command",
        f"{DECIDING}/command_follower.py",
        "while partition.open and self._is_over(partition):",
        "while partition.open:",
        WORKERS_TESTS,
    ),
    Bug(
        "a backlog is read into memory",
        f"{DECIDING}/command_follower.py",
        "        self._log_member.pause(full)\n",
        "",
        WORKERS_TESTS,
    ),
    Bug(
        "a command of a lane that was lost starts a worker",
        f"{DECIDING}/command_handler.py",
        "            if command.partition.is_gone:\n                return False",
        "            if False:\n                return False",
        WORKERS_TESTS,
    ),
    Bug(
        "a foreign command is obeyed here",
        f"{DECIDING}/command_handler.py",
        "return command.hops == 0 and self._topic.home_of(flag_key) != record.partition",
        "return False",
        WORKERS_TESTS,
    ),
    Bug(
        "a plane's slow round keeps a rolled-back flag up",
        ACTUATION,
        "            if wake.is_set():\n                return False\n",
        "",
        ACTUATION_TESTS,
    ),
    Bug(
        "a gap of a flag that went away stays",
        ACTUATION,
        "            if rollout.flag_key not in self._wanted:\n                continue",
        "            if False:\n                continue",
        ACTUATION_TESTS,
    ),
)


@pytest.fixture(scope="module")
def copy_of_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything the tests import."""
    target = tmp_path_factory.mktemp("planted")
    for name in ("controller", "schemas", "tests", "ops/kafka"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_the_bug_is_found(bug: Bug, copy_of_source: Path) -> None:
    """The named tests fail on the planted bug by an assertion, not by an import error."""
    path = copy_of_source / bug.file
    source = path.read_text()
    assert source.count(bug.good) == 1, f"{bug.file} has changed: {bug.good!r} is not in it once"
    path.write_text(source.replace(bug.good, bug.bad))
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", bug.found_by],
            cwd=copy_of_source,
            env={**os.environ, "HYPOTHESIS_PROFILE": "thorough", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        path.write_text(source)
    assert run.returncode == 1, run.stdout[-2000:]
    assert " failed" in run.stdout, run.stdout[-2000:]
