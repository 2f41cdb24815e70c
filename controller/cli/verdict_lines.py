"""Carries out `rolloutctl verdict`: answers each JSON line with one line, its verdict.

Belongs here: lines, their faults, and the storage of idle streams in few bytes. Does not belong
here: what the totals mean (`planning/external_totals.py`).
"""

from __future__ import annotations

import math
import os
import re
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import repeat
from operator import lt
from typing import Annotated, Any, BinaryIO

import msgspec

from controller.core.analysis.sequential_tests import decode_tests, encode_tests
from controller.core.evidence import GAMMA, HIGHEST_BUCKET, LOWEST_BUCKET, Histogram, bucket_of
from controller.core.judging.gate import HarmSignal
from controller.core.judging.judgement import Judgement
from controller.planning.external_totals import (
    ArmSums,
    AssignedTotals,
    Stream,
    Watched,
    add_totals,
    begin,
)
from schemas.terms import Arm

#: A line of two arms with 1,000 buckets each has 30 KB.
MAX_LINE_BYTES = 1_000_000
#: Streams kept ready. Others are stored as bytes; to restore one costs about 0.3 ms.
READY_STREAMS = 1_000
#: Bucket indexes beyond this are no latency at any sensible gamma.
_FURTHEST_BUCKET = 1_000_000

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Latency(msgspec.Struct):
    gamma: Annotated[float, msgspec.Meta(gt=1, le=2)]
    buckets: dict[Annotated[int, msgspec.Meta(ge=-_FURTHEST_BUCKET, le=_FURTHEST_BUCKET)], Count]


class _Arm(msgspec.Struct):
    contexts: Count | None = None
    contexts_with_error: Count | None = None
    outcomes: Count | None = None
    errors: Count | None = None
    latency: _Latency | None = None


class _Line(msgspec.Struct):
    stream: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    stage: int
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]
    alpha: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    looks_planned: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    control: _Arm
    treatment: _Arm


class _Name(msgspec.Struct):
    stream: str | None = None


_FIXES = {
    "stream": 'name the stream, as in "s1"',
    "stage": "write the stage's number, as in 1; totals count from zero in each",
    "share": "write treatment's decided share, above 0 and at most 1, as in 0.01",
    "alpha": "write the probability of a false roll back that is allowed, between 0 and 1, as in "
    "0.01",
    "looks_planned": "write how many looks are planned over all stages, as in 200",
    "control": 'write the arm\'s totals, as in {"contexts": 990, "contexts_with_error": 4}',
    "treatment": 'write the arm\'s totals, as in {"contexts": 10, "contexts_with_error": 0}',
    "latency": 'write it as in {"gamma": 1.02, "buckets": {"231": 17}}',
    "gamma": "write the ratio of two neighbouring bucket edges, above 1 and at most 2, as in 1.02",
    "buckets": 'write whole numbers of values by bucket index, as in {"231": 17}',
}
_COUNT_FIX = "write a whole number of at least 0, or leave the field out if it is not known"


class _BadLine(Exception):
    """A line that cannot be used; nothing of it was counted."""

    def __init__(self, at: str, what: str, fix: str | None = None) -> None:
        super().__init__(what)
        self.field = at
        self.what = what
        self.fix = fix if fix is not None else _FIXES.get(at.rpartition(".")[2], _COUNT_FIX)


def judge_lines() -> int:
    """Answer standard input until it ends, and return how many lines could not be used."""
    bench = Bench()
    try:
        for answer in bench.answers(sys.stdin.buffer):
            sys.stdout.buffer.write(answer)
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader is gone. Python would flush once more at exit, and report an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return bench.refused


