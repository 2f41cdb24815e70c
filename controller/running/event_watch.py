"""Alerts when a share of a live flag's events does not count, or misleads.

An app that sends the wrong variant, flag, time, key or unit gets no error: its events are counted
nowhere, or wrongly. Here a window of each flag's events is judged now and then, from the records
that counting reads again (`counting/event_sampling.py`). Nothing is decided by it.

Each replica judges the partitions that it counts. The alerts of several replicas have the same
dedup key. One that told of a fault tells that it is over, and another that still finds it tells of
it again. Of a rollout that has ended, and after a kill, `all_clear.py` does.

Belongs here: when a share is too large, and what the alert says. Does not belong here: what a class
of events means (`counting/event_classes.py`), publishing (`visibility_alerts.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.counting.event_classes import misspelled
from controller.counting.event_tally import EventTally
from controller.counting.flag_tally import EventCounts, FlagTally
from controller.ports import AlertQueue, Clock
from controller.running.open_alerts import EVENT_FAULTS_REPEATED_SECONDS
from controller.running.visibility import needs_watching
from schemas.envelope import format_time, time_of
from schemas.terms import AlertKind, EventClass, EventRemark, Severity

CHECK_EVERY_SECONDS: Final = 5.0
#: Keys of unknown flags are compared with those of all rollouts; with many of them for 10 ms.
COMPARED_EVERY_SECONDS: Final = 30.0
#: Events of a flag that were really read before their shares are judged.
LEAST_EVENTS: Final = 20
#: A share that is alerted. Below it a few old clients or retries explain it.
SHARE: Final = 0.05
#: Half of the durations longer than a minute: the median is.
SLOW_SHARE: Final = 0.5
#: Of the outcomes: failures that no guardrail sees. One in a hundred is harm that rolls back.
NO_ERROR_TYPE_SHARE: Final = 0.01
#: Of all events, about half of which are outcomes: those of failed requests may have the fault.
MISNAMED_SHARE: Final = 0.005
#: A fault that the events of so long no longer have is over.
OVER_AFTER_SECONDS: Final = 300.0
#: An alert of ours may be on its way to the topic and back for so long.
_ON_ITS_WAY_SECONDS: Final = 60.0
#: Events from before the start may come for so long after it.
STARTED_BEFORE: Final = timedelta(minutes=5)

#: Flags without a rollout that are logged by name, from one start to the next.
_MOST_LOGGED: Final = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Finding:
    """Something wrong with a share of a flag's events."""

    about: EventClass | EventRemark
    share: float | None  # None: not known
    of: str  # of which events it is a share
    what: str  # what they are


@dataclass(slots=True)
class _Told:
    """A finding that was alerted and is not over; the times are monotonic."""

    what: str
    dedup_key: str
    alerted_at: float
    found_at: float  # last
    judged_at: float  # last, whether it was found or not


