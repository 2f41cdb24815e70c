"""The flags' rollouts in Redis: one hash each, written by one script with one HSET.

Belongs here: keys and calls. Does not belong here: what a document says (`codec/rollouts.py`).

| key | what |
|---|---|
| `<prefix>ro:{<flag>}` | `token digest document tests outbox:<n> answer:<id>`, a hash |
| `<prefix>ro:{<flag>}:retired` | `revision answer:<id>`: what is kept for a day after `bury` |
| `<prefix>ro:{#}` | `revision`: the highest one of all flags that were retired |
| `<prefix>flags` | set: every flag that has a hash |

Braces are literal: a key's hash tag, so that Redis Cluster spreads flags over its nodes. No command
touches two keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from controller.adapters.redis.connection import FIELDS_PER_CALL, RedisConnection, chunks
from controller.adapters.redis.gathered_calls import GatheredCalls
from controller.codec.merging import is_number, outbox_number
from controller.codec.rollouts import read_state, rollout_from_json, rollout_to_json
from controller.core.rollout import Rollout
from controller.errors import DocumentNewer, DocumentUnreadable
from controller.ports import OutboxEntry, StoredRollout
from controller.text import plural
from schemas.terms import NAME

_log = structlog.get_logger()

#: Delete a hash, if the fence is still the expected one. One write command, as in fenced_save.lua.
_DELETE: Final = """#!lua
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])
"""
#: Raise the field `revision` of a hash to at least this number.
_RAISE: Final = """#!lua
local stored = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0') or 0
if tonumber(ARGV[1]) > stored then redis.call('HSET', KEYS[1], 'revision', ARGV[1]) end
return 1
"""

#: Documents read in one round trip at start: few enough that the loop is not busy for long.
DOCUMENTS_AT_ONCE: Final = 200

#: Answers to commands kept per flag, newest first. A command that comes back after a thousand later
#: ones of its flag is treated as new; all that raise the percentage are too old by then.
ANSWERS_KEPT: Final = 1_000
#: Answers of a retired flag are kept for this long: a command may be read again for a day.
GRAVE_SECONDS: Final = 25 * 3600
GRAVE_ANSWERS: Final = 50
#: After how many saves of a flag its older answers are deleted.
ANSWERS_PRUNED_EVERY: Final = 128


class RedisRollouts:
    """Implements `controller.ports.Rollouts`."""

    def __init__(
        self,
        connection: RedisConnection,
        *,
        unreadable: Callable[[str, str], None] = lambda _flag_key, _why: None,
    ) -> None:
        """Call `unreadable` with flag and reason for each document that `newer_than` leaves out."""
        self._connection = connection
        self._unreadable = unreadable
        self._loads = GatheredCalls(connection)

    def _key(self, flag_key: str) -> str:
        return f"{self._connection.prefix}ro:{{{flag_key}}}"

    async def load(self, flag_key: str) -> StoredRollout:
        (raw,) = await self._loads.call(f"load {flag_key}", ("HGETALL", self._key(flag_key)))
        if not raw:
            return await self._buried(flag_key)
        try:
            token = int(raw.get(b"token", 0))
        except ValueError as error:
            # Without a token nothing can be compared and set: only a person may delete this.
            raise DocumentUnreadable(
                f"the token stored for {flag_key} is damaged: {error}"
            ) from error
        outbox = _readable_entries(flag_key, raw)
        rollout, trouble, is_newer = None, "", False
        try:
            document = raw.get(b"document")
            rollout = None if document is None else rollout_from_json(document)
        except DocumentUnreadable as error:
            trouble, is_newer = str(error), isinstance(error, DocumentNewer)
            rollout = None if is_newer else _newest_of(outbox)
        except Exception as error:  # damage of any kind concerns this flag alone
            trouble, rollout = repr(error), _newest_of(outbox)
        return StoredRollout(
            rollout=rollout,
            token=token,
            tests=raw.get(b"tests", b""),
            outbox=outbox,
            trouble=trouble,
            is_newer=is_newer,
        )

    async def _buried(self, flag_key: str) -> StoredRollout:
        """Return what is known of a flag of which nothing is stored."""
        retired = await self._revision_in(f"{self._key(flag_key)}:retired")
        last = max(retired, await self._revision_in(self._key("#")))
        return StoredRollout(None, 0, b"", [], retired_revision=retired, last_revision=last)

    async def _revision_in(self, key: str) -> int:
        """Return the field `revision` of a hash, 0 without one."""
        value = await self._connection.call(
            "read the revision of retired flags",
            lambda: self._connection.client.hget(key, "revision"),
        )
        return int(value) if value is not None and value.isdigit() else 0

    async def bury(self, flag_key: str, *, expected_token: int, revision: int) -> bool:
        connection, key = self._connection, self._key(flag_key)
        grave, purpose = f"{key}:retired", f"bury {flag_key}"
        raw = await connection.call(purpose, lambda: connection.client.hgetall(key))
        if raw and raw.get(b"token") != b"%d" % expected_token:
            return False
        kept = dict(_newest_answers(raw)[-GRAVE_ANSWERS:])
        # The order matters: a crash after any of these leaves what `load` and a repeat need.
        await connection.call(
            purpose, lambda: connection.client.eval(_RAISE, 1, self._key("#"), revision)
        )
        if raw:
            fields = {b"revision": b"%d" % revision, **kept}
            await connection.call(purpose, lambda: connection.client.hset(grave, mapping=fields))
        await connection.call(purpose, lambda: connection.client.expire(grave, GRAVE_SECONDS))
        await connection.call(
            purpose, lambda: connection.client.eval(_DELETE, 1, key, expected_token)
        )
        return await self._unlisted(flag_key)

    async def unlist(self, flag_key: str) -> None:
        await self._unlisted(flag_key)

    async def _unlisted(self, flag_key: str) -> bool:
        """Take a flag off the list unless it has a hash; return whether it has none."""
        connection, key = self._connection, self._key(flag_key)
        index, purpose = f"{connection.prefix}flags", f"unlist {flag_key}"
        await connection.call(purpose, lambda: connection.client.srem(index, flag_key))
        token = await connection.call(purpose, lambda: connection.client.hget(key, "token"))
        if token is not None:
            await connection.call(purpose, lambda: connection.client.sadd(index, flag_key))
        return token is None

    async def discard(self, flag_key: str) -> bool:
        """Delete everything stored for a flag; return False when there was nothing.

        Its workers then go on from the newest document of the state topic. Answers to its commands
        are lost, and so are effects that were not published. Raises StoreUnavailable.
        """
        key = self._key(flag_key)
        deleted = await self._connection.call(
            f"discard {flag_key}", lambda: self._connection.client.unlink(key)
        )
        index = f"{self._connection.prefix}flags"
        unlisted = await self._connection.call(
            f"discard {flag_key}", lambda: self._connection.client.srem(index, flag_key)
        )
        return bool(deleted or unlisted)

    async def save(
        self,
        flag_key: str,
        *,
        expected_token: int,
        rollout: Rollout | None = None,
        tests: bytes | None = None,
        outbox: Sequence[OutboxEntry] = (),
        answer: tuple[str, bytes] | None = None,
    ) -> bool:
        fields: dict[str, bytes] = {}
        if rollout is not None:
            fields["document"] = rollout_to_json(rollout)
        if tests is not None:
            fields["tests"] = tests
        for entry in outbox:
            outbox_number(entry.field)
            fields[entry.field] = _entry_bytes(entry)
        token = expected_token + 1
        if answer is not None:
            fields[f"answer:{answer[0]}"] = b"%d\n%b" % (token, answer[1])
        if expected_token == 0:
            # Before the hash: a crash may cut off the tail of Redis's file, and no hash may be
            # without its name in the index.
            await self._list(flag_key)
        is_done, _ = await self._connection.fenced_save(
            self._key(flag_key),
            fence="token",
            expected=expected_token or None,
            after=token,
            fields=fields,
            purpose=f"save {flag_key}",
        )
        if is_done and expected_token == 0:
            await self._list(flag_key)  # again: an earlier rollout of it may just be unlisted
        if is_done and token % ANSWERS_PRUNED_EVERY == 0:
            await self._prune_answers(flag_key)
        return is_done

    async def _list(self, flag_key: str) -> None:
        await self._connection.call(
            "index the flags",
            lambda: self._connection.client.sadd(f"{self._connection.prefix}flags", flag_key),
        )

    async def _prune_answers(self, flag_key: str) -> None:
        """Delete all but the newest answers. A second command on purpose: see fenced_save.lua."""
        key = self._key(flag_key)
        raw = await self._connection.call(
            f"load {flag_key}", lambda: self._connection.client.hgetall(key)
        )
        old = [name for name, _ in _newest_answers(raw)[:-ANSWERS_KEPT]]
        for chunk in chunks(old, FIELDS_PER_CALL):
            await self._connection.call(
                f"prune answers of {flag_key}", partial(self._connection.client.hdel, key, *chunk)
            )

    async def answer_to(self, flag_key: str, command_id: str) -> bytes | None:
        key = self._key(flag_key)
        for place in (key, f"{key}:retired"):
            value: bytes | None = await self._connection.call(
                f"look up an answer of {flag_key}",
                partial(self._connection.client.hget, place, f"answer:{command_id}"),
            )
            if value is not None:
                return _numbered_answer(value)[1]
        return None

    async def remove_effects(self, flag_key: str, fields: Sequence[str]) -> None:
        for name in fields:
            outbox_number(name)
        if fields:
            key = self._key(flag_key)
            await self._connection.call(
                f"remove effects of {flag_key}", lambda: self._connection.client.hdel(key, *fields)
            )

    async def flag_keys(self) -> Sequence[str]:
        names = await self._connection.call(
            "list the flags",
            lambda: self._connection.client.smembers(f"{self._connection.prefix}flags"),
            times_deadline=5,
        )
        # Other text was not written by us: it names no flag.
        texts = (name.decode(errors="replace") for name in names)
        return sorted(text for text in texts if NAME.match(text))

    async def newer_than(self, revisions: Mapping[str, int]) -> Sequence[Rollout]:
        newer: list[Rollout] = []
        for flag_keys in chunks(await self.flag_keys(), DOCUMENTS_AT_ONCE):
            rows = await self._documents(flag_keys)
            for flag_key, document in zip(flag_keys, rows, strict=True):
                if isinstance(document, Exception):
                    self._unreadable(flag_key, str(document))
                    continue
                try:
                    # The whole document is read only where needed: of ten thousand flags a crash
                    # left a few unpublished.
                    if document is not None and _revision_of(document) > revisions.get(flag_key, 0):
                        newer.append(rollout_from_json(document))
                        await asyncio.sleep(0)  # reading one takes some 0.2 ms
                except Exception as error:  # damage of any kind concerns this flag alone
                    self._unreadable(flag_key, str(error))
        return newer

    async def _documents(self, flag_keys: Sequence[str]) -> Sequence[bytes | Exception | None]:
        """Return each flag's stored document, None for none, or why it cannot be read."""

        def queue(pipeline: Any) -> None:
            for flag_key in flag_keys:
                pipeline.hget(self._key(flag_key), "document")

        purpose = f"read the documents of {plural(len(flag_keys), 'flag')}"
        return await self._connection.answers_to(purpose, queue, times_deadline=5)