class Bench:
    """All streams of one run."""

    def __init__(self, ready_streams: int = READY_STREAMS) -> None:
        """`ready_streams` is how many are kept as they are; it changes no answer."""
        self.refused = 0  # lines
        self._lines = msgspec.json.Decoder(_Line, strict=False)
        self._names = msgspec.json.Decoder(_Name)
        self._answers = msgspec.json.Encoder()
        self._streams = _Streams(ready_streams)
        self._rolled_back: dict[str, str] = {}  # stream -> why

    def answers(self, lines: BinaryIO) -> Iterator[bytes]:
        """Yield one line of JSON for each line that is not blank, before the next is read."""
        number = 0
        while raw := lines.readline(MAX_LINE_BYTES):
            number += 1
            if raw.isspace():
                continue
            try:
                answer = self._judge(self._read(raw, lines))
            except _BadLine as bad:
                self.refused += 1
                said = f"line {number}: {bad.field}: {bad.what}; {bad.fix}"
                answer = {
                    "stream": self._named(raw),
                    "error": said,
                    "line": number,
                    "field": bad.field,
                    "fix": bad.fix,
                }
            yield self._answers.encode(answer) + b"\n"

    def _read(self, raw: bytes, lines: BinaryIO) -> _Line:
        """Return a line that is valid by itself.

        The rest of a line that is too long is read and dropped.
        """
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := lines.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            raise _BadLine(
                "line", f"is longer than {MAX_LINE_BYTES:,} bytes", "is it one look of one stream?"
            )
        try:
            line = self._lines.decode(raw)
        except msgspec.ValidationError as error:
            said, _, place = str(error).partition(" - at `")
            path = (
                re.sub(r"^key` in `", "", place.rstrip("`"))
                .removeprefix("$")
                .removeprefix(".")
                .replace("[...]", "")
            )
            missing = re.search(r"missing required field `(\w+)`", said)
            if missing is not None:
                raise _BadLine(".".join(filter(None, (path, missing[1]))), "is missing") from None
            raise _BadLine(path or "line", said[:1].lower() + said[1:].replace("`", "")) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _BadLine(
                "line", f"is not JSON: {error}", "write one JSON object per line"
            ) from None
        for name, arm in (("control", line.control), ("treatment", line.treatment)):
            for part, whole in (("contexts_with_error", "contexts"), ("errors", "outcomes")):
                some, all_ = getattr(arm, part), getattr(arm, whole)
                if some is not None and all_ is not None and some > all_:
                    raise _BadLine(
                        f"{name}.{part}",
                        f"{some} is more than the {all_} {whole}",
                        f"it counts some of {whole}",
                    )
        return line

    def _named(self, raw: bytes) -> str | None:
        """Return the stream that an unusable line names, None for none."""
        try:
            return self._names.decode(raw).stream
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _judge(self, line: _Line) -> dict[str, Any]:
        name = line.stream
        if name in self._rolled_back:
            return {"stream": name, "verdict": "roll_back", "reasons": [self._rolled_back[name]]}
        sums = {Arm.TREATMENT: _sums(line.treatment), Arm.CONTROL: _sums(line.control)}
        watched = Watched.among(sums)
        stream, notes = self._streams.take(name), []
        if stream is None:
            if not watched.guardrails:
                return {
                    "stream": name,
                    "verdict": "continue",
                    "reasons": ["neither errors nor latency of both arms so far"],
                }
            stream = begin(name, watched, line.stage, line.share, line.alpha, line.looks_planned)
            notes = _introduction(watched)
        try:
            _check_against(stream, line, sums)
        except _BadLine:
            if stream.looks:
                self._streams.put(name, stream)
            raise
        stream, signals, judgement = add_totals(stream, line.stage, line.share, sums)
        breach = None if judgement is None else judgement.breach
        if breach is not None:
            why = self._rolled_back[name] = f"look {stream.looks}: {breach.metric}: {breach.reason}"
            return {"stream": name, "verdict": "roll_back", "reasons": [*notes, why]}
        self._streams.put(name, stream)
        return {
            "stream": name,
            "verdict": "continue",
            "reasons": [*notes, *_reasons(stream, signals, judgement)],
        }


def _introduction(watched: Watched) -> list[str]:
    """Return what is watched, once per stream, so that a metric missing by mistake is noticed."""
    errors = [f"error_rate by {watched.units}"] if watched.units else []
    lines = [
        (
            f"watched: {', '.join(errors + (['latency'] if watched.has_latency else []))}; "
            f"compared with control"
        )
    ]
    if watched.units == "outcomes":
        lines.append(
            "contexts and contexts_with_error are not known: each outcome counts as a "
            "context of its own, so that users who "
            "come back, and bursts, make more false alarms than alpha"
        )
    if not watched.units:
        lines.append("errors are not known in both arms, and are not watched")
    if not watched.has_latency:
        lines.append(
            "latency is not known in both arms, and is not watched, also if it comes later"
        )
    return lines


def _reasons(
    stream: Stream, signals: Sequence[HarmSignal], judgement: Judgement | None
) -> list[str]:
    """Return how near each metric is to a roll back; the whole sentence after a full judgement."""
    if judgement is None:
        reasons = [
            f"{harm.metric}: e-value of harm {harm.e_value:.3g}, roll back at {harm.threshold:.4g}"
            for harm in signals
        ]
    else:
        reasons = [f"{metric.metric}: {metric.reason}" for metric in judgement.metrics]
    if stream.has_wrong_share:
        reasons.append("srm: the contexts are not split as decided; does not count here")
    return reasons


