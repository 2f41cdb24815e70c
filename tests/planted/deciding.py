"""Mistakes in what carries decisions out: workers, commands, the outbox."""

from __future__ import annotations

from tests.planted import Bug

DECIDING = "controller/deciding"
ACTUATION = "controller/actuating/reconciler.py"
ACTUATION_TESTS = "tests/unit/actuating/test_reconciler.py"
WORKER_TESTS = "tests/unit/deciding/flag"
WORKERS_TESTS = "tests/unit/deciding/test_deciding.py"
CONTAINMENT = "tests/unit/deciding/test_containment.py"
SAFEGUARDS = "tests/unit/deciding/flag/test_flag_worker_safeguards.py"
CONTAINED_COMMANDS = "tests/unit/deciding/commands/test_containment_of_commands.py"

BUGS = (
    Bug(
        "a mistake in reading a command is nobody's",
        f"{DECIDING}/commands/command_inbox.py",
        "        except Exception as mistake:\n            self._logger.exception(\n",
        "        except MemoryError as mistake:\n            self._logger.exception(\n",
        f"{CONTAINMENT}::test_a_command_that_we_fail_to_read_is_refused_and_nothing_else_stops",
    ),
    Bug(
        "one flag's totals blind all others",
        f"{DECIDING}/totals_reader.py",
        "        except Exception as mistake:  # perhaps one flag's totals: the others "
        "must stay watched",
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
        f"{DECIDING}/flag/flag_inbox.py",
        "            self.urgent.set()\n",
        "            pass\n",
        f"{CONTAINMENT}::test_a_roll_back_does_not_wait_for_the_restart_of_a_failing_worker",
    ),
    Bug(
        "a newer release's document is written over",
        f"{DECIDING}/flag/flag_state.py",
        "if stored.is_newer or newest is None:",
        "if newest is None:",
        f"{CONTAINMENT}::test_a_flag_that_cannot_be_read_stands_still_alone",
    ),
    Bug(
        "a damaged document is never replaced",
        f"{DECIDING}/flag/flag_state.py",
        "if stored.is_newer or newest is None:",
        "if True:",
        f"{CONTAINMENT}::test_a_damaged_document_is_replaced_by_the_state_topic_s_and_said_loudly",
    ),
    Bug(
        "a command goes round in circles",
        f"{DECIDING}/commands/command_handler.py",
        "return command.hops == 0 and self._topic.home_of(flag_key) != record.partition",
        "return self._topic.home_of(flag_key) != record.partition",
        f"{CONTAINED_COMMANDS}::test_a_command_is_forwarded_once_at_most",
    ),
    Bug(
        "flags stay where they were when the topic grows",
        f"{DECIDING}/commands/command_topic.py",
        "            self._homes.clear()\n",
        "",
        f"{CONTAINED_COMMANDS}::test_roll_back_works_throughout_when_the_command_topic_grows",
    ),
    Bug(
        "commands are read on from beyond the log's end",
        f"{DECIDING}/commands/command_follower.py",
        "        if is_beyond:\n            start = first\n",
        "        if is_beyond:\n",
        f"{CONTAINED_COMMANDS}::"
        "test_a_committed_offset_beyond_the_end_reads_the_log_from_its_start",
    ),
    Bug(
        "every flag in a command gets a worker",
        f"{DECIDING}/commands/command_follower.py",
        "if not self._known.has(command.flag_key) or partition.queued[command.flag_key]:",
        "if False:",
        f"{CONTAINED_COMMANDS}::test_commands_of_flags_that_do_not_exist_leave_nothing",
    ),
    Bug(
        "a later command of a new flag passes an earlier one",
        f"{DECIDING}/commands/command_follower.py",
        "if not self._known.has(command.flag_key) or partition.queued[command.flag_key]:",
        'if str(command.verb) != "start" and not self._known.has(command.flag_key):',
        f"{CONTAINED_COMMANDS}::"
        "test_commands_of_one_flag_keep_their_order_whether_it_exists_or_not",
    ),
    Bug(
        "a flood is answered before what lowers",
        f"{DECIDING}/commands/unknown_flags.py",
        "            if not partition.has_enough_unknown:\n"
        "                await self.all_read.wait()\n",
        "",
        f"{CONTAINED_COMMANDS}::test_an_honest_order_does_not_wait_behind_a_flood",
    ),
    Bug(
        "one flag may have any number of commands under way",
        f"{DECIDING}/commands/command_follower.py",
        "        elif self._commands.refuse_excess(command):\n",
        "        elif False:\n",
        f"{CONTAINED_COMMANDS}::test_of_one_flag_only_so_many_commands_wait",
    ),
    Bug(
        "an id is answered whatever it asks for",
        f"{DECIDING}/flag/command_answers.py",
        "            return self.digest == digest\n",
        "            return True\n",
        SAFEGUARDS,
    ),
    Bug(
        "what lowers under a used id is refused",
        f"{DECIDING}/flag/command_answers.py",
        "            return Binding(digest, event)\n",
        "            pass\n",
        SAFEGUARDS,
    ),
    Bug(
        "effects that Redis lost are not stored again",
        f"{DECIDING}/flag/flag_state.py",
        "await self._restore(newest, lost, stored.token)",
        "await self._restore(newest, [], stored.token)",
        SAFEGUARDS,
    ),
    Bug(
        "effects that Redis lost are forgotten",
        f"{DECIDING}/flag/outbox.py",
        "        return [entry for entry in lost if entry.topic",
        "        return [entry for entry in lost[:0] if entry.topic",
        SAFEGUARDS,
    ),
    Bug(
        "an alert is sent again for as long as Redis is away",
        f"{DECIDING}/flag/outbox.py",
        "            self._forget({id(entry) for entry in new if not entry.field})\n",
        "",
        SAFEGUARDS,
    ),
    Bug(
        "a replica that must not raise does",
        f"{DECIDING}/flag/safeguards.py",
        "        why = self._dependencies.guard.why_not()\n",
        "        why = None\n",
        SAFEGUARDS,
    ),
    Bug(
        "a broken rule is only logged",
        f"{DECIDING}/flag/flag_decision.py",
        "        if not any(violation.forbids for violation in broken):\n",
        "        if True:\n",
        SAFEGUARDS,
    ),
    Bug(
        "a repeated command is obeyed again",
        f"{DECIDING}/flag/command_answers.py",
        "        if earlier.is_of(command, digest):\n",
        "        if False:\n",
        WORKER_TESTS,
    ),
    Bug(
        "a command that lost the race to its own repeat is obeyed again",
        f"{DECIDING}/flag/flag_worker.py",
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
    Bug(
        "effects before the save",
        f"{DECIDING}/flag/flag_state.py",
        "        try:\n            is_saved = await",
        "        self._outbox.add(entries)\n        await asyncio.sleep(0.05)\n"
        "        try:\n            is_saved = await",
        WORKER_TESTS,
    ),
    Bug(
        "the compare-and-set's answer is ignored",
        f"{DECIDING}/flag/flag_state.py",
        "        if not is_saved:\n",
        "        if False:\n",
        WORKER_TESTS,
    ),
    Bug(
        "evidence is as fresh as when it was read",
        f"{DECIDING}/flag/flag_decision.py",
        "self._judge.judge(rollout, event, tests, now)",
        "self._judge.judge(rollout, event, tests, event.evidence.at)",
        WORKER_TESTS,
    ),
    Bug(
        "another rollout's totals are judged",
        f"{DECIDING}/flag/flag_decision.py",
        "            if rollout.rollout_id != event.rollout_id:\n                return None\n",
        "",
        WORKER_TESTS,
    ),
    Bug(
        "commands stand before evidence",
        f"{DECIDING}/flag/flag_inbox.py",
        "        if self._totals is not None:\n",
        "        if self._totals is not None and not self._events:\n",
        WORKER_TESTS,
    ),
    Bug(
        "an unpublished effect is forgotten",
        f"{DECIDING}/flag/outbox.py",
        "        if new:\n",
        "        first = [entry.field for entry in batch if entry.field]\n"
        "        await self._dependencies.rollouts.settle(self._flag_key, first)\n"
        "        if new:\n",
        WORKER_TESTS,
    ),
    Bug(
        "a full outbox blocks lowering too",
        f"{DECIDING}/flag/safeguards.py",
        "if after is None or not raises_exposure(self._state.rollout, after):",
        "if after is None or after is self._state.rollout:",
        WORKER_TESTS,
    ),
    Bug(
        "a full outbox swallows a command",
        f"{DECIDING}/flag/flag_decision.py",
        "            return PendingSave(rollout, (self._rejected(event, why),), tests)\n"
        "        if why",
        "            return PendingSave(rollout, (), tests)\n        if why",
        WORKER_TESTS,
    ),
    Bug(
        "the state topic is not believed",
        f"{DECIDING}/flag/flag_state.py",
        "        while newest is not None and (\n",
        "        while False and newest is not None and (\n",
        WORKER_TESTS,
    ),
    Bug(
        "the model is awaited in line",
        f"{DECIDING}/flag/advice.py",
        "        tasks.create_task(self._ask(rollout, question), "
        'name=f"advice:{self._flag_key}")\n',
        "        self._hanging = self._ask(rollout, question)\n",
        WORKER_TESTS,
    ),
    Bug(
        "a commit passes an open command",
        f"{DECIDING}/commands/command_follower.py",
        "while partition.open and self._is_over(partition):",
        "while partition.open:",
        WORKERS_TESTS,
    ),
    Bug(
        "a backlog is read into memory",
        f"{DECIDING}/commands/command_follower.py",
        "        self._log_member.pause(full)\n",
        "",
        WORKERS_TESTS,
    ),
    Bug(
        "a command of a lane that was lost starts a worker",
        f"{DECIDING}/commands/command_handler.py",
        "            if command.partition.is_gone:\n                return False",
        "            if False:\n                return False",
        WORKERS_TESTS,
    ),
    Bug(
        "a foreign command is obeyed here",
        f"{DECIDING}/commands/command_handler.py",
        "return command.hops == 0 and self._topic.home_of(flag_key) != record.partition",
        "return False",
        WORKERS_TESTS,
    ),
)
