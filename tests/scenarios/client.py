"""A lean HTTP client for scenarios: keep-alive connections that say when they sent and when they were answered.

It speaks just enough HTTP/1.1 to cut answers out of the stream by their Content-Length. A connection that is
lost raises ConnectionError: whoever asked cannot know whether the request was carried out.
"""

import asyncio
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

ANSWER_DEADLINE_S = 30.0
T = TypeVar("T")


class Reply(NamedTuple):
    """One answer, with the monotonic moments at which it was asked for and had come."""

    status: int
    body: bytes
    sent_s: float
    answered_s: float

    def json(self, kind: type[T]) -> T:
        """Return the body as a type of msgspec."""
        return msgspec.json.decode(self.body, type=kind)


class PlaceReply(msgspec.Struct, rename={"pass_": "pass"}):
    """What scenarios look at in a Place."""

    status: str
    number: int
    user_id: str = ""
    arrival: int = 0
    position: int | None = None
    token: str | None = None
    epoch: int | None = None
    version: int | None = None
    pass_: str | None = None


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._sent_s = 0.0
        self._waiting: asyncio.Future[Reply] | None = None
        self._lost: BaseException | None = None

    @classmethod
    async def open(cls, url: str) -> "Connection":
        """Connect to a daemon; raises OSError."""
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        _, connection = await asyncio.get_running_loop().create_connection(cls, parts.hostname, parts.port)
        return connection

    async def ask(self, request: bytes) -> Reply:
        """Send a whole request and return the answer; raises ConnectionError when none comes."""
        if self._lost is not None or self._transport is None:
            raise ConnectionError("the connection is gone")
        self._waiting = asyncio.get_running_loop().create_future()
        self._sent_s = time.monotonic()
        self._transport.write(request)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                return await self._waiting
        finally:
            self._waiting = None

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        answer = cut_answer(buffer)
        if answer is None:
            return
        status, body, self._buffer = answer
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Reply(status, body, self._sent_s, time.monotonic()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionError("the server hung up")
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("the server hung up before it answered"))


def cut_answer(buffer: bytes) -> tuple[int, bytes, bytes] | None:
    """Return (status, body, what follows) of the first answer in a buffer, None while it is not whole."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    at = buffer.find(b"Content-Length: ", 0, head_end)
    length = int(buffer[at + 16 : buffer.find(b"\r", at)]) if at >= 0 else 0
    end = head_end + 4 + length
    if len(buffer) < end:
        return None
    return int(buffer[9:12]), buffer[head_end + 4 : end], buffer[end:]


def request(method: str, path: str, body: object = None, *, bearer: str = "", key: str = "") -> bytes:
    """Return a whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: queue.test"]
    raw = b""
    if body is not None:
        raw = msgspec.json.encode(body)
        lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"]
    if bearer:
        lines.append(f"Authorization: Bearer {bearer}")
    if key:
        lines.append(f"Idempotency-Key: {key}")
    return "\r\n".join([*lines, "", ""]).encode() + raw


def read_lines(url: str, admin_key: str, kind: type[T], from_lsn: int = 1, event_id: str = "sale") -> list[T]:
    """Return the records of an event from an LSN on, as the admin API exports them; blocks."""
    address = f"{url}/v1/admin/events/{event_id}/records?from={from_lsn}"
    asked = urllib.request.Request(address, headers={"Authorization": f"Bearer {admin_key}"})
    with urllib.request.urlopen(asked, timeout=ANSWER_DEADLINE_S) as response:
        lines: list[T] = msgspec.json.Decoder(kind).decode_lines(response.read())
    return lines


@contextmanager
def connections(pool: Sequence[Connection]) -> Iterator[Sequence[Connection]]:
    """Close all of them at the end."""
    try:
        yield pool
    finally:
        for connection in pool:
            connection.close()


async def gather_over(pool: Sequence[Connection], requests: Sequence[bytes]) -> list[Reply]:
    """Return the answers to all requests, in their order, asked over all connections at once."""
    replies: list[Any] = [None] * len(requests)
    supply = iter(range(len(requests)))

    async def work(connection: Connection) -> None:
        for index in supply:
            replies[index] = await connection.ask(requests[index])

    async with asyncio.TaskGroup() as tasks:
        for connection in pool:
            tasks.create_task(work(connection))
    return replies