def _check_against(stream: Stream, line: _Line, sums: dict[Arm, ArmSums]) -> None:
    """Raise _BadLine for what contradicts the stream's earlier lines."""
    alpha = stream.rollout.plan.alpha
    if line.alpha != alpha:
        raise _BadLine(
            "alpha", f"was {alpha:g} at the stream's first line", "keep it, or name another stream"
        )
    if line.stage != stream.stage:
        return
    for arm in Arm:
        before, now = stream.sums[arm], sums[arm]
        for name in ("contexts", "contexts_with_error", "outcomes", "errors"):
            had, has = getattr(before, name), getattr(now, name)
            if had is not None and has is not None and has < had:
                raise _fallen(f"{arm.value}.{name}", has, had)
        if before.latency is not None and now.latency is not None:
            counts = map(now.latency.get, before.latency, repeat(0))
            if any(map(lt, counts, before.latency.values())):
                bucket, values = next(
                    one for one in before.latency.items() if now.latency.get(one[0], 0) < one[1]
                )
                raise _fallen(f"{arm.value}.latency.buckets", now.latency.get(bucket, 0), values)


def _fallen(at: str, has: int, had: int) -> _BadLine:
    fix = "totals count from the stage's begin and never fall; another stage begins at zero"
    return _BadLine(at, f"fell from {had:,} to {has:,} within the stage", fix)


def _sums(arm: _Arm) -> ArmSums:
    latency = None if arm.latency is None else _in_our_buckets(arm.latency)
    return ArmSums(arm.contexts, arm.contexts_with_error, arm.outcomes, arm.errors, latency)


# --- buckets of another gamma


def _in_our_buckets(latency: _Latency) -> Histogram:
    """Return a histogram in our buckets: each bucket goes, whole, to the one with its upper edge.

    That keeps the order: what is counted above one of our edges lies above one of theirs. Both
    arms' values become slower by up to gamma - 1, alike.
    """
    is_ours = latency.gamma == GAMMA and bool(latency.buckets)
    if is_ours and min(latency.buckets) >= LOWEST_BUCKET and max(latency.buckets) <= HIGHEST_BUCKET:
        return latency.buckets
    table = _bucket_table(latency.gamma)
    ours: dict[int, int] = {}
    for index, values in latency.buckets.items():
        if values:
            bucket = table.get(index)
            if bucket is None:
                bucket = table[index] = _bucket_at(index * math.log(latency.gamma))
            ours[bucket] = ours.get(bucket, 0) + values
    return ours


@lru_cache(maxsize=16)
def _bucket_table(_gamma: float) -> dict[int, int]:
    """Return our bucket for each bucket of a gamma, filled on use; a stream has a few hundred."""
    return {}


def _bucket_at(log_edge: float) -> int:
    """Return our bucket that holds e^log_edge ms; one of our edges belongs to the bucket below."""
    if log_edge >= math.log(1e8):
        return HIGHEST_BUCKET
    return (
        bucket_of(math.exp(log_edge) * (1 - 1e-12)) if log_edge > math.log(0.001) else LOWEST_BUCKET
    )


# --- storage of streams

_Kept = tuple[dict[Arm, ArmSums], dict[Arm, AssignedTotals]]


class _Streams:
    """Streams by name: the newest ready for use, the others as a few KB each."""

    def __init__(self, ready: int) -> None:
        self._ready_at_most = ready
        self._ready: OrderedDict[str, Stream] = OrderedDict()
        self._away: dict[str, tuple[Stream, bytes, bytes]] = {}
        self._decoder = msgspec.msgpack.Decoder(_Kept)

    def take(self, name: str) -> Stream | None:
        """Take a stream out, None when there is none of this name."""
        stream = self._ready.pop(name, None)
        if stream is None and (away := self._away.pop(name, None)) is not None:
            bare, tests, kept = away
            sums, assigned = self._decoder.decode(zlib.decompress(kept))
            stream = replace(bare, tests=decode_tests(tests), sums=sums, assigned=assigned)
        return stream

    def put(self, name: str, stream: Stream) -> None:
        """Put a stream back."""
        self._ready[name] = stream
        if len(self._ready) > self._ready_at_most:
            oldest, long_ago = self._ready.popitem(last=False)
            kept = zlib.compress(msgspec.msgpack.encode((long_ago.sums, long_ago.assigned)), 1)
            bare = Stream(long_ago.watched, long_ago.rollout, long_ago.stage, long_ago.looks)
            self._away[oldest] = (bare, encode_tests(long_ago.tests), kept)
