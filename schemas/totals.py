r"""What stands in Redis for one event partition.

The hash's layout, and how one arm's totals become bytes and back.

One hash per event partition, `<prefix>agg:{<topic>/<partition>/<epoch>}`. To look at it: `redis-cli
HGETALL 'rolloutd:agg:{rollout.flag.evaluations/3/1}'`, or `HMGET ... next end counted` for the
position alone.

| field | what stands in it |
|---|---|
| `next` | the fence: the offset to read next. Everything else in the hash is what the records before it add up to |
| `digest` | of the arguments of the last save: how a repeated save is recognised as already done |
| `format` | version of this layout: `2`; `1` is without `checked` and `repeated`, and is read |
| `start` | the offset counting began at |
| `end` | the log's end when its owner last looked; `end - next` is the lag |
| `freshest` | greatest event time counted, ms since the epoch; empty before the first |
| `reported_at` | when the owner last wrote, ms since the epoch, by its own clock |
| `counted` `quarantined` `late` `ignored` | records by the class they fell into |
| `holes` | offsets that hold no record for us: compacted away, transaction markers, or lost |
| `last` | timestamp of the last record read, ms since the epoch; empty before the first |
| `losses` | JSON list of `[from, to]`, ms since the epoch: records of this time are known to be lost. `from` 0 is the \
beginning of time, `to` null means that no record behind the loss was read yet |
| `tainted_from` | end of the last loss, for readers that do not know `losses`; empty for none |
| `topic_id` | what the brokers call the topic that was counted; empty when they did not say |
| `rebased` | how often counting moved to another log under the same name: part of the fence; empty for never |
| `<flag>\|<rollout id>\|<visit>\|treatment` or `\|control` | one arm's totals as JSON; a number that is absent is 0 |
| `arms/<number>` | a bundle: one JSON object from such a name to such totals, of all flags whose CRC-32 leaves this number |
| `joins`, and names with other first words before a `/` | what ingest keeps beside the totals: membership sets, attribution |

An arm stands in a field of its own while there are few flags, and in its flag's bundle when there
are many (ingest decides when it first writes the arm): a save carries a bounded number of fields.
It may move from its bundle into a field of its own, in one save, never back. So an arm that has a
field stands there, and one that has none stands in its bundle or is all zeros.

It always holds that `next - start = counted + quarantined + late + ignored + holes`.

Histograms are JSON objects from log bucket to count; bucket `i` holds latencies in (1.02^(i-1),
1.02^i] ms, so `"231": 17` is 17 values of about 97 ms.

Belongs here: bytes and names. Does not belong here: reading and writing them
(`controller/adapters/redis/totals.py`), and what the numbers mean (`controller/core/evidence.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple
from zlib import crc32

import msgspec

from schemas.terms import Arm

FORMAT = 2
"""Version of the layout. A hash with a greater one was written by a newer rolloutd and is refused, never guessed at."""

MAX_FIELDS_PER_SAVE = 3_000
"""Fields one save may carry, progress included. A save is one script with one HSET, and Lua hands a call at most 8,000 values
(LUAI_MAXCSTACK); see ops/decisions/0002-one-hset.md. Whoever gathers more changed fields saves earlier."""

BUNDLES = 1_024
"""Into how many bundles flags are spread. With every arm of 10,000 flags changed a save has as many fields, of 20 arms each.
More would leave a save less room for memberships, fewer would write more unchanged arms beside each changed one."""

MOST_DIGITS = 19
"""Digits of a number in a hash: those of the greatest offset that Kafka has."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class ArmCounts(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One arm's totals in one visit, of one partition, as they are stored. Mutable.

    The fields are those of `schemas.counters.Counters`, which says what they mean.
    """

    evaluations: Count = 0
    exposures: Count = 0
    switched: Count = 0
    outcomes: Count = 0
    errors: Count = 0
    at_risk: Count = 0
    first_errors: Count = 0
    converted: dict[str, Count] = {}  # conversion name -> distinct contexts
    latency: dict[int, Count] = {}  # log bucket -> values, one per context and batch
    latency_all: dict[int, Count] = {}  # log bucket -> values, every one
    checked: Count = 0
    repeated: Count = 0


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ArmCounts)
_bundle_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode_arm(counts: ArmCounts) -> bytes:
    """Return the bytes of an arm's field: JSON with full names."""
    return _encoder.encode(counts)


def decode_arm(value: bytes) -> ArmCounts:
    """Return what an arm's field holds.

    Raises ValueError for anything `encode_arm` of this version cannot have written.
    """
    return _decoder.decode(value)


def bundle_field(flag_key: str) -> str:
    """Return the name of the field in which a flag's arms are bundled with those of others. Stable: it is stored."""
    return f"arms/{crc32(flag_key.encode()) % BUNDLES}"


def is_bundle_field(name: str) -> bool:
    """Whether a field holds a bundle of arms."""
    return name.startswith("arms/")


def bundle_entry(name: str, value: bytes) -> bytes:
    """Return what `encode_bundle` joins.

    One arm's field name and its totals as `encode_arm` gives them.
    """
    return b'"%b":%b' % (name.encode(), value)  # names need no escapes: see part_field


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return the bytes of a bundle's field: one JSON object."""
    return b"{%b}" % b",".join(entries)


def decode_bundle(value: bytes) -> dict[str, bytes]:
    """Return arm field name -> that arm's bytes, for `decode_arm`.

    Raises ValueError for what is no JSON object.
    """
    return {name: bytes(raw) for name, raw in _bundle_decoder.decode(value).items()}


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
    """Return what a field's name says, None for the partition's own fields."""
    words = name.split("|")
    if len(words) != 4 or not words[2].isascii() or not words[2].isdigit():
        return None
    return TotalsField(words[0], words[1], int(words[2]), words[3])


MOST_LOSSES = 32
"""Losses kept per partition; beyond, the two oldest become one that covers both."""

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
        """Whether every offset since `start` fell into exactly one class (invariant I2)."""
        classes = self.counted + self.quarantined + self.late + self.ignored + self.holes
        return next_offset - self.start == classes

    @property
    def has_open_loss(self) -> bool:
        """Whether records are lost and none behind them was read yet."""
        return bool(self.losses) and self.losses[-1][1] is None

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
        """Close the open loss, if there is one: a record of this time lies behind it."""
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


def rebased_field(rebased: int) -> bytes:
    """Return what stands in the field `rebased`: nothing for 0, as in a hash without the field."""
    return b"%d" % rebased if rebased else b""


def _losses(fields: Mapping[str, bytes], reported_at_ms: int) -> list[Loss]:
    """Return the losses of a hash.

    One without `losses` was written by an older release, which kept the first loss's beginning
    alone: everything from there to its last save is taken for lost.
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
