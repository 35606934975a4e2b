"""Servers under test as processes of their own, pinned to the server's core, and ended by their pid.

All four kinds say one line on stdout when they listen, ending in their address or port.
"""

import http.client
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bench import machine
from bench.outcome import BenchFailed

P = ParamSpec("P")
R = TypeVar("R")

START_LIMIT_S = 60.0
END_LIMIT_S = 60.0
CALL_LIMIT_S = 60.0
STANCHION = (sys.executable, "-c", "from server.cli import main; main()")
EVENT = "sale"
# Nobody leaves by themselves, and nobody is taken for gone, while a bench runs.
PATIENT = {"presence_timeout_s": 3600, "presence_timeout_hidden_s": 3600}
SETTINGS = {"batch_size": 1, "batch_interval_s": 3600, "claim_window_s": 86_400, "claim_max_s": 86_400, **PATIENT}


class Server:
    """A process that listens on `port`; `pids` are all that count as its cost."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, *others: int) -> None:
        self.process = process
        self.port = port
        self.pids = (process.pid, *others)

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far."""
        return machine.cpu_s(*self.pids)

    def rss_bytes(self) -> int:
        """Return the resident memory."""
        return sum(machine.rss_bytes(pid) for pid in self.pids)


class Daemon(Server):
    """`stanchion serve` with one open event."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, data: Path) -> None:
        super().__init__(process, port)
        self.admin_key = (data / "keys" / "admin.key").read_text().strip()
        self.site_key = (data / "keys" / "site.key").read_text().strip()

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """Return what the admin API answers; raises BenchFailed when it refuses."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_LIMIT_S)
        headers = {"Authorization": f"Bearer {self.admin_key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise BenchFailed(f"{method} {path} was answered {response.status}: {raw[:200]!r}")
        return json.loads(raw) if raw[:1] == b"{" and raw.count(b"\n") < 2 else raw.decode()

    def open_event(self) -> None:
        """Make the event of the bench and open it."""
        self.call("PUT", f"/v1/admin/events/{EVENT}", SETTINGS)
        self.call("POST", f"/v1/admin/events/{EVENT}/open", {})

    def release(self, count: int) -> Any:
        """Release the next in line by hand."""
        return self.call("POST", f"/v1/admin/events/{EVENT}/release", {"count": count})

    def metric(self, name: str) -> float:
        """Return one number of /metrics."""
        match = re.search(rf"^{name} (\S+)$", str(self.call("GET", "/metrics")), re.MULTILINE)
        if match is None:
            raise BenchFailed(f"/metrics has no {name}")
        return float(match.group(1))

    def records(self, from_lsn: int = 1) -> Iterator[dict[str, Any]]:
        """Yield the records of the event, as exported."""
        text = str(self.call("GET", f"/v1/admin/events/{EVENT}/records?from={from_lsn}"))
        return map(json.loads, text.splitlines())


@contextmanager
def daemon(data: Path, *flags: str, profile: Path | None = None, fresh: bool = True) -> Iterator[Daemon]:
    """Run the daemon on a data folder; with `profile` under cProfile from its start, written there at its end."""
    command = [*STANCHION] if profile is None else [sys.executable, "-m", "bench.profiling", str(profile)]
    command += ["serve", "--port", "0", "--data", str(data), "--log-level", "warning", *flags]
    with _started(command, data.parent, r"listens on http://[^:]+:(\d+)") as (process, port):
        server = Daemon(process, port, data)
        if fresh:
            server.open_event()
        yield server


@contextmanager
def follower(primary: Daemon, data: Path, *flags: str) -> Iterator[Server]:
    """Run a follower of the daemon on a data folder; an edge, unless flags say otherwise."""
    command = [*STANCHION, "follow", f"http://127.0.0.1:{primary.port}", "--port", "0", "--log-level", "warning"]
    command += ["--key-file", str(data / "keys" / "replication.key"), *flags]
    with _started(command, data.parent, r"follows.* on http://[^:]+:(\d+)") as (process, port):
        yield Server(process, port)


@contextmanager
def bare_handler(folder: Path) -> Iterator[Server]:
    """Run the floor of every HTTP figure."""
    with _started([sys.executable, "-m", "bench.bare_handler"], folder, r"listening on (\d+)") as (process, port):
        yield Server(process, port)


@contextmanager
def redis_design(folder: Path) -> Iterator[Server]:
    """Run the seed's Redis design: redis-server with every write flushed, and its HTTP service before it."""
    redis_server = shutil.which("redis-server")
    if redis_server is None:
        raise BenchFailed("redis-server is not installed (Debian: apt-get install redis-server)")
    port = free_port()
    data = folder / f"redis-{port}"
    data.mkdir()
    options = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--bind", "127.0.0.1"]
    command = [redis_server, "--port", str(port), "--dir", str(data), *options]
    with _started(command, folder, r"Ready to accept connections( tcp)?()", pinned=False) as (store, _):
        service_command = [sys.executable, "-m", "bench.redis_design", str(port)]
        with _started(service_command, folder, r"listening on (\d+)") as (service, service_port):
            yield Server(service, service_port, store.pid)


@contextmanager
def _started(
    command: list[str], folder: Path, ready: str, *, pinned: bool = True
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a process, wait for its line, and end it with the block; its output goes to a file in `folder`."""
    output = folder / f"output-{time.monotonic_ns()}.txt"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STANCHION_")}
    with output.open("wb") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, env=environment)
    if pinned:
        machine.pin_server(process.pid)
    else:
        machine.pin(process.pid, machine.all_cores())
    try:
        deadline_s = time.monotonic() + START_LIMIT_S
        while (match := re.search(ready, output.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise BenchFailed(f"{command[0]} did not start: {output.read_text(errors='replace')[-400:]}")
            time.sleep(0.02)
        yield process, int(match.group(match.lastindex or 1) or 0)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here: ask first."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT_S)
            return
        process.kill()
        process.wait(END_LIMIT_S)


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def in_fresh_process(limit_s: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what a function returns in a new process on the server's core, which has held nothing before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_on_server_core) as executor:
        return executor.submit(function, *args, **kwargs).result(limit_s)


def _on_server_core() -> None:
    machine.pin_server(0)
