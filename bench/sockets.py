"""Many sockets in one cheap process: it connects, joins over each of them, and notes what is pushed and when.

Runs as a process of its own on the generator's core, and is talked to over a pipe. The time of a frame is the
kernel's (SO_TIMESTAMPNS), so that this process being busy does not count against the server. Frames are noted
while they come and looked into afterwards. Source addresses are new in every run, so that ports of the run
before, which still wait for their end, are in nobody's way.
"""

import json
import random
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from bench import machine
from bench.prefill import user_id_of
from bench.processes import EVENT

WAVE = 128
SOCKETS_PER_ADDRESS = 2_000
ANSWER_LIMIT_S = 20.0
RECEIVE_BYTES = 2048
EVENTS_PER_POLL = 1024
SO_TIMESTAMPNS = 35
IP_BIND_ADDRESS_NO_PORT = 24
ANCILLARY_BYTES = socket.CMSG_SPACE(16)
TEXT = 0x81
PING_FRAME = b"\x89\0"
PONG_FRAME = b"\x8a\x80\0\0\0\0"


@dataclass(slots=True)
class Collected:
    """What came in one round: for each read, whose socket, the kernel's time in ns, and the bytes."""

    owners: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)


class Sockets:
    """So many connections to one port."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._sockets: list[socket.socket] = []
        self._index_of: dict[int, int] = {}
        self._pinged: list[int] = []
        self._octets = random.SystemRandom().randrange(1, 255), random.SystemRandom().randrange(1, 255)
        self._count = count

    def connect(self) -> None:
        """Connect all, without saying anything."""
        while len(self._sockets) < self._count:
            self._add(self._open())

    def join(self) -> list[int]:
        """Connect all, join over each socket, and return the numbers given, by index."""
        numbers: list[int] = []
        while len(numbers) < self._count:
            wave = [self._open() for _ in range(min(WAVE, self._count - len(numbers)))]
            for one in wave:
                one.sendall(handshake(self._port))
            for one in wave:
                head = _receive_until(one, b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101"), head[:200]
            for index, one in enumerate(wave, len(numbers)):
                one.sendall(masked(json.dumps({"join": {"user_id": user_id_of(index)}}).encode()))
            for one in wave:
                numbers.append(json.loads(_receive_frame(one))["number"])
                self._add(one)
        return numbers

    def collect(self, expected: int, limit_s: float) -> Collected:
        """Note what comes until `expected` sockets were sent a text frame, or the time is up. Pings stay unanswered."""
        got = Collected()
        owners, times_ns, chunks = got.owners, got.times_ns, got.chunks
        told: set[int] = set()
        pinged = self._pinged
        deadline_s = time.monotonic() + limit_s
        while len(told) < expected and time.monotonic() < deadline_s:
            for descriptor, _ in self._poll.poll(0.05, EVENTS_PER_POLL):
                index = self._index_of[descriptor]
                data, ancillary, _, _ = self._sockets[index].recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES)
                seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2]) if ancillary else (0, time.time_ns())
                if data[:2] == PING_FRAME:
                    pinged.append(index)
                    while data[:2] == PING_FRAME:
                        data = data[2:]
                if data:
                    owners.append(index)
                    times_ns.append(seconds * 1_000_000_000 + nanoseconds)
                    chunks.append(data)
                    told.add(index)
                elif index not in pinged[-1:]:
                    raise ConnectionResetError(f"socket {index} was closed by the server")
        return got

    def answer_pings(self) -> int:
        """Send the pongs that are due; apart from `collect`, so that what they cost the server is not measured."""
        for index in self._pinged:
            self._sockets[index].sendall(PONG_FRAME)
        count = len(self._pinged)
        self._pinged.clear()
        return count

    def close(self) -> None:
        """Close all."""
        for one in self._sockets:
            one.close()

    def _open(self) -> socket.socket:
        one = socket.socket()
        one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        one.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        first, second = self._octets
        one.bind((f"127.{first}.{second}.{1 + len(self._sockets) // SOCKETS_PER_ADDRESS}", 0))
        one.settimeout(ANSWER_LIMIT_S)
        one.connect(("127.0.0.1", self._port))
        return one

    def _add(self, one: socket.socket) -> None:
        self._index_of[one.fileno()] = len(self._sockets)
        self._sockets.append(one)
        self._poll.register(one.fileno(), select.EPOLLIN)


def handshake(port: int) -> bytes:
    """Return the request that asks for a WebSocket."""
    lines = (
        f"GET /v1/events/{EVENT}/updates HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def masked(payload: bytes) -> bytes:
    """Return a client's text frame; the mask is zero, which leaves the payload readable."""
    size = len(payload)
    length = b"%c" % (0x80 | size) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81%b\0\0\0\0%b" % (length, payload)


def _receive_until(one: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = one.recv(RECEIVE_BYTES)
        if not more:
            raise ConnectionResetError(f"closed after {data[:200]!r}")
        data += more
    return data


def _receive_frame(one: socket.socket) -> bytes:
    """Return the payload of one whole text frame."""
    data = b""
    while not (payloads := payloads_of(data)):
        more = one.recv(RECEIVE_BYTES)
        if not more:
            raise ConnectionResetError(f"closed after {data[:200]!r}")
        data += more
    return payloads[0]


def payloads_of(data: bytes) -> list[bytes]:
    """Return the payloads of the whole text frames in a chunk; pings are passed over."""
    payloads: list[bytes] = []
    while len(data) >= 2:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        if len(data) < start + size:
            break
        if data[0] == TEXT:
            payloads.append(data[start : start + size])
        data = data[start + size :]
    return payloads


def serve_pipe(pipe: Connection, port: int, count: int, joins: bool) -> None:
    """Connect, say what numbers were given, then collect as often as asked, until told None; () answers pings."""
    machine.raise_file_limit()
    machine.pin_generator()
    sockets = Sockets(port, count)
    if joins:
        pipe.send(sockets.join())
    else:
        sockets.connect()
        pipe.send([])
    while (order := pipe.recv()) is not None:
        pipe.send(sockets.collect(*order) if order else sockets.answer_pings())
    sockets.close()
