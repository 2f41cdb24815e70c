"""The fast path against the contract.

Both accept and refuse the same records, with the same meaning.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import envelope, evaluation, outcome
from schemas.envelope import MAX_AHEAD_MS, MAX_TIME_MS, Headers, is_context_id
from schemas.evaluation import Evaluation
from schemas.outcome import Outcome
from schemas.record_refused import RecordRefused
from schemas.terms import QuarantineReason
from schemas.wire import EvaluationEvent, OutcomeEvent, decode_evaluation, decode_outcome
from tests.examples import examples

ARRIVAL = 1_795_230_000_000  # 2026-11-21T03:00:00Z

Document = list[tuple[str, Any]]
"""An object as pairs, so that a name can be repeated."""


class Token(str):
    """Text that is put into JSON as it is.

    Numbers and constants that no Python value stands for.
    """


def render(value: Any) -> str:
    """Return JSON, or what pretends to be."""
    if isinstance(value, Token):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        return "{" + ",".join(f"{json.dumps(name)}:{render(item)}" for name, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(render(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


# --- the contract, spelled out ---


def context_of(context_id: str | None, key: bytes | None) -> str:
    """Return the context id by the contract: the attribute, else the record's key."""
    if context_id is not None:
        return context_id
    if not key:
        raise RecordRefused(QuarantineReason.NO_CONTEXT, "", "")
    text = key.decode("utf-8", "replace")
    if text.encode() != key or not is_context_id(text):
        raise RecordRefused(QuarantineReason.INVALID, "", "")
    return text


def judge_evaluation(
    value: bytes | None,
    key: bytes | None,
    timestamp_ms: int,
    headers: Headers,
    *,
    latest_ms: int = MAX_TIME_MS,
) -> EvaluationEvent:
    """Return what the pydantic contract makes of a record.

    Raises RecordRefused or ValidationError.
    """
    event = envelope.read(value, timestamp_ms, headers, [evaluation.TYPE], latest_ms=latest_ms)
    told = Evaluation.model_validate(event.data)
    assert told.variant is not None
    return EvaluationEvent(
        context_of(told.context_id, key), told.flag_key, told.variant, event.time_ms
    )


def judge_outcome(
    value: bytes | None,
    key: bytes | None,
    timestamp_ms: int,
    headers: Headers,
    *,
    latest_ms: int = MAX_TIME_MS,
) -> OutcomeEvent:
    """Return what the pydantic contract makes of a record.

    Raises RecordRefused or ValidationError.
    """
    event = envelope.read(value, timestamp_ms, headers, [outcome.TYPE], latest_ms=latest_ms)
    told = Outcome.model_validate(event.data)
    return OutcomeEvent(
        context_of(told.context_id, key),
        event.time_ms,
        list(dict.fromkeys((flag.flag_key, flag.variant) for flag in told.flags or ())),
        told.error_type is not None,
        None if told.duration_seconds is None else told.duration_seconds * 1000.0,
        list(dict.fromkeys(told.conversions or ())),
    )


Judge = Callable[..., EvaluationEvent | OutcomeEvent]


def meaning(judge: Judge, *record: Any, latest_ms: int = MAX_TIME_MS) -> tuple[Any, ...] | None:
    """Return what `judge` reads from a record, None when it refuses.

    Any other exception is a failed test.
    """
    try:
        event = judge(*record, latest_ms=latest_ms)
    except (RecordRefused, ValidationError):
        return None
    if isinstance(event, EvaluationEvent):
        return event.context_id, event.flag_key, event.variant, event.time_ms
    flags, conversions = list(event.flags), list(event.conversions)
    return event.context_id, event.time_ms, flags, event.is_error, event.latency_ms, conversions


PAIRS: list[tuple[Judge, Judge]] = [
    (decode_evaluation, judge_evaluation),
    (decode_outcome, judge_outcome),
]


def refusal_of(judge: Judge, *record: Any) -> RecordRefused | None:
    """Return the refusal, None when the record is read."""
    try:
        judge(*record)
    except RecordRefused as refused:
        return refused
    return None


def assert_agree(*record: Any) -> None:
    """Check that both readers of both events take or refuse a record alike.

    And that refusals can be told.
    """
    for fast, contract in PAIRS:
        assert meaning(fast, *record) == meaning(contract, *record)
        refused = refusal_of(fast, *record)
        if refused is not None:
            assert refused.reason in QuarantineReason
            assert refused.detail.isascii()
            assert refused.detail.isprintable()
            assert 0 < len(refused.detail) < 400


