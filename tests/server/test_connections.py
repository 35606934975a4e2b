"""The door before HTTP: sockets turn off there, however their request comes, and are counted and ended like all."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from server.answers import Answer
from server.connections import HttpServer, Successor, Upgraded
from tests.server.abuse import frame, request
from tests.server.running import Running, running

LIMIT_S = 5.0
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY)
ASKS = request("GET", "/v1/events/e1/updates", *UPGRADE)


class Echo(Successor):
    """Says back what it is told."""

    def __init__(self) -> None:
        self._lost: Callable[[], None] | None = None

    def begin(self, transport: asyncio.Transport, on_lost: Callable[[], None], came: bytes) -> None:
        self._transport, self._lost = transport, on_lost
        transport.write(came)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        assert self._lost is not None
        self._lost()


@asynccontextmanager
async def serving(most_per_address: int | None) -> AsyncIterator[tuple[HttpServer, int]]:
    """Serve an echo to whoever begins with a line feed, and HTTP to the others."""

    async def handle(asked: web.BaseRequest) -> Answer:
        return Answer(200, b"{}")

    def upgrade(data: bytes) -> Upgraded | None:
        return Upgraded(Echo(), b"yes ") if data.startswith(b"\n") else None

    http = HttpServer(handle, upgrade, most_per_address)
    listening = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)
    try:
        yield http, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await http.shutdown(1.0)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def opened(port: int, data: bytes) -> Stream:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def read(stream: Stream, size: int) -> bytes:
    async with asyncio.timeout(LIMIT_S):
        return await stream[0].read(size)


async def ended(stream: Stream) -> bool:
    try:
        return await read(stream, 1) == b""
    except ConnectionError:
        return True


async def turned_away(port: int) -> bool:
    stream = await opened(port, b"\n")
    try:
        return await ended(stream)
    finally:
        stream[1].close()


async def test_a_connection_becomes_what_it_begins_like() -> None:
    async with serving(None) as (_, port):
        echo, http = await opened(port, b"\n"), await opened(port, request("GET", "/"))
        assert await read(echo, 4) == b"yes "
        echo[1].write(b"and so on")
        assert await read(echo, 9) == b"and so on"
        assert (await read(http, 12)) == b"HTTP/1.1 200"
        for stream in (echo, http):
            stream[1].close()


@pytest.mark.parametrize("first", [b"\n", request("GET", "/"), b""], ids=["a socket", "HTTP", "nothing yet"])
async def test_an_address_has_only_so_many_connections_whatever_they_are(first: bytes) -> None:
    async with serving(1) as (_, port):
        held = await opened(port, first)
        if first:
            assert await read(held, 3)
        else:
            await asyncio.sleep(0.01)
        assert await turned_away(port)
        held[1].close()
        async with asyncio.timeout(LIMIT_S):
            while await turned_away(port):
                pass


async def test_a_shutdown_ends_connections_of_every_kind() -> None:
    async with serving(None) as (http, port):
        streams = [await opened(port, first) for first in (b"\n", request("GET", "/"), b"")]
        assert await read(streams[0], 4) and await read(streams[1], 1000)
        await http.shutdown(0.1)
        for stream in streams:
            assert await ended(stream)
            stream[1].close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", first_message_s=0.2) as started:
        await started.open_event("e1")
        yield started


@pytest.mark.parametrize("cut", [0, 1, len(ASKS) // 2, len(ASKS) - 1])
async def test_a_socket_is_served_however_its_request_comes(server: Running, cut: int) -> None:
    stream = await opened(server.port, ASKS[:cut])
    await stream[1].drain()
    await asyncio.sleep(0.01)
    stream[1].write(ASKS[cut:])
    head = await stream[0].readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    stream[1].write(frame(b'{"join": {"user_id": "u1"}}'))
    assert b'"position":1' in await read(stream, 2000)
    stream[1].close()


async def test_what_comes_too_early_behind_the_request_is_not_lost(server: Running) -> None:
    stream = await opened(server.port, ASKS + frame(b'{"join": {"user_id": "u1"}}'))
    await stream[0].readuntil(b"\r\n\r\n")
    assert b'"position":1' in await read(stream, 2000)
    stream[1].close()


async def test_a_socket_may_follow_other_requests_on_its_connection(server: Running) -> None:
    stream = await opened(server.port, request("GET", "/healthz") + ASKS)
    assert (await stream[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 101 " in await stream[0].readuntil(b"\r\n\r\n")
    stream[1].write(frame(b'{"join": {"user_id": "u1"}}'))
    assert b'"position":1' in await read(stream, 2000)
    stream[1].close()
