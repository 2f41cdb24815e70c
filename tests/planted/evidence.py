"""Mistakes in what is counted, served, timed and stored."""

from __future__ import annotations

from tests.planted import Bug

TIMELINE = "controller/core/timeline.py"
ACTUATION = "controller/actuating/reconciler.py"
HISTORIES = "tests/property/test_machine.py"
ACTUATION_TESTS = "tests/unit/actuating/test_reconciler.py"
TIMELINE_TESTS = "tests/unit/core/test_timeline.py"
WINDOWS = "controller/core/windows.py"
WINDOW_TESTS = "tests/unit/core/test_windows.py"
FREEZE_TESTS = "tests/property/test_freeze_windows.py"
SERVING = "controller/core/serving.py"
SERVING_TESTS = "tests/unit/core/test_serving.py"
FLAGD = "controller/codec/flagd.py"
RULES_TESTS = "tests/property/test_rules.py"
DRIFT = "controller/core/analysis/drift.py"
DRIFT_TESTS = "tests/unit/core/judging/test_drift.py"
REPEATS = "controller/counting/folding/duplicates.py"
REPEATS_TESTS = "tests/unit/counting/test_duplicates.py"

BUGS = (
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
        '        [{"!": [_is_written_as_switch(attribute)]}, {"===": [{"+":'
        " [attribute]}, attribute]}]",
        '        [{"!!": [True]}]',
        f"{RULES_TESTS}::test_one_condition_means_the_same_in_flagd",
    ),
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
        "each visit may raise a false drift again",
        DRIFT,
        "return visit * (visit + 1) / ALPHA_DRIFT",
        "return 1 / ALPHA_DRIFT",
        f"{DRIFT_TESTS}::test_alpha_is_shared_out_over_all_visits",
    ),
    Bug(
        "control says nothing of a drift",
        DRIFT,
        """ + _scaled_log(
        control, (1 - before) / (1 - decided)
    )""",
        "",
        f"{DRIFT_TESTS}::test_the_e_value_expects_no_more_than_it_stakes",
    ),
    Bug(
        "the document forgets a freeze",
        "controller/codec/rollouts.py",
        "        freeze=optional_record(state.FreezeRecord, rollout.freeze),\n",
        "        freeze=None,\n",
        f"{HISTORIES}::test_i12_a_replay_gives_the_same_rollout_and_a_round_trip_changes_nothing",
    ),
    Bug(
        "settling events count",
        TIMELINE,
        "event_time >= visit.counts_from",
        "event_time >= visit.entered_at",
        TIMELINE_TESTS,
    ),
    Bug(
        "events from outside the active windows count",
        "controller/counting/folding/flags_to_count.py",
        "            begin = max(begin, OPEN_END_MS if opened is None else _up_to_ms(opened))\n",
        "            begin = max(begin, closed)\n",
        "tests/property/test_counting.py::test_intervals_say_what_the_timeline_says",
    ),
    Bug(
        "a window opens twice where an hour comes twice",
        WINDOWS,
        "    if before <= after:\n        return before ",
        "    if before <= after:\n        return after ",
        "tests/unit/core/test_active_windows.py",
    ),
    Bug(
        "a floor judges contexts that converted while it was closed",
        "controller/core/judging/floors.py",
        "    if (test.visit, test.opened) == (index, opened):\n",
        "    if test.visit == index:\n",
        "tests/unit/core/judging/test_closings.py",
    ),
    Bug(
        "a window past midnight is lost in the morning",
        WINDOWS,
        "yield start, start + window.minutes * 60",
        "yield start, start + min(window.minutes, _DAY_MINUTES - window.start_minute) * 60",
        WINDOW_TESTS,
    ),
    Bug(
        "a freeze ends with the fortnight it was worked out for",
        WINDOWS,
        "        end = probe = later\n",
        "        return later\n",
        FREEZE_TESTS,
    ),
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
    Bug(
        "a plane's slow round keeps a rolled-back flag up",
        ACTUATION,
        "heapq.heappop(waiting)",
        "waiting.pop()",
        ACTUATION_TESTS,
    ),
    Bug(
        "an overtaken decision is served after a newer one",
        ACTUATION,
        "            if self._decided.get(rollout.flag_key) is rollout:",
        "            if rollout.flag_key in self._decided:",
        "tests/unit/actuating/test_many_flags.py",
    ),
    Bug(
        "a gap of a flag that went away stays",
        ACTUATION,
        "        if rollout.flag_key not in self._decided:\n            return  # another",
        "        if False:\n            return  # another",
        ACTUATION_TESTS,
    ),
)
