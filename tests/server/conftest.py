"""Fixtures for tests of the server: real daemons, and logging as it was."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest
import structlog

from tests.server.daemons import Daemon

StartDaemon: TypeAlias = Callable[..., Daemon]


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Give a function that starts a daemon: `start_daemon(*flags, data=…, env=…)`; all are ended afterwards."""
    started: list[Daemon] = []

    def start(*flags: str, data: Path | None = None, env: Mapping[str, str] | None = None) -> Daemon:
        daemon = Daemon(data or tmp_path / "data", *flags, env=env)
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        daemon.kill()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    """Give a daemon with an empty folder."""
    return start_daemon()


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Put structlog back to how it was."""
    before = structlog.get_config()
    yield
    structlog.reset_defaults()
    structlog.configure(**before)
