"""The short way to an answer against the application: the same bytes for the same requests.

Two servers get the same bytes in the same pieces, one of them without the short way. What they
write, whether they close, and what they count must be equal.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.audience import Audience, Condition
from controller.core.rollout import RolledBack
from controller.health import Health
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.ofrep import PlainEvaluations
from controller.web.server import HttpServer
from schemas.terms import Operator
from tests.builders import T0, make_plan, make_rollout, make_stage
from tests.examples import examples
from tests.reports import no_reports

MAX_BODY = 2_000
ONE = b"/ofrep/v1/evaluate/flags/new-checkout"
PLAIN = b'{"context":{"targetingKey":"user-3","plan":"pro"}}'
_DATE = re.compile(rb"date: [^\r]+")


class Wire(asyncio.Transport):
    """The server's side of a connection: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_cut = False
        self.is_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 5) if name in ("peername", "sockname") else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_cut:  # as a socket that is closed
            self.written += data

    def is_closing(self) -> bool:
        return self.is_cut

    def close(self) -> None:
        self.is_cut = True

    abort = close

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0


class CountedAtOnce:
    """Counts what is answered without the application. Implements `AnswersAtOnce`."""

    def __init__(self, plain: PlainEvaluations) -> None:
        self._plain = plain
        self.prefix: bytes = plain.prefix
        self.max_body_bytes = plain.max_body_bytes
        self.takes = plain.takes
        self.answered = 0

    def answer(self, url: bytes, body: bytes) -> tuple[bytes, bytes] | None:
        """Answer, and count it when it was one."""
        answer = self._plain.answer(url, body)
        self.answered += answer is not None
        return answer


class Side:
    """One of the two servers."""

    def __init__(self, *, is_short: bool) -> None:
        self.board = FlagBoard(generation=Generation.V3, now=lambda: T0)
        audiences = (Audience("staff", ((Condition("plan", Operator.ENDS_WITH, ("ro",)),),)),)
        ringed = make_plan(
            flag_key="ringed", audiences=audiences, stages=(make_stage(audience="staff"),)
        )
        over = RolledBack(T0, "guardrail errors")
        self.board.update(make_rollout(percent=50.0))
        self.board.update(make_rollout(flag_key="ringed", plan=ringed))
        self.board.update(
            make_rollout(flag_key="a/b", plan=make_plan(flag_key="a/b"), phase=over, percent=0.0)
        )
        self.board.trust()
        self.metrics = Metrics(version="0")
        app = make_app(
            self.board,
            Health(()),
            self.metrics,
            describe=lambda _: b"{}",
            reports=no_reports(),
            max_body_bytes=MAX_BODY,
        )
        self.at_once = CountedAtOnce(app.state.at_once)
        self.server = HttpServer(
            app, port=0, max_connections=5, at_once=self.at_once if is_short else None
        )

    def connect(self) -> tuple[Any, Wire]:
        """Return the server's protocol of a new connection, and what it writes to."""
        uvicorn, wire = self.server._uvicorn, Wire()
        assert uvicorn is not None
        make = cast(Any, uvicorn.config.http_protocol_class)
        protocol = make(config=uvicorn.config, server_state=uvicorn.server_state, app_state={})
        protocol.connection_made(wire)
        return protocol, wire

    def state(self, name: str) -> None:
        """Bring the board into a state: whatever it was before."""
        self.board.trust()
        self.board.note_silence(1_000.0 if name == "stale" else 0.0)
        if name == "doubted":
            self.board.doubt("a reason")

    def counted(self) -> list[float]:
        """Return how many evaluations of each kind were answered so far."""
        value = self.metrics.registry.get_sample_value
        kinds = ("treatment", "control", "refused")
        return [value("rolloutd_evaluations_total", {"outcome": kind}) or 0.0 for kind in kinds]


@dataclass
class Sides:
    """Both, and the loop that they run in."""

    runner: asyncio.Runner
    short: Side
    long: Side

    def play(self, state: str, pieces: list[bytes], others: int = 0) -> tuple[Any, Any]:
        """Return what each side did with these pieces of one connection."""

        async def both() -> tuple[Any, Any]:
            return await _play(self.short, state, pieces, others), await _play(
                self.long, state, pieces, others
            )

        return self.runner.run(both())


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    """Two servers that differ in nothing else."""
    with asyncio.Runner() as runner:
        short, long = Side(is_short=True), Side(is_short=False)
        stack = AsyncExitStack()
        for side in (short, long):
            runner.run(side.server.start())
            stack.push_async_callback(side.server.stop)
        yield Sides(runner, short, long)
        runner.run(stack.aclose())


