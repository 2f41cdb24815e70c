"""The gRPC sync source and its real clients.

OpenFeature's flagd provider, evaluating in its own process.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from openfeature.schemas.protobuf.flagd.sync.v1 import sync_pb2, sync_pb2_grpc

from controller.core.rollout import RolledBack
from controller.errors import ConfigInvalid
from controller.web.bucketing import Generation
from controller.web.flagd_sync import (
    MORE_CONNECTIONS,
    FlagdSyncServer,
    SyncAddress,
)
from controller.web.flags import FlagBoard
from tests.builders import T0, make_rollout
from tests.flag_clients import flagd_sync, openfeature_client, users_in

USERS = [f"user-{number}" for number in range(10_000)]


@pytest.fixture
def board() -> FlagBoard:
    """A trusted board with one flag at 10 %."""
    board = FlagBoard(generation=Generation.V3)
    board.update(make_rollout())
    board.trust()
    return board


@pytest.fixture
async def server(board: FlagBoard) -> AsyncIterator[FlagdSyncServer]:
    """The sync source on a free port, for two streams."""
    server = FlagdSyncServer(board, SyncAddress(max_streams=2), flag_set_id="production")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def stub(server: FlagdSyncServer) -> AsyncIterator[Any]:
    """A client made by the protocol's own generator."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield sync_pb2_grpc.FlagSyncServiceStub(channel)


def share_of(response: Any) -> int:
    """Return the treatment's weight in a snapshot."""
    weight: int = json.loads(response.flag_configuration)["flags"]["new-checkout"]["targeting"][
        "fractional"
    ][0][1]
    return weight


async def test_a_client_that_pings_all_the_time_keeps_its_stream(
    board: FlagBoard, server: FlagdSyncServer
) -> None:
    """As flagd's Python provider does by default; it would be gone for minutes."""
    options = [("grpc.keepalive_time_ms", 1), ("grpc.http2.max_pings_without_data", 0)]
    address = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stream = sync_pb2_grpc.FlagSyncServiceStub(channel).SyncFlags(sync_pb2.SyncFlagsRequest())
        assert share_of(await stream.read()) > 0
        await asyncio.sleep(6)  # gRPC sends at most one a second
        board.update(make_rollout(revision=2, percent=50.0))
        assert share_of(await stream.read()) == 5000
        stream.cancel()


async def test_a_real_provider_follows_every_change(
    board: FlagBoard, server: FlagdSyncServer
) -> None:
    """A provider in the app follows each percentage without polling, and no user falls out."""

    def by_ofrep() -> set[str]:
        flag = board.get("new-checkout")
        assert flag is not None
        return {user for user in USERS if json.loads(flag.evaluate(user))["value"]}

    async with openfeature_client(flagd_sync(server.port)) as client:
        before: set[str] = set()
        for revision, percent in enumerate([1.0, 10.0, 25.0, 50.0, 100.0], start=2):
            board.update(make_rollout(revision=revision, percent=percent))
            wanted, started = by_ofrep(), time.monotonic()
            while await asyncio.to_thread(users_in, client, "new-checkout", USERS) != wanted:
                assert time.monotonic() - started < 60, "the provider did not follow"
            assert before <= wanted
            before = wanted
        board.update(make_rollout(revision=9, percent=100.0, phase=RolledBack(T0, "breach")))
        started = time.monotonic()
        while await asyncio.to_thread(users_in, client, "new-checkout", USERS):
            assert time.monotonic() - started < 60, "the provider did not follow the roll back"


async def test_a_stream_begins_with_everything_and_repeats_nothing(
    board: FlagBoard, stub: Any
) -> None:
    """The first message is the whole document.

    An older or repeated revision sends nothing, many changes at once the last.
    """
    stream = stub.SyncFlags(sync_pb2.SyncFlagsRequest(provider_id="test"))
    assert share_of(await stream.read()) == 1_000
    board.update(make_rollout())
    board.update(make_rollout(revision=0, percent=50.0))
    for revision in range(2, 50):
        board.update(make_rollout(revision=revision, percent=float(revision)))
    assert share_of(await stream.read()) == 4_900
    assert json.loads(
        (await stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest())).flag_configuration
    )["flags"].keys() == {"new-checkout"}
    stream.cancel()


async def code_of(call: Any) -> grpc.StatusCode:
    """Return the status that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call
    code: grpc.StatusCode = ended.value.code()
    return code


async def test_nothing_is_sent_while_it_cannot_be_trusted(board: FlagBoard, stub: Any) -> None:
    """New streams are refused, an open one is silent until the doubt is over.

    Then it gets what changed meanwhile.
    """
    stream = stub.SyncFlags(sync_pb2.SyncFlagsRequest())
    await stream.read()
    board.doubt("reading again")
    board.update(make_rollout(revision=2, percent=50.0))
    assert (
        await code_of(stub.SyncFlags(sync_pb2.SyncFlagsRequest()).read())
        is grpc.StatusCode.UNAVAILABLE
    )
    assert (
        await code_of(stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest()))
        is grpc.StatusCode.UNAVAILABLE
    )
    reading = asyncio.ensure_future(stream.read())
    await asyncio.wait([reading], timeout=0.2)
    assert not reading.done()
    board.trust()
    assert share_of(await reading) == 5_000
    stream.cancel()


async def test_what_is_not_here_is_refused(stub: Any) -> None:
    """Metadata is unimplemented, as clients want it.

    Another flag set, and one stream too many, are refused.
    """
    assert (
        await code_of(stub.GetMetadata(sync_pb2.GetMetadataRequest()))
        is grpc.StatusCode.UNIMPLEMENTED
    )
    other = stub.SyncFlags(
        sync_pb2.SyncFlagsRequest(), metadata=(("flagd-selector", "flagSetId=staging"),)
    )
    assert await code_of(other.read()) is grpc.StatusCode.NOT_FOUND
    streams = [
        stub.SyncFlags(
            sync_pb2.SyncFlagsRequest(), metadata=(("flagd-selector", "flagSetId=production"),)
        )
        for _ in range(2)
    ]
    for stream in streams:
        await stream.read()
    assert (
        await code_of(stub.SyncFlags(sync_pb2.SyncFlagsRequest()).read())
        is grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    streams[0].cancel()
    async with asyncio.timeout(60):
        while True:  # until the server has noticed
            try:
                await stub.SyncFlags(sync_pb2.SyncFlagsRequest()).read()
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
    streams[1].cancel()


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return an HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def head(method: str) -> bytes:
    """Return the header block of a call: literals without an index, each below 127 bytes."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/flagd.sync.v1.FlagSyncService/{method}",
        ":authority": "rolloutd",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def rude_client(
    port: int, method: str, calls: int, *, sends_request: bool = True, host: str = "127.0.0.1"
) -> socket.socket:
    """Make calls on one connection and take nothing of any answer: their windows are empty."""
    client = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(host, 0))
    sent = _PREFACE + frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    for stream in range(1, 2 * calls, 2):
        sent += frame(_HEADERS, _END_HEADERS, stream, head(method))
        if sends_request:
            sent += frame(_DATA, _END_STREAM, stream, bytes(5))
    client.sendall(sent)
    return client


