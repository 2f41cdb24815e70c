"""What a broker answers arrives whole, however the network cuts it, and ends as aiokafka's does."""

from __future__ import annotations

import asyncio
import gc
import os
import struct
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.fetch import FetchRequest, FetchResponse_v4
from aiokafka.protocol.metadata import MetadataRequest, MetadataResponse_v0
from aiokafka.structs import BrokerMetadata
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.kafka.connection_frames import read_frames
from controller.adapters.kafka.connection_pace import ConnectionPace, pace_connections
from tests.process_memory import resident_bytes

LOOPBACK = "127.0.0.1"
#: Request types that this broker knows: fetch v4, metadata v0, versions v0.
VERSIONS = [(1, 4, 4), (3, 0, 0), (18, 0, 0)]
FETCH = FetchRequest(1, 1, 1, 0, [("t", [(0, 0, 1)])])
METADATA = MetadataRequest([])


def frame(number: int, answer: Any) -> bytes:
    """Return an answer as it is on the wire."""
    content: bytes = struct.pack(">i", number) + answer.encode()
    return struct.pack(">i", len(content)) + content


def fetched(contents: Sequence[bytes]) -> FetchResponse_v4:
    """Return an answer to a fetch of one topic, a content for each partition."""
    partitions: list[Any] = [(number, 0, 9, 9, [], each) for number, each in enumerate(contents)]
    return FetchResponse_v4(0, [("t", partitions)])


class ScriptedBroker:
    """Says which requests it knows, and then writes what a test wants, when it wants."""

    def __init__(self) -> None:
        self.writer: asyncio.StreamWriter
        self.asked = 0
        self.ended = asyncio.Event()
        self._port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedBroker]:
        """Listen."""
        server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self._port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
            self.writer.close()
            await asyncio.wait_for(self.ended.wait(), 5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with suppress(ConnectionResetError):  # a client that has not read everything
            while size := await reader.read(4):
                request = await reader.readexactly(*struct.unpack(">i", size))
                kind, _, number = struct.unpack_from(">hhi", request)
                if kind == ApiVersionResponse_v0.API_KEY:
                    writer.write(frame(number, ApiVersionResponse_v0(0, VERSIONS)))
                else:
                    self.asked += 1
        self.ended.set()

    async def connect(self) -> AIOKafkaConnection:
        """Return a connection that reads frames."""
        connection: AIOKafkaConnection = await create_conn(
            LOOPBACK, self._port, request_timeout_ms=5_000
        )
        read_frames(connection)
        return connection

    async def send(self, *pieces: bytes) -> None:
        """Write once something was asked, each piece for itself."""
        while not self.asked:
            await asyncio.sleep(0.001)
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0.005)


async def ended(connection: AIOKafkaConnection) -> None:
    """Return once a connection is closed."""
    async with asyncio.timeout(5):
        while connection.connected():
            await asyncio.sleep(0.001)


async def test_answers_come_whole_however_they_are_cut() -> None:
    """Larger than what a socket holds, several in one piece, a size that is cut in two."""
    contents = [bytes([number]) * size for number, size in enumerate((3_000_000, 0, 70_000))]
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        large, small, last = [connection.send(each) for each in (FETCH, METADATA, FETCH)]
        sent = frame(2, fetched(contents)) + frame(3, MetadataResponse_v0([], []))
        sent += frame(4, fetched([b"last"]))
        await broker.send(sent[:2], sent[2:30], sent[30:40_000], sent[40_000:])
        assert [each[-1] for each in (await large).topics[0][1]] == contents
        assert await small == MetadataResponse_v0([], [])
        assert (await last).topics[0][1][0][-1] == b"last"
        connection.close()


async def test_the_room_of_a_large_answer_is_given_back_by_the_next_that_is_not() -> None:
    """Also where none is small: one without records of 700 partitions has 29 KB."""
    async with ScriptedBroker().running() as broker:
        connection: Any = await broker.connect()
        answers = [connection.send(FETCH) for _ in range(2)]
        await broker.send(frame(2, fetched([bytes(9_000_000)])), frame(3, fetched([b""] * 700)))
        await asyncio.gather(*answers)
        protocol = connection._writer.transport.get_protocol()
        assert len(protocol._large) < 1_000_000
        connection.close()


async def test_it_is_the_frames_that_are_read() -> None:
    """Else all of this would test aiokafka's own reading."""
    async with ScriptedBroker().running() as broker:
        connection: Any = await broker.connect()
        protocol = connection._writer.transport.get_protocol()
        assert isinstance(protocol, asyncio.BufferedProtocol)
        read_frames(connection)
        assert connection._writer.transport.get_protocol() is protocol
        connection.close()


