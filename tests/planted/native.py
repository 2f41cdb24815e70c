"""Mistakes in the native fold, in Rust: each is built, and must differ from the reference."""

from __future__ import annotations

from tests.planted import Bug

SOURCE = "controller/counting/native/src"
BOTH_FOLDS = "tests/hostile/test_fold_fuzz.py"
KNOWN_PROBLEMS = "tests/property/test_known_problems.py"
ACTIVITY = "tests/unit/counting/test_activity.py"

BUGS = (
    Bug(
        "an event that lacks its flag, and then ends, is said to be cut off",
        f"{SOURCE}/scan.rs",
        "        scan.require(flag_key.is_some(), Problem::NO_FLAG_KEY)\n",
        "        Some(())\n",
        KNOWN_PROBLEMS,
    ),
    Bug(
        "brackets in texts are not counted",
        f"{SOURCE}/scan.rs",
        "bytes.len() > MOST_BYTES || has_many_brackets(bytes)",
        "bytes.len() > MOST_BYTES || (false && has_many_brackets(bytes))",
        KNOWN_PROBLEMS,
    ),
    Bug(
        "what follows an event is not looked at",
        f"{SOURCE}/scan.rs",
        "(self.at == self.bytes.len()).then_some(time_ms)",
        "Some(time_ms)",
        KNOWN_PROBLEMS,
    ),
    Bug(
        "a flag of an outcome that lacks its key is said to be the first",
        f"{SOURCE}/scan.rs",
        "scan.require(key.is_some() || items > 0, ",
        "scan.require(key.is_some(), ",
        KNOWN_PROBLEMS,
    ),
    Bug(
        "an event at the end of a visit counts for it",
        f"{SOURCE}/flags.rs",
        "if self.from_ms <= time_ms && time_ms < self.until_ms {",
        "if self.from_ms <= time_ms && time_ms <= self.until_ms {",
        BOTH_FOLDS,
    ),
    Bug(
        "each flag of an outcome counts for the arm of the first",
        f"{SOURCE}/fold.rs",
        "outcome.ahead.get(place)",
        "outcome.ahead.first()",
        BOTH_FOLDS,
    ),
    Bug(
        "a save does not end the batch of actions",
        f"{SOURCE}/partition_fold/saves.rs",
        "        self.fold.actions.end_batch();\n",
        "",
        BOTH_FOLDS,
    ),
    Bug(
        "a context in both arms is not noticed",
        f"{SOURCE}/fold.rs",
        "                        arm.counts.switched += 1;\n",
        "",
        BOTH_FOLDS,
    ),
    Bug(
        "a second latency of an action is tested, too",
        f"{SOURCE}/fold.rs",
        "            *action = Action::Timed;\n",
        "",
        BOTH_FOLDS,
    ),
    Bug(
        "a context that failed is at risk again",
        f"{SOURCE}/fold.rs",
        "if action != Action::LeftOut && !has_failed {",
        "if action != Action::LeftOut && (!has_failed || true) {",
        BOTH_FOLDS,
    ),
    Bug(
        "an action that is left out is at risk",
        f"{SOURCE}/fold.rs",
        "if action != Action::LeftOut && !has_failed {",
        "if !has_failed {",
        BOTH_FOLDS,
    ),
    Bug(
        "a failure of an action that is left out counts",
        f"{SOURCE}/fold.rs",
        "arm.failed.filter(|_| !is_left_out)",
        "arm.failed.filter(|_| !is_left_out || true)",
        ACTIVITY,
    ),
    Bug(
        "a bot may be somewhat more active",
        f"{SOURCE}/activity.rs",
        "MULTIPLE: u64 = 8;",
        "MULTIPLE: u64 = 9;",
        BOTH_FOLDS,
    ),
    Bug(
        "a context is compared with all groups, also the empty ones",
        f"{SOURCE}/activity.rs",
        "self.used += u64::from(own == 1);",
        "self.used = GROUPS as u64;",
        BOTH_FOLDS,
    ),
    Bug(
        "a sealed context is new again",
        f"{SOURCE}/sets.rs",
        "self.exact.contains(&digest) || self.is_sealed(digest)",
        "self.exact.contains(&digest)",
        BOTH_FOLDS,
    ),
    Bug(
        "a context that comes back to an arm is joined to the other",
        f"{SOURCE}/exposures.rs",
        "                    contexts.remove(&digest);\n",
        "                    let _ = contexts;\n",
        BOTH_FOLDS,
    ),
    Bug(
        "an event may be years ahead of its record",
        f"{SOURCE}/partition_fold/plain.rs",
        "        && time_ms <= timestamp_ms.saturating_add(MAX_AHEAD_MS)\n",
        "",
        BOTH_FOLDS,
    ),
    Bug(
        "evaluations are passed on again and again",
        f"{SOURCE}/arms.rs",
        "std::mem::replace(&mut self.passed_on, self.counts.evaluations)",
        "self.passed_on",
        BOTH_FOLDS,
    ),
    Bug(
        "a bundle loses the arms that have not changed",
        f"{SOURCE}/partition_fold/saves.rs",
        "entry.is_written |= std::mem::take(&mut arm.is_changed);",
        "entry.is_written = std::mem::take(&mut arm.is_changed);",
        BOTH_FOLDS,
    ),
    Bug(
        "a new bucket goes behind all others",
        f"{SOURCE}/arms.rs",
        "self.words.insert(place, first_of(bucket) | count);",
        "self.words.push(first_of(bucket) | count);",
        BOTH_FOLDS,
    ),
    Bug(
        "a rollout that was dropped stays in its bundle",
        f"{SOURCE}/fold.rs",
        "                        self.bundles.remove(bundle, &arm.field);\n",
        "                        let _ = bundle;\n",
        BOTH_FOLDS,
    ),
    Bug(
        "repeated outcomes are not stored",
        f"{SOURCE}/partition_fold/arm_counts.rs",
        '    json.number("repeated", *repeated);\n',
        "    let _ = repeated;\n",
        "tests/property/test_native_fold.py",
    ),
    Bug(
        "an event after a refused record takes the place of another",
        f"{SOURCE}/partition_fold/others.rs",
        "Some(refused) => read.push(Err(refused)),",
        "Some(refused) => read.insert(0, Err(refused)),",
        BOTH_FOLDS,
    ),
    Bug(
        "a rollout that was dropped keeps its contexts",
        f"{SOURCE}/fold.rs",
        "        self.sets.drop_with_prefix(&prefix);\n",
        "",
        BOTH_FOLDS,
    ),
    Bug(
        "a fold that panicked goes on",
        f"{SOURCE}/partition_fold/faults.rs",
        "        if self.fault.is_none() {\n",
        "        if self.fault.is_none() || true {\n",
        "tests/unit/counting/test_native_faults.py",
    ),
)