async def _play(side: Side, state: str, pieces: list[bytes], others: int) -> Any:
    """Feed pieces to a new connection beside `others`; return all that came of it."""
    side.state(state)
    before = side.counted()
    beside = [side.connect() for _ in range(others)]
    protocol, wire = side.connect()
    for piece in pieces:
        if not wire.is_cut and not wire.is_paused:
            protocol.data_received(piece)
            await _turns()
    closed = wire.is_cut
    for connection, _ in [(protocol, wire), *beside]:
        connection.connection_lost(None)
    await _turns()
    counted = [after - was for after, was in zip(side.counted(), before, strict=True)]
    return _DATE.sub(b"date: -", wire.written), closed, counted


async def _turns() -> None:
    """Let the application do all that it can without waiting."""
    for _ in range(20):
        await asyncio.sleep(0)


def request(
    method: bytes = b"POST",
    target: bytes = ONE,
    headers: tuple[bytes, ...] = (b"host: 127.0.0.1",),
    body: bytes = PLAIN,
    version: bytes = b"1.1",
    length: bytes | None = None,
) -> bytes:
    """Return a request's bytes; `length` is all that announces the body, by default its length."""
    announced = b"content-length: %d" % len(body) if length is None else length
    lines = (b"%b %b HTTP/%b" % (method, target, version), *headers, *filter(None, [announced]))
    return b"\r\n".join((*lines, b"", body))


_is_odd = st.sampled_from([False] * 6 + [True])  # one odd thing hides the next


