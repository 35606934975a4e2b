"""Bad upgrades and bad frames over real sockets: a problem or a close code, and the line as it was."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.abuse import RawSocket, assert_refused, frame, request, send, unchanged
from tests.server.running import Running

UPDATES = "/v1/events/e1/updates"


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Running]:
    """Give a server with three in line, and see that nothing has changed in the end."""
    async with unchanged(tmp_path) as server:
        yield server


UPGRADES = {
    "neither a socket nor a stream": (),
    "no key": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "a bad key": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x"),
    "an old version": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 8"),
    "no connection header": ("Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "another origin": ("Connection: Upgrade", "Upgrade: websocket", "Origin: https://evil.example"),
    "no origin at all": ("Connection: Upgrade", "Upgrade: websocket", "Origin: null"),
    "a broken origin": ("Connection: Upgrade", "Upgrade: websocket", "Origin: http://["),
    "a stream without a token": ("Accept: text/event-stream",),
}


@pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES.keys())
async def test_a_bad_upgrade_is_a_problem(line: Running, headers: tuple[str, ...]) -> None:
    assert_refused(await send(line.port, request("GET", UPDATES, *headers)))


FIRST = {
    "an unmasked frame": (frame(b'{"token": "x"}', masked=False), {1002, 4401}),
    "an opcode nobody knows": (frame(b"x", 3), {1002}),
    "reserved bits": (frame(b"x", head=0xF1), {1002}),
    "a continuation of nothing": (frame(b"x", 0), {1002}),
    "a fragmented ping": (frame(b"", head=0x09), {1002}),
    "a ping of 126 bytes": (frame(b"a" * 126, 9), {1002}),
    "a frame of a megabyte": (frame(b"a" * 1_000_000), {1009}),
    "a frame that announces 2^62 bytes": (b"\x81\xff" + (2**62).to_bytes(8, "big"), {1002, 1009}),
    "binary": (frame(b"{}", 2), {1008}),
    "no JSON": (frame(b"hello"), {1008}),
    "no UTF-8": (frame(b"\xff\xfe"), {1007, 1008}),
    "neither token nor join": (frame(b"{}"), {1008}),
    "both": (frame(b'{"token": "x", "join": {}}'), {1008}),
    "unknown members": (frame(b'{"token": "x", "admin": true}'), {1008}),
    "a depth bomb": (frame(b"[" * 4000), {1008}),
    "a bad token": (frame(b'{"token": "x"}'), {4401}),
    "the wrong shape": (frame(b'{"token": 5}'), {1008}),
    "a bad user_id": (frame(b'{"join": {"user_id": "a\\u0000b"}}'), {1008}),
    "somebody's user_id without proof": (frame(b'{"join": {"user_id": "u0"}}'), {4401}),
    "a bad idempotency_key": (frame(b'{"join": {"user_id": "x", "idempotency_key": "a b"}}'), {1008}),
    "a close frame of one byte": (frame(b"x", 8), {1002}),
    "a close code nobody may send": (frame((999).to_bytes(2, "big"), 8), {1002}),
    "a polite close": (frame((1000).to_bytes(2, "big"), 8), {1000, 0}),
    "nothing": (b"", {4408}),
    "half a frame": (frame(b'{"token": "x"}')[:5], {4408}),
    "fragments without end": (frame(b"{", head=0x01), {4408}),
}


@pytest.mark.parametrize(("data", "codes"), FIRST.values(), ids=FIRST.keys())
async def test_a_bad_first_message_closes_the_socket_with_a_code(line: Running, data: bytes, codes: set[int]) -> None:
    socket = await RawSocket.open(line.port, UPDATES)
    socket.send(data)
    assert await socket.close_code() in codes
    socket.close()
    assert line.hub.stats()["sockets"] == 0


LATER = {
    "no JSON": (frame(b"hello"), 1008),
    "unknown members": (frame(b'{"position": 1}'), 1008),
    "the wrong shape": (frame(b'{"visible": "yes"}'), 1008),
    "not leaving": (frame(b'{"leave": false}'), 1008),
    "binary": (frame(b"x", 2), 1008),
    "too large": (frame(b'{"visible": true}' + b" " * 5000), 1009),
}


@pytest.mark.parametrize(("data", "code"), LATER.values(), ids=LATER.keys())
async def test_a_bad_later_message_closes_the_socket_with_a_code(line: Running, data: bytes, code: int) -> None:
    token = line.tokens.mint("e1", "u0", 1, 1, 0, 1, int(time.time()))
    socket = await RawSocket.open(line.port, UPDATES)
    socket.send(frame(b'{"token": "%b"}' % token.encode()))
    opcode, place = await socket.frame()
    assert opcode == 1 and b'"position":1' in place
    socket.send(data)
    assert await socket.close_code() == code
    socket.close()
    await asyncio.sleep(0.01)
    assert line.hub.stats()["sockets"] == 0


async def test_a_socket_to_an_event_that_is_not_there_is_told_so(line: Running) -> None:
    socket = await RawSocket.open(line.port, "/v1/events/none/updates")
    socket.send(frame(b'{"join": {"user_id": "x"}}'))
    assert await socket.close_code() == 4404
    socket.close()
