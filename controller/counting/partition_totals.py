"""What one event partition adds up to.

Records in, totals per arm and what became of each record out.

Plain synchronous code, the hot path of the daemon: no await, few calls and objects per event, and
whatever depends on a flag's plan is looked up once and kept (`directory.py`, `lanes.py`). The
offsets of a batch's records rise. Does not belong here: fetching and saving (`ingest.py`), sets of
contexts (`contexts.py`), what the numbers mean (`core/evidence.py`).

The unit is the context. Per arm and visit: exposures are distinct contexts; a context is at risk
once per batch, a batch being what lies between two saves of a partition, until its first error in
that visit *in either arm* (one set per visit: with one per arm, contexts that move into the
treatment would be fresh there while the control keeps only survivors). Of a context's latencies in
a batch the first is taken for the test. It is not a random one, but which one it is depends neither
on the value nor on the arm, so both arms are sampled alike; `latency_all` has every value.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log
from typing import Any, Final

from controller.core.evidence import GAMMA, HIGHEST_BUCKET, LOWEST_BUCKET
from controller.counting.arm_counters import (
    NEITHER,
    NONE_SEEN,
    ArmCounter,
    FieldBundle,
    FlagPartition,
)
from controller.counting.contexts import Generation, Memberships, RecentExposures, digest_of
from controller.counting.duplicates import NOT_LOOKED_AT, RecentRecords
from controller.counting.watched_flags import OPEN_END_MS, WatchedFlag, WatchedFlags
from controller.errors import BrokenInvariant
from controller.ports import Record
from schemas.envelope import MAX_AHEAD_MS, MAX_TIME_MS
from schemas.events import (
    Contents,
    EvaluationFields,
    EvaluationReader,
    OutcomeFields,
    OutcomeReader,
    Packed,
)
from schemas.quarantine import Refusal, refusal
from schemas.terms import Arm, QuarantineReason
from schemas.totals import (
    ArmCounts,
    PartitionCounts,
    bundle_entry,
    bundle_field,
    decode_arm,
    decode_bundle,
    decode_progress,
    encode_arm,
    encode_bundle,
    is_bundle_field,
    parse_field,
)
from schemas.wire import RecordRefused

IS_COMPILED: Final = not __file__.endswith(".py")
"""Whether these loops run compiled: ops/decisions/0010-compiled.md."""

#: One event a record, as `schemas.wire` reads them, or many.
ReadEvaluations = EvaluationReader[Record] | Packed[EvaluationFields]
ReadOutcomes = OutcomeReader[Record] | Packed[OutcomeFields]

_LOG_GAMMA = log(GAMMA)

FLAGS_WITH_OWN_FIELDS = 250
"""With more flags under rollout, arms that are counted for the first time go into bundles. Below, all arms in use fit into one
save as fields of their own, which are smaller to write and easier to look at."""

_ENCODED_AT_ONCE = (
    400  # arms with a full histogram take about 10 µs each: 4 ms between two looks at the loop
)
_JOINED_AT_ONCE = 128  # bundles; a few KB each
_INDEXED_AT_ONCE = (
    20_000  # recent exposures, when the first outcome without flags comes: 10 ms or so
)
_CHECKED_PER_SAVE = 16  # bundles that are looked through for arms of visits that are over; 0.5 ms
_TAKEN_OUT_PER_SAVE = (
    32  # such arms that get fields of their own, so that they are not written again and again
)
_AFTER_A_LOSS = 32  # records whose timestamps say when a loss was over
_OVER_AFTER_MS = 600_000  # after a visit's end: by then even late events of it are rare

_REPORT_IT = "report this record to the maintainers; it was left out, and counting went on"

MAX_FIELDS_PER_RECORD = 1_500
"""Fields one record of many events may change: half of what a save carries, so that after a save there is always room."""
_CLOSE_AGAIN = 20  # a twentieth more, and the next flag is closed
_EXPOSURES_PER_MEMBERSHIP = 4  # by memory, unless outcomes without flags have them indexed
_ENTRIES_PER_FIELD = (
    128  # memberships; a journal's chunk takes twice as many, but there are two journals
)
_SETS_PER_FIELD = (
    32  # names of sets; half of what a field takes, because their numbers need not begin with one
)
_FIELDS_BESIDES = 8  # the ends of journals and of the list of names


@dataclass(slots=True)
class Changes:
    """What one save carries."""

    fields: dict[str, bytes] = field(default_factory=dict)
    garbage: list[str] = field(default_factory=list)  # fields to delete once it is written
    flag_keys: frozenset[str] = frozenset()


class PartitionTotals:
    """Everything counted in one event partition, and what of it has changed since the last save."""

    def __init__(
        self,
        directory: WatchedFlags,
        *,
        counts_exposures: bool,
        exact_limit: int,
        window_ms: int | None = None,
        flags_with_own_fields: int = FLAGS_WITH_OWN_FIELDS,
        number: int = 0,
    ) -> None:
        """Start empty.

        `counts_exposures`: a partition of evaluations, else of outcomes. `window_ms` is the
        attribution window of an evaluation partition, None to remember no exposures. `number` is
        the partition's own.
        """
        self._directory = directory
        self._number = number
        self._flags_with_own_fields = flags_with_own_fields
        self._bundles: dict[str, FieldBundle] = {}  # by their field
        self._rewritten: dict[
            str, FieldBundle
        ] = {}  # to be written although no arm of theirs may have changed
        self._stored: dict[str, ArmCounts] = {}  # read on assignment, not yet asked for
        self._garbage: list[str] = []
        self._tallies: dict[str, FlagPartition] = {}
        self.opened_lanes = 0  # so far
        self._rollouts: dict[str, set[str]] = {}  # flag key -> rollouts with something stored
        self.counts_exposures = counts_exposures
        self.memberships = Memberships(exact_limit)
        self.recent = (
            RecentExposures(window_ms) if window_ms is not None and counts_exposures else None
        )
        self.exposure_of: dict[
            int, tuple[str, str, Arm | None]
        ] = {}  # set number -> flag key, rollout id, arm
        self.position = 0  # the offset to read next
        self.records = PartitionCounts()
        self.changed: list[ArmCounter] = []  # with fields of their own
        self.changed_in_bundles: list[ArmCounter] = []
        self.refused: list[Refusal] = []
        self._refusing: list[
            tuple[Record, RecordRefused]
        ] = []  # not yet taken down; empty between two folds
        self._recent_records = RecentRecords()
        self.now_ms: int = OPEN_END_MS  # by our clock; nothing that was counted is younger
        self._latest_ms: int = MAX_TIME_MS  # that is accepted of a record and its event
        self._closed_at = 0  # load at which the last flag was closed
        self.full_flags: dict[str, None] = {}  # whose new contexts the budget has no room for
        self.joins = (
            False  # an outcome without flags was seen: this partition and its pair go hand in hand
        )

    def set_time(self, now_ms: int) -> None:
        """Take the time by our own clock: what events say of theirs is believed up to it."""
        self.now_ms = now_ms
        self._latest_ms = now_ms + MAX_AHEAD_MS
        if self.recent is not None:
            self.recent.set_time(now_ms, self._latest_ms)

    # - what is stored -

    def start_at(self, offset: int) -> None:
        """Begin counting at `offset`, with nothing stored."""
        self.position = self.records.start = offset

    def restore(self, next_offset: int, fields: Mapping[str, bytes]) -> None:
        """Take over a stored hash.

        Raises BrokenInvariant when it cannot be what we wrote, or does not add up.

        What it says of times to come is not believed: an earlier release may have counted it.
        """
        self.position = next_offset
        try:
            self.records = decode_progress(fields)
            for name, value in fields.items():
                if is_bundle_field(name):
                    bundle = self._bundles[name] = FieldBundle(name)
                    for arm_name, arm_value in decode_bundle(value).items():
                        self._restore_arm(arm_name, arm_value)
                        bundle.entries[arm_name] = bundle_entry(arm_name, arm_value)
                else:
                    self._restore_arm(name, value)
            self.memberships.restore(fields)
            for name in self.memberships.names():
                flag_key, rollout_id, _, kind = name.split("|")
                self._rollouts.setdefault(flag_key, set()).add(rollout_id)
                if kind in (Arm.TREATMENT, Arm.CONTROL, NEITHER):
                    arm = None if kind == NEITHER else Arm(kind)
                    self.exposure_of[self.memberships.named(name).number] = (
                        flag_key,
                        rollout_id,
                        arm,
                    )
            if self.recent is not None:
                self.memberships.reserve(self.recent.restore(fields))
        except (ValueError, KeyError) as error:
            raise BrokenInvariant(f"what is stored cannot be read: {error}") from error
        records = self.records
        if not records.adds_up(next_offset):
            raise BrokenInvariant(
                f"stored records {records} do not add up to the fence {next_offset}"
            )
        if records.freshest_ms is not None:
            records.freshest_ms = min(records.freshest_ms, self.now_ms)
        if records.last_ms is not None:
            records.last_ms = min(records.last_ms, self.now_ms)
        self.joins = fields.get("joins") == b"1"

    def _restore_arm(self, name: str, value: bytes) -> None:
        parsed = parse_field(name)
        if parsed is not None and parsed.arm is not None:
            self._stored[name] = decode_arm(value)
            self._rollouts.setdefault(parsed.flag_key, set()).add(parsed.rollout_id)

    def lane(self, flag_key: str, arm: Arm, name: str) -> ArmCounter:
        """Return the lane of the arm whose field is called `name`, with what is stored of it."""
        counts = self._stored.pop(name, None)
        home = None
        if self._bundles or len(self._directory.flags) > self._flags_with_own_fields:
            bundle_name = bundle_field(flag_key)
            home = self._bundles.get(bundle_name)
            if home is None or name not in home.entries:
                if counts is not None or len(self._directory.flags) <= self._flags_with_own_fields:
                    home = None  # what is stored in a field of its own stays there
                elif home is None:
                    home = self._bundles[bundle_name] = FieldBundle(bundle_name)
        return ArmCounter(flag_key, arm, name, counts or ArmCounts(), home)

    def skip_to(self, offset: int, end: int) -> None:
        """Go on at `offset`, because the log no longer has what lies before: holes, and a loss.

        `end` is the offset after the last record of the log.
        """
        self.records.holes += offset - self.position
        self.position = offset
        self.lose(self.records.last_ms or 0, is_over=offset >= end)

    def pass_holes(self, offset: int) -> None:
        """Go on at `offset`, because the log holds no record for us before it.

        Holes, and no loss.
        """
        self.records.holes += offset - self.position
        self.position = offset

    def rebase(self, offset: int, end: int) -> None:
        """Go on at `offset` of another log.

        What was counted stays, its records are not there any more.

        Classes begin again, so that they add up to offsets of one log; time in between is a loss.
        """
        records = self.records
        self.position = offset
        self.records = PartitionCounts(
            start=offset,
            freshest_ms=records.freshest_ms,
            last_ms=records.last_ms,
            losses=records.losses,
            topic_id=records.topic_id,
            rebased=records.rebased + 1,
        )
        self.lose(records.last_ms or 0, is_over=offset >= end)

    def lose(self, from_ms: int, *, is_over: bool) -> None:
        """Note that records are lost since `from_ms`, up to now or to the next record that is read."""
        self.records.note_loss(from_ms, self.now_ms if is_over else None)

    def close(self) -> None:
        """Let go of all flags, without which what is counted here would only be freed by the garbage collector."""
        self._tallies.clear()

    def take(self, watched: WatchedFlag) -> None:
        """Take a newer document of a flag; the totals of an older rollout of it are dropped."""
        tally = self._tallies.get(watched.flag_key)
        if tally is not None:
            if tally.watched.rollout_id == watched.rollout_id:
                tally.take(watched)
            else:
                self.drop(watched.flag_key, tally.watched.rollout_id)

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget a rollout that is over.

        The next save writes its bundle without it, its own fields are deleted after that.
        """
        tally = self._tallies.get(flag_key)
        if tally is not None and tally.watched.rollout_id == rollout_id:
            del self._tallies[flag_key]
            gone = set(tally.lanes())
            self.changed = [lane for lane in self.changed if lane not in gone]
            self.changed_in_bundles = [lane for lane in self.changed_in_bundles if lane not in gone]
            for lane in gone:
                if lane.is_counting and lane.home is None:
                    self._garbage.append(lane.field)
                lane.is_counting = False  # should it be about to be encoded
        prefix = f"{flag_key}|{rollout_id}|"
        bundle = self._bundles.get(bundle_field(flag_key))
        entries = {} if bundle is None else bundle.entries
        for name in [name for name in self._stored if name.startswith(prefix)]:
            del self._stored[name]
            if name not in entries:
                self._garbage.append(name)
        if bundle is not None and (
            bundled := [name for name in entries if name.startswith(prefix)]
        ):
            for name in bundled:
                del entries[name]
            self._rewritten[bundle.name] = bundle
        self.memberships.drop(flag_key, rollout_id)
        for number in [
            n for n, exposure in self.exposure_of.items() if exposure[:2] == (flag_key, rollout_id)
        ]:
            del self.exposure_of[number]
        if self.recent is not None and not self.exposure_of:
            self.recent.clear()
        self._rollouts.get(flag_key, set()).discard(rollout_id)
        self.full_flags.pop(flag_key, None)

    def drop_superseded(self) -> None:
        """Drop what is stored of rollouts other than the one each flag has now, and of those over.

        Only to be called when the directory is known to be newer than the hash: a replica that lags
        behind would take a newer rollout for an older one.
        """
        for flag_key, rollout_ids in list(self._rollouts.items()):
            watched = self._directory.flags.get(flag_key)
            if watched is not None:
                gone = rollout_ids - {watched.rollout_id}
            elif flag_key in self._directory.over:
                gone = set(rollout_ids)
            else:
                continue  # its document may not have been readable: it is not known to be over
            for rollout_id in gone:
                self.drop(flag_key, rollout_id)
            if not rollout_ids:
                del self._rollouts[flag_key]

    def expire_exposures(self, time_ms: int) -> None:
        """Drop the exposures that no outcome from `time_ms` on can reach."""
        if self.recent is not None:
            self.recent.expire_at(time_ms)

    def keep_budget(self, most: int) -> list[str]:
        """Keep the contexts of this partition within `most`.

        Return the flags that are closed by it.

        What is given up, in this order, a step per save: exposures of the older part of the
        attribution window; exactness of the largest sets; new contexts of the flag that has most.
        Its exposures and conversions then stand still here, and an outcome that names no flag finds
        only contexts that were known before; outcomes that name their flags, and errors, go on.
        """
        recent = self.recent
        load = self.memberships.load
        if recent is not None:
            load += recent.entries // _EXPOSURES_PER_MEMBERSHIP
        if load <= most:
            self._closed_at = 0
            return []
        if recent is not None and recent.forget_oldest():
            return []
        if self.memberships.seal_early():
            return []
        if load < self._closed_at + self._closed_at // _CLOSE_AGAIN:
            return []  # the flag that was closed last was the one that grew
        self._closed_at = load
        closed = self.memberships.close_largest()
        if closed is None:
            return []
        self.full_flags[closed] = None
        return [closed]

    @property
    def has_changed(self) -> bool:
        """Whether an arm has changed since the last save."""
        return bool(self.changed or self.changed_in_bundles)

    @property
    def changed_fields(self) -> int:
        """How many fields the next save will carry, or a few more."""
        bundles = min(len(self.changed_in_bundles), len(self._bundles)) + len(self._rewritten)
        arms = len(self.changed) + bundles
        recent = 0 if self.recent is None else self.recent.changed
        return arms + _TAKEN_OUT_PER_SAVE + self.memberships.changed + recent

    def take_changed(self, changes: Changes) -> Iterator[None]:
        """Put everything that has changed since the last save into `changes`.

        And begin the next batch.

        Yields now and then, for others to run. Nothing may be folded before the end; rollouts may
        be taken and dropped.
        """
        lanes = self.changed + self.changed_in_bundles
        self.changed, self.changed_in_bundles = [], []
        flag_keys = set()
        rewritten, self._rewritten = self._rewritten, {}
        self._take_changed_sets(changes)
        fields = changes.fields
        for begin in range(0, len(lanes), _ENCODED_AT_ONCE):
            yield
            for lane in lanes[begin : begin + _ENCODED_AT_ONCE]:
                lane.is_changed = False
                lane.seen = NONE_SEEN
                if not lane.is_counting:
                    continue  # dropped meanwhile
                flag_keys.add(lane.flag_key)
                value = encode_arm(lane.counts())
                home = lane.home
                if home is None:
                    fields[lane.field] = value
                else:
                    home.entries[lane.field] = lane.head + value
                    rewritten[home.name] = home
        changes.flag_keys = frozenset(flag_keys)
        yield
        bundles = list(rewritten.values())
        begin = self.position % max(1, len(bundles) - _CHECKED_PER_SAVE)  # not always the same ones
        self._take_out(bundles[begin : begin + _CHECKED_PER_SAVE], fields)
        for begin in range(0, len(bundles), _JOINED_AT_ONCE):
            yield
            for bundle in bundles[begin : begin + _JOINED_AT_ONCE]:
                fields[bundle.name] = encode_bundle(bundle.entries.values())

    def _take_out(self, bundles: Iterable[FieldBundle], fields: dict[str, bytes]) -> None:
        """Give arms of visits that are over fields of their own, in the same save that writes their bundles without them."""
        until_ms = (self.records.freshest_ms or 0) - _OVER_AFTER_MS
        taken = 0
        for bundle in bundles:
            for name in list(bundle.entries):
                where = parse_field(name)
                assert where is not None
                watched = self._directory.flags.get(where.flag_key)
                if watched is None or watched.rollout_id != where.rollout_id:
                    continue
                if not any(
                    visit == where.visit and until < until_ms
                    for _, until, visit in watched.intervals
                ):
                    continue
                fields[name] = bundle.entries.pop(name)[len(name) + 3 :]
                tally = self._tallies.get(where.flag_key)
                lane = (
                    None
                    if tally is None or where.arm is None
                    else tally.lane_of(where.visit, where.arm)
                )
                if lane is not None:
                    lane.home = None
                taken += 1
                if taken == _TAKEN_OUT_PER_SAVE:
                    return

    def _take_changed_sets(self, changes: Changes) -> None:
        fields, garbage = self.memberships.take_changed()
        changes.fields |= fields
        changes.garbage += garbage
        if self.recent is not None:
            fields, garbage = self.recent.take_changed()
            changes.fields |= fields
            changes.garbage += garbage
        if self.joins:
            changes.fields["joins"] = b"1"
        changes.garbage += self._garbage
        self._garbage = []

    # - folding -

    def _tally(self, flag_key: str) -> FlagPartition | None:
        """Return a flag's tally, None for a flag without a rollout."""
        watched = self._directory.flags.get(flag_key)
        if watched is None:
            self._directory.unknown(flag_key)
            return None
        tally = self._tallies[flag_key] = FlagPartition(self, watched)
        self._rollouts.setdefault(flag_key, set()).add(watched.rollout_id)
        return tally

    def _refuse(self, record: Record, refused: RecordRefused) -> None:
        self._refusing.append((record, refused))

    def set_aside(self, record: Record, why: str) -> None:
        """Refuse the next record unread: counting it is what failed."""
        if record.offset >= self.position:
            self._refuse(record, RecordRefused(QuarantineReason.INVALID, why, _REPORT_IT))
            self._keep_refusals()
            self._move((record,))

    def _keep_refusals(self) -> None:
        """Take down what was refused.

        A batch's at once, because hashing now and then finds its code out of the caches.
        """
        if self._refusing:
            self.records.quarantined += len(self._refusing)
            self.refused += [
                refusal(each.offset, each.timestamp, each.value, why)
                for each, why in self._refusing
            ]
            self._refusing = []

    def _move(self, batch: Sequence[Record]) -> None:
        """Put the position behind a batch that begins at or after it.

        Offsets that are missing there are holes.
        """
        position = batch[-1].offset + 1
        holes = position - self.position - len(batch)
        if holes < 0:
            raise BrokenInvariant(
                f"{len(batch)} records from offset {self.position} to {position}: some came twice"
            )
        records = self.records
        records.holes += holes
        self.position = position
        if records.losses and records.losses[-1][1] is None:
            # Of the first few, because one of them may have been sent late.
            ends = max([record.timestamp for record in batch[:_AFTER_A_LOSS]])
            records.end_loss(min(ends, self.now_ms) if ends >= 0 else self.now_ms)
        last_ms = batch[-1].timestamp
        if last_ms >= 0:
            records.last_ms = last_ms if last_ms < self.now_ms else self.now_ms

    def fold_evaluations(
        self, batch: Sequence[Record], read: ReadEvaluations, *, room: float = inf
    ) -> int:
        """Count evaluations and return how many records were taken.

        All, or of a packed format as many as `room` allows.

        Records before the position are dropped: they were counted; offsets left out are holes.
        `room` is as for outcomes.
        """
        given = len(batch)
        batch = self._uncounted(batch)
        if isinstance(read, Packed):
            return given - len(batch) + self._fold_packed_evaluations(batch, read, room)
        if batch:
            counted, late, ignored = self._count_evaluations(
                read(batch, self._refuse, latest_ms=self._latest_ms)
            )
            self._keep_refusals()
            self._move(batch)
            records = self.records
            records.counted += counted
            records.late += late
            records.ignored += ignored
        return given

    def _count_evaluations(self, events: Iterable[EvaluationFields]) -> tuple[int, int, int]:
        """Count evaluations and return how many of them were counted, late and ignored."""
        records = self.records
        freshest = records.freshest_ms or 0
        counted = ignored = late = 0
        tallies, memberships = self._tallies, self.memberships
        changed, bundled = self.changed, self.changed_in_bundles
        recent = self.recent
        journal = memberships.journal.tail
        generation: Generation | None = None
        generation_from = generation_until = 0  # an empty slice of time: look for the first event's
        digest_of_context = digest_of
        for context_id, flag_key, variant, time_ms in events:
            tally = tallies.get(flag_key) or self._tally(flag_key)
            if tally is None:
                ignored += 1
                continue
            if time_ms > freshest:
                freshest = time_ms
            if tally.from_ms <= time_ms < tally.until_ms:
                if variant == tally.control_variant:
                    lane = tally.control
                else:
                    is_treatment = (
                        variant == tally.treatment_variant or variant in tally.more_treatments
                    )
                    lane = tally.treatment if is_treatment else None
            else:
                lane = tally.lane_at(variant, time_ms)
            if lane is None:
                ignored += 1
                lane = tally.uncounted_lane(variant)
                if lane is None:
                    self._directory.other_variants += 1
                    continue
                late -= 1  # what below counts as late
            digest = digest_of_context(context_id.encode())
            is_first = False  # of this context to this flag in the present visit
            if lane.is_counting:
                counted += 1
                lane.evaluations += 1
                if not lane.is_changed:
                    lane.is_changed = True
                    (changed if lane.home is None else bundled).append(lane)
                if digest not in lane.exact and not (lane.filters and digest in lane.exposed):
                    if lane.exposed.is_full:
                        continue
                    lane.exact.add(digest)  # Memberships.add, without the call
                    journal.append(lane.number)
                    journal.append(digest)
                    if len(lane.exact) == lane.exposed.seal_at:
                        memberships.note_full(lane.exposed)
                    lane.exposures += 1
                    opposite = lane.opposite
                    if digest in opposite.exact or (opposite.filters and digest in opposite):
                        lane.switched += 1
                    else:
                        is_first = True
            else:
                late += 1
                if lane.exposed.is_full:
                    continue
            if recent is None:
                continue
            if not generation_from <= time_ms < generation_until:
                generation_from = time_ms - time_ms % recent.generation_ms
                generation_until = generation_from + recent.generation_ms
                generation = recent.generation(time_ms // recent.generation_ms)
            if generation is not None:
                if is_first and tally.has_one_visit:
                    tail = generation.log.tail
                    tail.append(lane.number)
                    tail.append(digest)
                else:
                    generation.note(flag_key, lane.number, digest)
        records.freshest_ms = min(freshest, self.now_ms) or None
        return counted, late, ignored

    def fold_outcomes(
        self,
        batch: Sequence[Record],
        read: ReadOutcomes,
        *,
        room: float = inf,
        join: PartitionTotals | None = None,
        joinable_until_ms: float = inf,
    ) -> int:
        """Count outcomes and return how many records were taken.

        Fewer than given when `room` more fields have changed, when one without flags is younger
        than `joinable_until_ms` (by its record's timestamp): the evaluations before it have not all
        been counted, and while exposures are not all indexed: each call indexes some more. `join`
        is the evaluation partition of the same number, None for none.
        """
        given = len(batch)
        batch = self._uncounted(batch)
        dropped = given - len(batch)
        if isinstance(read, Packed):
            return dropped + self._fold_packed_outcomes(batch, read, room, join, joinable_until_ms)
        stopped_at, counted, late, ignored = self._count_outcomes(
            read(batch, self._refuse, latest_ms=self._latest_ms), room, join, joinable_until_ms
        )
        self._keep_refusals()
        if stopped_at is not None:
            batch = batch[: _index_of(batch, stopped_at.offset)]
        if batch:
            self._move(batch)
        records = self.records
        records.counted += counted
        records.late += late
        records.ignored += ignored
        return dropped + len(batch)

    def _count_outcomes(
        self,
        events: Iterable[
            tuple[Record, str, int, Sequence[tuple[str, str]], bool, float | None, Sequence[str]]
        ],
        room: float,
        join: PartitionTotals | None,
        joinable_until_ms: float,
    ) -> tuple[Record | None, int, int, int]:
        """Count outcomes; return the record that had to wait, None for none.

        And how many were counted, late and ignored.
        """
        records = self.records
        freshest = records.freshest_ms or 0
        stopped_at: Record | None = None
        counted = ignored = late = 0
        tallies, memberships = self._tallies, self.memberships
        changed, bundled = self.changed, self.changed_in_bundles
        digest_of_context = digest_of
        room += len(changed) + len(bundled) + len(memberships.new_names)
        has_grown = True  # what counts against `room`, since it was last looked at
        finds_exposures = False
        for record, context_id, time_ms, named, is_error, latency_ms, conversions in events:
            if has_grown:
                has_grown = False
                if len(changed) + len(bundled) + len(memberships.new_names) >= room:
                    stopped_at = record
                    break
            flags = named
            digest = digest_of_context(context_id.encode())
            if not flags:
                self.joins = True
                if join is not None:
                    finds_exposures = finds_exposures or join.finds_exposures()
                    if record.timestamp > joinable_until_ms or not finds_exposures:
                        stopped_at = record
                        break
                    flags = join.exposures(digest, time_ms)
                if not flags:
                    self._directory.unjoined += 1
            if latency_ms is None:
                bucket = None
            elif latency_ms <= 0.001:
                bucket = LOWEST_BUCKET
            else:  # core.evidence.bucket_of, without the call
                bucket = ceil(log(latency_ms) / _LOG_GAMMA)
                if bucket > HIGHEST_BUCKET:
                    bucket = HIGHEST_BUCKET
            is_counted = is_late = False
            for flag_key, variant in flags:
                tally = tallies.get(flag_key) or self._tally(flag_key)
                if tally is None:
                    continue
                if time_ms > freshest:
                    freshest = time_ms
                if tally.from_ms <= time_ms < tally.until_ms:
                    if variant == tally.control_variant:
                        lane = tally.control
                    else:
                        is_treatment = (
                            variant == tally.treatment_variant or variant in tally.more_treatments
                        )
                        lane = tally.treatment if is_treatment else None
                else:
                    lane = tally.lane_at(variant, time_ms)
                    has_grown = True
                if lane is None:
                    self._directory.other_variants += variant not in tally.watched.uncounted
                    continue
                if not lane.is_counting:
                    is_late = True
                    continue
                is_counted = True
                if not lane.is_changed:
                    lane.is_changed = has_grown = True
                    lane.seen = {}
                    (changed if lane.home is None else bundled).append(lane)
                lane.outcomes += 1
                failed = lane.failed
                seen = lane.seen
                is_timed = seen.get(digest)
                if is_timed is None:
                    seen[digest] = bucket is not None
                    if digest not in failed.exact and not (failed.filters and digest in failed):
                        lane.at_risk += 1
                    if bucket is not None:
                        latency = lane.latency
                        latency[bucket] = latency[bucket] + 1 if bucket in latency else 1
                elif bucket is not None:
                    latency = lane.latency_again
                    if not is_timed:
                        seen[digest] = True
                        latency = lane.latency
                    latency[bucket] = latency.get(bucket, 0) + 1
                if is_error:
                    lane.errors += 1
                    if memberships.add(failed, digest):
                        lane.first_errors += 1
                for conversion in conversions:
                    converted = lane.converted.get(conversion)
                    if converted is not None and memberships.add(converted, digest):
                        lane.converted_counts[conversion] = (
                            lane.converted_counts.get(conversion, 0) + 1
                        )
            if is_counted:
                counted += 1
                if not digest & NOT_LOOKED_AT:
                    self._look_for_repetition(record, time_ms, flags)
            elif is_late:
                late += 1
            else:
                ignored += 1
        records.freshest_ms = min(freshest, self.now_ms) or None
        return stopped_at, counted, late, ignored

    def _look_for_repetition(
        self, record: Record, time_ms: int, flags: Iterable[tuple[str, str]]
    ) -> None:
        """Count an outcome that has been counted as one that was looked at.

        And as repeated if it had come before.
        """
        came_before = self._recent_records.came_before(record)
        for flag_key, variant in flags:
            tally = self._tallies.get(flag_key)
            lane = None if tally is None else tally.lane_at(variant, time_ms)
            if lane is not None and lane.is_counting:
                lane.checked += 1
                lane.repeated += came_before

    # - folding records of many events: all of a record's or none, and the record falls in one class
    #   -

    def _fold_packed_evaluations(
        self, batch: Sequence[Record], packed: Packed[EvaluationFields], room: float
    ) -> int:
        """Count records of many evaluations and return how many records were taken."""
        limit = room + self.changed_fields
        for taken, record in enumerate(batch):
            contents = packed.unpack(record, latest_ms=self._latest_ms)
            fields = self._fields_of(
                [(flag_key, at) for _, flag_key, _, at in contents.events], 2 * len(contents.events)
            )
            if fields > MAX_FIELDS_PER_RECORD:
                contents, fields = _too_many_fields(fields), 0
            if self.changed_fields + fields > limit:
                return taken
            for context_id, _, _, _ in contents.events:
                self._directory.sight(True, digest_of(context_id.encode()), self._number)
            self._classify(record, contents.refused, *self._count_evaluations(contents.events))
        return len(batch)

    def _fold_packed_outcomes(
        self,
        batch: Sequence[Record],
        packed: Packed[OutcomeFields],
        room: float,
        join: PartitionTotals | None,
        joinable_until_ms: float,
    ) -> int:
        """Count records of many outcomes and return how many records were taken."""
        limit = room + self.changed_fields
        for taken, record in enumerate(batch):
            contents = packed.unpack(record, latest_ms=self._latest_ms)
            if not all(event[2] for event in contents.events):
                self.joins = True
                if join is not None and (
                    record.timestamp > joinable_until_ms or not join.finds_exposures()
                ):
                    return taken
            # Joined here, not while counting: what a record changes has to be known before any of
            # it is counted.
            events = [self._joined(event, join) for event in contents.events]
            pairs = [(flag_key, event[1]) for event in events for flag_key, _ in event[2]]
            fields = self._fields_of(
                pairs, sum(len(event[2]) * (event[3] + len(event[5])) for event in events)
            )
            if fields > MAX_FIELDS_PER_RECORD:
                contents, events, fields = _too_many_fields(fields), [], 0
            if self.changed_fields + fields > limit:
                return taken
            for context_id, *_ in events:
                self._directory.sight(False, digest_of(context_id.encode()), self._number)
            _, counted, late, ignored = self._count_outcomes(
                ((record, *event) for event in events), inf, None, inf
            )
            self._classify(record, contents.refused, counted, late, ignored)
        return len(batch)

    def _joined(self, event: OutcomeFields, join: PartitionTotals | None) -> OutcomeFields:
        """Return an outcome with the flags of its context's exposures.

        When it names none and there are some.
        """
        context_id, time_ms, flags, is_error, latency_ms, conversions = event
        if flags:
            return event
        if join is not None:
            flags = join.exposures(digest_of(context_id.encode()), time_ms)
        return context_id, time_ms, flags, is_error, latency_ms, conversions

    def _fields_of(self, touched: Sequence[tuple[str, int]], entries: int) -> int:
        """Return how many fields a record may change, at most.

        `touched` are (flag key, time), `entries` new memberships.
        """
        if not touched:
            return 0
        earliest, latest = min(at for _, at in touched), max(at for _, at in touched)
        arms = names = 0
        for flag_key in {flag_key for flag_key, _ in touched}:
            watched = self._directory.flags.get(flag_key)
            if watched is not None:
                visits = sum(
                    begin <= latest and earliest < until for begin, until, _ in watched.intervals
                )
                arms += 2 * visits
                names += (visits + 1) * (2 + len(watched.conversions))
        return (
            min(arms, len(touched))
            + names // _SETS_PER_FIELD
            + entries // _ENTRIES_PER_FIELD
            + _FIELDS_BESIDES
        )

    def _classify(
        self, record: Record, refused: RecordRefused | None, counted: int, late: int, ignored: int
    ) -> None:
        """Put a record whose events were counted into its one class, and the position behind it."""
        if refused is not None:
            self._refuse(record, refused)  # which counts it as quarantined, whatever else was in it
            self._keep_refusals()
        elif counted:
            self.records.counted += 1
        elif late:
            self.records.late += 1
        else:
            self.records.ignored += 1
        self._move((record,))

    def _uncounted(self, batch: Sequence[Record]) -> Sequence[Record]:
        """Return a batch without what lies before the position."""
        if batch and batch[0].offset < self.position:
            return batch[_index_of(batch, self.position) :]
        return batch

    def finds_exposures(self) -> bool:
        """Index some more of the exposures that were folded; return whether that is all of them."""
        return self.recent is None or self.recent.catch_up(_INDEXED_AT_ONCE)

    def exposures(self, digest: int, time_ms: int) -> list[tuple[str, str]]:
        """Return (flag key, variant) of a context's last exposure to each flag with a rollout, within the window."""
        if self.recent is None:
            return []
        found: dict[str, str | None] = {}
        for number in self.recent.last(digest, time_ms):
            exposure = self.exposure_of.get(number)
            if exposure is None:
                continue
            flag_key, rollout_id, arm = exposure
            watched = self._directory.flags.get(flag_key)
            if watched is not None and watched.rollout_id == rollout_id and flag_key not in found:
                found[flag_key] = (
                    None
                    if arm is None
                    else watched.treatment
                    if arm is Arm.TREATMENT
                    else watched.control
                )
        return [(flag_key, variant) for flag_key, variant in found.items() if variant is not None]


def _too_many_fields(fields: int) -> Contents[Any]:
    return Contents(
        (),
        RecordRefused(
            QuarantineReason.TOO_LARGE,
            f"it may change {fields} totals, at most {MAX_FIELDS_PER_RECORD} are changed "
            f"by one record",
            "lower the Collector's send_batch_max_size",
        ),
    )


def _index_of(batch: Sequence[Record], offset: int) -> int:
    """Return how many records of `batch` lie before `offset`."""
    return bisect_left(batch, offset, key=lambda record: record.offset)


def up_to(batch: Sequence[Record], timestamp_ms: float) -> int:
    """Return how many records at the head of `batch` are not younger than `timestamp_ms`.

    Timestamps are taken as rising.
    """
    return bisect_right(batch, timestamp_ms, key=lambda record: record.timestamp)