class EventWatch:
    """Judges the events of live flags every few seconds."""

    def __init__(
        self,
        tally: EventTally,
        newest: Callable[[str], Rollout | None],
        alerts: AlertQueue,
        clock: Clock,
        open_alerts: Container[str],
    ) -> None:
        """`newest` returns the newest rollout of a flag.

        `open_alerts` has the dedup keys of alerts of which the topic has no all-clear.
        """
        self._tally = tally
        self._newest = newest
        self._alerts = alerts
        self._clock = clock
        self._open_alerts = open_alerts
        self._told: dict[tuple[str, str, str], _Told] = {}  # by flag, rollout and what was found
        self._logged: set[str] = set()  # flags without a rollout
        self._compared_at = -COMPARED_EVERY_SECONDS
        self._unknown_judged: dict[str, int] = {}  # events of misspelled flags, as last judged

    async def run(self) -> None:
        """Judge until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(CHECK_EVERY_SECONDS)

    def check(self) -> None:
        """Judge every flag with enough events since it was last judged."""
        for flag_key, tally in self._tally.flags.items():
            window = tally.window
            if window.read < LEAST_EVENTS:
                continue
            tally.window = EventCounts()
            rollout = self._newest(flag_key)
            if rollout is None or not needs_watching(rollout):
                continue
            age = self._clock.now() - rollout.visits[0].entered_at
            for finding in findings(tally, window, is_new=age < STARTED_BEFORE):
                self._alert(rollout, finding, tally)
            self._note_judged(flag_key)
        now = self._clock.monotonic()
        if now - self._compared_at >= COMPARED_EVERY_SECONDS:
            self._compared_at = now
            self._check_misspelled()
        self._end_old()

    def _check_misspelled(self) -> None:
        """Alert for live flags whose key somebody writes with other separators or letter case."""
        self._log_unknown()
        unknown = self._tally.unknown_flags
        for written, flag_key in misspelled(unknown, self._tally.flags_to_count.flags).items():
            tally = unknown[written]
            since = tally.counts.read - self._unknown_judged.get(written, 0)
            rollout = self._newest(flag_key)
            if rollout is None or not needs_watching(rollout):
                continue
            told = self._told.get((flag_key, rollout.rollout_id, EventClass.UNKNOWN_FLAG.value))
            if since < (LEAST_EVENTS if told is None else 1):
                continue
            self._unknown_judged[written] = tally.counts.read
            what = f"name the flag {written}, which has no rollout; {flag_key} has one"
            finding = _Finding(EventClass.UNKNOWN_FLAG, None, "events", what)
            self._alert(rollout, finding, tally)
        self._note_judged(None)

    def _log_unknown(self) -> None:
        """Log each flag without a rollout once, when it becomes one of the most frequent ones."""
        for flag_key, count in self._tally.flags_to_count.most_unknown().items():
            if flag_key in self._logged or len(self._logged) >= _MOST_LOGGED:
                continue
            self._logged.add(flag_key)
            log.info("flag_without_rollout", flag_key=flag_key, events=int(count))

    def _alert(self, rollout: Rollout, finding: _Finding, tally: FlagTally) -> None:
        """Alert, unless that was done within the hour and nobody has ended it since."""
        flag_key, rollout_id, about = rollout.flag_key, rollout.rollout_id, finding.about.value
        now = self._clock.monotonic()
        told = self._told.get((flag_key, rollout_id, about))
        if told is not None:
            told.found_at, age = now, now - told.alerted_at
            is_ended = age >= _ON_ITS_WAY_SECONDS and told.dedup_key not in self._open_alerts
            if age < EVENT_FAULTS_REPEATED_SECONDS and not is_ended:
                return
        dedup_key = f"{flag_key}/{rollout_id}/{AlertKind.EVENT_FAULTS}/{about}"
        self._told[flag_key, rollout_id, about] = _Told(
            f"{finding.of} {finding.what}", dedup_key, now, now, now
        )
        share = "some" if finding.share is None else f"{_percent(finding.share)} of its"
        summary = f"{flag_key}: {share} {finding.of} {finding.what}"
        if (sample := tally.newest(finding.about)) is not None:
            summary += (
                f"; for example {sample.topic}/{sample.partition} offset {sample.offset}, "
                f"{format_time(time_of(sample.time_ms))}"
            )
        log.warning(
            "event_faults",
            flag_key=flag_key,
            event_class=about,
            share=None if finding.share is None else round(finding.share, 3),
        )
        self._alerts.add(
            rollout,
            RaiseAlert(
                AlertKind.EVENT_FAULTS,
                Severity.WARNING,
                summary,
                f"{tally.hint(finding.about, has_begun=True)}; "
                f"`rolloutctl events {flag_key}` shows more of them",
                dedup_key,
            ),
        )

    def _note_judged(self, flag_key: str | None) -> None:
        """Note that a flag's events were judged; None: how events spell the keys of all flags."""
        now = self._clock.monotonic()
        for (told_flag, _, about), told in self._told.items():
            if (None if about == EventClass.UNKNOWN_FLAG else told_flag) == flag_key:
                told.judged_at = now

    def _end_old(self) -> None:
        """Tell what is over, and forget what `all_clear.py` ends."""
        for (flag_key, rollout_id, about), told in list(self._told.items()):
            rollout = self._newest(flag_key)
            if rollout is None or rollout.rollout_id != rollout_id or rollout.has_ended:
                del self._told[flag_key, rollout_id, about]
            elif told.judged_at - told.found_at >= OVER_AFTER_SECONDS:
                del self._told[flag_key, rollout_id, about]
                log.info("event_faults_over", flag_key=flag_key, event_class=about)
                minutes = OVER_AFTER_SECONDS / 60
                over = f"{flag_key}: over, not found for {minutes:.0f} min: {told.what}"
                alert = RaiseAlert(
                    AlertKind.EVENT_FAULTS, Severity.INFO, over, "nothing", told.dedup_key
                )
                self._alerts.add(rollout, alert)
        unknown = self._tally.unknown_flags
        self._unknown_judged = {
            flag_key: count
            for flag_key, count in self._unknown_judged.items()
            if flag_key in unknown
        }


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"


