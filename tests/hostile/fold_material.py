"""What the fold fuzzer folds: events and the batches that they come in, most plain, many hostile.

Fast, so that ten million records take minutes: an event is a template with some words put in, and a
mutation is a slice or two.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

from aiokafka.record.util import calc_crc32c

from controller.adapters.kafka.batch_format import CRC_FROM
from controller.ports import Record
from tests.both_folds import FLAGS, NOW_MS, batches_of
from tests.builders import HOUR, MINUTE, T0
from tests.records import at_ms

PLAIN, BROKEN = 0, -1
#: Codecs of batches: none mostly, then gzip, snappy, LZ4 and Zstandard.
CODECS = (PLAIN,) * 12 + (1, 2, 3, 4)
MOST_IN_BATCH = 200

_FLAGS = (*FLAGS[:2] * 6, *FLAGS)
_VARIANTS = ("on",) * 6 + ("off",) * 6 + ("blue", "", "o\\u006e", "é")
_CONTEXTS = ("ü", "a b", 'q\\"', "x" * 257, "", "\\u0041", "\\ud800", "\x01", "u0\\n")
_TIMES = tuple(
    time.encode()
    for time in (
        "2026-01-05T09:00:59.999Z",
        "2026-01-05T09:59:59.999Z",
        "2026-01-05T10:00:00Z",
        "2026-01-05T10:01:00Z",
        "2026-01-05T09:05:00Z",
        "2026-01-05T09:05:00.123456+00:00",
        "2026-01-05T10:30:00Z",
        "2026-01-05T10:30:00+02:00",
        "2026-01-05T12:00:00-00:00",
        "2026-02-30T00:00:00Z",
        "9999-12-31T23:59:60Z",
        "0001-01-01t00:00:00z",
        "1",
    )
)
_USUAL_TIMES = _TIMES[:8] * 15 + _TIMES
#: The last is none, which the builder of batches takes for no first record.
_TIMESTAMPS = (*(NOW_MS,) * 60, at_ms(T0 + MINUTE), at_ms(T0 + 2 * HOUR), NOW_MS + 10**9, 0, -1)
_HEADERS: tuple[Sequence[tuple[str, bytes | None]], ...] = (
    *((),) * 40,
    (("traceparent", b"00"),),
    (("content-type", b"application/cloudevents+json"),),
    (("Content-Type", b"application/json"),),
    (("ce_id", b"1"), ("ce_source", b"/a"), ("content-type", None)),
    (("\u212aey", b"1"), ("", b"")),
)
_KEYS = (*(None,) * 6, b"", b"u1", b"u77", "ü".encode(), b"\xff", b"k" * 300)
_NUMBERS = (b"0.052", b"0", b"1e-9", b"5E3", b"-1", b"1e400", b"01", b"0.1e", b"null", b'"1"')
_ODD: tuple[tuple[bytes, bytes], ...] = (
    (b'"id":"1"', b'"id":"\\u0031"'),
    (b'"id":"1"', b'"id":""'),
    (b'"id":"1"', b'"id":"1","id":"2"'),
    (b'"id":"1"', b'"id":"1","x":{"a":[1,-2.5e3,true,null,"x"]}'),
    (b'"id":"1"', b'"id":"1","x":[01]'),
    (b'"id":"1"', b'"id":"1","x":' + b"[" * 40 + b"]" * 40),
    (b'"data"', b'"more":"data","data"'),
    (b'"feature_flag.context.id"', b'"other"'),
    (b'"feature_flag.result.variant"', b'"feature_flag.variant"'),
    (b'"1.0"', b'"1.1"'),
    (b"{", b"{ \n\t\r"),
    (b"}", b"}\x0b"),
    (b"}", b"},"),
    (b'"', b"'"),
    (b":", b" : "),
)
_EVALUATION = (
    b'{"specversion":"1.0","type":"io.rolloutd.evaluation.v1","source":"/app","id":"1","time":"%b",'
    b'"data":{"feature_flag.key":"%b","feature_flag.result.variant":"%b",'
    b'"feature_flag.context.id":"%b"}}'
)
_OUTCOME = (
    b'{"specversion":"1.0","type":"io.rolloutd.outcome.v1","source":"/app","id":"1","time":"%b",'
    b'"data":{"feature_flag.context.id":"%b"%b}}'
)
_NAMED = b'{"feature_flag.key":"%b","feature_flag.result.variant":"%b"}'


class Material:
    """Random records of one kind of events, and batches of them."""

    def __init__(self, chance: Random, contexts: int) -> None:
        """Draw from `chance`; `contexts` are how many there are usually."""
        self._chance = chance
        self._contexts = contexts

    def batch(self, offset: int, *, of_evaluations: bool) -> tuple[list[Record], bytes, int]:
        """Return records from `offset` on, their batch, and its codec; a broken one is `BROKEN`.

        A batch that is broken may still be read: what was changed may not matter.
        """
        chance = self._chance
        make = self._evaluation if of_evaluations else self._outcome
        records: list[Record] = []
        for _ in range(1 + int(chance.random() ** 2 * MOST_IN_BATCH)):
            offset += 1 if chance.random() < 0.99 else chance.randrange(1, 50)
            records.append(
                Record(
                    "t",
                    0,
                    offset - 1,
                    chance.choice(_TIMESTAMPS if records else _TIMESTAMPS[:-1]),
                    chance.choice(_KEYS),
                    self._hostile(make()),
                    chance.choice(_HEADERS),
                )
            )
        codec = chance.choice(CODECS)
        content = batches_of(records, len(records), codec)
        if chance.random() < 0.06:
            return records, self._broken(content), BROKEN
        return records, content, codec

    def _word(self, words: Sequence[str]) -> bytes:
        return self._chance.choice(words).encode("utf-8", "surrogatepass")

    def _context(self) -> bytes:
        kind = self._chance.random()
        if kind < 0.02:
            return self._word(_CONTEXTS)
        if kind < 0.2:
            return b"bot"  # one that is far more active than others
        return b"u%d" % (self._chance.random() * self._contexts)

    def _time(self) -> bytes:
        return self._chance.choice(_USUAL_TIMES)

    def _evaluation(self) -> bytes:
        return _EVALUATION % (
            self._time(),
            self._word(_FLAGS),
            self._word(_VARIANTS),
            self._context(),
        )

    def _outcome(self) -> bytes:
        chance, more = self._chance, b""
        if chance.random() < 0.7:
            named = b",".join(
                [
                    _NAMED % (self._word(_FLAGS), self._word(_VARIANTS))
                    for _ in range(int(chance.random() ** 4 * 10 + 0.98))
                ]
            )
            more += b',"rolloutd.flags":[' + named + b"]"
        if chance.random() < 0.3:
            more += b',"error.type":"500"'
        if chance.random() < 0.7:
            number = (
                chance.choice(_NUMBERS)
                if chance.random() < 0.2
                else repr(chance.lognormvariate(-3, 2)).encode()
            )
            more += b',"http.server.request.duration":' + number
        if chance.random() < 0.1:
            more += b',"rolloutd.conversions":["paid","%b"]' % self._word(("other", "paid", "!"))
        return _OUTCOME % (self._time(), self._context(), more)

    def _hostile(self, value: bytes) -> bytes | None:
        """Return an event, changed with a chance of a fifth."""
        chance = self._chance
        kind = chance.random()
        if kind > 0.2:
            return value
        place = int(chance.random() * len(value))
        if kind < 0.05:
            return value[:place] + bytes((chance.randrange(256),)) + value[place + 1 :]
        if kind < 0.08:
            return value[:place] + value[place + chance.randrange(1, 40) :]
        if kind < 0.1:
            return value[:place] + value[chance.randrange(len(value)) :]
        if kind < 0.11:
            return value[:place]
        if kind < 0.112:
            return None
        old, new = chance.choice(_ODD)
        return value.replace(old, new, chance.choice((1, -1)))

    def _broken(self, content: bytes) -> bytes:
        """Return a batch that is cut, or has some bytes changed; half of those with a checksum."""
        chance = self._chance
        if chance.random() < 0.3:
            return content[: chance.randrange(len(content))]
        broken = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 4))):
            broken[chance.randrange(16, len(content))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.5:
            struct.pack_into(">I", broken, CRC_FROM - 4, calc_crc32c(bytes(broken[CRC_FROM:])))
        return bytes(broken)
