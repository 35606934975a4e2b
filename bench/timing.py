"""Two small stop-watches: of a loop in this process, and of load on a server in another one."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.load import LoadResult, run_load
from bench.outcome import BenchFailed
from bench.processes import Server


def cpu_us_each(function: Callable[[], object], count: int) -> float:
    """Return the CPU microseconds of this process that each of `count` steps of one call took."""
    began_s = time.process_time()
    function()
    return (time.process_time() - began_s) * 1e6 / count


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of load, with what it cost the server."""

    load: LoadResult
    cpu_us: float

    @property
    def per_s(self) -> float:
        """Return answers a second."""
        return self.load.per_s


def measure(
    server: Server,
    requests: list[bytes],
    status: int,
    *,
    connections: int = 64,
    on_answer: Callable[[float, float, bytes], None] | None = None,
) -> Measured:
    """Send requests to a server; every one must be answered, and with this status."""
    before_s = server.cpu_s()
    load = run_load(server.port, requests, connections=connections, on_answer=on_answer)
    cpu_us = (server.cpu_s() - before_s) * 1e6 / len(requests)
    check_answers(load, len(requests), status)
    return Measured(load, cpu_us)


def check_answers(load: LoadResult, count: int, status: int) -> None:
    """Raise BenchFailed unless all were answered with this status."""
    if load.statuses != {status: count}:
        raise BenchFailed(f"{count} requests were to be answered {status}; the answers: {dict(load.statuses)}")


def latencies_of(runs: Iterable[Measured]) -> list[float]:
    """Return the latencies of several runs together, in seconds."""
    return [latency_s for run in runs for latency_s in run.load.latencies_s]
