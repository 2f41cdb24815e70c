"""Mistakes in what carries decisions out: workers, commands, the outbox."""

from __future__ import annotations

from tests.planted import Bug

WORKER = "controller/deciding/flag_worker.py"
WORKERS = "controller/deciding/flag_workers.py"
WORKER_TESTS = "tests/unit/deciding/test_flag_worker.py"
WORKERS_TESTS = "tests/unit/deciding/test_flag_workers.py"
CONTAINMENT = "tests/unit/deciding/test_containment.py"
SAFEGUARDS = "tests/unit/deciding/test_flag_worker_safeguards.py"
CONTAINED_COMMANDS = "tests/unit/deciding/test_containment_of_commands.py"

BUGS = (
    Bug(
        "a mistake in reading a command is nobody's",
        WORKERS,
        "        except Exception as mistake:  # ours: this record alone is refused by it",
        "        except MemoryError as mistake:",
        f"{CONTAINMENT}::test_a_command_that_we_fail_to_read_is_refused_and_nothing_else_stops",
    ),
    Bug(
        "one flag's totals blind all others",
        WORKERS,
        "        except Exception as mistake:  # one flag's totals, perhaps: the others "
        "must not be blinded by it",
        "        except MemoryError as mistake:",
        f"{CONTAINMENT}::test_totals_of_one_flag_that_cannot_be_read_blind_no_other",
    ),
    Bug(
        "a worker that fails is restarted every five seconds for ever",
        WORKERS,
        "2.0 ** min(run.failures - 1, 10)",
        "1.0",
        f"{CONTAINMENT}::test_a_worker_that_fails_is_restarted_ever_later_and_the_others_go_on",
    ),
    Bug(
        "a roll back waits for the restart of its worker",
        WORKER,
        "            self.urgent.set()\n",
        "            pass\n",
        f"{CONTAINMENT}::test_a_roll_back_does_not_wait_for_the_restart_of_a_failing_worker",
    ),
    Bug(
        "a newer release's document is written over",
        WORKER,
        "if stored.is_newer or known is None:",
        "if known is None:",
        f"{CONTAINMENT}::test_a_flag_that_cannot_be_read_stands_still_alone",
    ),
    Bug(
        "a damaged document is never replaced",
        WORKER,
        "if stored.is_newer or known is None:",
        "if True:",
        f"{CONTAINMENT}::test_a_damaged_document_is_replaced_by_the_state_topic_s_and_said_loudly",
    ),
    Bug(
        "a command goes round in circles",
        WORKERS,
        "            if order.hops == 0 and self._partition_of(flag_key) != "
        "record.partition:\n                # kcat",
        "            if self._partition_of(flag_key) != record.partition:\n                # kcat",
        f"{CONTAINED_COMMANDS}::test_a_command_is_forwarded_once_at_most",
    ),
    Bug(
        "flags stay where they were when the topic grows",
        WORKERS,
        "            self._homes.clear()\n",
        "",
        f"{CONTAINED_COMMANDS}::test_roll_back_works_throughout_when_the_command_topic_grows",
    ),
    Bug(
        "commands are read on from beyond the log's end",
        WORKERS,
        "        if is_beyond:\n            start = first\n",
        "        if is_beyond:\n",
        f"{CONTAINED_COMMANDS}::test_a_committed_offset_beyond_the_end_reads_the_log_from_its_start",
    ),
    Bug(
        "every flag in a command gets a worker",
        WORKERS,
        "if not self._is_known(order.flag_key) or lane.queued[order.flag_key]:",
        "if False:",
        f"{CONTAINED_COMMANDS}::test_commands_of_flags_that_do_not_exist_leave_nothing",
    ),
    Bug(
        "a later command of a new flag passes an earlier one",
        WORKERS,
        "        if not self._is_known(order.flag_key) or lane.queued[order.flag_key]:\n",
        "        if order.verb is not CommandVerb.START and not self._is_known(order.flag_key):\n",
        f"{CONTAINED_COMMANDS}::test_commands_of_one_flag_keep_their_order_whether_it_exists_or_not",
    ),
    Bug(
        "a flood is answered before what lowers",
        WORKERS,
        "            if not lane.has_enough_strangers:\n                await self._idle.wait()\n",
        "",
        f"{CONTAINED_COMMANDS}::test_an_honest_order_does_not_wait_behind_a_flood",
    ),
    Bug(
        "one flag may have any number of commands under way",
        WORKERS,
        "        elif self._is_too_much(order):\n",
        "        elif False:\n",
        f"{CONTAINED_COMMANDS}::test_of_one_flag_only_so_many_commands_wait",
    ),
    Bug(
        "an id is answered whatever it asks for",
        WORKER,
        "            return self.digest == digest\n",
        "            return True\n",
        SAFEGUARDS,
    ),
    Bug(
        "what lowers under a used id is refused",
        WORKER,
        "            return Bond(digest, event)\n",
        "            pass\n",
        SAFEGUARDS,
    ),
    Bug(
        "effects that Redis lost are not stored again",
        WORKER,
        "await self._restore(known, lost, stored.token)",
        "await self._restore(known, [], stored.token)",
        SAFEGUARDS,
    ),
    Bug(
        "effects that Redis lost are forgotten",
        WORKER,
        "        return [entry for entry in lost if entry.topic",
        "        return [entry for entry in lost[:0] if entry.topic",
        SAFEGUARDS,
    ),
    Bug(
        "an alert is sent again for as long as Redis is away",
        WORKER,
        "                    sent = {id(entry) for entry in new if not entry.field}\n",
        "                    sent = set()\n",
        SAFEGUARDS,
    ),
    Bug(
        "a replica that must not raise does",
        WORKER,
        "        why = self._tools.why_not_raise()\n",
        "        why = None\n",
        SAFEGUARDS,
    ),
    Bug(
        "a broken rule is only logged",
        WORKER,
        "        if any(one.forbids for one in found):\n",
        "        if False:\n",
        SAFEGUARDS,
    ),
    Bug(
        "a repeated command is obeyed again",
        WORKER,
        "        if first is None:\n            return Bond(digest)\n",
        "        if True:\n            return Bond(digest)\n",
        WORKER_TESTS,
    ),
    Bug(
        "a command that lost the race to its own repeat is obeyed again",
        WORKER,
        """        while True:
            bond: Bond | None = None
            if isinstance(event, CommandReceived | CommandUnusable):
""",
        """        bond: Bond | None = None
        while True:
            if bond is None and isinstance(event, CommandReceived | CommandUnusable):
""",
        WORKER_TESTS,
    ),
    Bug(
        "effects before the save",
        WORKER,
        "        saved_tests = encode_tests(tests)\n",
        "        saved_tests = encode_tests(tests)\n        self._send(entries)\n        "
        "await asyncio.sleep(0.05)\n",
        WORKER_TESTS,
    ),
    Bug(
        "the compare-and-set's answer is ignored",
        WORKER,
        "        if not is_saved:\n",
        "        if False:\n",
        WORKER_TESTS,
    ),
    Bug(
        "an outage ages a decision",
        WORKER,
        "decided = replace(event, at=now)",
        "decided = event",
        WORKER_TESTS,
    ),
    Bug(
        "evidence is as fresh as when it was read",
        WORKER,
        "self._judge(self.rollout, event.evidence, now)",
        "self._judge(self.rollout, event.evidence, event.evidence.at)",
        WORKER_TESTS,
    ),
    Bug(
        "another rollout's totals are judged",
        WORKER,
        "            if self.rollout.rollout_id != event.rollout_id:\n                "
        "return None\n",
        "",
        WORKER_TESTS,
    ),
    Bug(
        "commands stand before evidence",
        WORKER,
        """            if self._look is not None:
                look, self._look = self._look, None
                return look, None
            if self._inbox:
                return self._inbox.popleft()
""",
        """            if self._inbox:
                return self._inbox.popleft()
            if self._look is not None:
                look, self._look = self._look, None
                return look, None
""",
        WORKER_TESTS,
    ),
    Bug(
        "an unpublished effect is forgotten",
        WORKER,
        "                if new:\n",
        "                await self._tools.rollouts.settle(self.flag_key, [entry.field for "
        "entry in batch if entry.field])\n"
        "                if new:\n",
        WORKER_TESTS,
    ),
    Bug(
        "a full outbox blocks lowering too",
        WORKER,
        "if after is None or not raises_exposure(self.rollout, after):",
        "if after is None or after is self.rollout:",
        WORKER_TESTS,
    ),
    Bug(
        "a full outbox swallows a command",
        WORKER,
        "            return self.rollout, (self._rejected(event, why, None),), self._tests\n",
        "            return self.rollout, (), self._tests\n",
        WORKER_TESTS,
    ),
    Bug(
        "the state topic is not believed",
        WORKER,
        "while known is not None and (stored.rollout is None or known.revision > "
        "stored.rollout.revision):",
        "while False:",
        WORKER_TESTS,
    ),
    Bug(
        "the model is awaited in line",
        WORKER,
        "        tasks.create_task(self._advise(self.rollout, question), "
        'name=f"advice:{self.flag_key}")\n',
        "        self._hanging = self._advise(self.rollout, question)\n",
        WORKER_TESTS,
    ),
    Bug(
        "a commit passes an open command",
        WORKERS,
        "while lane.open and self._is_over(lane):",
        "while lane.open:",
        WORKERS_TESTS,
    ),
    Bug(
        "a backlog is read into memory",
        WORKERS,
        "        self._commands.pause(full)\n",
        "",
        WORKERS_TESTS,
    ),
    Bug(
        "a command of a lane that was lost starts a worker",
        WORKERS,
        "            if self._lanes.get(partition) is not lane:\n                return False",
        "            if False:\n                return False",
        WORKERS_TESTS,
    ),
    Bug(
        "a foreign command is obeyed here",
        WORKERS,
        "            if order.hops == 0 and self._partition_of(flag_key) != "
        "record.partition:\n                # kcat",
        "            if False:\n                # kcat",
        WORKERS_TESTS,
    ),
)
