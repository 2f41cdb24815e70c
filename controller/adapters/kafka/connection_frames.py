"""Reads what brokers answer without copying it around.

aiokafka reads through a `StreamReader`. That copies each byte into a buffer, out of it, and out of
the answer into the content of a fetch; for each quarter of a megabyte it wakes its task, and stops
and resumes the socket. Here the socket fills one buffer of the answer's size, and what is fetched
is copied once.

Belongs here: how the bytes of a connection become frames. Does not belong here: whose answer a
frame is and how a connection ends, which stays with aiokafka; what brokers answer to a fetch
(`fetch_guard.py`).

Source: Apache Kafka protocol guide: an answer is its size, 32 bits with a sign in network order,
and as many bytes. They begin with the number of the request.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
import weakref
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.fetch import FetchRequest

_INT32: Final = struct.Struct(">i")
#: For answers that fit: nearly all while there is no backlog. A larger one has its own buffer.
_SHARED_BYTES: Final = 16 * 1024
#: At most for one read of the socket, which takes a third of a millisecond on the loop.
_MOST_READ: Final = 1024 * 1024


def read_frames(connection: AIOKafkaConnection) -> None:
    """Have an open connection read frames from now on.

    One that waits for an answer goes on as it is, and so does one that was changed before.
    """
    of_connection: Any = connection
    writer, reader = of_connection._writer, of_connection._reader
    if writer is None or of_connection._requests or reader.at_eof() or reader._buffer:
        return
    if writer.transport.get_protocol() is of_connection._protocol:
        writer.transport.set_protocol(_FrameProtocol(connection))


class _FrameProtocol(asyncio.BufferedProtocol):
    """Puts the frames of one connection together.

    All but the bytes goes to aiokafka's protocol: how a connection ends, and when to write. Its
    reading task meets no bytes any more and waits for the end, which it handles as before.
    """

    def __init__(self, connection: AIOKafkaConnection) -> None:
        of_connection: Any = connection
        self._connection = weakref.ref(of_connection)  # aiokafka closes one that is forgotten
        self._reader: asyncio.StreamReader = of_connection._reader
        self._inner: asyncio.StreamReaderProtocol = of_connection._protocol
        self._shared = self._buffer = memoryview(bytearray(_SHARED_BYTES))
        self._large = self._shared[:0]  # kept while one large answer follows another
        self._filled = 0  # bytes of the buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._buffer[self._filled : self._filled + _MOST_READ]

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that came, but none behind what could not be read."""
        if self._reader.exception() is not None:
            return  # nobody knows where an answer begins in what follows
        self._filled += nbytes
        try:
            self._take_frames()
        except Exception as error:
            # aiokafka's reading task closes the connection and says why.
            self._reader.set_exception(error)
            self._buffer, self._large, self._filled = self._shared, self._shared[:0], 0

    def eof_received(self) -> bool | None:
        """Pass on that no more comes."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on that the connection has ended."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on that writing has to wait."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that writing may go on."""
        self._inner.resume_writing()

    def _take_frames(self) -> None:
        """Handle each frame that is complete, and make room for the one that is not.

        Raises ConnectionError for what is no frame, and whatever a frame raises that cannot be
        read.
        """
        begin = 0
        while (end := self._end_of_frame(begin)) <= self._filled:
            _handle(self._connection(), self._buffer[begin + _INT32.size : end])
            if self._buffer is self._shared:
                self._large = self._shared[:0]
            begin = end
        if begin == 0 and end <= len(self._buffer):
            return
        rest, size = self._buffer[begin : self._filled], end - begin
        # With hundreds of partitions even an answer without records is not a small one.
        is_too_large = len(self._large) > _MOST_READ >= size
        if size > _SHARED_BYTES and (size > len(self._large) or is_too_large):
            self._large = _room(size)
        self._buffer = self._shared if size <= _SHARED_BYTES else self._large[:size]
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)

    def _end_of_frame(self, begin: int) -> int:
        """Return where in the buffer a frame ends, or its size while that has not come."""
        end = begin + _INT32.size
        if end > self._filled:
            return end
        (size,) = _INT32.unpack_from(self._buffer, begin)
        if size < _INT32.size:
            raise ConnectionError(f"a broker's answer claims to have {size} bytes")
        return end + int(size)


def _room(size: int) -> memoryview:
    """Return a buffer. A large one takes memory only as bytes come: its size may be a lie.

    Python clears a bytearray: fifty megabytes held the event loop for tens of milliseconds.
    """
    if size <= _MOST_READ:
        return memoryview(bytearray(size))
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE))


def _handle(connection: Any, frame: memoryview) -> None:
    """Give a frame to the request that waits for it. Fetches are the large ones."""
    if connection is None or not connection._requests:
        raise ConnectionError("a broker's answer, and nothing was asked")
    number, request, answer = connection._requests[0]
    is_awaited = _INT32.unpack_from(frame) == (number,) and not answer.done()
    if not is_awaited or request.API_KEY != FetchRequest.API_KEY:
        connection._handle_frame(bytes(frame))
        return
    content: Any = _Content(frame)
    request.parse_response_header(content)
    answer.set_result(request.RESPONSE_TYPE.decode(content))
    connection._last_action = time.monotonic()
    connection._requests.popleft()


class _Content:
    """What `io.BytesIO` is to aiokafka's decoding, without a copy of the whole."""

    __slots__ = ("_at", "_frame")

    def __init__(self, frame: memoryview) -> None:
        self._frame = frame
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        begin, self._at = self._at, self._at + size
        return bytes(self._frame[begin : self._at])