def findings(tally: FlagTally, window: EventCounts, *, is_new: bool = False) -> Iterator[_Finding]:
    """Yield what is wrong with too large a share of a flag's events in a window.

    `is_new`: the rollout has just begun, so that events from before it are still on their way.
    """
    classes, total = window.classes, window.total
    ignored = [EventClass.UNKNOWN_VARIANT, EventClass.REFUSED]
    if not is_new:
        ignored.append(EventClass.BEFORE_START)
    for found in ignored:
        share = classes.get(found, 0.0) / total
        if share >= SHARE:
            yield _Finding(found, share, "events", _what(found, tally))
    for remark in (EventRemark.NO_KEY, EventRemark.SCATTERED, EventRemark.OLD_TIME):
        share = window.remarks.get(remark, 0.0) / total
        if share >= SHARE:
            yield _Finding(remark, share, "events", _what(remark, tally))
    slow = window.remarks.get(EventRemark.SLOW, 0.0)
    if window.timed and slow / window.timed > SLOW_SHARE:
        yield _Finding(
            EventRemark.SLOW, slow / window.timed, "durations", _what(EventRemark.SLOW, tally)
        )
    outcomes = sum(window.outcomes.values())
    unseen = window.remarks.get(EventRemark.NO_ERROR_TYPE, 0.0)
    if outcomes and unseen / outcomes >= NO_ERROR_TYPE_SHARE:
        what = _what(EventRemark.NO_ERROR_TYPE, tally)
        yield _Finding(EventRemark.NO_ERROR_TYPE, unseen / outcomes, "outcomes", what)
    share = window.remarks.get(EventRemark.MISNAMED_FIELD, 0.0) / total
    if share >= MISNAMED_SHARE:
        what = _what(EventRemark.MISNAMED_FIELD, tally)
        yield _Finding(EventRemark.MISNAMED_FIELD, share, "events", what)


def _what(found: EventClass | EventRemark, tally: FlagTally) -> str:
    sample = tally.newest(found)
    why = "" if sample is None else sample.why
    does_count = sample is not None and sample.event_class is EventClass.COUNTED
    lack = "count without" if does_count else "lack"
    if found is EventClass.UNKNOWN_VARIANT:
        variants = ", ".join(name for name, _ in tally.unknown_variants.most_common(3))
        has = why.rpartition("; ")[2] or "see the plan"
        return (
            f"are ignored: they name the variant {variants}, which the plan does not have ({has})"
        )
    words = {
        EventClass.REFUSED: f"are refused, the newest because of {why}",
        EventClass.BEFORE_START: f"are ignored: they are dated before the start: {why}",
        EventRemark.NO_KEY: "come in records without a key, so that one context may be counted in "
        "several partitions",
        EventRemark.SCATTERED: "are of contexts that come in several partitions, where each is "
        "counted once more",
        EventRemark.OLD_TIME: f"are much older than their records: {why}",
        EventRemark.SLOW: "are longer than a minute: they look like milliseconds given as seconds",
        EventRemark.NO_ERROR_TYPE: "have a status code of 500 or more and no error.type: they "
        "count as successes, and no guardrail sees these failures",
        EventRemark.MISNAMED_FIELD: f"{lack} a field that was meant to count: {why}",
    }
    return words.get(found, why)
