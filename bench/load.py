"""A lean HTTP client for load: keep-alive connections, prebuilt requests, latencies into a histogram.

It must cost the machine less than what it measures, so it speaks just enough HTTP/1.1 to cut answers out of
the stream by their Content-Length. Closed loop: each connection sends its next request when it has its answer,
so there is no schedule to fall behind, and a latency is the time from sending to the whole answer. All
connections stand before the clock starts.
"""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import uvloop
from hdrh.histogram import HdrHistogram

LONGEST_US = 60_000_000
TIME_LIMIT_S = 300.0
HOST = "127.0.0.1"


@dataclass(slots=True)
class LoadResult:
    """What one run of load saw; `per_s` is answers by wall time."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def answers(self) -> int:
        """Return how many requests were answered."""
        return self.statuses.total()

    @property
    def per_s(self) -> float:
        """Return answers a second."""
        return self.answers / self.seconds if self.seconds else 0.0

    def percentiles_ms(self) -> dict[str, float]:
        """Return p50, p90, p99, p99.9 and the maximum in milliseconds."""
        return percentiles_ms(self.latencies_s)


def percentiles_ms(latencies_s: Iterable[float]) -> dict[str, float]:
    """Return p50, p90, p99, p99.9 and the maximum in milliseconds, through an HdrHistogram."""
    histogram = HdrHistogram(1, LONGEST_US, 3)
    for latency_s in latencies_s:
        histogram.record_value(min(int(latency_s * 1e6) or 1, LONGEST_US))
    marks = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
    named = {name: histogram.get_value_at_percentile(mark) / 1000 for name, mark in marks.items()}
    return {**named, "max": histogram.get_max_value() / 1000}


class _Connection(asyncio.Protocol):
    """One keep-alive connection that works through a shared supply of requests."""

    def __init__(
        self,
        requests: Iterator[bytes],
        result: LoadResult,
        on_answer: Callable[[float, float, bytes], None] | None,
    ) -> None:
        self._requests = requests
        self._result = result
        self._on_answer = on_answer
        self._buffer = b""
        self._sent_s = 0.0
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send_next(self) -> None:
        """Send the next request, or close when there is none."""
        assert self._transport is not None
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
        else:
            self._sent_s = time.perf_counter()
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        head_end = buffer.find(b"\r\n\r\n")
        at = buffer.find(b"Content-Length: ", 0, head_end)
        if head_end < 0:
            self._buffer = buffer
            return
        body_at = head_end + 4
        length = int(buffer[at + 16 : buffer.find(b"\r", at)]) if at >= 0 else 0
        if len(buffer) < body_at + length:
            self._buffer = buffer
            return
        self._buffer = b""
        now_s = time.perf_counter()
        self._result.latencies_s.append(now_s - self._sent_s)
        self._result.statuses[int(buffer[9:12])] += 1
        if self._on_answer is not None:
            self._on_answer(self._sent_s, now_s, buffer[body_at : body_at + length])
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def closed_loop(
    host: str,
    port: int,
    requests: Iterator[bytes],
    *,
    connections: int = 64,
    on_answer: Callable[[float, float, bytes], None] | None = None,
) -> LoadResult:
    """Send all requests over so many keep-alive connections and return what came back.

    `on_answer` is told of each answer: when it was asked for, when it came, and its body.
    """
    result = LoadResult()
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(lambda: _Connection(requests, result, on_answer), host, port)
        for _ in range(connections)
    ]
    started_s = time.perf_counter()
    for _, connection in pairs:
        connection.send_next()
    await asyncio.gather(*(connection.done for _, connection in pairs))
    result.seconds = time.perf_counter() - started_s
    return result


def run_load(
    port: int,
    requests: Iterable[bytes],
    *,
    connections: int = 64,
    on_answer: Callable[[float, float, bytes], None] | None = None,
) -> LoadResult:
    """Run a closed loop against this machine and wait for its end; raises TimeoutError after TIME_LIMIT_S."""
    load = closed_loop(HOST, port, iter(requests), connections=connections, on_answer=on_answer)
    return uvloop.run(asyncio.wait_for(load, TIME_LIMIT_S))


def post(host: str, path: str, body: bytes, *headers: str) -> bytes:
    """Return a whole POST request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def get(host: str, path: str, *headers: str) -> bytes:
    """Return a whole GET request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()
