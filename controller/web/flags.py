"""The board: every flag as this daemon serves it, in memory. It is the flag plane named `ofrep`.

OFREP, the flagd document and the read-only views answer from here. Decisions arrive twice: from the
flag's worker at once, and from the compacted state topic, which every replica follows. The higher
revision wins. The bytes of answers are made when a revision arrives, so that an evaluation is one
hash and one comparison; with audiences, a few comparisons more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import structlog
import xxhash

from controller.codec.flagd import SCHEMA, definition_of, metadata_of, weight_of
from controller.core.audience import Attributes
from controller.core.rollout import Rollout
from controller.core.serving import (
    Part,
    Serving,
    chooser,
    counted_as_treatment,
    percent_to_serve,
    serving,
)
from controller.ports import Served, StateFeed
from controller.web.bucketing import Generation, bucketer, lot_drawer

_log = structlog.get_logger(__name__)

#: What is served when the lease has expired; see `http.when_stale`.
WhenStale = Literal["serve_last", "serve_control", "refuse"]


@dataclass(frozen=True, slots=True)
class ServedFlag:
    """One flag at one revision, with every answer about it already written."""

    rollout: Rollout
    serving: Serving
    percent: float  # of all contexts, whatever their audience
    weight: int  # buckets below this are in treatment
    bucket: Callable[[str], int]
    needs_key: bool  # False: every context gets the same, and that is final
    treatment: bytes  # OFREP's successful evaluation, as JSON
    control: bytes
    definition: bytes  # flagd's definition, as `"key":{...}`
    rings: RingedAnswers | None = None  # None: treatment below `weight`, else control

    @property
    def reads_attributes(self) -> bool:
        """True when more of a context than its targeting key decides."""
        return self.rings is not None and self.rings.reads_attributes

    def evaluate(self, targeting_key: str, attributes: Attributes | None = None) -> bytes:
        """Return OFREP's answer for one context.

        `attributes` may be left out where none are read. Raises UnicodeEncodeError for a key that
        is no Unicode text.
        """
        if self.rings is not None:
            return self.rings.evaluate(targeting_key, self.bucket(targeting_key), attributes or {})
        return self.treatment if self.bucket(targeting_key) < self.weight else self.control

    def treats(self, answer: bytes) -> bool:
        """Return whether an answer of `evaluate` is treatment."""
        return answer is self.treatment or (
            self.rings is not None and answer in self.rings.treatments
        )


@dataclass(frozen=True, slots=True)
class RingedAnswers:
    """The answers of a flag with audiences or a divided treatment."""

    choose: Callable[[int, Attributes], Part]
    draw: Callable[[str], int] | None  # hash of the targeting key; None: treatment is not divided
    name: Callable[[Part, int], str]
    answers: Mapping[str, bytes]  # by variant
    treatments: frozenset[bytes]
    reads_attributes: bool

    def evaluate(self, targeting_key: str, bucket: int, attributes: Attributes) -> bytes:
        """Return OFREP's answer for one context."""
        part = self.choose(bucket, attributes)
        return self.answers[
            self.name(part, self.draw(targeting_key) if self.draw is not None else 0)
        ]


