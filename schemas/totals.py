r"""The Redis hash of one event partition: its layout, and the encoding of an arm's totals.

One hash per event partition, `<prefix>agg:{<topic>/<partition>/<epoch>}`. To read it: `redis-cli
HGETALL 'rolloutd:agg:{rollout.flag.evaluations/3/1}'`, or `HMGET ... next end counted` for the
position alone.

| field | content |
|---|---|
| `next` | the fence: the offset to read next; other fields sum up all records before it |
| `digest` | of the arguments of the last save: a repeated save is recognized by it |
| `format` | version of this layout: `3`; older ones are read, see `FORMAT` |
| `start` | the offset at which counting began |
| `end` | the log's end at its owner's last check; `end - next` is the lag |
| `freshest` | greatest event time counted, ms since the epoch; empty before the first |
| `reported_at` | when the owner last wrote, ms since the epoch, by its own clock |
| `counted` `quarantined` `late` `ignored` | records by class |
| `holes` | offsets without a record for us: compacted away, transaction markers, or lost |
| `last` | timestamp of the last record read, ms since the epoch; empty before the first |
| `losses` | JSON list of `[from, to]`, ms since the epoch: records of this time are lost (1) |
| `tainted_from` | end of the last loss, for readers that do not know `losses`; empty for none |
| `topic_id` | the brokers' id of the topic that was counted; empty when they gave none |
| `rebased` | how often counting moved to another log of the same name (2); empty for never |
| `changed` | whose totals the last saves have changed: `LatelyChanged` as JSON (6) |
| `<flag>\|<rollout id>\|<visit>\|treatment` or `\|control` | one arm's totals as JSON (3) |
| `arms/<number>` | a bundle: one JSON object from such names to such totals (4) |
| `joins`, and names with another first word before a `/` | what ingest keeps beside totals (5) |

(1) `from` 0 is the beginning of time; `to` null means that no later record was read yet. (2) It is
part of the fence. (3) A number that is absent is 0. (4) It holds all flags whose CRC-32 gives this
number. (5) Membership sets and attribution. (6) For readers alone: totals never depend on it.

An arm stands in a field of its own while there are few flags, and in its flag's bundle when there
are many: a save carries a bounded number of fields. Ingest decides when it first writes the arm. It
may move from its bundle into a field of its own, in one save, never back. So an arm that has a
field stands there, and one that has none stands in its bundle or is all zeros.

It always holds that `next - start = counted + quarantined + late + ignored + holes`.

Histograms are JSON objects from log bucket to count; bucket `i` holds latencies in (1.02^(i-1),
1.02^i] ms, so `"231": 17` is 17 values of about 97 ms.

Belongs here: bytes and names. Does not belong here: reading and writing them
(`controller/adapters/redis/totals.py`), and what the numbers mean (`schemas/counters.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from zlib import crc32

import msgspec

from schemas.counters import Counters, values_of
from schemas.terms import Arm

FORMAT = 3
"""Version of the layout. A greater one was written by a newer rolloutd and is refused.

`1` lacks `checked` and `repeated`. In `1` and `2` an arm has `latency_all`, which nobody read.
"""

MAX_FIELDS_PER_SAVE = 3_000
"""Fields one save may carry, progress included.

A save is one script with one HSET, and Lua passes a call at most 8,000 values (LUAI_MAXCSTACK); see
ops/decisions/0002-one-hset.md. An owner with more changed fields saves earlier.
"""

BUNDLES = 1_024
"""The number of bundles that flags are spread over.

With every arm of 10,000 flags changed, a save has as many fields, of 20 arms each. More bundles
would leave a save less room for memberships; fewer would write more unchanged arms beside each
changed one.
"""

_BUNDLE = "arms/"

MOST_DIGITS = 19
"""Digits of a number in a hash: as many as the greatest offset of Kafka has."""


class ArmCounts(Counters, frozen=True):
    """One arm's totals in one visit, of one partition, as they are stored."""


class _OldArmCounts(Counters, frozen=True):
    """As formats 1 and 2 have them."""

    latency_all: msgspec.Raw = msgspec.Raw()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ArmCounts)
_old_decoder = msgspec.json.Decoder(_OldArmCounts)
_bundle_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

_TOO_DEEP = "it is nested more deeply than any totals are"


def encode_arm(counts: ArmCounts) -> bytes:
    """Return the bytes of an arm's field: JSON with full names."""
    return _encoder.encode(counts)


def decode_arm(value: bytes) -> ArmCounts:
    """Return what an arm's field holds.

    Raises ValueError for anything `encode_arm` of this version or an older one cannot have written.
    """
    try:
        return _decoder.decode(value)
    except msgspec.ValidationError:
        try:
            return ArmCounts(*values_of(_old_decoder.decode(value)))
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None


def bundle_of(flag_key: str) -> int:
    """Return the number of the bundle that holds a flag's arms. Stable, because it is stored."""
    return crc32(flag_key.encode()) % BUNDLES


