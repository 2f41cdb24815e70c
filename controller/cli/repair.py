"""`rolloutd repair`: deletes what is stored of one flag, or of one event partition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import typer

from controller.adapters.kafka.shared_topic import streams
from controller.adapters.redis.address import connect_redis
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.errors import BadInput, BrokenInvariant, ConfigInvalid, RolloutdError
from controller.settings import Settings
from controller.text import plural
from schemas.terms import NAME

#: As in sysexits.h: the configuration or the name cannot be used.
_EXIT_CONFIG = 78
#: As in sysexits.h: something outside does not answer; the same command may work later.
_EXIT_TROUBLE = 75


def repair_flag(flag: str, settings: Settings, *, is_asked: bool) -> None:
    """Describe what is stored, ask, and discard it.

    Raises typer.Exit with 78 or 75 when it is not done.
    """
    if not NAME.match(flag):
        typer.echo(f"{flag!r} names no flag: give its key, as in new-checkout", err=True)
        raise typer.Exit(_EXIT_CONFIG)
    try:
        typer.echo(asyncio.run(_describe(settings, flag)))
        typer.echo(
            f"This deletes what Redis holds of {flag}: its document, the state of its "
            f"tests, the answers to\n"
            "its commands and effects that Kafka does not have yet. The daemon takes it up "
            "again within five\n"
            "minutes, from the newest document of the state topic; without one the flag "
            "has no rollout. A\n"
            "document that a newer release wrote is better read by that release."
        )
        if is_asked and not typer.confirm("Discard it?"):
            raise typer.Abort
        was_there = asyncio.run(_discard(settings, flag))
    except BadInput as refused:
        typer.echo(str(refused), err=True)
        raise typer.Exit(_EXIT_CONFIG) from refused
    except RolloutdError as trouble:
        typer.echo(f"not known to be done, try again: {trouble}", err=True)
        raise typer.Exit(_EXIT_TROUBLE) from trouble
    typer.echo(f"{flag} is discarded" if was_there else f"nothing is stored of {flag}")


async def _describe(settings: Settings, flag: str) -> str:
    """Return what is stored, in a sentence."""
    rollouts, close = _rollouts(settings)
    try:
        stored = await rollouts.load(flag)
    except BrokenInvariant as damage:
        return f"{flag} cannot be read: {damage}"
    finally:
        await close()
    if stored.trouble:
        return f"{flag} cannot be read: {stored.trouble}"
    if stored.rollout is None:
        return f"{flag} has no rollout in Redis"
    rollout = stored.rollout
    waiting = (
        f"; {plural(len(stored.outbox), 'effect waits', 'effects wait')} for Kafka"
        if stored.outbox
        else ""
    )
    return (
        f"{flag} can be read: revision {rollout.revision}, {rollout.phase.name}, "
        f"{rollout.served_words}{waiting}"
    )


async def _discard(settings: Settings, flag: str) -> bool:
    rollouts, close = _rollouts(settings)
    try:
        return await rollouts.discard(flag)
    finally:
        await close()


def _rollouts(settings: Settings) -> tuple[RedisRollouts, Callable[[], Awaitable[None]]]:
    store = connect_redis(settings)
    return RedisRollouts(store), store.close


def check_counted(settings: Settings, topic: str) -> None:
    """Raise ConfigInvalid for a topic that is not counted."""
    counted = streams(settings.kafka.event_topics)
    if topic not in counted:
        raise ConfigInvalid(f"{topic} is not counted; counted are {' and '.join(counted)}")


async def discard_partition(settings: Settings, topic: str, number: int) -> bool:
    """Delete what is stored of one event partition; return whether there was something.

    Raises StoreUnavailable when it is not known to be done.
    """
    store = connect_redis(settings)
    try:
        return await RedisTotals(store).discard(f"{topic}/{number}/{settings.kafka.topic_epoch}")
    finally:
        await store.close()
