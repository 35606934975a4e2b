"""A real PostgreSQL for tests: a folder and a port of its own, on loopback, run by a user that is not root."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.server.daemons import DEADLINE_S, until
from tests.server.proxies import free_port

USER = "postgres"
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": os.defpath}
# What starts fast and holds little; what it confirms is as durable as ever.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "2MB",
    "max_connections": "40",
    "autovacuum": "off",
}


def binaries() -> Path:
    """Return the folder of the newest server that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    assert found, "PostgreSQL is not installed: make servers"
    return found[-1]


def _as_owner() -> list[str]:
    """Return what a command is put behind, since the server refuses to be run by root."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []


class Postgres:
    """A server on a folder; it can be killed, frozen, and started again on the same port."""

    def __init__(self, folder: Path, log: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._log = log
        self.port = free_port()
        self.url = f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"
        self._settings = {**SETTINGS, **(settings or {})}
        command = [binaries() / "initdb", "-D", folder, "-A", "trust", "-U", USER, "--no-sync", "--no-instructions"]
        subprocess.run(
            [*_as_owner(), *command], env=ENVIRONMENT, cwd="/", check=True, capture_output=True, timeout=DEADLINE_S
        )
        self._process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server; returns once it takes connections."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        command = [*_as_owner(), str(binaries() / "postgres"), "-D", str(self.folder), "-p", str(self.port), *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=ENVIRONMENT, cwd="/", stdout=log, stderr=log)
        try:
            until(self._is_ready, "PostgreSQL taking connections")
        except BaseException:
            self.kill()
            raise
        return self._process

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        status = self.folder / "postmaster.pid"
        lines = status.read_text().split("\n") if status.exists() else []
        return lines[:1] == [str(self._process.pid)] and "ready" in "".join(lines[7:])

    def signal(self, number: int) -> None:
        """Send a signal to every process of the server."""
        main = self._process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for pid in (main, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self) -> None:
        """Stop every process where it stands."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server as a crash does; its other processes notice and end too."""
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self._process.wait(DEADLINE_S)


@contextmanager
def running_postgres(settings: Mapping[str, str] | None = None, log_folder: Path | None = None) -> Iterator[Postgres]:
    """Run a server until the block ends, on a folder that is its owner's alone."""
    folder = Path(tempfile.mkdtemp(prefix="stanchion-postgres-"))
    try:
        if log_folder is not None:
            log_folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam(USER).pw_uid, pwd.getpwnam(USER).pw_gid)
        server = Postgres(folder / "data", (log_folder or folder) / "postgres.log", settings)
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)


@contextmanager
def postgres(log_folder: Path | None = None) -> Iterator[str]:
    """Run a server until the block ends, and give its URL."""
    with running_postgres(log_folder=log_folder) as server:
        yield server.url
