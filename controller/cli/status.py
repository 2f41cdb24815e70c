"""The commands of `rolloutctl` that read topics once: status, decisions, alerts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import typer

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import event_view, rendering, status_view
from controller.cli.common import (
    EXIT_REJECTED,
    EXIT_USAGE,
    AnyFlagArgument,
    DaemonOption,
    FlagArgument,
    JsonOption,
    KafkaOptions,
    check_flag,
    complain,
    fail,
    kafka_advice,
    output,
    perform,
    without_rollout,
)
from controller.cli.daemon_answers import (
    MOST_NEWS,
    KnownRollouts,
    ask_evidence,
    ask_news,
    ask_planes,
    ask_rollout,
    ask_rollouts,
    ask_unwatched,
    plane_line,
)
from controller.cli.operator_client import (
    Event,
    NewestRollouts,
    as_alert,
    as_decision,
    as_refused,
    newest_events,
    read_rollouts,
)
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable
from controller.reporting.situation import NOT_JUDGED_AFTER, Situation, about
from controller.reporting.unwatched import Unwatched, open_unwatched
from controller.settings import KafkaSettings
from controller.text import plural
from schemas.decision import Decision
from schemas.fields import parse_duration

#: Decisions read for the evidence of a stage, since a pause and a resume by an operator have none,
#: and for all advice about a rollout.
_DECISIONS_FOR_STATUS = 200

#: A refused command is shown for so long.
_REFUSED_SHOWN_FOR = timedelta(hours=1)
#: Alerts read for whether a rollout is unwatched, which is repeated every five minutes: those of
#: one flag, and those of all. As many results of commands are read.
_ALERTS_FOR_STATUS = 20
_ALERTS_OF_ALL = 500

#: Rollouts that ended earlier are shown on request.
_ENDED_SHOWN_FOR = timedelta(days=7)

_DAEMON_KNOWS = "`rolloutctl status --daemon URL`, or ROLLOUTCTL_DAEMON, shows what a replica knows"

#: Events shown without --last, and the most there may be.
_LAST = 20
_MOST_LAST = 10_000

#: What is read of one flag, and what besides where it is there.
OF_ONE_FLAG = (("state", "decisions"), ("alerts", "results"))

LastOption = Annotated[
    int | None,
    typer.Option(
        "--last",
        "-n",
        min=1,
        max=_MOST_LAST,
        show_default=False,
        help=f"How many, newest last. Default: {_LAST}, and with --since all.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="DURATION", help="None that are older, as in 10m or 2h."),
]


def situation_of(
    rollout: Rollout,
    decisions: Sequence[Decision] = (),
    alerts: Sequence[Event] = (),
    results: Sequence[Event] = (),
) -> Situation:
    """Return where a rollout stands now.

    `alerts` and `results` are the newest of its flag, oldest first.
    """
    told = [
        one for one in map(as_alert, alerts) if one is not None and one.flag == rollout.flag_key
    ]
    unwatched, now = open_unwatched(rollout, told), datetime.now(UTC)
    refused = next((one for one in map(as_refused, reversed(results)) if one is not None), None)
    if refused is not None and refused.at < max(rollout.started_at, now - _REFUSED_SHOWN_FOR):
        refused = None  # a command that was meant for an earlier rollout says nothing about this
    return Situation(rollout, decisions, now, unwatched=unwatched, refused=refused)


def status(
    flag: AnyFlagArgument = None,
    is_json: JsonOption = False,
    is_all: Annotated[
        bool, typer.Option("--all", help="Also rollouts that ended more than a week ago.")
    ] = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Show where every rollout stands, or everything about one.

    Whether it is safe to advance, what the rollout waits for, and on what evidence. With --json all
    rollouts are shown. While Kafka is away, --daemon is asked for all of it.
    """
    kafka = connection.settings()
    if flag is not None:
        _show_one(kafka, check_flag(flag), daemon, is_json=is_json)
        return
    newest, alerts = perform(_read_rollouts(kafka, daemon))
    unwatched: Mapping[str, Unwatched | None] = {}
    if daemon is not None:
        # Kafka keeps what was decided last, also when nobody decides any more; and while it is
        # away, it has no alert of that.
        unwatched, why_silent = ask_unwatched(daemon)
        if why_silent:
            complain(why_silent)
    by_flag: dict[str, list[Event]] = {}
    for event in alerts:
        by_flag.setdefault(str(event["data"].get("flag")), []).append(event)
    situations = [
        _with_unwatched(situation_of(rollout, (), by_flag.get(key, ())), unwatched)
        for key, rollout in newest.rollouts.items()
    ]
    say_unreadable(newest)
    if is_json:
        for one in sorted(situations, key=lambda each: each.rollout.flag_key):
            rendering.print_json(
                status_view.status_document(one, newest.documents[one.rollout.flag_key])
            )
        return
    shown = [one for one in situations if is_all or not _ended_long_ago(one)]
    if shown:
        output().print(status_view.status_table(shown))
    elif not situations:
        complain("no flag has a rollout yet; `rolloutctl start PLAN` starts one")
    if len(shown) < len(situations):
        days = _ENDED_SHOWN_FOR.days
        hidden = len(situations) - len(shown)
        rollouts = plural(hidden, "rollout")
        complain(f"{rollouts} that ended more than {days} days ago not shown; `status --all` does")


