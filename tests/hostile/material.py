"""Hostile input by seed.

Boundary and absurd numbers, texts, times and shapes, alone and inside honest documents.

Belongs here: what an attacker, a broken clock or a damaged disk may produce. Does not belong here:
where it goes (`edges.py`) and what must hold then.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

#: Numbers at which arithmetic, storage or a time stops working somewhere.
INTEGERS: Final[Sequence[int]] = (
    0, 1, -1, 2, 99, 100, 101, 255, 256, 1_000, 3_000, 3_001, 8_000, 2**15, 2**16, 2**31 - 1,
    2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**53),
    -(2**63), 10**18, 10**19, 10**30, 10**300, 10**400, 999_999_999, 86_400_000,
    253_402_300_799_999, 253_402_300_800_000, -62_135_596_800_000, 8_640_000_000_000_000,
)  # fmt: skip
FLOATS: Final[Sequence[float]] = (
    0.0, -0.0, 5e-324, -5e-324, 2.2e-308, 1e-300, 1e-9, 0.01, 0.005, 0.1, 0.5, 0.999999999, 1.0,
    1.0000000001, 99.99, 99.995, 100.0, 100.01, 1e6, 1e12, 1e15, 1e16, 9e15, 1e100, 1e300,
    1.7976931348623157e308, -1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS: Final[Sequence[str]] = (
    "", " ", "\x00", "\n", "\r\n", "\x1b[31mred\x1b[0m", "\u202eevil", "\u200b", "\ufeff",
    "\ud800", "\udfff", "|", "{}", "{0}", "%s", "../../etc/passwd", "a" * 127, "a" * 128,
    "a" * 129, "a" * 257, "a" * 1_025, "ä" * 300, "𝔘" * 200, "on", "off", "true", "null", "NaN",
    "Infinity", "-", "--", "rolloutd", "Rolloutd", "<script>", "'; DROP TABLE", "new-checkout",
    "conversion:", "latency_p99.99", "error_rate", "conversion:" + "x" * 200, "1e400", "0x10",
    "١٢", "²", "1_000", "+1", "P1D", "PT", "P", "P999999999D", "1217d", "99999999999999w", "0s",
    "1us", "0.0000001s", "1w 2d 3h 4m 5s", "24 fortnights", "[" * 200, '{"a":' * 100,
)  # fmt: skip
TIMES: Final[Sequence[str]] = (
    "2026-11-22T03:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-23:59", "10000-01-01T00:00:00Z",
    "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "2000-02-30T00:00:00Z",
    "2026-11-22T25:00:00Z", "2026-11-22T03:00:60Z", "2026-11-22 03:00:00", "2026-11-22T03:00:00",
    "2026-11-22T03:00:00+99:99", "2038-01-19T03:14:08Z", "2100-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z", "20261122T030000Z", "1764644400", "now",
)  # fmt: skip

_HEADER_VALUES: Final = (
    None,
    None,
    b"1.0",
    b"\xff\xfe",
    b"io.rolloutd.evaluation.v1",
    b"2026-11-22T03:00:00Z",
)


class Hostile:
    """A seeded source of hostile input: the same seed gives the same input."""

    def __init__(self, seed: int, *, now: datetime | None = None) -> None:
        """`now` is what times near the present are near to."""
        self.dice = random.Random(seed)
        self.longest_seconds = 0.0  # CPU time of what was timed
        self._now_ms = int((now or datetime.now(UTC)).timestamp() * 1000)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure what the daemon's own code takes; what makes the case takes its time, too."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.longest_seconds = max(self.longest_seconds, time.thread_time() - began)

    # - single values -

    def integer(self) -> int:
        """Return a boundary, or something beside one, or any number of digits."""
        kind = self.dice.randrange(4)
        if kind == 0:
            return self.dice.choice(INTEGERS) + self.dice.choice((-1, 0, 0, 1))
        if kind == 1:
            return self.dice.randrange(-5, 200)
        if kind == 2:
            return self.dice.choice((1, -1)) * self.dice.getrandbits(self.dice.randrange(1, 80))
        return self.dice.choice(INTEGERS)

    def number(self) -> int | float:
        """Return an integer or a float, finite or not."""
        if self.dice.random() < 0.4:
            return self.integer()
        if self.dice.random() < 0.6:
            return self.dice.choice(FLOATS)
        return self.dice.uniform(-1, 1) * 10.0 ** self.dice.randrange(-320, 308)

    def text(self) -> str:
        """Return a text of the list, a mixture of two, or random characters."""
        kind = self.dice.randrange(4)
        if kind == 0:
            return self.dice.choice(TEXTS) + self.dice.choice(TEXTS)
        if kind == 1:
            return self.dice.randbytes(18).decode("utf-16-le", "ignore")
        return self.dice.choice(TEXTS)

    def time_text(self) -> str:
        """Return how a time may be written, well or badly."""
        if self.dice.random() < 0.3:
            return datetime.fromtimestamp(
                self._now_ms / 1000 + self.dice.uniform(-4e3, 4e3), UTC
            ).isoformat()
        return self.dice.choice(TIMES)

    def timestamp_ms(self) -> int:
        """Return a record's timestamp.

        Near now, far ahead, far behind, beyond what a calendar has.
        """
        kind = self.dice.randrange(5)
        if kind < 2:
            return self._now_ms + self.dice.choice(
                (0, 1, -1, 299_000, 300_000, 300_001, 3_300_000, 86_400_000, -86_400_000)
            )
        if kind == 2:
            return self.dice.choice(
                (-1, 0, 1, 253_402_300_799_999, 253_402_300_800_000, 2**62, 2**63 - 1, -(2**63))
            )
        return self._now_ms + int(self.dice.uniform(-1, 1) * 10 ** self.dice.randrange(3, 13))

    def value(self, depth: int = 0) -> Any:
        """Return any JSON value, and sometimes what JSON has no word for."""
        kind = self.dice.randrange(9)
        if kind < 3:
            return self.number()
        if kind < 5:
            return self.text()
        if kind == 5:
            return self.dice.choice((None, True, False))
        if kind == 6:
            return self.time_text()
        if depth > 3:
            return []
        if kind == 7:
            sizes = (0, 1, 2, 3, 70) if depth == 0 else (0, 1, 2)
            return [self.value(depth + 1) for _ in range(self.dice.choice(sizes))]
        return {self.text(): self.value(depth + 1) for _ in range(self.dice.choice((0, 1, 2, 5)))}

    def headers(self) -> list[tuple[str, bytes | None]]:
        """Return Kafka headers: none, CloudEvents ones, broken ones."""
        kind = self.dice.randrange(5)
        if kind < 2:
            return []
        if kind == 2:
            return [("content-type", b"application/cloudevents+json")]
        names = (
            "content-type",
            "ce_specversion",
            "ce_type",
            "ce_id",
            "ce_time",
            "ce_source",
            "Content-Type",
            "x",
            "",
        )
        return [
            (self.dice.choice(names), self.dice.choice(_HEADER_VALUES) or self.dumps(self.text()))
            for _ in range(self.dice.choice((1, 3, 9, 40)))
        ]

    # - documents -

    def mutated(self, document: Any) -> Any:
        """Return an honest document with one to four places made hostile.

        It is changed in place.
        """
        for _ in range(self.dice.choice((1, 1, 1, 2, 4))):
            document = self._mutate(document)
        return document

    def _mutate(self, node: Any) -> Any:
        """Change one place below, or the node itself."""
        if isinstance(node, dict) and node and self.dice.random() < 0.9:
            name = self.dice.choice(list(node))
            kind = self.dice.randrange(12)
            if kind == 0:
                del node[name]
            elif kind == 1:
                node[self.text()] = node.pop(name)
            elif kind == 2:
                node[self.text()] = self.value()
            else:
                node[name] = self._mutate(node[name])
            return node
        if isinstance(node, list) and node and self.dice.random() < 0.85:
            place = self.dice.randrange(len(node))
            kind = self.dice.randrange(8)
            if kind == 0:
                node.insert(place, node[place])
            elif kind == 1:
                return node * self.dice.choice((0, 2, 30))
            else:
                node[place] = self._mutate(node[place])
            return node
        if isinstance(node, bool) or node is None:
            return self.value()
        if isinstance(node, int | float):
            return self.number() if self.dice.random() < 0.8 else self.value()
        if isinstance(node, str):
            return self._written(node)
        return self.value()

    def _written(self, text: str) -> Any:
        """Return a text of the same kind with another content, or anything else."""
        kind = self.dice.randrange(6)
        if kind == 0:
            return self.value()
        if kind == 1 and any(character.isdigit() for character in text):
            return "".join(
                str(self.dice.randrange(10)) if each.isdigit() else each for each in text
            )
        if kind == 2 and any(character.isdigit() for character in text):
            return text + str(abs(self.integer()))[: self.dice.choice((1, 3, 30))]
        if kind == 3:
            return self.time_text()
        return self.text()

    def dumps(self, value: Any) -> bytes:
        """Return JSON as senders write it, with NaN and lone surrogates where they stand.

        And numbers of any length.
        """
        try:
            written = json.dumps(value, ensure_ascii=self.dice.random() < 0.7)
        except (ValueError, RecursionError):
            written = "null"
        return written.encode("utf-8", "surrogatepass")

    def torn(self, content: bytes) -> bytes:
        """Return bytes with some of them changed, cut off, doubled or put before others."""
        if not content:
            return bytes(self.dice.randrange(256) for _ in range(self.dice.randrange(9)))
        place = self.dice.randrange(len(content))
        match self.dice.randrange(6):
            case 0:
                return content[:place]
            case 1:
                return content[:place] + bytes([self.dice.randrange(256)]) + content[place + 1 :]
            case 2:
                return content[place:] + content[:place]
            case 3:
                return (
                    content[:place]
                    + content[place : place + 9] * self.dice.choice((2, 50))
                    + content[place:]
                )
            case 4:
                return content + content
            case _:
                return self.dice.randbytes(self.dice.choice((0, 1, 7, 64, 900)))

    def bytes_of(self, document: Any) -> bytes:
        """Return a record's value.

        Mostly a mutated document, sometimes torn, sometimes nothing of the kind.

        `document` is JSON-ready and of the caller's own making: it is changed in place.
        """
        kind = self.dice.randrange(10)
        if kind < 7:
            return self.dumps(self.mutated(document))
        if kind < 9:
            return self.torn(self.dumps(document))
        return self.dumps(self.value())
