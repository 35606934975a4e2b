"""A real daemon as a subprocess: a free port, a folder of its own, stopped by its pid."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0
CLI = [sys.executable, "-c", "from server.cli import main; main()"]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings of Stanchion, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STANCHION_")}
    return {**kept, "COLUMNS": "100", **(extra or {})}


def until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true answer of `condition`; fails after a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.01)
    return answer


def cli(*arguments: object, env: Mapping[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=clean_environment(env),
        check=False,
    )


class Daemon:
    """`stanchion serve`, or another command that serves, in a process of its own, listening."""

    def __init__(
        self,
        data: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = ("serve",),
        keeps_data: bool = True,
    ) -> None:
        self.data = data
        data.parent.mkdir(parents=True, exist_ok=True)
        self._log = data.parent / f"{data.name}.{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*CLI, *command, "--port", "0", *(["--data", str(data)] if keeps_data else []), *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean_environment(env),
            )
        try:
            self.first_line = self._read_first_line()
            urls = [word.rstrip(",;") for word in self.first_line.split() if word.startswith("http://")]
            assert urls, self.first_line
            self.url = urls[0]
        except BaseException:
            self.kill()
            raise

    def _read_first_line(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(DEADLINE_S), f"the daemon said nothing within {DEADLINE_S:g} s: {self.log()}"
        line = self.process.stdout.readline().decode()
        assert line, f"the daemon ended at once: {self.log()}"
        return line

    @property
    def admin_key(self) -> str:
        return (self.data / "keys" / "admin.key").read_text().strip()

    @property
    def site_key(self) -> str:
        return (self.data / "keys" / "site.key").read_text().strip()

    def log(self) -> str:
        """Return what stands in its log so far."""
        return self._log.read_text()

    def call(
        self, method: str, path: str, body: object = None, *, key: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Return (status, decoded body) of one request."""
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if key is not None:
            request.add_header("Authorization", f"Bearer {key}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                status, raw = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, raw = error.code, error.read()
        return status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode()

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """Return what the admin API answers; it must not refuse."""
        status, answer = self.call(method, path, body, key=self.admin_key)
        assert status < 300, answer
        return answer

    def stop(self) -> int:
        """Ask it to end, as a supervisor does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        code = self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill(self) -> int:
        """End it without a warning."""
        if self.process.poll() is None:
            self.process.kill()
        return self.wait()