# --- records near the contract ---

NAMES = st.sampled_from(["new-checkout", "on", "off", "a", "A.b_c:d-9", "x" * 128])
HOSTILE_TEXTS = [
    *(
        "",
        " ",
        "x" * 128,
        "x" * 129,
        "x" * 256,
        "x" * 257,
        "x" * 1024,
        "x" * 1025,
        "é" * 256,
        "é" * 257,
        "é" * 1024,
        "💥" * 256,
    ),
    *(
        "on ",
        "on\n",
        "on\r",
        " on",
        "\ufeffon",
        "\x00",
        "a\x00b",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\u200b",
    ),
    *(
        "\u202eno",
        "\u2066x",
        "a|b",
        "{a}",
        "a/b",
        "-on",
        ".on",
        "_on",
        "9",
        "é",
        "💥",
        "ȏn",
        "٣",
        "true",
        "null",
        "on",
    ),
]
WRONG_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        1.5,
        "1",
        [],
        {},
        ["on"],
        [None],
        [("a", 1)],
        10**30,
        -1e-300,
        86_400,
        86_400.00001,
        5e-324,
    ),
    *(
        Token(token)
        for token in (
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "-1e999",
            "9" * 400,
            "9" * 5000,
            "-" + "9" * 5000,
        )
    ),
    *(
        Token(token)
        for token in (
            "1e-999",
            "-0",
            "-0.0",
            "1E2",
            "200.0",
            "01",
            "1.",
            ".5",
            "+1",
            "0x1",
            "'on'",
            "undefined",
            "",
        )
    ),
    *(
        Token(token)
        for token in (
            r'"\ud800"',
            r'"\udc00x"',
            r'"\ud83d\ude00"',
            r'"\u0000"',
            r'"\q"',
            '"a\nb"',
            '"\x01"',
        )
    ),
    *(
        Token(token)
        for token in (
            r'"\u006fn"',
            "[" * 40 + "]" * 40,
            '{"a":' * 40 + "1" + "}" * 40,
            "[1,]",
            "/**/1",
        )
    ),
]
TIME_TEXTS = [
    *(
        "2026-11-21T03:00:00Z",
        "2026-11-21T03:00:00.123456Z",
        "2026-11-21T04:59:59.999+02:00",
        "1970-01-01T00:00:00Z",
    ),
    *(
        "2026-11-21t03:00:00z",
        "2026-11-21 03:00:00Z",
        "2026-11-21T03:05:00Z",
        "2026-11-21T03:05:00.0009Z",
    ),
    *(
        "2026-11-21T03:05:00.001Z",
        "2026-11-21T03:05:00.002Z",
        "2100-01-01T00:00:00Z",
        "1969-12-31T23:59:59.9999Z",
    ),
    *(
        "2026-11-21T03:00:00",
        "2026-11-21",
        "20261121T030000Z",
        "2026-W47-6T03:00:00Z",
        "1795230000",
        "2026-11-21T03:00:60Z",
    ),
    *(
        "2026-11-21T24:00:00Z",
        "2026-02-29T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "now",
        "",
    ),
    *(
        "9999-12-31T23:59:59.9999999Z",
        "2026-11-21T03:00:00.123456789012Z",
        "2026-11-21T03:00:00+24:00",
        "１９７０-01-01T00:00:00Z",
    ),
    *(
        "2026-11-21T03:00:00+0200",
        "2026-11-21T03:00:00+02",
        "2026-11-21T03:00Z",
        "2026-11-21T03:00:00Z\\u0000",
        '2026-11-21T03:00:00Z"',
    ),
]
HOSTILE_TEXT = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=8)
WRONG = st.sampled_from(WRONG_VALUES)
TIMES = st.sampled_from(TIME_TEXTS) | st.datetimes().map(lambda when: when.isoformat() + "Z")
DURATIONS = st.floats(min_value=0, max_value=90_000) | st.integers(-2, 90_000)
FLAG = st.lists(
    st.tuples(
        st.sampled_from(
            ["feature_flag.key", "feature_flag.result.variant", "feature_flag.variant", "x"]
        ),
        NAMES | HOSTILE_TEXT | WRONG,
    ),
    max_size=4,
    unique_by=lambda said: said[0],
)
GOOD_FLAG = st.tuples(NAMES, NAMES).map(
    lambda pair: [("feature_flag.key", pair[0]), ("feature_flag.result.variant", pair[1])]
)
FLAGS = st.one_of(
    st.lists(GOOD_FLAG, max_size=3),
    st.lists(GOOD_FLAG | FLAG, max_size=3),
    GOOD_FLAG.flatmap(lambda flag: st.sampled_from([[flag] * 64, [flag] * 65, [flag] * 600])),
    WRONG,
)
CONVERSIONS = st.one_of(
    st.lists(NAMES, max_size=3),
    st.lists(NAMES | HOSTILE_TEXT | WRONG, max_size=3),
    st.sampled_from([["buy"] * 16, ["buy"] * 17]),
    WRONG,
)
TEXT = NAMES | HOSTILE_TEXT | WRONG
SAYINGS: dict[str, st.SearchStrategy[Any]] = {
    "feature_flag.key": TEXT,
    "feature_flag.result.variant": TEXT,
    "feature_flag.result.value": TEXT,
    "feature_flag.variant": TEXT,
    "value": TEXT,
    "feature_flag.context.id": TEXT,
    "feature_flag.result.reason": TEXT,
    "http.server.request.duration": DURATIONS | WRONG,
    "error.type": TEXT,
    "http.response.status_code": WRONG,
    "rolloutd.flags": FLAGS,
    "rolloutd.conversions": CONVERSIONS,
    "unknown": TEXT,
}
ENVELOPE: dict[str, st.SearchStrategy[Any]] = {
    "specversion": st.sampled_from(["1.0", "0.3", "1.1", ""]) | WRONG,
    "type": st.sampled_from(
        [evaluation.TYPE, outcome.TYPE, "", "com.example", evaluation.TYPE + " "]
    )
    | WRONG,
    "source": TEXT,
    "id": TEXT,
    "time": TIMES | WRONG,
    "datacontenttype": TEXT,
    "data_base64": TEXT,
    "data": WRONG,
    "unknown": TEXT,
}