class FlagBoard:
    """What is served now, for every flag with a rollout. Implements `controller.ports.FlagPlane`.

    Its answers are leased: when no broker has confirmed for `lease_seconds` that nothing newer was
    decided, the board is stale, and every answer says so. What it serves then is `when_stale`.

    It answers only while it is trusted: not before the state topic has been read to its end (older
    documents may hold a higher percentage than the last decision). After the whole process stood
    still for `max_pause_seconds` another replica may have decided, so it does not answer until the
    topic has been read again. An outage of Kafka is no reason to stop: then no replica can decide,
    and every flag stays as it is.
    """

    name = "ofrep"

    def __init__(
        self,
        *,
        generation: Generation,
        flag_set_id: str = "rolloutd",
        max_pause_seconds: float = 5.0,
        lease_seconds: float = 30.0,
        when_stale: WhenStale = "serve_last",
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._generation = Generation(generation)  # settings hold its value
        self._flag_set_id = flag_set_id
        self._max_pause_seconds = max_pause_seconds
        self._lease_seconds = lease_seconds
        self._when_stale = when_stale
        self._monotonic = monotonic
        self._now = now
        self._stale_since: datetime | None = None
        self._stale_flags: dict[str, ServedFlag] = {}
        self._beaten_at: float | None = None
        self._doubt: str | None = "the state topic has not been read to its end yet"
        self._was_trusted = False
        self._flags: dict[str, ServedFlag] = {}
        self._document: tuple[bytes, str] | None = None
        self._in_order: tuple[ServedFlag, ...] | None = None
        self._listeners: set[asyncio.Event] = set()
        self.changed_at = datetime.min.replace(tzinfo=UTC)  # newest transition served

    # --- written by the flag's worker and the state feed ---

    async def serve(self, rollout: Rollout) -> None:
        self.update(rollout)

    async def look(self, rollout: Rollout) -> Served:
        flag = self._flags.get(rollout.flag_key)
        served = Served.compared(None if flag is None else flag.percent, percent_to_serve(rollout))
        if flag is not None and served.difference is None and flag.serving != serving(rollout):
            return Served(
                flag.percent,
                f"serves the audiences and variants of revision {flag.rollout.revision}",
            )
        return served

    def update(self, rollout: Rollout) -> bool:
        """Serve `rollout` from now on unless a newer revision is served; return whether it is.

        Two documents of one revision cannot both be right (the store accepts one). Whichever it is,
        the lower percentage harms no user.
        """
        present = self._flags.get(rollout.flag_key)
        if present is not None and rollout.revision <= present.rollout.revision:
            before, after = ((one.rollout_id, serving(one)) for one in (present.rollout, rollout))
            if rollout.revision < present.rollout.revision or before == after:
                return False
            _log.error(
                "state_conflict_found",
                flag_key=rollout.flag_key,
                revision=rollout.revision,
                percents=[present.percent, percent_to_serve(rollout)],
                rollout_ids=[present.rollout.rollout_id, rollout.rollout_id],
            )
            if _exposure(rollout) >= _exposure(present.rollout):
                return False
        self._flags[rollout.flag_key] = self._prepare(rollout)
        self._document = None
        self._in_order = None
        self.changed_at = max(self.changed_at, rollout.updated_at)
        self._notify_listeners()
        return True

    async def keep_trust(
        self,
        feed: StateFeed,
        *,
        silent_seconds: Callable[[], float | None] = lambda: 0.0,
        beat_seconds: float = 0.2,
    ) -> None:
        """Trust the board once the state topic is read to its end, and again after each pause.

        It runs until cancelled. The reader of the topic calls `update` for each document.
        `silent_seconds` is how long ago the brokers last confirmed that nothing is newer than what
        was read, None for never. After the process stood still, they must confirm it again.
        """
        await feed.caught_up()
        if not self._was_trusted:  # else this task was restarted, perhaps in doubt
            self.trust()
        while True:
            while (why := self._why_doubted) is None:
                self.beat()
                self.note_silence(silent_seconds())
                await asyncio.sleep(beat_seconds)
            self.doubt(why)
            _log.warning("flags_doubted", reason=why)
            doubted_at = self._monotonic()
            # Polled, because a confirmation of the brokers comes without an event.
            while self._is_silent_since(doubted_at, silent_seconds()):  # noqa: ASYNC110
                await asyncio.sleep(beat_seconds)
            self.trust()
            _log.info(
                "flags_trusted_again", duration_ms=round(1e3 * (self._monotonic() - doubted_at))
            )

    def _is_silent_since(self, doubted_at: float, silent_seconds: float | None) -> bool:
        """Return whether the brokers have not answered since `doubted_at`, in monotonic seconds."""
        return silent_seconds is None or silent_seconds > self._monotonic() - doubted_at

    def trust(self) -> None:
        """Answer from now on: all decisions so far are known here."""
        self._was_trusted = True
        self._beaten_at = None
        self._doubt = None
        self._notify_listeners()

    def doubt(self, why: str) -> None:
        """Answer nothing until `trust`."""
        self._doubt = why

    def beat(self) -> None:
        """Record that the process is running.

        From the first call on, several are needed per `max_pause_seconds`.
        """
        self._doubt = self._why_doubted
        if self._doubt is None:
            self._beaten_at = self._monotonic()

    def note_silence(self, seconds: float | None) -> None:
        """Take how long ago the brokers last confirmed that nothing is newer; None: not known.

        Answers and their tags change when the lease expires and when it is renewed, not in between.
        """
        if seconds is None:
            return
        if seconds <= self._lease_seconds:
            if self._stale_since is not None:
                _log.info("lease_renewed", stale_since=self._stale_since.isoformat())
                self._stale_since = None
                self._restate()
        elif self._stale_since is None:
            self._stale_since = self._now() - timedelta(seconds=seconds)
            _log.error("lease_expired", seconds=round(seconds, 1), when_stale=self._when_stale)
            self._restate()

    def _restate(self) -> None:
        self._stale_flags.clear()
        self._in_order = None
        self._document = None
        self._notify_listeners()

    def _notify_listeners(self) -> None:
        for listener in self._listeners:
            listener.set()

    # --- read by the endpoints ---

    @contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """Give an event that is set when what is served changes, or is trusted again.

        The reader clears it.
        """
        changed = asyncio.Event()
        self._listeners.add(changed)
        try:
            yield changed
        finally:
            self._listeners.discard(changed)

    @property
    def why_not(self) -> str | None:
        """Why nothing can be answered now; None while it can."""
        if self._when_stale == "refuse" and self._stale_since is not None:
            return self._why_doubted or self.why_stale
        return self._why_doubted

    @property
    def why_no_document(self) -> str | None:
        """Why there is no flagd document now; it cannot express that all contexts get control."""
        return self.why_not or (None if self._when_stale == "serve_last" else self.why_stale)

    @property
    def stale_since(self) -> datetime | None:
        """When the brokers last answered, while that is longer ago than the lease; else None."""
        return self._stale_since

    @property
    def why_stale(self) -> str | None:
        """Why what is served may be out of date; None while the lease holds."""
        if self._stale_since is None:
            return None
        return (
            f"no broker has said since {self._stale_since:%Y-%m-%d %H:%M:%S} UTC that "
            f"these flags are the newest: "
            "something else may have been decided by another replica"
        )

    @property
    def _why_doubted(self) -> str | None:
        if self._doubt is not None or self._beaten_at is None:
            return self._doubt
        pause = self._monotonic() - self._beaten_at
        if pause <= self._max_pause_seconds:
            return None
        return (
            f"the process stood still for {pause:.1f} s; reading again what was decided meanwhile"
        )

    def get(self, flag_key: str) -> ServedFlag | None:
        """Return the flag as served, None when it has no rollout."""
        flag = self._flags.get(flag_key)
        return flag if flag is None or self._stale_since is None else self._as_stale(flag)

    def _as_stale(self, flag: ServedFlag) -> ServedFlag:
        """Return what is served of a flag after the lease has expired; made once."""
        key = flag.rollout.flag_key
        stale = self._stale_flags.get(key)
        if stale is None or stale.rollout is not flag.rollout:
            stale = self._stale_flags[key] = self._prepare(flag.rollout, is_stale=True)
        return stale

    @property
    def flags(self) -> Sequence[ServedFlag]:
        """Every flag with a rollout, by key; the same tuple until one changes."""
        if self._in_order is None:
            flags = (flag for _, flag in sorted(self._flags.items()))
            self._in_order = tuple(
                flags if self._stale_since is None else map(self._as_stale, flags)
            )
        return self._in_order

    def percents(self) -> Mapping[str, float]:
        """Return the served percentage by flag key; safe to call from another thread."""
        return {key: flag.percent for key, flag in list(self._flags.items())}

    def flagd_document(self) -> tuple[bytes, str]:
        """Return flagd's flag definitions as JSON, and their ETag; valid also without flags."""
        if self._document is None:
            definitions = b",".join(flag.definition for flag in self.flags)
            stale = self._stale_metadata()
            tag = f'"{xxhash.xxh3_64_hexdigest(definitions + str(stale or "").encode())}"'
            of_set = {"flagSetId": self._flag_set_id, "version": tag.strip('"'), **stale}
            metadata = msgspec.json.encode(of_set)
            body = b'{"$schema":"%b","flags":{%b},"metadata":%b}' % (
                SCHEMA.encode(),
                definitions,
                metadata,
            )
            self._document = (body, tag)
        return self._document

    # --- making the answers ---

    def _stale_metadata(self) -> dict[str, str]:
        since = self._stale_since
        return {} if since is None else {"stale_since": since.isoformat(timespec="seconds")}

    def _prepare(self, rollout: Rollout, *, is_stale: bool = False) -> ServedFlag:
        percent = percent_to_serve(rollout)
        served = serving(rollout)
        # STATIC lets clients keep the answer, so only an answer that cannot become wrong may have
        # it: control, after the end.
        needs_key = not (rollout.has_ended and served.is_off)
        reason = "STATIC" if not needs_key else "SPLIT" if served.is_plain else "TARGETING_MATCH"
        metadata = metadata_of(rollout)
        if is_stale:
            reason, metadata = "STALE", {**metadata, **self._stale_metadata()}
        gives_control = is_stale and self._when_stale == "serve_control"

        def answer(variant: str) -> bytes:
            return msgspec.json.encode(
                {
                    "key": rollout.flag_key,
                    "value": served.values[variant],
                    "reason": reason,
                    "variant": variant,
                    "metadata": {"flagSetId": self._flag_set_id, **metadata},
                }
            )

        answers = {variant: answer(variant) for variant in served.values}
        is_plain = served.is_plain and not served.split
        return ServedFlag(
            rollout=rollout,
            serving=served,
            percent=percent,
            weight=0 if gives_control else weight_of(percent),
            bucket=bucketer(rollout.flag_key, self._generation),
            needs_key=needs_key and not gives_control,
            treatment=answers[counted_as_treatment(rollout.plan)[0]],
            control=answers[served.control],
            definition=msgspec.json.encode(rollout.flag_key)
            + b":"
            + msgspec.json.encode(definition_of(rollout, served)),
            rings=None
            if is_plain or gives_control
            else self._ringed(rollout.flag_key, served, answers),
        )

    def _ringed(
        self, flag_key: str, served: Serving, answers: Mapping[str, bytes]
    ) -> RingedAnswers:
        untreated = (served.control, served.unassigned)
        return RingedAnswers(
            choose=chooser(served),
            draw=lot_drawer(flag_key, self._generation) if served.split else None,
            name=served.name,
            answers=answers,
            treatments=frozenset(
                answer for variant, answer in answers.items() if variant not in untreated
            ),
            reads_attributes=any(ring.audience is not None for ring in served.rings),
        )


def _exposure(rollout: Rollout) -> tuple[float, float]:
    """Return a key that is lower for the document that gives treatment to fewer contexts."""
    return percent_to_serve(rollout), sum(ring.percent for ring in serving(rollout).rings)
