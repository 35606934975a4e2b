"""Bytes on a socket: what the abuse tests send by hand and read back within a bounded time."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.views import Stats
from tests.server.running import Running, running

READ_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, and whether the server closed the connection after it."""

    status: int
    head: str
    body: bytes
    closed: bool

    @property
    def problem(self) -> dict[str, object]:
        """Return the body as the problem document it must be."""
        assert "content-type: application/problem+json" in self.head.lower(), self
        problem: dict[str, object] = msgspec.json.decode(self.body)
        assert problem["status"] == self.status
        return problem


@asynccontextmanager
async def unchanged(folder: Path) -> AsyncIterator[Running]:
    """Run a server with an open event and three in line; see that the block has left the line as it was."""
    async with running(folder, body_timeout_s=0.15, first_message_s=0.15) as server:
        await server.open_event(batch_interval_s=3600)
        for number in range(3):
            await server.place(f"u{number}")
        before = await _facts(server)
        yield server
        assert await _facts(server) == before
        server.backend.venue.check()
        assert (await send(server.port, request("GET", "/healthz"))).status == 200


async def _facts(server: Running) -> tuple[int, int, Stats]:
    stats = await server.backend.stats("e1")
    return server.backend.venue.digest(), server.backend.status().version, stats._replace(next_release_in_ms=None)


def assert_refused(reply: Reply, *statuses: int) -> None:
    """See that an answer is a problem document of one of these statuses (any 4xx when none is given)."""
    assert reply.status in statuses if statuses else 400 <= reply.status < 500, reply
    assert reply.problem["code"]


async def send(port: int, *pieces: bytes, end: bool = False) -> Reply:
    """Send bytes as they are and read one answer; status 0 when the server closed without a word.

    Raises TimeoutError for a server that does neither.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            if writer.is_closing():
                break
            writer.write(piece)
            await asyncio.sleep(0)
        if end:
            writer.write_eof()
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await _read(reader)
    except ConnectionError:
        return Reply(0, "", b"", True)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Reply:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
        assert not error.partial, error.partial
        return Reply(0, "", b"", True)
    fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head.split("\r\n")[1:]}
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    closed = fields.get("connection") == "close"
    if closed:
        assert await reader.read() == b"", "nothing follows an answer that closes"
    return Reply(int(head.split(" ")[1]), head, body, closed)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """Return a request with a Host; nothing is added that is not asked for, and nothing is checked."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def post(path: str, body: bytes, *headers: str, kind: str | None = "application/json") -> bytes:
    """Return a POST with its length."""
    kinds = [] if kind is None else [f"Content-Type: {kind}"]
    return request("POST", path, *kinds, f"Content-Length: {len(body)}", *headers, body=body)


class RawSocket:
    """A WebSocket client that sends whatever frame it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, path: str) -> "RawSocket":
        """Open and upgrade."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        writer.write(
            request("GET", path, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
        )
        async with asyncio.timeout(READ_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return cls(reader, writer)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        """Return (opcode, payload) of the next frame; (8, b"") when the connection just ends."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                first, second = await self._reader.readexactly(2)
                size = second & 127
                if size == 126:
                    size = int.from_bytes(await self._reader.readexactly(2), "big")
                return first & 15, await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 8, b""

    async def close_code(self) -> int:
        """Read on to the close frame and return its code; 0 when the connection ended without one."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def frame(payload: bytes, opcode: int = 1, *, masked: bool = True, head: int | None = None) -> bytes:
    """Return a client's frame; `head` overrides the first byte."""
    first = bytes((head if head is not None else 0x80 | opcode,))
    size, bit = len(payload), 0x80 if masked else 0
    if size < 126:
        length = bytes((bit | size,))
    elif size < 2**16:
        length = bytes((bit | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((bit | 127,)) + size.to_bytes(8, "big")
    if not masked:
        return first + length + payload
    mask = os.urandom(4)
    return first + length + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
