"""What an event is for a flag, and what to do where it does not count.

Pure, and the only place with these words: counting samples its events with it
(`event_sampling.py`), and `rolloutctl events` reads the topics with it. Counting itself
(`folding/events.py`) makes the same choice, and keeps no reason;
`tests/property/test_event_classes.py` proves that both agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Final

from controller.counting.folding.flags_to_count import CountedFlag
from controller.text import key_letters
from schemas.envelope import format_time, time_of
from schemas.terms import Arm, EventClass, EventRemark, RecordClass

#: An event whose time is so much older than its record has a wrong clock, or waited for long.
OLD_TIME_MS: Final = 600_000
#: Requests that are counted and take longer are rare: durations may be in milliseconds.
SLOW_MS: Final = 60_000.0
#: Status codes from this on are failures of the server. Those of clients may be as expected.
FAILED_STATUS: Final = 500

_MOST_COMPARED: Final = 500  # flags

#: Which class of records an event makes its record belong to, if it is the only one in it.
RECORD_CLASS: Final = {
    EventClass.COUNTED: RecordClass.COUNTED,
    EventClass.NEITHER_ARM: RecordClass.IGNORED,
    EventClass.SETTLING: RecordClass.LATE,
    EventClass.CLOSED: RecordClass.LATE,
    EventClass.BEFORE_START: RecordClass.LATE,
    EventClass.AFTER_END: RecordClass.LATE,
    EventClass.UNKNOWN_VARIANT: RecordClass.IGNORED,
    EventClass.UNKNOWN_FLAG: RecordClass.IGNORED,
    EventClass.UNJOINED: RecordClass.IGNORED,
    EventClass.REFUSED: RecordClass.QUARANTINED,
}

#: What to do about each class and remark. Those that need nothing say so.
HINTS: Final[dict[EventClass | EventRemark, str]] = {
    EventClass.COUNTED: "nothing to do",
    EventClass.NEITHER_ARM: "nothing to do: the plan compares only a part of the contexts",
    EventClass.SETTLING: "nothing to do: these events do not count until apps have picked up the "
    "new percentage (`settle` of the stage)",
    EventClass.CLOSED: "nothing to do for events of control, which everybody has outside the "
    "plan's active windows; if treatment is still served there, check `rolloutctl doctor` and that "
    "the app asks often enough",
    EventClass.BEFORE_START: "nothing to do: events count from the begin of the first stage on",
    EventClass.AFTER_END: "nothing to do: the rollout is over; start a new one to count again",
    EventClass.UNKNOWN_VARIANT: "send the name of the variant that was served, as the plan spells "
    "it (`treatment` and `control` of the plan; `on` and `off` unless it names others)",
    EventClass.UNKNOWN_FLAG: "send the key of the flag as the plan spells it, or start a rollout "
    "for this flag",
    EventClass.UNJOINED: "send rolloutd.flags with the outcome, or send the evaluation before it, "
    "with the same context and the same record key",
    EventClass.REFUSED: "`rolloutctl quarantine` shows each refused record and how to fix it",
    EventRemark.NO_KEY: "send the context id as the key of the record, on both topics: a context "
    "in several partitions is counted once in each",
    EventRemark.SCATTERED: "send the context id as the key of the record, with the same "
    "partitioner in all producers: see ops/formats.md",
    EventRemark.OLD_TIME: "set the clock of the sender, or send events when they happen",
    EventRemark.SLOW: "send http.server.request.duration in seconds (0.183), not in milliseconds",
    EventRemark.NO_ERROR_TYPE: "send error.type with every request that failed, as in "
    '"error.type": "500"; http.response.status_code alone is not read',
    EventRemark.MISNAMED_FIELD: "send the field under the name that rolloutd reads (fields: "
    "schemas/json)",
}
#: What the fields that count are for, by name: said of an event that has one misnamed.
FIELD_HINTS: Final[dict[str, str]] = {
    "feature_flag.key": "`feature_flag.key` is the flag, as the plan spells it, and without it an "
    "evaluation is refused",
    "error.type": "a request that failed has `error.type`, and without it counts as a success",
    "http.server.request.duration": "`http.server.request.duration` is the duration in seconds "
    "(0.183), and without it no latency is counted",
    "feature_flag.context.id": "`feature_flag.context.id` is the context that the flag was "
    "evaluated for; without it the record's key is taken",
    "feature_flag.result.variant": "`feature_flag.result.variant` is the variant that was served, "
    "as the plan spells it",
    "rolloutd.flags": "`rolloutd.flags` lists each flag with its variant; without it an outcome "
    "counts only where an earlier evaluation of its context is known",
    "rolloutd.conversions": "`rolloutd.conversions` lists the names of what the user did, as in "
    '["purchase"], and without it no conversion is counted',
}


_FROM_BEFORE_IT_BEGAN: Final = (
    "nothing to do for events from before this rollout began, such as those of an earlier one; if "
    "these are newer, set the clock of the sender, and send the time of the event itself"
)


def hint_of(found: EventClass | EventRemark, *, has_begun: bool) -> str:
    """Return what to do about a class or remark of a flag whose first stage has begun, or not."""
    if found is EventClass.BEFORE_START and has_begun:
        return _FROM_BEFORE_IT_BEGAN
    return HINTS[found]


def classify(flag: CountedFlag | None, variant: str, time_ms: int) -> EventClass:
    """Return what an event is for its flag; `flag` is None where no rollout has it.

    `time_ms` is the event's own time, in ms since 1970 UTC.
    """
    if flag is None:
        return EventClass.UNKNOWN_FLAG
    if variant != flag.control and variant != flag.treatment:
        if variant in flag.uncounted:
            return EventClass.NEITHER_ARM
        if variant not in flag.more_treatments:
            return EventClass.UNKNOWN_VARIANT
    if flag.interval_at(time_ms) is not None:
        return EventClass.COUNTED
    if flag.began_ms is None or time_ms < flag.began_ms:
        return EventClass.BEFORE_START
    if flag.left_ms is not None and time_ms >= flag.left_ms:
        return EventClass.AFTER_END
    if any(begin <= time_ms < until for begin, until in flag.closed):
        return EventClass.CLOSED
    return EventClass.SETTLING


def arm_of(flag: CountedFlag | None, variant: str) -> Arm | None:
    """Return the arm that a variant of a flag belongs to, None for neither."""
    if flag is None:
        return None
    if variant == flag.treatment or variant in flag.more_treatments:
        return Arm.TREATMENT
    return Arm.CONTROL if variant == flag.control else None


def variants_of(flag: CountedFlag) -> str:
    """Return the variants of a plan, for a sentence."""
    return ", ".join(
        [flag.treatment, *sorted(flag.more_treatments), flag.control, *sorted(flag.uncounted)]
    )


def describe(
    found: EventClass, flag_key: str, flag: CountedFlag | None, variant: str, time_ms: int
) -> str:
    """Return why an event is what it is, with the values that decide; one line."""
    if found is EventClass.UNKNOWN_FLAG or flag is None:
        return f"no rollout has the flag {flag_key}"
    if found is EventClass.UNKNOWN_VARIANT:
        return f"the plan has no variant {variant}; it has {variants_of(flag)}"
    at = format_time(time_of(time_ms))
    if found is EventClass.BEFORE_START:
        if flag.began_ms is None:
            return f"its time is {at}, and the rollout has not started yet"
        return (
            f"its time is {at}, {duration_words(flag.began_ms - time_ms)} before the first stage "
            f"began ({format_time(time_of(flag.began_ms))})"
        )
    if found is EventClass.AFTER_END:
        assert flag.left_ms is not None
        return f"its time is {at}, and the rollout ended {format_time(time_of(flag.left_ms))}"
    if found is EventClass.SETTLING:
        return f"its time is {at}, too soon after a change of percentage"
    if found is EventClass.CLOSED:
        return f"its time is {at}, outside the plan's active windows or too soon after it opened"
    if found is EventClass.NEITHER_ARM:
        return f"contexts that are served {variant} are in neither arm"
    return ""


def duration_words(duration_ms: float) -> str:
    """Return a duration in the largest unit that keeps two digits, as in `90 s` or `29 h`."""
    seconds = duration_ms / 1000
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"


def nearest(flag_key: str, known: Collection[str]) -> str | None:
    """Return the known flag whose key is most like `flag_key`, None when none is like it.

    Among very many flags only a key that differs in its separators or in upper and lower case is
    found: a comparison with each would take too long.
    """
    same = misspelled([flag_key], known)
    if same or len(known) > _MOST_COMPARED:
        return same.get(flag_key)
    close = get_close_matches(flag_key, known, n=1, cutoff=0.75)
    return close[0] if close else None


def misspelled(flag_keys: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return the known flag for each key that differs from it in separators or in case only."""
    by_letters = {key_letters(flag_key): flag_key for flag_key in known}
    found = {}
    for flag_key in flag_keys:
        meant = by_letters.get(key_letters(flag_key))
        if meant is not None and meant != flag_key:
            found[flag_key] = meant
    return found