@pytest.mark.parametrize(
    ("method", "sends_request"),
    [("SyncFlags", True), ("SyncFlags", False), ("FetchAllFlags", True), ("FetchAllFlags", False)],
)
async def test_one_client_leaves_room_for_others(
    board: FlagBoard, method: str, sends_request: bool
) -> None:
    """An address whose calls never end keeps nobody else from the flags.

    It takes no answer, and perhaps sends no request.
    """
    address = SyncAddress(max_streams=8, max_per_client=4)
    server = FlagdSyncServer(board, address, flag_set_id="production")
    await server.start()
    rude = rude_client(server.port, method, 40, sends_request=sends_request, host="127.0.0.2")
    try:
        await asyncio.sleep(0.5)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = sync_pb2_grpc.FlagSyncServiceStub(channel)
            fetched = await stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest())
            assert share_of(fetched) == 1_000
            streams = [stub.SyncFlags(sync_pb2.SyncFlagsRequest()) for _ in range(4)]
            for stream in streams:
                assert share_of(await stream.read()) == 1_000
            fifth = stub.SyncFlags(sync_pb2.SyncFlagsRequest())
            assert await code_of(fifth.read()) is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        rude.close()
        await server.stop()


async def test_idle_connections_do_not_take_every_descriptor(
    board: FlagBoard, server: FlagdSyncServer, stub: Any
) -> None:
    """Beyond the limit connections are closed, and a client that was there before goes on."""
    stream = stub.SyncFlags(sync_pb2.SyncFlagsRequest())
    await stream.read()
    limit = 2 + MORE_CONNECTIONS
    before = len(os.listdir("/proc/self/fd"))
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3 * limit)]
    try:
        await asyncio.sleep(1.0)
        accepted = len(os.listdir("/proc/self/fd")) - before - len(idle)
        assert accepted <= limit
        board.update(make_rollout(revision=2, percent=50.0))
        assert share_of(await stream.read()) == 5_000
    finally:
        for connection in idle:
            connection.close()
    stream.cancel()


async def test_stopping_does_not_wait_for_clients(board: FlagBoard) -> None:
    """With open streams the server stops without waiting, and starts again on the same port."""
    server = FlagdSyncServer(board, SyncAddress(), flag_set_id="production")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream = sync_pb2_grpc.FlagSyncServiceStub(channel).SyncFlags(sync_pb2.SyncFlagsRequest())
        await stream.read()
        started = time.monotonic()
        await server.stop()
        assert time.monotonic() - started < 20  # the streams would last for ever
    again = FlagdSyncServer(board, SyncAddress(port=server.port), flag_set_id="production")
    await again.start()
    await again.stop()


async def test_it_proves_who_it_is(board: FlagBoard, certificate: tuple[Path, Path]) -> None:
    """With a certificate it speaks TLS only."""
    address = SyncAddress(certificate_file=certificate[0], key_file=certificate[1])
    server = FlagdSyncServer(board, address, flag_set_id="production")
    await server.start()
    try:
        credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
            stub = sync_pb2_grpc.FlagSyncServiceStub(channel)
            assert share_of(await stub.FetchAllFlags(sync_pb2.FetchAllFlagsRequest())) == 1_000
    finally:
        await server.stop()


async def test_what_cannot_work_is_the_operators_to_fix(
    board: FlagBoard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A taken port, a missing certificate and a missing grpcio are said at start, with the fix."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = FlagdSyncServer(
            board, SyncAddress(port=taken.getsockname()[1]), flag_set_id="production"
        )
        with pytest.raises(ConfigInvalid, match=r"flagd_sync\.port"):
            await server.start()
        await server.stop()
    with pytest.raises(ConfigInvalid, match="certificate_file"):
        FlagdSyncServer(
            board, SyncAddress(certificate_file=tmp_path / "missing.pem"), flag_set_id="production"
        )
    monkeypatch.setattr(importlib, "import_module", without_grpc(importlib.import_module))
    with pytest.raises(ConfigInvalid, match=r"pip install 'rolloutd\[grpc\]'"):
        FlagdSyncServer(board, SyncAddress(), flag_set_id="production")


def without_grpc(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return an import that knows no grpcio."""

    def pretend(name: str) -> Any:
        if name.partition(".")[0] == "grpc":
            raise builtins.ImportError(name)
        return load(name)

    return pretend