def _mostly(usual: Any, odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _is_odd.flatmap(lambda is_odd: odd if is_odd else st.just(usual))


_FLAGS = ONE.removesuffix(b"new-checkout")
ODD_METHODS = (b"GET", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT")
METHODS = _mostly(b"POST", st.sampled_from(ODD_METHODS))
ODD_TARGETS = (
    *(_FLAGS + key for key in (b"ringed", b"a/b", b"", b"unknown", b"a?b", b"a#b", b"x" * 300)),
    *(ONE + more for more in (b"?x=1", b"/", b"%20")),
    *(ONE.replace(b"-", b"%2D"), b"/" + ONE, ONE.replace(b"/flags", b"//flags")),
    *(b"http://127.0.0.1" + ONE, ONE.removesuffix(b"/new-checkout"), b"/", b"*", b"/readyz"),
)
TARGETS = _mostly(
    ONE,
    st.one_of(
        st.sampled_from(ODD_TARGETS),
        st.binary(min_size=1, max_size=8).map(lambda some: _FLAGS + some),
    ),
)
SOME_HEADERS = (
    *(b"host: 127.0.0.1", b"Host: localhost:80", b"HOST: [::1]:80", b"host: evil.example"),
    *(b"host:", b"expect: 100-continue", b"connection: close", b"Connection: Keep-Alive"),
    *(b"connection: upgrade\r\nupgrade: websocket", b"if-none-match: *", b"x: \xff\xfe"),
    *(b"authorization: Bearer x", b"content-type: text/plain", b"accept: text/html"),
    *(b"content-encoding: gzip", b"no colon", b"a: b\r\n folded", b"te: trailers"),
)
HEADERS = _mostly(
    (b"host: 127.0.0.1",), st.lists(st.sampled_from(SOME_HEADERS), max_size=4).map(tuple)
)
ODD_BODIES = (
    *(b"", b"{}", b"null", b'{"context":{}}', b'{"context":{"targetingKey":""}}', PLAIN[:-1]),
    *(b'{"context":{"targetingKey":7}}', b'{"context":{"targetingKey":"\\ud800"}}'),
    *(b'{"context":' * 150, b'{"context":' * 1_000, PLAIN + b"x"),
    *(b" " * MAX_BODY + PLAIN, PLAIN + b" " * MAX_BODY),
)
BODIES = st.one_of(
    st.just(PLAIN),
    st.text(max_size=20).map(lambda key: b'{"context":{"targetingKey":"%b"}}' % key.encode()),
    st.sampled_from(ODD_BODIES),
    st.binary(max_size=30),
)
ODD_LENGTHS = (
    *(b"", b"content-length: 10", b"content-length: 99", b"content-length: -1"),
    *(b"content-length: 50\r\ncontent-length: 50", b"transfer-encoding: chunked"),
)
LENGTHS = _mostly(None, st.sampled_from(ODD_LENGTHS))
CHUNKED = st.builds(
    lambda body, trailer, target: request(
        target=target,
        body=b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailer),
        length=b"transfer-encoding: chunked",
    ),
    BODIES.filter(len),
    st.sampled_from([b"", b"host: evil.example\r\n", b"expect: 100-continue\r\n"]),
    TARGETS,
)
REQUESTS = st.one_of(
    st.builds(
        request, METHODS, TARGETS, HEADERS, BODIES, _mostly(b"1.1", st.just(b"1.0")), LENGTHS
    ),
    st.builds(request, body=BODIES),
    st.builds(request, target=TARGETS, headers=HEADERS),
    CHUNKED,
)


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """Draw some requests, perhaps with a damaged byte, in pieces that need not be theirs."""
    requests = draw(st.lists(REQUESTS, min_size=1, max_size=3))
    if draw(st.booleans()):
        return requests
    whole = b"".join(requests)
    if draw(_is_odd):
        at = draw(st.integers(0, len(whole) - 1))
        whole = whole[:at] + draw(st.binary(max_size=2)) + whole[at + 1 :]
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    ends = zip([0, *cuts], [*cuts, len(whole)], strict=True)
    return [whole[start:end] for start, end in ends if start < end]


def test_both_ways_give_the_same_bytes(sides: Sides) -> None:
    """Whatever comes, in whatever pieces and state; and many requests do take the short way."""
    answered = sides.short.at_once.answered

    @examples(1_500)
    @given(st.sampled_from(["trusted"] * 3 + ["stale", "doubted"]), pieces())
    def check(state: str, sent: list[bytes]) -> None:
        short, long = sides.play(state, sent)
        assert short == long

    check()
    assert sides.short.at_once.answered > answered + 5
    assert sides.long.at_once.answered == 0


def one_odd_thing() -> Iterator[bytes]:
    """Yield requests that are plain but for one thing."""
    yield from (request(method) for method in ODD_METHODS)
    yield from (request(target=target) for target in ODD_TARGETS)
    yield from (request(headers=(b"host: 127.0.0.1", line)) for line in SOME_HEADERS)
    yield from (request(headers=(line,)) for line in SOME_HEADERS)
    yield from (request(body=body) for body in ODD_BODIES)
    yield from (request(length=length) for length in ODD_LENGTHS)
    yield request(version=b"1.0")


@pytest.mark.parametrize("state", ["trusted", "stale", "doubted"])
def test_one_odd_thing_changes_no_answer(sides: Sides, state: str) -> None:
    """Each way in which a request may differ from a plain one, alone, and then a plain one."""
    for odd in one_odd_thing():
        short, long = sides.play(state, [odd, request()])
        assert (odd, *short) == (odd, *long)


@pytest.mark.parametrize(
    "sent",
    [
        [request()],
        [request()[:-20], request()[-20:]],
        [request(), request(b"GET"), request()],
        [request(target=_FLAGS + b"ringed")],
        [request(target=_FLAGS + b"a/b", body=b"{}")],
    ],
)
def test_plain_requests_take_the_short_way(sides: Sides, sent: list[bytes]) -> None:
    """Whole, in two packets, and after one another, also for audiences and flags that ended."""
    answered = sides.short.at_once.answered
    short, long = sides.play("trusted", sent)
    assert short == long
    assert short[0].startswith(b"HTTP/1.1 200 OK\r\ndate: -\r\n")
    assert sides.short.at_once.answered > answered


def test_requests_sent_ahead_wait_in_the_bounded_queue(sides: Sides) -> None:
    """Many in one packet are not answered in one turn of the loop.

    Of too many the first are answered, the one under way and 16 behind it, and the rest is not
    read.
    """
    answered = sides.short.at_once.answered
    for number, answers in ((16, 16), (20, 17)):
        short, long = sides.play("trusted", [request() * number])
        assert short == long
        assert short[0].count(b"HTTP/1.1 ") == short[0].count(b"HTTP/1.1 200") == answers
    assert sides.short.at_once.answered == answered


def test_a_full_server_refuses_plain_requests(sides: Sides) -> None:
    """At its limit of connections each is told so, whichever way it would have gone."""
    short, long = sides.play("trusted", [request()], others=4)
    assert short == long
    assert short[0].startswith(b"HTTP/1.1 503")


def test_a_request_whose_rest_is_late_gets_the_application(sides: Sides) -> None:
    """It is held back for a moment only; then the limits for slow bodies hold."""

    async def late() -> tuple[bytes, int]:
        protocol, wire = sides.short.connect()
        sides.short.state("trusted")
        answered = sides.short.at_once.answered
        protocol.data_received(request()[:-1])
        while protocol.cycle is None:
            await asyncio.sleep(0.01)
        protocol.data_received(request()[-1:])
        await _turns()
        protocol.connection_lost(None)
        return wire.written, sides.short.at_once.answered - answered

    written, answered = sides.runner.run(late())
    assert written.startswith(b"HTTP/1.1 200 OK")
    assert answered == 0
