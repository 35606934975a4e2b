"""A fleet: thousands of WebSockets in one cheap process, which all say their piece, then listen, and may all come back.

What a socket does until it holds a place is a small machine of its own, driven by one epoll: connected, asked, greeted,
placed. So a whole process connects as fast as the server lets it, with no more than `AT_ONCE` sockets under way. What
is pushed later is noted with the kernel's receive time (SO_TIMESTAMPNS), so that this process being busy does not
count against the server, and is looked into afterwards. Pings are answered. Source addresses are new in every run and
every storm, so that ports which still wait for their end are in nobody's way.
"""

import gc
import json
import random
import select
import socket
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from bench import machine
from bench.ages import Ages, Heard, Release, judge
from bench.prefill import user_id_of
from bench.sockets import (
    ANCILLARY_BYTES,
    IP_BIND_ADDRESS_NO_PORT,
    PING_FRAME,
    PONG_FRAME,
    SO_TIMESTAMPNS,
    handshake,
    masked,
    payloads_of,
)

AT_ONCE = 128
SOCKETS_PER_ADDRESS = 2_000
EVENTS_PER_POLL = 4096
RECEIVE_BYTES = 2048
STALL_LIMIT_S = 60.0
NAP_S = 0.01
TEXT_BEGINS = b"\x81"
IDLE_S = 0.25


class Storm(NamedTuple):
    """How a fleet connected: from the first connect to the last place, in wall-clock ns, and the CPU it took here."""

    began_ns: int
    ended_ns: int
    cpu_s: float


class Fleet:
    """So many visitors with a socket each, all to one port; visitor `first` + i has index i."""

    def __init__(self, port: int, first: int, count: int) -> None:
        self.count = count
        self.tokens = [""] * count
        self.numbers = array("l", [0]) * count
        self.positions = array("l", [0]) * count
        self.heard = Heard()
        self._port = port
        self._first = first
        self._poll = select.epoll()
        self._by_descriptor: dict[int, tuple[int, socket.socket]] = {}
        self._octets = (1, 1)
        self._placed = bytearray(count)

    # ---- connecting ---------------------------------------------------------------------------------

    def connect(self) -> None:
        """Give every visitor a socket and a place on it; who has a token already shows it, the others join."""
        waiting, unread = iter(range(self.count)), dict[int, bytes]()
        self._placed = bytearray(self.count)
        self._begin(waiting, AT_ONCE, handshake(self._port))
        placed, moved_s = 0, time.monotonic()
        while placed < self.count:
            before = placed
            for descriptor, _ in self._poll.poll(1.0, EVENTS_PER_POLL):
                index, one = self._by_descriptor[descriptor]
                if self._go_on(index, one, unread):
                    placed += 1
            if placed > before:
                moved_s = time.monotonic()
                self._begin(waiting, placed - before, handshake(self._port))
            elif time.monotonic() - moved_s > STALL_LIMIT_S:
                raise TimeoutError(f"{self.count - placed} of {self.count} sockets got no place")

    def connect_bare(self) -> None:
        """Connect all to a bare sender, which wants to hear nothing."""
        self._begin(iter(range(self.count)), self.count, b"")

    def _begin(self, waiting: Iterator[int], most: int, request: bytes) -> None:
        if len(self._by_descriptor) == 0:
            self._octets = (random.SystemRandom().randrange(1, 255), random.SystemRandom().randrange(1, 255))
        for _, index in zip(range(most), waiting, strict=False):
            one = socket.socket()
            one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            one.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            one.bind((f"127.{self._octets[0]}.{self._octets[1]}.{1 + index // SOCKETS_PER_ADDRESS}", 0))
            one.connect(("127.0.0.1", self._port))
            if request:
                one.send(request)
            self._by_descriptor[one.fileno()] = (index, one)
            self._poll.register(one.fileno(), select.EPOLLIN | select.EPOLLET)

    def _go_on(self, index: int, one: socket.socket, unread: dict[int, bytes]) -> bool:
        """Take what came on a socket; returns whether it has a place now and had none before."""
        if self._placed[index]:
            self._answer_ping(index, one)
            return False
        data = unread.pop(index, b"") + one.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError(f"socket {index} was closed by the server")
        if data.startswith(b"HTTP/1.1 "):
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                unread[index] = head
                return False
            if not head.startswith(b"HTTP/1.1 101"):
                raise ConnectionRefusedError(f"socket {index} was answered {head[:200]!r}")
            one.send(self._first_message(index))
        payloads = payloads_of(data)
        if not payloads:
            unread[index] = data
            return False
        place = json.loads(payloads[0])
        if place["type"] != "place":
            raise ConnectionRefusedError(f"socket {index} was told {place}")
        self.tokens[index] = place["token"] or self.tokens[index]
        self.numbers[index], self.positions[index] = place["number"], place["position"] or 0
        self._placed[index] = True
        return True

    def _first_message(self, index: int) -> bytes:
        if self.tokens[index]:
            return masked(b'{"token":"%b"}' % self.tokens[index].encode())
        return masked(b'{"join":{"user_id":"%b"}}' % user_id_of(self._first + index).encode())

    def close(self) -> None:
        """Cut all connections."""
        for _, one in self._by_descriptor.values():
            one.close()
        self._by_descriptor.clear()

    # ---- listening ----------------------------------------------------------------------------------

    def listen(self, until_ns: int) -> None:
        """Note all that comes until a wall-clock time, and answer pings; anew."""
        self.heard = Heard()
        owners, chunks, stamps = self.heard.owners, self.heard.chunks, list[bytes]()
        receivers = {fd: (index, one.recvmsg, one.send) for fd, (index, one) in self._by_descriptor.items()}
        while time.time_ns() < until_ns:
            for descriptor, _ in self._poll.poll(0.05, EVENTS_PER_POLL):
                index, receive, send = receivers[descriptor]
                data, ancillary, _, _ = receive(RECEIVE_BYTES, ANCILLARY_BYTES)
                if data[:1] != TEXT_BEGINS and PING_FRAME in data:
                    send(PONG_FRAME)
                    data = data.replace(PING_FRAME, b"")
                    if not data:
                        continue
                if not data:
                    raise ConnectionResetError(f"socket {index} was closed by the server")
                owners.append(index)
                chunks.append(data)
                stamps.append(ancillary[0][2])
            time.sleep(NAP_S)
        for stamp in stamps:
            seconds, nanoseconds = struct.unpack("=qq", stamp)
            self.heard.times_ns.append(seconds * 1_000_000_000 + nanoseconds)

    def idle(self) -> None:
        """Read what came and answer pings, so that nobody is taken for gone between two orders."""
        while events := self._poll.poll(0.0, EVENTS_PER_POLL):
            for descriptor, _ in events:
                self._answer_ping(*self._by_descriptor[descriptor])

    def _answer_ping(self, index: int, one: socket.socket) -> None:
        data = one.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError(f"socket {index} was closed by the server")
        if PING_FRAME in data:
            one.send(PONG_FRAME)

    def bare_ages(self, moments_ns: list[int]) -> Ages:
        """Return the ages of a bare sender's frames, the k-th of each socket counted from the k-th moment."""
        ages, told = Ages(), array("l", [0]) * self.count
        for index, time_ns, chunk in zip(self.heard.owners, self.heard.times_ns, self.heard.chunks, strict=True):
            for _ in payloads_of(chunk):
                ages.frames_ms.append((time_ns - moments_ns[told[index]]) / 1e6)
                told[index] += 1
        ages.told = sum(told)
        ages.releases_ms = ages.frames_ms
        return ages

    def wrong_positions(self, total: int) -> list[tuple[int, int]]:
        """Return (number, position) of those whose last whole place is not what it has to be after `total` releases."""
        pairs = zip(self.numbers, self.positions, strict=True)
        return [(number, position) for number, position in pairs if position != max(0, number - total)]


