"""So many joins a second over HTTP, on schedule, from one cheap process: what goes on while something else is measured.

Every `TICK_S` the next of `GROUPS` groups of connections reads its answers and sends its next joins, so an answer may
take GROUPS ticks before anybody is late. A latency counts from the scheduled moment to the kernel's receive time, so
that a server that holds everybody up is not excused.
"""

import socket
import struct
import time
from array import array
from multiprocessing.connection import Connection

from bench import machine
from bench.outcome import BenchFailed
from bench.prefill import user_id_of
from bench.processes import EVENT
from bench.sockets import ANCILLARY_BYTES, RECEIVE_BYTES, SO_TIMESTAMPNS

TICK_S = 0.02
GROUPS = 20
ANSWER_LIMIT_S = 20.0
CREATED = b"HTTP/1.1 201 "


class Joiner:
    """Joins at a steady pace; the visitor of the k-th join is the one with index `first` + k."""

    def __init__(self, port: int, first: int, per_s: int) -> None:
        self._next = first
        self._port = port
        self._size = max(1, round(per_s * TICK_S))
        self._sockets = [self._open() for _ in range(GROUPS * self._size)]
        self._due_ns = [0] * len(self._sockets)
        self.latencies_ms = array("d")

    def _open(self) -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self._port), ANSWER_LIMIT_S)
        one.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return one

    def run(self, until_ns: int) -> int:
        """Join until a wall-clock time; returns how many were answered 201, raises BenchFailed for any other answer."""
        due_ns, turn, done = time.time_ns(), 0, 0
        while due_ns < until_ns:
            time.sleep(max(0, due_ns - time.time_ns()) / 1e9)
            first = turn % GROUPS * self._size
            for at in range(first, first + self._size):
                done += self._take_answer(at)
                self._send(at, due_ns)
            due_ns += int(TICK_S * 1e9)
            turn += 1
        return done + sum(map(self._take_answer, range(len(self._sockets))))

    def _send(self, at: int, due_ns: int) -> None:
        body = b'{"user_id":"%b"}' % user_id_of(self._next).encode()
        self._next += 1
        head = f"POST /v1/events/{EVENT}/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._sockets[at].send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._due_ns[at] = due_ns

    def _take_answer(self, at: int) -> int:
        due_ns, self._due_ns[at] = self._due_ns[at], 0
        if not due_ns:
            return 0
        data, ancillary, _, _ = self._sockets[at].recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES)
        if not data.startswith(CREATED):
            raise BenchFailed(f"a join was answered {data[:200]!r}")
        seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
        self.latencies_ms.append((seconds * 1_000_000_000 + nanoseconds - due_ns) / 1e6)
        return 1


def serve_pipe(pipe: Connection, port: int, first: int, per_s: int, cores: set[int]) -> None:
    """Say when it is connected, then join until each time that comes, and answer with latencies, until told None."""
    machine.pin(0, cores)
    joiner = Joiner(port, first, per_s)
    pipe.send(len(joiner.latencies_ms))
    while (until_ns := pipe.recv()) is not None:
        joiner.latencies_ms = array("d")
        joiner.run(until_ns)
        pipe.send(joiner.latencies_ms)
