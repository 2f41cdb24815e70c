"""The fields of one of our events as its sender wrote them: for people to compare.

Counting ignores fields that it does not know, so that senders may add some. A field that was meant
to be one that counts, such as `error_type` for `error.type`, is ignored as well, and the failure
counts as a success. Here such fields are found, in the records that are read a second time
(`event_sampling.py`) or by a person (`rolloutctl events`).

Pure. Belongs here: which field a name is meant to be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Final

import msgspec

from controller.text import one_line
from schemas.evaluation import Evaluation
from schemas.outcome import MAX_FLAGS, READ_ATTRIBUTES, EvaluatedFlag, Outcome

_KNOWN: Final[dict[str, tuple[str, ...]]] = {
    kind: tuple(field.alias or "" for field in model.model_fields.values())
    for kind, model in (("evaluation", Evaluation), ("outcome", Outcome), ("flag", EvaluatedFlag))
}
#: Fields that change what an event counts as, or for whom. Others are never asked after.
_COUNTS: Final[dict[str, tuple[str, ...]]] = {
    "evaluation": (
        "feature_flag.key",
        "feature_flag.result.variant",
        "feature_flag.context.id",
    ),
    "outcome": tuple(READ_ATTRIBUTES),
    "flag": ("feature_flag.key", "feature_flag.result.variant"),
}
#: Other words for them, in lower case and without separators.
_OTHER_WORDS: Final[dict[str, str]] = {
    word: name
    for name, words in {
        "error.type": "error err errtype iserror haserror errortype errorcode failed isfailed "
        "hasfailed failure exception exceptiontype",
        "http.server.request.duration": "duration durationms durationseconds requestduration "
        "latency latencyms latencyseconds elapsed elapsedms responsetime httpserverduration",
        "feature_flag.context.id": "contextid targetingkey",
        "feature_flag.key": "flag flagkey flagname featureflag featureflagname feature featurekey "
        "featurename toggle key",
        "feature_flag.result.variant": "variant featureflagvariant variantkey variantname "
        "variation",
        "rolloutd.flags": "flags",
        "rolloutd.conversions": "conversions conversion",
    }.items()
    for word in words.split()
}
_SEPARATORS: Final = str.maketrans("", "", "._:-/ ")
#: How alike a mistyped name is, which also has at most one character more or less: other names of
#: OpenTelemetry, such as `feature_flag.context.kind`, are fields of their own.
_ALIKE: Final = 0.85
#: Letters of the shortest of the other words of which mistyped ones are looked for.
_SHORTEST_MISTYPED: Final = 5
#: Unknown fields kept of one event, and characters of each.
_MOST_FIELDS: Final = 20
_NAME_CHARS: Final = 80


@dataclass(frozen=True, slots=True)
class SentFields:
    """What one event says beside what is counted."""

    error_type: str | None = None  # as sent, where it can be shown; None also: it has none
    status_code: int | None = None  # as sent; counting does not read it
    unread: tuple[str, ...] = ()  # names of fields that nothing reads
    #: The first of `unread` that was meant to be another field, which the event lacks; and that.
    misnamed: tuple[str, str] | None = None


NOTHING_SENT: Final = SentFields()


def fields_sent(value: bytes | None, kind: str) -> SentFields:
    """Return what an event in JSON says; nothing for what is no object. `kind`: as in samples."""
    try:
        event = msgspec.json.decode(value or b"")
    except (ValueError, RecursionError):
        return NOTHING_SENT
    if not isinstance(event, dict):
        return NOTHING_SENT
    data = event.get("data")
    if not isinstance(data, dict):  # in binary mode the value is the data itself
        data = event
    unread = [name for name in data if name not in _KNOWN[kind]][:_MOST_FIELDS]
    error, status = data.get("error.type"), data.get("http.response.status_code")
    is_status = isinstance(status, int) and not isinstance(status, bool) and 100 <= status <= 999
    return SentFields(
        error if isinstance(error, str) else None,
        status if is_status else None,
        tuple(_shown(name) for name in unread),
        _first_misnamed(data, unread, kind) or _first_misnamed_of_flags(data.get("rolloutd.flags")),
    )


def misnamed_words(misnamed: tuple[str, str]) -> str:
    """Return the question about a field that nothing reads, and the field that was meant."""
    name, meant = misnamed
    return f"nothing reads its field {name}; did you mean {meant}?"


_LET_KAFKA: Final = "send it as it is, and let Kafka compress (compression.type)"
#: What values begin with that are often sent in place of JSON, and what to send.
_BEGINNINGS: Final[dict[bytes, str]] = {
    b"\x1f\x8b": f"is compressed with gzip; {_LET_KAFKA}",
    b"\x28\xb5\x2f\xfd": f"is compressed with zstd; {_LET_KAFKA}",
    b"\x00\x00": "begins as Avro or Protobuf of a schema registry; send JSON",
    b"\xef\xbb\xbf": "begins with a byte order mark; leave it out",
    b"\xff\xfe": "is UTF-16; send UTF-8",
    b"\xfe\xff": "is UTF-16; send UTF-8",
}


def encoding_words(value: bytes | None) -> str | None:
    """Return what a value seems to be that is no JSON, and what to send; None where unknown."""
    for beginning, words in _BEGINNINGS.items():
        if value is not None and value.startswith(beginning):
            return f"the value {words}"
    return None


def _first_misnamed_of_flags(flags: object) -> tuple[str, str] | None:
    """Return the first misnamed field of the flags that an outcome lists."""
    for flag in flags[:MAX_FLAGS] if isinstance(flags, list) else ():
        if isinstance(flag, dict):
            unread = [name for name in flag if name not in _KNOWN["flag"]][:_MOST_FIELDS]
            if (found := _first_misnamed(flag, unread, "flag")) is not None:
                return found
    return None


def _first_misnamed(
    data: Mapping[str, Any], unread: Collection[str], kind: str
) -> tuple[str, str] | None:
    for name in unread:
        meant = meant_field(name[:_NAME_CHARS], kind)
        # `"error": false` says what an event without error.type says, too.
        if meant is not None and data.get(meant) is None and data[name]:
            return _shown(name), meant
    return None


def _shown(name: str) -> str:
    """Return a name that a sender chose so that an alert or a terminal can show it."""
    return one_line(name[:_NAME_CHARS])


@lru_cache(maxsize=1024)
def meant_field(name: str, kind: str) -> str | None:
    """Return the field that counts which an unknown name is meant to be, None for none."""
    if any(name in known for known in _KNOWN.values()):
        return None  # it belongs to the other kind of event
    letters = name.casefold().translate(_SEPARATORS)
    for known in _COUNTS[kind]:
        if letters == known.casefold().translate(_SEPARATORS):
            return known
    if (meant := _OTHER_WORDS.get(letters)) in _COUNTS[kind]:
        return meant
    for word, meant in _OTHER_WORDS.items():
        if meant in _COUNTS[kind] and _is_mistyped(letters, word):
            return meant
    alike = [known for known in _COUNTS[kind] if abs(len(known) - len(name)) <= 1]
    close = get_close_matches(name.casefold(), alike, n=1, cutoff=_ALIKE)
    return close[0] if close else None


def _is_mistyped(letters: str, word: str) -> bool:
    """Return whether `letters` are `word` with one letter wrong, missing, too many or swapped.

    The first letter has to be right, and the word not short: other words are near short ones.
    """
    if len(word) < _SHORTEST_MISTYPED or letters[:1] != word[:1]:
        return False
    if abs(len(letters) - len(word)) > 1:
        return False
    head = next(
        (
            place
            for place, pair in enumerate(zip(letters, word, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(letters), len(word)),
    )
    sent, meant = letters[head:], word[head:]
    if len(sent) != len(meant):
        return sent[1:] == meant or sent == meant[1:]
    return sent[1:] == meant[1:] or (sent[1::-1] == meant[:2] and sent[2:] == meant[2:])