async def test_the_connections_of_a_client_read_frames() -> None:
    """Also where two want one at once."""
    async with ScriptedBroker().running() as broker:
        client = AIOKafkaClient(bootstrap_servers=f"{LOOPBACK}:{broker._port}")
        client.cluster._brokers = {1: BrokerMetadata(1, LOOPBACK, broker._port, None)}
        pace_connections(client, ConnectionPace())
        connection, same = await asyncio.gather(client._get_conn(1), client._get_conn(1))
        assert connection is same
        protocol = connection._writer.transport.get_protocol()
        assert isinstance(protocol, asyncio.BufferedProtocol)
        await asyncio.wait_for(client.close(), 5)


async def test_a_connection_that_waits_for_an_answer_is_left_as_it_is() -> None:
    """Half of the answer may have been read by the other."""
    async with ScriptedBroker().running() as broker:
        connection: Any = await create_conn(LOOPBACK, broker._port)
        answer = connection.send(METADATA)
        read_frames(connection)
        assert connection._writer.transport.get_protocol() is connection._protocol
        await broker.send(frame(2, MetadataResponse_v0([], [])))
        assert await answer == MetadataResponse_v0([], [])
        connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">i", -1),
        struct.pack(">i", 3) + b"abc",
        bytes(50_000),
        struct.pack(">i", 2**31 - 1) + b"and an end",  # two gigabytes are announced
        frame(77, fetched([b"for somebody else"])),
        frame(2, fetched([b"1"]))[:-1],
        frame(2, fetched([b"1"])).replace(b"\0\1t", b"\0\2t"),  # a text beyond its end
        b"",
    ],
    ids=[
        "negative",
        "too small",
        "noise",
        "huge",
        "other number",
        "cut off",
        "not to be read",
        "nothing",
    ],
)
async def test_what_is_no_answer_ends_the_connection_and_what_waits(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, with the error that aiokafka's clients connect again after.

    Of what it cannot read at all aiokafka logs a traceback, and of nothing else.
    """
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        first, second = connection.send(FETCH), connection.send(METADATA)
        await broker.send(sent)
        broker.writer.close()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(results[1], KafkaConnectionError)
        assert isinstance(results[0], Exception)
        await ended(connection)
    failed = [each.getMessage() for each in caplog.records if each.exc_info]
    assert failed == (["Unexpected exception in AIOKafkaConnection"] if b"\0\2t" in sent else [])


async def test_a_size_that_is_a_lie_takes_no_memory() -> None:
    """Two gigabytes are announced and do not come. A first environment has 512 MB."""
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        answer = asyncio.ensure_future(connection.send(FETCH))
        before = resident_bytes(os.getpid())
        await broker.send(struct.pack(">i", 2**31 - 1), b"a few of them")
        assert resident_bytes(os.getpid()) - before < 50_000_000
        broker.writer.close()
        with pytest.raises(KafkaConnectionError):
            await answer
        await ended(connection)


async def test_the_memory_of_a_large_answer_goes_back() -> None:
    """Once smaller ones come; else each connection kept what its largest needed."""
    async with ScriptedBroker().running() as broker:
        connection: Any = await broker.connect()
        protocol = connection._writer.transport.get_protocol()
        answer = connection.send(FETCH)
        await broker.send(frame(2, fetched([bytes(17_000_000)])))
        await answer
        memory = weakref.ref(protocol._large.obj)
        assert memory() is not None
        answer = connection.send(METADATA)
        await broker.send(frame(3, MetadataResponse_v0([], [])))
        await answer
        assert memory() is None
        connection.close()


async def test_an_answer_to_nothing_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """The next answers would go to the wrong requests."""
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        answer = connection.send(METADATA)
        both = frame(2, MetadataResponse_v0([], [])), frame(3, MetadataResponse_v0([], []))
        await broker.send(b"".join(both))
        assert await answer == MetadataResponse_v0([], [])
        await ended(connection)
    assert not [each for each in caplog.records if each.exc_info]


async def test_frames_behind_one_that_closes_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Their requests have failed by then."""
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        first, second = connection.send(FETCH), connection.send(FETCH)
        await broker.send(frame(9, fetched([b"x"])) + frame(3, fetched([b"y"])))
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [isinstance(each, Exception) for each in results] == [True, True]
        await ended(connection)
    assert not [each for each in caplog.records if each.exc_info]


async def test_nothing_is_read_behind_what_could_not_be_read() -> None:
    """The loop reads once more before aiokafka closes, from wherever in an answer that begins."""
    async with ScriptedBroker().running() as broker:
        connection: Any = await broker.connect()
        first, second = connection.send(FETCH), connection.send(METADATA)
        undecodable = frame(2, fetched([b"1"])).replace(b"\0\1t", b"\0\2t")
        in_records = frame(2, fetched([b"planted"])) + frame(3, MetadataResponse_v0([], []))
        await broker.send(undecodable.ljust(20_000, b"\0")[:16_384] + in_records)
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(each) for each in results] == [KafkaConnectionError] * 2
        await ended(connection)