def _ended_long_ago(situation: Situation) -> bool:
    has_ended = situation.rollout.has_ended
    return has_ended and situation.now - situation.since > _ENDED_SHOWN_FOR


def _show_one(kafka: KafkaSettings, flag: str, daemon: str | None, *, is_json: bool) -> None:
    """Show everything about one flag."""
    one, state = perform(_find_anywhere(kafka, flag, daemon))
    one, trouble = with_newest_evidence(one, daemon)
    planes, why_none = (None, "") if daemon is None else ask_planes(daemon, flag)
    if is_json:
        further = {} if planes is None else {"planes": planes}
        rendering.print_json({**status_view.status_document(one, state), **further})
    else:
        lines = [plane_line(plane) for plane in planes or ()]
        status_view.show_flag(output(), one, lines, has_daemon=daemon is not None)
    if trouble:
        complain(trouble)
    if why_none:
        complain(f"flag planes: {why_none}")


def with_newest_evidence(situation: Situation, daemon: str | None) -> tuple[Situation, str]:
    """Return the situation with the evidence of a daemon, and why there is none, or no new one."""
    if daemon is None or situation.rollout.stage_index is None:
        return situation, ""
    unwatched, _ = ask_unwatched(daemon, situation.rollout.flag_key)
    situation = _with_unwatched(situation, unwatched)
    judgement, why = ask_evidence(daemon, situation.rollout.flag_key)
    if judgement is None:
        return situation, f"newest evidence: {why}"
    now = datetime.now(UTC)
    age = now - judgement.at
    is_old = age > NOT_JUDGED_AFTER and not situation.rollout.has_ended
    trouble = f"newest evidence: nothing was judged for {about(age)}" if is_old else ""
    return replace(situation, newest=judgement, now=now), trouble


def _with_unwatched(situation: Situation, known: Mapping[str, Unwatched | None]) -> Situation:
    """Return the situation with what a daemon knows of it, which is newer than the alert."""
    flag = situation.rollout.flag_key
    return replace(situation, unwatched=known[flag]) if flag in known else situation