def serve_pipe(pipe: Connection, port: int, first: int, count: int, cores: set[int]) -> None:
    """Do what is asked over a pipe, until told None."""
    machine.raise_file_limit()
    machine.pin(0, cores)
    gc.disable()  # what is noted is no garbage, and there is a lot of it
    fleet = Fleet(port, first, count)

    def storm(connect: Callable[[], None]) -> Storm:
        began_ns, began_cpu_s = time.time_ns(), time.process_time()
        connect()
        return Storm(began_ns, time.time_ns(), time.process_time() - began_cpu_s)

    def come_back() -> None:
        fleet.close()
        fleet.connect()

    def listen(until_ns: int) -> float:
        began_cpu_s = time.process_time()
        fleet.listen(until_ns)
        return time.process_time() - began_cpu_s

    def judged(releases: list[Release]) -> Ages:
        return judge(fleet.numbers, fleet.heard, releases)

    orders: dict[str, Callable[..., Any]] = {
        "connect": lambda: storm(fleet.connect),
        "connect bare": lambda: storm(fleet.connect_bare),
        "come back": lambda: storm(come_back),
        "numbers": lambda: fleet.numbers,
        "wrong": fleet.wrong_positions,
        "listen": listen,
        "judge": judged,
        "bare ages": fleet.bare_ages,
        "close": fleet.close,
    }
    while True:
        while not pipe.poll(IDLE_S):
            fleet.idle()
        if (order := pipe.recv()) is None:
            return
        name, *arguments = order
        pipe.send(orders[name](*arguments))