def bundle_field(flag_key: str) -> str:
    """Return the name of the bundle that holds a flag's arms."""
    return bundle_name(bundle_of(flag_key))


def bundle_name(number: int) -> str:
    """Return the name of a bundle's field."""
    return f"{_BUNDLE}{number}"


def bundle_number(name: str) -> int:
    """Return the number of the bundle of that name. Raises ValueError for any other name."""
    number = int(name.removeprefix(_BUNDLE))
    if not 0 <= number < BUNDLES or bundle_name(number) != name:
        raise ValueError(f"{name!r} is the name of no bundle")
    return number


def is_bundle_field(name: str) -> bool:
    """Return whether a field holds a bundle of arms."""
    return name.startswith(_BUNDLE)


def bundle_head(name: str) -> bytes:
    """Return what an arm's entry begins with; the bytes of `encode_arm` follow."""
    return b'"%b":' % name.encode()  # names need no escapes: see part_field


def bundle_entry(name: str, value: bytes) -> bytes:
    """Return one entry for `encode_bundle`: an arm's field name and the bytes of `encode_arm`."""
    return bundle_head(name) + value


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return the bytes of a bundle's field: one JSON object."""
    return b"{%b}" % b",".join(entries)


def decode_bundle(value: bytes) -> dict[str, bytes]:
    """Return arm field name -> that arm's bytes, for `decode_arm`.

    Raises ValueError for anything but a JSON object.
    """
    try:
        return {name: bytes(raw) for name, raw in _bundle_decoder.decode(value).items()}
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


class TotalsField(NamedTuple):
    """The name of a field that belongs to one visit of one rollout."""

    flag_key: str
    rollout_id: str
    visit: int  # index into Rollout.visits
    part: str  # an arm, or a name of ingest's own

    @property
    def arm(self) -> Arm | None:
        """The arm whose totals the field holds, None for ingest's own fields."""
        return _ARMS.get(self.part)


_ARMS = {arm.value: arm for arm in Arm}


def part_field(flag_key: str, rollout_id: str, visit: int, part: str) -> str:
    """Return the name of a field that belongs to one visit.

    No name may contain `|`; `schemas.terms.NAME` allows none.
    """
    return f"{flag_key}|{rollout_id}|{visit}|{part}"


def arm_field(flag_key: str, rollout_id: str, visit: int, arm: Arm) -> str:
    """Return the name of the field that holds one arm's totals."""
    return f"{flag_key}|{rollout_id}|{visit}|{arm}"


def parse_field(name: str) -> TotalsField | None:
    """Return the parts of a field's name, None for the partition's own fields."""
    words = name.split("|")
    if len(words) != 4 or not words[2].isascii() or not words[2].isdigit():
        return None
    return TotalsField(words[0], words[1], int(words[2]), words[3])


MOST_LOSSES = 32
"""Losses kept per partition; of more, the two oldest become one that covers both."""

Loss = tuple[int, int | None]
"""From and to in ms since the epoch, both included; None: not over yet."""


class PartitionCounts(msgspec.Struct):
    """How far one partition has been counted and what became of its records.

    Mutable, for ingest; the fence is not in here.
    """

    start: int = 0  # offset
    end: int = 0  # offset
    freshest_ms: int | None = None
    reported_at_ms: int = 0
    counted: int = 0
    quarantined: int = 0
    late: int = 0
    ignored: int = 0
    holes: int = 0
    last_ms: int | None = None  # timestamp of the last record read
    losses: list[Loss] = []  # oldest first; at most the last one is open
    topic_id: str = ""
    rebased: int = 0

    def adds_up(self, next_offset: int) -> bool:
        """Return whether every offset since `start` is in exactly one class (invariant I2)."""
        classes = self.counted + self.quarantined + self.late + self.ignored + self.holes
        return next_offset - self.start == classes

    def note_loss(self, from_ms: int, to_ms: int | None) -> None:
        """Record that records of this time are lost; one that touches the last loss extends it."""
        if to_ms is not None:
            to_ms = max(from_ms, to_ms)
        if self.losses:
            last_from, last_to = self.losses[-1]
            if last_to is None or (to_ms is not None and from_ms <= last_to):
                from_ms = min(from_ms, last_from)
                if to_ms is not None:
                    to_ms = max(to_ms, last_from if last_to is None else last_to)
                del self.losses[-1]
        self.losses.append((from_ms, to_ms))
        if len(self.losses) > MOST_LOSSES:
            (oldest, one), (_, two), *others = self.losses
            ends = None if one is None or two is None else max(one, two)
            self.losses = [(oldest, ends), *others]

    def end_loss(self, to_ms: int) -> None:
        """Close the open loss, if there is one: a record of this time follows it."""
        if self.losses and self.losses[-1][1] is None:
            from_ms, _ = self.losses[-1]
            self.losses[-1] = (from_ms, max(from_ms, to_ms))


PROGRESS_FIELDS = (
    "start",
    "end",
    "freshest",
    "reported_at",
    "counted",
    "quarantined",
    "late",
    "ignored",
    "holes",
    "last",
    "losses",
    "tainted_from",
    "topic_id",
    "rebased",
)
"""Names of the hash's fields that hold `PartitionCounts`."""