CONTENT_TYPES = [
    *(
        b"application/cloudevents+json",
        b"Application/CloudEvents+JSON ; charset=UTF-8",
        b"application/cloudevents",
    ),
    *(
        b"application/json",
        b"application/cloudevents-batch+json",
        b"application/cloudevents+avro",
        b"",
        b"\xff",
        b"text/plain",
    ),
]


def perturbed(
    draw: st.DrawFn, good: Document, sayings: dict[str, st.SearchStrategy[Any]], repeat: bool
) -> Document:
    """Draw a variation of a good object.

    Some names said otherwise, some left out, some in another order.
    """
    said = dict(good)
    for name in draw(st.lists(st.sampled_from(sorted(sayings)), max_size=3)):
        said[name] = draw(sayings[name])
    for name in draw(st.lists(st.sampled_from(sorted(said)), max_size=1)):
        del said[name]
    document = draw(st.permutations(list(said.items())))
    if repeat and document:
        name = draw(st.sampled_from([name for name, _ in document]))
        document.append((name, draw(sayings.get(name, TEXT))))
    return document


@st.composite
def records(draw: st.DrawFn, repeat: bool = False) -> tuple[bytes, bytes | None, int, Headers]:
    """Draw (value, key, timestamp, headers) of a record that is valid or a few steps off."""
    is_outcome = draw(st.booleans())
    data: Document = [("feature_flag.context.id", "u-42")]
    if is_outcome:
        data += [("http.server.request.duration", 0.25), ("rolloutd.flags", draw(FLAGS))]
    else:
        data += [
            ("feature_flag.key", "new-checkout"),
            draw(st.sampled_from([("feature_flag.result.variant", "on"), ("value", True)])),
        ]
    data = perturbed(draw, data, SAYINGS, repeat and draw(st.booleans()))
    event_type = outcome.TYPE if is_outcome else evaluation.TYPE
    attributes: Document = [
        ("specversion", "1.0"),
        ("type", event_type),
        ("source", "/shop"),
        ("id", "1"),
        ("time", draw(TIMES)),
    ]
    key = draw(
        st.none()
        | st.sampled_from([b"", b"u-42", b"\xff", b"a\x00", "é".encode(), b"x" * 257])
        | st.binary(max_size=4)
    )
    timestamp_ms = draw(st.sampled_from([ARRIVAL, 0, -1, ARRIVAL - 1]))
    headers: list[tuple[str, bytes | None]] = []
    if draw(st.integers(0, 3)) == 0:
        for name, item in perturbed(draw, attributes, ENVELOPE, repeat):
            headers.append(
                (
                    "ce_" + name,
                    item.encode()
                    if isinstance(item, str)
                    else draw(st.none() | st.binary(max_size=8)),
                )
            )
        value = render(data)
    else:
        value = render(perturbed(draw, [*attributes, ("data", data)], ENVELOPE, repeat))
    for content_type in draw(
        st.lists(st.sampled_from(CONTENT_TYPES), max_size=1) | st.just([CONTENT_TYPES[0]])
    ):
        headers.insert(
            draw(st.integers(0, len(headers))),
            (draw(st.sampled_from(["content-type", "Content-Type"])), content_type),
        )
    return value.encode("utf-8", "surrogatepass"), key, timestamp_ms, headers