def _newest_answers(raw: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Return the stored answers of a flag's hash, oldest first."""
    answers = [each for each in raw.items() if each[0].startswith(b"answer:")]
    return sorted(answers, key=lambda each: (_numbered_answer(each[1])[0], each[0]))


def _numbered_answer(value: bytes) -> tuple[int, bytes | None]:
    """Return the number of a stored answer, and the answer.

    What has no number was not written by us: it is no answer, and older than any.
    """
    number, line_end, answer = value.partition(b"\n")
    if not line_end or not is_number(number):
        return -1, None
    return int(number), answer


class _Revision(msgspec.Struct):
    """The only field that is read of a document to compare its age."""

    revision: int


_decode_revision = msgspec.json.Decoder(_Revision).decode


def _revision_of(document: bytes) -> int:
    return _decode_revision(document).revision


class _EntryHead(msgspec.Struct):
    """The first line of a stored outbox entry; the value follows, byte for byte."""

    effect_id: str
    topic: str
    key: str


def _entry_bytes(entry: OutboxEntry) -> bytes:
    return (
        msgspec.json.encode(_EntryHead(entry.effect_id, entry.topic, entry.key))
        + b"\n"
        + entry.value
    )


def _entry(name: str, stored: bytes) -> OutboxEntry:
    head, _, value = stored.partition(b"\n")
    decoded = msgspec.json.decode(head, type=_EntryHead)
    return OutboxEntry(
        field=name, effect_id=decoded.effect_id, topic=decoded.topic, key=decoded.key, value=value
    )


def _readable_entries(flag_key: str, raw: Mapping[bytes, bytes]) -> list[OutboxEntry]:
    """Return the effects stored for a flag, oldest first, without those that are damaged."""
    outbox = []
    for name, value in raw.items():
        if name.startswith(b"outbox:"):
            try:
                entry = _entry(name.decode(), value)
                outbox_number(entry.field)
            except (ValueError, RecursionError) as error:
                _log.error(
                    "effect_unreadable", flag_key=flag_key, field=repr(name), error=str(error)
                )
            else:
                outbox.append(entry)
    return sorted(outbox, key=lambda entry: outbox_number(entry.field))


def _newest_of(outbox: Sequence[OutboxEntry]) -> Rollout | None:
    """Return the newest document that still waits to be published: a second copy of the stored."""
    newest: Rollout | None = None
    for entry in outbox:
        if entry.topic == "state":
            with suppress(DocumentUnreadable):
                rollout = read_state(entry.value)
                if newest is None or rollout.revision > newest.revision:
                    newest = rollout
    return newest