_loss_decoder = msgspec.json.Decoder(list[Loss])


def encode_progress(counts: PartitionCounts) -> dict[str, bytes]:
    """Return the progress fields of a partition's hash."""
    ends = [counts.reported_at_ms if to_ms is None else to_ms for _, to_ms in counts.losses]
    numbers = (
        counts.start,
        counts.end,
        counts.freshest_ms,
        counts.reported_at_ms,
        counts.counted,
        counts.quarantined,
        counts.late,
        counts.ignored,
        counts.holes,
        counts.last_ms,
    )
    encoded = {
        name: b"" if number is None else b"%d" % number
        for name, number in zip(PROGRESS_FIELDS, numbers, strict=False)
    }
    encoded["losses"] = _encoder.encode(counts.losses)
    encoded["tainted_from"] = b"%d" % max(ends) if ends else b""
    encoded["topic_id"] = counts.topic_id.encode()
    encoded["rebased"] = rebased_field(counts.rebased)
    return encoded


def decode_progress(fields: Mapping[str, bytes]) -> PartitionCounts:
    """Return a partition's progress from its hash; other fields may be there too.

    Raises ValueError naming the field that is missing or is no number.
    """
    freshest = _number_or_unknown(fields, "freshest")
    reported_at = parse_number(fields, "reported_at")
    return PartitionCounts(
        start=parse_number(fields, "start"),
        end=parse_number(fields, "end"),
        freshest_ms=freshest,
        reported_at_ms=reported_at,
        counted=parse_number(fields, "counted"),
        quarantined=parse_number(fields, "quarantined"),
        late=parse_number(fields, "late"),
        ignored=parse_number(fields, "ignored"),
        holes=parse_number(fields, "holes"),
        last_ms=_number_or_unknown(fields, "last") if "last" in fields else freshest,
        losses=_losses(fields, reported_at),
        topic_id=fields.get("topic_id", b"").decode(),
        rebased=parse_number(fields, "rebased") if fields.get("rebased") else 0,
    )


MOST_CHANGED = 100
"""Flags named in the field `changed`. With more, readers read the totals of all flags."""


class LatelyChanged(msgspec.Struct, frozen=True):
    """Which flags' totals the last saves of a partition have changed."""

    writer: str  # who counts the partition, and since when: no two loads of it have the same
    number: int  # of the last save of this writer that changed totals
    since: int  # the number of the last save whose flags may be missing below
    next: int  # the fence of the save that wrote this; another one: an older release saved since
    flags: dict[str, int]  # flag key -> number of the last save that changed its totals

    def after(self, before: LatelyChanged) -> frozenset[str] | None:
        """Return the flags whose totals have changed since `before`, None where that is unknown."""
        if self.writer != before.writer or not self.since <= before.number <= self.number:
            return None
        return frozenset(key for key, number in self.flags.items() if number > before.number)


_changed_decoder = msgspec.json.Decoder(LatelyChanged)


def changed_field(changed: LatelyChanged) -> dict[str, bytes]:
    """Return the field that tells readers which flags' totals have changed."""
    return {"changed": _encoder.encode(changed)}


def lately_changed(fields: Mapping[str, bytes]) -> LatelyChanged | None:
    """Return what the field `changed` of a hash says, None where it says nothing of the fence.

    An older release does not write it, and leaves what a newer one wrote.
    """
    try:
        changed = _changed_decoder.decode(fields["changed"])
    except (KeyError, ValueError, RecursionError):
        return None
    return changed if fields.get("next") == b"%d" % changed.next else None


def rebased_field(rebased: int) -> bytes:
    """Return the content of the field `rebased`: empty for 0, as in a hash without the field."""
    return b"%d" % rebased if rebased else b""


def _losses(fields: Mapping[str, bytes], reported_at_ms: int) -> list[Loss]:
    """Return the losses of a hash.

    A hash without `losses` was written by an older release, which kept only the beginning of the
    first loss: everything from there to its last save counts as lost.
    """
    value = fields.get("losses")
    if value is None:
        since = _number_or_unknown(fields, "tainted_from")
        return [] if since is None else [(since, max(since, reported_at_ms))]
    losses = _loss_decoder.decode(value)
    for from_ms, to_ms in losses:
        if from_ms < 0 or (to_ms is not None and to_ms < from_ms):
            raise ValueError(f"field 'losses' of a partition's hash holds [{from_ms}, {to_ms}]")
    return losses


def _number_or_unknown(fields: Mapping[str, bytes], name: str) -> int | None:
    return None if fields.get(name) == b"" else parse_number(fields, name)


def parse_number(fields: Mapping[str, bytes], name: str) -> int:
    """Return the number in a field. Raises ValueError naming the field when it holds none."""
    value = fields.get(name)
    if value is None or not value.isdigit() or len(value) > MOST_DIGITS:
        raise ValueError(f"field {name!r} of a partition's hash is {value!r:.100}, not a number")
    return int(value)