@examples(1500)
@given(records())
def test_near_the_contract_both_agree(record: tuple[Any, ...]) -> None:
    """A record that is valid or nearly so means the same to the fast path and the contract."""
    assert_agree(*record)


NEAR = st.sampled_from([0, 1, -1, MAX_AHEAD_MS, MAX_AHEAD_MS + 1, -MAX_AHEAD_MS, 10**9, -(10**12)])
#: Moments that a broken clock or an attacker writes into a record, in the year 10209 among others.
FAR = st.sampled_from(
    [
        *(-(2**63), -1, 0, 1, MAX_TIME_MS, MAX_TIME_MS + 1),
        *(260_000_000_000_000, 2**53, 2**62, 2**63 - 1),
    ]
)


def fast_path_of(event_type: str) -> Judge:
    """Return the fast path of an event type."""
    return decode_evaluation if event_type == evaluation.TYPE else decode_outcome


@examples(500)
@given(
    st.sampled_from([evaluation.TYPE, outcome.TYPE]),
    FAR | NEAR.map(ARRIVAL.__add__),
    st.none() | NEAR.map(ARRIVAL.__add__) | st.integers(-62_135_596_800_000, MAX_TIME_MS),
    st.booleans(),
    st.sampled_from([MAX_TIME_MS, ARRIVAL, ARRIVAL + MAX_AHEAD_MS]) | NEAR.map(ARRIVAL.__add__),
)
def test_a_time_nobody_can_vouch_for_refuses_the_record(
    event_type: str, timestamp_ms: int, event_ms: int | None, is_binary: bool, latest_ms: int
) -> None:
    """Neither a record's timestamp nor its event's time is taken before 1970 or past the latest."""
    attributes, data = good(event_type)
    said = dict(attributes)
    del said["time"]
    if event_ms is not None:
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=event_ms)
        said["time"] = at.isoformat(timespec="milliseconds")
    if is_binary:
        headers = [("ce_" + name, text.encode()) for name, text in said.items()]
        record = (structured(data), b"u-42", timestamp_ms, headers)
    else:
        record = (structured([*said.items(), ("data", data)]), b"u-42", timestamp_ms, [])
    for fast, contract in PAIRS:
        told = meaning(fast, *record, latest_ms=latest_ms)
        assert told == meaning(contract, *record, latest_ms=latest_ms)
    time_ms = timestamp_ms if event_ms is None else event_ms
    is_credible = (
        0 <= timestamp_ms <= min(latest_ms, MAX_TIME_MS)
        and 0 <= time_ms <= min(latest_ms, MAX_TIME_MS)
        and time_ms <= timestamp_ms + MAX_AHEAD_MS
    )
    bounded = partial(fast_path_of(event_type), latest_ms=latest_ms)
    refused = refusal_of(bounded, *record)
    assert (refused is None) is is_credible
    assert refused is None or refused.reason is QuarantineReason.BAD_TIME


def good(event_type: str) -> tuple[Document, Document]:
    """Return the attributes and the data of a plain valid event."""
    attributes: Document = [
        ("specversion", "1.0"),
        ("type", event_type),
        ("source", "/shop"),
        ("id", "1"),
    ]
    attributes.append(("time", "2026-11-21T03:00:00Z"))
    data: Document = [("feature_flag.context.id", "u-42")]
    if event_type == evaluation.TYPE:
        return attributes, [
            *data,
            ("feature_flag.key", "new-checkout"),
            ("feature_flag.result.variant", "on"),
        ]
    flag = [("feature_flag.key", "new-checkout"), ("feature_flag.result.variant", "on")]
    return attributes, [*data, ("http.server.request.duration", 0.25), ("rolloutd.flags", [flag])]