def decisions(
    flag: FlagArgument,
    last: LastOption = None,
    since: SinceOption = None,
    is_json: JsonOption = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Show a flag's newest decisions and what each was based on.

    With --json all the evidence, as published. While Kafka is away, --daemon is asked.
    """
    kafka, (count, begin) = connection.settings(), how_far(last, since)
    events = perform(newest_of(kafka, "decisions", count, check_flag(flag), daemon))
    events, none = not_before(events, begin), f"no decision about {flag} {so_far(since)}"
    if printed_as_json(events, is_json, none):
        return
    console, now = output(), datetime.now(UTC)
    for event in events:
        decision = as_decision(event)
        if decision is not None:
            event_view.show_decision(console, decision, now)


def alerts(
    flag: AnyFlagArgument = None,
    last: LastOption = None,
    since: SinceOption = None,
    is_json: JsonOption = False,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Show the newest alerts, each with what to do.

    While Kafka is away, --daemon is asked for those of one flag.
    """
    kafka, (count, begin) = connection.settings(), how_far(last, since)
    key = None if flag is None else check_flag(flag)
    events = not_before(perform(newest_of(kafka, "alerts", count, key, daemon)), begin)
    if printed_as_json(events, is_json, f"no alert {so_far(since)}"):
        return
    console, now = output(), datetime.now(UTC)
    for event in events:
        alert = as_alert(event)
        if alert is not None:
            rendering.show_line(console, event_view.alert_line(alert, now), hang=14)


def how_far(last: int | None, since: str | None) -> tuple[int, datetime | None]:
    """Return how many events to read at most, and from when on they are shown; None: any time."""
    if since is None:
        return _LAST if last is None else last, None
    try:
        begin = datetime.now(UTC) - parse_duration(since)
    except (ValueError, OverflowError):
        fail(f"--since: {since!r}: write a duration, as in 10m or 2h", EXIT_USAGE)
    return _MOST_LAST if last is None else last, begin


def so_far(since: str | None) -> str:
    """Return the time in which there was nothing, in words."""
    return "yet" if since is None else f"in the last {since}"


def time_of_event(event: Event) -> str:
    """Return an event's time as it is written, which sorts."""
    return str(event.get("time", ""))


def not_before(events: Sequence[Event], begin: datetime | None) -> list[Event]:
    """Return the events that are not older; one whose time cannot be read is not shown."""
    if begin is None:
        return list(events)
    found = []
    for event in events:
        with suppress(ValueError):
            if datetime.fromisoformat(time_of_event(event)) >= begin:
                found.append(event)
    return found


def printed_as_json(events: Sequence[Event], is_json: bool, otherwise: str) -> bool:
    """Print events as JSON if requested, and return whether; report when there is none."""
    if not events:
        complain(otherwise)
    if is_json:
        for event in events:
            rendering.print_json(event)
    return is_json


# --- reading ---


async def find_rollout(kafka: KafkaSettings, flag: str) -> tuple[Situation, Event]:
    """Return where a flag stands, with its newest decisions, and its document as published.

    Exits 1 when the flag has no rollout.
    """
    async with KafkaReader(kafka, *OF_ONE_FLAG) as reader:
        return await read_situation(reader, flag)


async def read_situation(reader: KafkaReader, flag: str) -> tuple[Situation, Event]:
    """Return what `find_rollout` does, from a reader of `OF_ONE_FLAG`."""
    newest = await read_rollouts(reader)
    rollout = newest.rollouts.get(flag)
    if flag in newest.unreadable:
        complain(f"{flag}: its newest document cannot be read: {newest.unreadable[flag]}")
    if rollout is None:
        fail(without_rollout(flag, newest.rollouts, newest.retired), EXIT_REJECTED)
    events = await newest_events(reader, "decisions", _DECISIONS_FOR_STATUS, flag)
    newest_decisions = [one for one in map(as_decision, events) if one is not None]
    alerts = await newest_events(reader, "alerts", _ALERTS_FOR_STATUS, flag)
    results = await newest_events(reader, "results", _ALERTS_FOR_STATUS, flag)
    situation = situation_of(rollout, newest_decisions, alerts, results)
    return situation, newest.documents[flag]


async def _find_anywhere(
    kafka: KafkaSettings, flag: str, daemon: str | None
) -> tuple[Situation, Event]:
    """Return what `find_rollout` does, from the daemon while Kafka is away."""
    try:
        return await find_rollout(kafka, flag)
    except EventLogUnavailable as trouble:
        return await find_known(daemon, trouble, flag)


async def find_known(
    daemon: str | None, trouble: EventLogUnavailable, flag: str
) -> tuple[Situation, Event]:
    """Return what `find_rollout` does as the daemon knows it, and say that Kafka is in `trouble`.

    Raises EventLogUnavailable, with what to do next, where there is no daemon or no answer.
    """
    known = await known_by(daemon, trouble, flag)
    decisions = [one for one in map(as_decision, known.decisions) if one is not None]
    return situation_of(known.rollouts[flag], decisions), known.documents[flag]


async def _read_rollouts(
    kafka: KafkaSettings, daemon: str | None
) -> tuple[NewestRollouts, Sequence[Event]]:
    """Return every rollout, from the daemon while Kafka is away, and the newest alerts of all."""
    try:
        async with KafkaReader(kafka, ["state"], ["alerts"]) as reader:
            newest = await read_rollouts(reader)
            alerts = await newest_events(reader, "alerts", _ALERTS_OF_ALL, None)
    except EventLogUnavailable as trouble:
        known = await known_by(daemon, trouble, None)
        return NewestRollouts(dict(known.rollouts), dict(known.documents)), ()
    return newest, alerts


async def known_by(
    daemon: str | None, trouble: EventLogUnavailable, flag: str | None
) -> KnownRollouts:
    """Return what the daemon knows, of one flag or of all, and say that it is not from Kafka.

    Raises EventLogUnavailable, with what to do next, where there is no daemon or no answer.
    """
    if daemon is None:
        raise EventLogUnavailable(
            f"{trouble}\n{kafka_advice(trouble)}; {_DAEMON_KNOWS}"
        ) from trouble
    ask = partial(ask_rollouts, daemon) if flag is None else partial(ask_rollout, daemon, flag)
    known, why = await asyncio.to_thread(ask)
    if known is None:
        raise EventLogUnavailable(f"{trouble}\n{why}\n{kafka_advice(trouble)}") from trouble
    complain(f"{trouble}")
    since = known.stale_since
    age = "" if since is None else f", which may lack decisions since {since}"
    complain(f"shown is what {daemon} knows{age}")
    if known.trouble:
        complain(known.trouble)
    return known


async def newest_of(
    kafka: KafkaSettings, topic: str, count: int, flag: str | None, daemon: str | None = None
) -> list[Event]:
    """Return the newest events of a topic, of one flag or of all, oldest first.

    While Kafka is away, the daemon is asked for those of one flag. Exits 1 for a flag that has
    neither an event nor a rollout.
    """
    try:
        return await _read_newest(kafka, topic, count, flag)
    except EventLogUnavailable as trouble:
        if daemon is None or flag is None:
            further = _DAEMON_KNOWS if daemon is None else f"name a flag, and {daemon} is asked"
            raise EventLogUnavailable(f"{trouble}\n{kafka_advice(trouble)}; {further}") from trouble
        events, why = await asyncio.to_thread(ask_news, daemon, flag, topic, count)
        if events is None:
            raise EventLogUnavailable(f"{trouble}\n{why}\n{kafka_advice(trouble)}") from trouble
        complain(f"{trouble}\nshown is what {daemon} knows, at most the newest {MOST_NEWS}")
        return events


async def _read_newest(
    kafka: KafkaSettings, topic: str, count: int, flag: str | None
) -> list[Event]:
    async with KafkaReader(kafka, [topic, "state"]) as reader:
        events = await newest_events(reader, topic, count, flag)
        if not events and flag is not None:
            newest = await read_rollouts(reader)
            if flag not in newest.rollouts and flag not in newest.unreadable:
                fail(without_rollout(flag, newest.rollouts, newest.retired), EXIT_REJECTED)
    return events


def say_unreadable(newest: NewestRollouts) -> None:
    """Report flags whose newest document cannot be read."""
    for key, why in newest.unreadable.items():
        complain(f"{key}: its newest document cannot be read: {why}")
