"""The board: every flag as this daemon serves it, in memory. It is the flag plane named `ofrep`.

OFREP, the flagd document and the read-only views answer from here. Decisions arrive twice: from the
flag's worker at once, and from the compacted state topic, which every replica follows. The higher
revision wins. Before the topic was read, what a file or Redis remembers is served. The bytes of
answers are made when a revision arrives, so that an evaluation is one hash and one comparison; with
audiences, a few comparisons more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec
import structlog
import xxhash

from controller.codec.flagd import SCHEMA
from controller.core.rollout import Retired, Rollout
from controller.core.serving import percent_to_serve, serving
from controller.ports import Served, StateFeed
from controller.web.bucketing import Generation
from controller.web.decision_order import exposure, is_newer, is_same_decision, lowers
from controller.web.served_flag import ServedFlag, prepare

_log = structlog.get_logger(__name__)

#: Of the whole process; a beat comes several times as often.
MAX_PAUSE_SECONDS: Final = 5.0
#: What is served when the lease has expired; see `http.when_stale`.
WhenStale = Literal["serve_last", "serve_control", "refuse"]


class FlagBoard:
    """What is served now, for every flag with a rollout. Implements `controller.ports.FlagPlane`.

    Its answers are leased: when no broker has confirmed for `lease_seconds` that nothing newer was
    decided, the board is stale, and every answer says so. What it serves then is `when_stale`.

    It is trusted once the state topic has been read to its end: older documents of the topic may
    hold a higher percentage than the last decision. Before, it answers only from what it was told
    to `remember`, and as a stale board does: a restart is like a silence of the brokers.

    After the whole process stood still for `MAX_PAUSE_SECONDS` another replica may have decided, so
    it does not answer until the topic has been read again; in an outage of Kafka, until the lease
    has run out once more. The outage itself is no reason to stop: every flag stays as it is.
    """

    name = "ofrep"

    def __init__(
        self,
        *,
        generation: Generation,
        flag_set_id: str = "rolloutd",
        lease_seconds: float = 30.0,
        when_stale: WhenStale = "serve_last",
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._generation = Generation(generation)  # settings hold its value
        self._flag_set_id = flag_set_id
        self._lease_seconds = lease_seconds
        self._when_stale = when_stale
        self._monotonic = monotonic
        self._now = now
        self._stale_since: datetime | None = None
        self._known_at: datetime | None = None  # what is remembered was known to be the newest
        self._stale_flags: dict[str, ServedFlag] = {}
        self._beaten_at: float | None = None
        self._doubt: str | None = "the state topic has not been read to its end yet"
        self._was_trusted = False
        self._remembered: dict[str, ServedFlag] = {}  # by a file or Redis; empty once trusted
        self._unsettled: dict[str, ServedFlag] = {}  # of them, what the topic did not have
        self._flags: dict[str, ServedFlag] = {}
        # The last look at each flag: all are repeated with every decision, and mostly the same.
        self._looks: dict[str, tuple[ServedFlag | None, Rollout, Served]] = {}
        self._unsaved: dict[str, Rollout] = {}  # lowered here alone, until a command is answered
        self._document: tuple[bytes, str] | None = None
        self._in_order: tuple[ServedFlag, ...] | None = None
        #: Grows with every change of what is served.
        self.version = 0
        self._listeners: set[asyncio.Event] = set()
        self._drop_listeners: list[Callable[[str], None]] = []
        self.changed_at = datetime.min.replace(tzinfo=UTC)  # newest transition served

    # --- written by the flag's worker and the state feed ---

    async def serve(self, rollout: Rollout) -> None:
        self.update(rollout)

    async def look(self, rollout: Rollout) -> Served:
        return self.look_at_once(rollout)

    def look_at_once(self, rollout: Rollout) -> Served:
        """Return what is served now, compared with what `rollout` says."""
        flag = self._flags.get(rollout.flag_key)
        look = self._looks.get(rollout.flag_key)
        if look is None or look[0] is not flag or look[1] is not rollout:
            look = self._looks[rollout.flag_key] = flag, rollout, self._compared(flag, rollout)
        return look[2]

    def _compared(self, flag: ServedFlag | None, rollout: Rollout) -> Served:
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
        the lower percentage harms no user. Of two that serve the same, this one is right: the other
        was lowered here before it was saved, at another time.
        """
        return self._update(rollout, is_saved=True)

    def _update(self, rollout: Rollout, *, is_saved: bool) -> bool:
        present = self._flags.get(rollout.flag_key)
        if present is not None and not self._supersedes(rollout, present, is_saved=is_saved):
            return False
        remembered = self._remembered.get(rollout.flag_key)
        known = remembered if remembered and remembered.rollout is rollout else None
        self._flags[rollout.flag_key] = known or self._prepare(rollout)
        if remembered is not None and (
            lowers(rollout, remembered.rollout)
            or (is_saved and is_same_decision(rollout, remembered.rollout))
        ):
            # Any other document of the topic may be followed by a lower one, and waits for its end.
            self._remembered[rollout.flag_key] = self._flags[rollout.flag_key]
        self._document = None
        self._in_order = None
        self.changed_at = max(self.changed_at, rollout.updated_at)
        self._notify_listeners()
        return True

    def _supersedes(self, rollout: Rollout, present: ServedFlag, *, is_saved: bool) -> bool:
        """Return whether a document is to be served in place of the present one."""
        known = present.rollout
        if rollout.revision != known.revision:
            return rollout.revision > known.revision
        if is_same_decision(rollout, known):
            return is_saved and rollout.updated_at != known.updated_at
        _log.error(
            "state_conflict_found",
            flag_key=rollout.flag_key,
            revision=rollout.revision,
            percents=[present.percent, percent_to_serve(rollout)],
            rollout_ids=[known.rollout_id, rollout.rollout_id],
        )
        return exposure(rollout) < exposure(known)

    def drop(self, flag_key: str, revision: int) -> None:
        """Serve nothing for a flag that was retired as this revision: it is not found any more."""
        present = self._flags.get(flag_key)
        if present is None or present.rollout.revision > revision:
            return
        del self._flags[flag_key]
        self._stale_flags.pop(flag_key, None)
        self._looks.pop(flag_key, None)
        self._unsettled.pop(flag_key, None)
        self._unsaved.pop(flag_key, None)
        self._document = None
        self._in_order = None
        self._notify_listeners()
        for listener in self._drop_listeners:
            listener(flag_key)

    def on_dropped(self, *listeners: Callable[[str], None]) -> None:
        """Call these with each flag that was retired; they must return at once."""
        self._drop_listeners.extend(listeners)

    def lower_unsaved(self, rollout: Rollout) -> None:
        """Serve a lower percentage that is not saved yet, until `end_unsaved`."""
        if self._update(rollout, is_saved=False):
            self._unsaved[rollout.flag_key] = rollout

    def end_unsaved(self, flag_key: str, decided: Rollout | None) -> None:
        """Serve what was decided: the command that lowered the flag here has its answer.

        A command that was refused lowers nothing. Otherwise this replica would serve something
        else than all others, and the next decision would raise it here.
        """
        unsaved = self._unsaved.pop(flag_key, None)
        present = self._flags.get(flag_key)
        if unsaved is None or decided is None or present is None:
            return
        if present.rollout is unsaved:
            del self._flags[flag_key]
            self.update(decided)

    def remember(
        self,
        rollouts: Iterable[Rollout],
        known_at: datetime,
        confirmed_at: datetime | None = None,
    ) -> None:
        """Serve these as stale until the state topic has been read.

        For the start: this is what was decided last as far as a file or Redis knew at `known_at`.
        `confirmed_at` is when the brokers said so last, to the process before this one: an outage
        that goes on did not begin with the restart. It may be called again with what is newer. Once
        trusted it changes nothing.
        """
        if self._was_trusted:
            return
        for remembered in rollouts:
            if isinstance(remembered.phase, Retired):
                self._remembered.pop(remembered.flag_key, None)
                continue
            rollout, decided = remembered, self._flags.get(remembered.flag_key)
            if decided is not None and lowers(decided.rollout, remembered):
                rollout = decided.rollout  # lowered since Redis was read, here or by the topic
            present = self._remembered.get(rollout.flag_key)
            if present is None or is_newer(rollout, present.rollout):
                self._remembered[rollout.flag_key] = self._prepare(rollout)
                self.changed_at = max(self.changed_at, rollout.updated_at)
        if not self._remembered:
            return  # an empty document would delete the flags of clients
        self._doubt = None
        self._known_at = max(known_at, self._known_at or known_at)
        since = known_at if confirmed_at is None else min(confirmed_at, known_at)
        self._stale_since = max(since, self._stale_since or since)
        self._restate()

    def settle(self, newest: Mapping[str, Rollout]) -> None:
        """Drop what was remembered and is not so, now that everything decided is known."""
        for flag_key, flag in self._unsettled.items():
            rollout = newest.get(flag_key)
            if self._flags.get(flag_key) is not flag:
                continue  # something newer is served
            if rollout is not None and rollout.revision == flag.rollout.revision:
                self._flags[flag_key] = self._prepare(rollout)  # as it was saved
                continue
            _log.warning(
                "remembered_flag_dropped",
                flag_key=flag_key,
                remembered_revision=flag.rollout.revision,
                revision=None if rollout is None else rollout.revision,
            )
            del self._flags[flag_key]
            if rollout is not None:
                self._flags[flag_key] = self._prepare(rollout)
        self._unsettled.clear()
        self._restate()

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
            while self._is_silent_since(doubted_at, silent_seconds()):
                if self._monotonic() - doubted_at > self._lease_seconds:
                    break  # an outage: what is known is served as stale
                await asyncio.sleep(beat_seconds)
            self.trust()
            _log.info(
                "flags_trusted_again", duration_ms=round(1e3 * (self._monotonic() - doubted_at))
            )

    def _is_silent_since(self, doubted_at: float, silent_seconds: float | None) -> bool:
        """Return whether the brokers have not answered since `doubted_at`, in monotonic seconds."""
        return silent_seconds is None or silent_seconds > self._monotonic() - doubted_at

    def trust(self) -> None:
        """Answer from now on: all decisions so far are known here.

        What was remembered and is newer than the topic was saved, and not published yet.
        """
        if self.is_remembering:
            for flag_key, flag in self._remembered.items():
                present = self._flags.get(flag_key)
                if present is None or present.rollout.revision < flag.rollout.revision:
                    self._flags[flag_key] = self._unsettled[flag_key] = flag
            self._remembered = {}
            self._stale_since = None
            self._restate()
        self._was_trusted = True
        self._beaten_at = None
        self._doubt = None
        self._notify_listeners()

    def doubt(self, why: str) -> None:
        """Answer nothing until `trust`."""
        self._doubt = why

    def beat(self) -> None:
        """Record that the process is running.

        From the first call on, several are needed per `MAX_PAUSE_SECONDS`.
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
        self.version += 1
        for listener in self._listeners:
            listener.set()

    # --- read by the endpoints ---

    @contextmanager
    def changes(self, changed: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """Give an event that is set when what is served changes, or is trusted again.

        The reader clears it, and may bring its own.
        """
        changed = changed or asyncio.Event()
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
    def is_remembering(self) -> bool:
        """True while what a file or Redis remembers is served: the topic has not been read yet.

        A flag that is missing then may have a rollout all the same.
        """
        return bool(self._remembered) and not self._was_trusted

    @property
    def _served(self) -> Mapping[str, ServedFlag]:
        return self._remembered if self.is_remembering else self._flags

    @property
    def why_nothing_known(self) -> str | None:
        """Why it is not even known which flags there are; None once something was decided."""
        return None if self._was_trusted or self._remembered else self._doubt

    @property
    def rollouts(self) -> Sequence[Rollout]:
        """The rollout of every flag as it is served."""
        return [flag.rollout for flag in self._served.values()]

    def rollout(self, flag_key: str) -> Rollout | None:
        """Return the rollout of a flag as it is served, None when it has none."""
        flag = self._served.get(flag_key)
        return None if flag is None else flag.rollout

    @property
    def is_trusted(self) -> bool:
        """True once the state topic has been read to its end."""
        return self._was_trusted

    @property
    def why_no_document(self) -> str | None:
        """Why there is no flagd document now; it cannot express that all contexts get control."""
        return self.why_not or (None if self._when_stale == "serve_last" else self.why_stale)

    @property
    def stale_since(self) -> datetime | None:
        """When the brokers last confirmed what is served, while it is stale; else None.

        A replica that has just started has it from the process before; where that is not known,
        it is when a file or Redis last knew what is served to be the newest.
        """
        return self._stale_since

    @property
    def why_stale(self) -> str | None:
        """Why what is served may be out of date; None while the lease holds."""
        if self._stale_since is None:
            return None
        if self.is_remembering:
            return (
                f"the state topic has not been read since the start: flags are served as they "
                f"were known at {self._known_at:%Y-%m-%d %H:%M:%S} UTC"
            )
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
        if pause <= MAX_PAUSE_SECONDS:
            return None
        return (
            f"the process stood still for {pause:.1f} s; reading again what was decided meanwhile"
        )

    def get(self, flag_key: str) -> ServedFlag | None:
        """Return the flag as served, None when it has no rollout."""
        flag = self._served.get(flag_key)
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
            flags = (flag for _, flag in sorted(self._served.items()))
            self._in_order = tuple(
                flags if self._stale_since is None else map(self._as_stale, flags)
            )
        return self._in_order

    def percents(self) -> Mapping[str, float]:
        """Return the served percentage by flag key; safe to call from another thread."""
        return {key: flag.percent for key, flag in list(self._served.items())}

    def flagd_document(self) -> tuple[bytes, str]:
        """Return flagd's flag definitions as JSON, and their ETag; valid also without flags."""
        if self._document is None:
            definitions = b",".join(flag.definition for flag in self.flags)
            stale = self._stale_metadata()
            tag = f'"{xxhash.xxh3_64_hexdigest(definitions + str(stale or "").encode())}"'
            of_set = {"flagSetId": self._flag_set_id, "version": tag.strip('"'), **stale}
            metadata = msgspec.json.encode(of_set)
            body = b'{"$schema":"%b","flags":{%b},"metadata":%b}'
            self._document = (body % (SCHEMA.encode(), definitions, metadata), tag)
        return self._document

    # --- making the answers ---

    def _stale_metadata(self) -> dict[str, str]:
        since = self._stale_since
        return {} if since is None else {"stale_since": since.isoformat(timespec="seconds")}

    def _prepare(self, rollout: Rollout, *, is_stale: bool = False) -> ServedFlag:
        return prepare(
            rollout,
            self._generation,
            self._flag_set_id,
            stale_metadata=self._stale_metadata() if is_stale else {},
            gives_control=is_stale and self._when_stale == "serve_control",
        )