TELLERS = (
    "feature_flag.result.variant",
    "feature_flag.variant",
    "feature_flag.result.value",
    "value",
)


@pytest.mark.parametrize("event_type", [evaluation.TYPE, outcome.TYPE])
def test_each_attribute_said_in_each_way_is_read_alike(event_type: str) -> None:
    """One attribute of a valid event set to anything that has ever confused a reader.

    Both readers agree.
    """
    attributes, data = good(event_type)

    def agree_on(said: Mapping[str, Any], key: bytes | None = b"u-42") -> None:
        assert_agree(structured([*attributes, ("data", list(said.items()))]), key, ARRIVAL, [])

    for value in (*HOSTILE_TEXTS, *WRONG_VALUES, *TIME_TEXTS):
        for name in SAYINGS:
            agree_on({**dict(data), name: value})
        agree_on({**dict(data), "feature_flag.context.id": value}, None)
        for attribute in ("feature_flag.key", "feature_flag.result.variant"):
            flag = {"feature_flag.key": "a", "feature_flag.result.variant": "on", attribute: value}
            agree_on({**dict(data), "rolloutd.flags": [list(flag.items())]})
        agree_on({**dict(data), "rolloutd.conversions": [value, "buy"]})
        for name in ENVELOPE:
            said = {**dict(attributes), "data": data, name: value}
            assert_agree(structured(list(said.items())), b"u-42", ARRIVAL, [])
            if isinstance(value, str):
                heads = {**dict(attributes), name: value}
                headers = [
                    ("ce_" + attribute, content.encode()) for attribute, content in heads.items()
                ]
                assert_agree(structured(data), b"u-42", ARRIVAL, headers)


def test_whichever_attribute_tells_the_variant_is_read_alike() -> None:
    """Of several attributes with the variant, both readers take the same one."""
    attributes, data = good(evaluation.TYPE)
    for value in (*HOSTILE_TEXTS, *WRONG_VALUES):
        for first, second in itertools.permutations(TELLERS, 2):
            for told in ("off", True):
                said = {**dict(data[:2]), first: value, second: told}
                assert_agree(
                    structured([*attributes, ("data", list(said.items()))]), b"u-42", ARRIVAL, []
                )


def structured(document: Document) -> bytes:
    """Return an object as the bytes of a record."""
    return render(document).encode("utf-8", "surrogatepass")


def readings(pairs: Any) -> Iterator[Any]:
    """Yield the value with each choice of one occurrence per repeated name."""
    if isinstance(pairs, list) and pairs and all(isinstance(item, tuple) for item in pairs):
        by_name: dict[str, list[Any]] = {}
        for name, item in pairs:
            by_name.setdefault(name, []).extend(readings(item))
        for choice in itertools.product(*by_name.values()):
            yield list(zip(by_name, choice, strict=True))
    elif isinstance(pairs, list):
        for items in itertools.product(*(list(readings(item)) for item in pairs)):
            yield list(items)
    else:
        yield pairs


@examples(500)
@given(records(repeat=True), st.data())
def test_of_a_repeated_name_the_last_counts(record: tuple[Any, ...], data: st.DataObject) -> None:
    """With a name repeated, both read the same.

    Or the fast path refuses what the contract refuses in one reading.
    """
    value, *rest = record
    for fast, contract in PAIRS:
        told = meaning(fast, value, *rest)
        judged = meaning(contract, value, *rest)
        if told != judged:
            assert told is None
            readers: dict[str, Any] = {"parse_constant": Token, "parse_int": Token}
            pairs = json.loads(value, object_pairs_hook=list, **readers)
            said = [render(reading).encode() for reading in itertools.islice(readings(pairs), 64)]
            assert any(meaning(contract, one, *rest) is None for one in said)