async def test_an_answer_that_nobody_waits_for_is_read_past() -> None:
    """A fetch whose waiting was cut off is answered all the same."""
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        given_up = asyncio.ensure_future(connection.send(FETCH))
        await asyncio.sleep(0)
        given_up.cancel()
        answer = connection.send(METADATA)
        await broker.send(
            frame(2, fetched([bytes(100_000)])), frame(3, MetadataResponse_v0([], []))
        )
        assert await answer == MetadataResponse_v0([], [])
        connection.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_forgotten_connection_goes() -> None:
    """Its transport lives on in the event loop, and must not keep it."""
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        kept = weakref.ref(connection)
        said: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: said.append(context["message"])
        )
        await asyncio.sleep(0.01)  # aiokafka's own tasks let go of it
        del connection
        gc.collect()
        assert kept() is None
        assert said == ["Unclosed AIOKafkaConnection"]
        await asyncio.wait_for(broker.ended.wait(), 5)


async def test_writing_waits_for_a_slow_broker() -> None:
    """As the transport says, which now says it to another protocol."""
    async with ScriptedBroker().running() as broker:
        connection: Any = await broker.connect()
        protocol = connection._writer.transport.get_protocol()
        protocol.pause_writing()
        draining = asyncio.ensure_future(connection._writer.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        protocol.resume_writing()
        await draining
        connection.close()


async def test_a_closed_connection_can_be_waited_for() -> None:
    """A client that stops waits for each of its connections."""
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        await asyncio.wait_for(connection.close(), 5)


async def test_a_reset_ends_what_waits() -> None:
    """As of a broker that was killed."""
    async with ScriptedBroker().running() as broker:
        connection = await broker.connect()
        answer = connection.send(FETCH)
        await broker.send(frame(2, fetched([b"1"]))[:-1])
        at_once = struct.pack("ii", 1, 0)
        broker.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, at_once)
        broker.writer.transport.abort()
        with pytest.raises(KafkaConnectionError) as caught:
            await answer
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await ended(connection)
        broker.ended.set()


@pytest.mark.parametrize(
    ("asked", "sent"), [(FETCH, fetched([b"1"])), (METADATA, MetadataResponse_v0([], []))]
)
async def test_an_answer_is_an_action(asked: Any, sent: Any) -> None:
    """Else the connection counts as idle, and aiokafka closes it after nine minutes."""
    async with ScriptedBroker().running() as broker:
        connection: Any = await broker.connect()
        connection._last_action = 0.0
        answer = connection.send(asked)
        await broker.send(frame(2, sent))
        await answer
        assert connection._last_action > 0
        connection.close()


CONTENTS = st.binary(max_size=40) | st.sampled_from([b"x" * 16_370, b"y" * 16_384, b"z" * 40_000])
ANSWERS = st.lists(
    st.just((METADATA, MetadataResponse_v0([], [])))
    | st.lists(CONTENTS, max_size=3).map(lambda contents: (FETCH, fetched(contents))),
    min_size=1,
    max_size=6,
)


def read_in_pieces(asked: Sequence[Any], cuts: Callable[[int], int]) -> list[Any]:
    """Return what a connection reads, `cuts` says how many of so many bytes come next."""

    async def read() -> list[Any]:
        connection: Any = AIOKafkaConnection(LOOPBACK, 1)
        connection._versions = {key: (least, most) for key, least, most in VERSIONS}
        kept: list[Any] = []
        transport: Any = type("Transport", (), {})()
        transport.get_protocol = lambda: None
        transport.set_protocol = kept.append
        writer: Any = type("Writer", (), {})()
        writer.transport, writer.write = transport, len
        connection._writer = writer
        connection._reader = asyncio.StreamReader()
        read_frames(connection)
        waiting = [asyncio.ensure_future(connection.send(request)) for request, _ in asked]
        stream = b"".join(frame(number, answer) for number, (_, answer) in enumerate(asked, 1))
        while stream:
            room = kept[0].get_buffer(-1)
            taken = cuts(min(len(room), len(stream)))
            room[:taken] = stream[:taken]
            kept[0].buffer_updated(taken)
            stream = stream[taken:]
        connection._writer = connection._reader = None
        return list(await asyncio.gather(*waiting))

    return asyncio.run(read())


@given(ANSWERS, st.data())
def test_any_cuts_give_the_same_answers(asked: list[Any], data: st.DataObject) -> None:
    """Sizes around that of the shared buffer, down to a byte at a time."""
    sizes = data.draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=20))
    turn = iter(range(10**9))

    def cuts(most: int) -> int:
        return min(most, sizes[next(turn) % len(sizes)])

    assert read_in_pieces(asked, cuts) == [answer for _, answer in asked]
