"""The floor of the push figure: a Python loop of `socket.send` over so many connections. A process of its own.

The same number of sockets, frames of the same size, a reader of the same kind in another process, and nothing
else: no ranks, no frames to build, no event loop.
"""

import socket
import time
from multiprocessing.connection import Connection

from bench import machine

BACKLOG = 4096
ACCEPT_LIMIT_S = 60.0


def serve_pipe(pipe: Connection, count: int, cores: set[int] | None = None) -> None:
    """Listen, say the port, accept all, then send each frame that comes through the pipe to everybody."""
    machine.raise_file_limit()
    machine.pin(0, {0} if cores is None else cores)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        listening.settimeout(ACCEPT_LIMIT_S)
        pipe.send(listening.getsockname()[1])
        connections = [_accept(listening) for _ in range(count)]
    pipe.send(len(connections))
    while (frame := pipe.recv()) is not None:
        began_s, began_ns = time.perf_counter(), time.time_ns()
        for connection in connections:
            connection.send(frame)
        pipe.send((began_ns, time.perf_counter() - began_s))
    for connection in connections:
        connection.close()


def _accept(listening: socket.socket) -> socket.socket:
    connection, _ = listening.accept()
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