GOOD = render(
    [
        ("specversion", "1.0"),
        ("type", evaluation.TYPE),
        ("source", "/shop"),
        ("id", "1"),
        ("time", "2026-11-21T03:00:00Z"),
        (
            "data",
            [
                ("feature_flag.key", "é-no"),
                ("feature_flag.result.variant", "on"),
                ("note", [1.5e3, None, "\\u00e9"]),
            ],
        ),
    ]
).encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a valid event with some bytes replaced, removed or added."""
    value = bytearray(GOOD.replace("é-no".encode(), b"no") if draw(st.booleans()) else GOOD)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(value)))
        end = min(len(value), start + draw(st.integers(0, 3)))
        pieces = [
            b"",
            b'"',
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"\\",
            b"\x00",
            b"\xff",
            b"\xed\xa0\x80",
            b"\xef\xbb\xbf",
            b"9",
            b"-",
            b"e",
        ]
        value[start:end] = draw(st.sampled_from(pieces) | st.binary(max_size=3))
    return bytes(value)


@examples(1000)
@given(damaged())
@example(GOOD)
def test_damaged_bytes_are_read_alike(value: bytes) -> None:
    """Bytes changed anywhere in an event lead both to the same reading or to a refusal."""
    assert_agree(value, b"u-42", ARRIVAL, [])


@examples(300)
@given(
    st.none() | st.binary(max_size=64),
    st.none() | st.binary(max_size=8),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["content-type", "ce_type", "ce_time", "ce_id", "ce_specversion", "ce_", ""]
            )
            | st.text(max_size=5),
            st.none() | st.binary(max_size=40),
        )
    ),
)
def test_any_bytes_are_read_alike(
    value: bytes | None, key: bytes | None, timestamp_ms: int, headers: Headers
) -> None:
    """Whatever stands in a record, nothing but a refusal is raised."""
    assert_agree(value, key, timestamp_ms, headers)


def stretched(token: str) -> bytes:
    """Return a valid evaluation whose unknown attribute is `token`."""
    return (
        GOOD.replace("é-no".encode(), b"no")
        .replace(rb'[1500.0, null, "\\u00e9"]', b"null")
        .replace(b'"note":', b'"note":' + token.encode("utf-8", "surrogatepass") + b',"rest":')
    )


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(stretched("[" * 100_000 + "]" * 100_000), id="deep-200k"),
        pytest.param(stretched("[" * 120_000), id="deep-unclosed"),
        pytest.param(stretched("[" * 400 + "]" * 400), id="deep-400"),
        pytest.param(stretched("[" * 600 + "]" * 600), id="deep-600"),
        pytest.param(stretched('{"a":' * 600 + "1" + "}" * 600), id="deep-objects"),
        pytest.param(stretched("9" * 5000), id="integer-5000-digits"),
        pytest.param(stretched("-" + "9" * 100_000), id="integer-100k-digits"),
        pytest.param(stretched("0." + "9" * 5000), id="fraction-5000-digits"),
        pytest.param(stretched("1e" + "9" * 5000), id="exponent-5000-digits"),
        pytest.param(stretched("[" + ",".join(["1"] * 50_000) + "]"), id="list-50k"),
        pytest.param(stretched("[" + ",".join(["{}"] * 5_000) + "]"), id="objects-5k"),
        pytest.param(stretched('"' + "x" * 262_144 + '"'), id="too-large"),
        pytest.param(stretched('"\ud800"'), id="surrogate-bytes"),
        pytest.param(stretched(r'"\ud800"'), id="surrogate-escape"),
        pytest.param(b"\xef\xbb\xbf" + GOOD, id="bom"),
        pytest.param(GOOD + b"\x00", id="trailing-nul"),
        pytest.param(GOOD + GOOD, id="two-events"),
        pytest.param(GOOD.decode().encode("utf-16"), id="utf-16"),
        pytest.param(b"[" + GOOD + b"]", id="batch"),
        pytest.param(b"null", id="null"),
        pytest.param(b"1" * 5000, id="number"),
        pytest.param(b" ", id="blank"),
        pytest.param(b"[" * 200_000, id="brackets"),
        pytest.param(b'{"a":' + b"[" * 1000, id="brackets-1000"),
    ],
)
def test_known_attacks_are_read_alike(value: bytes) -> None:
    """What has broken parsers before is refused.

    Or ignored where it stands in an attribute we do not read.
    """
    assert_agree(value, b"u-42", ARRIVAL, [])
    assert_agree(value, b"u-42", ARRIVAL, [("content-type", b"application/cloudevents+json")])
