"""A daemon whose wall clock can be set by hours while it runs: libfaketime, with the monotonic clock left alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.server.daemons import Daemon

# libfaketime is no library that a linker finds: Debian keeps it in a folder of its own, one for each architecture.
FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
NAME = "faketime/libfaketime.so.1"


def libfaketime() -> Path:
    """Return where libfaketime is."""
    found = [path for folder in FOLDERS for path in Path(folder).glob(f"**/{NAME}")]
    assert found, "libfaketime is missing: install the package faketime"
    return found[0]


class Wall:
    """The wall clock of one daemon."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, ahead_s: int) -> None:
        """Let it show the true time and so much more from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}s\n")
        fresh.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """Return what a process needs to go by it."""
        return {
            "LD_PRELOAD": str(libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "NO_FAKE_STAT": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@contextmanager
def jumping_daemon(data: Path, *flags: str) -> Iterator[tuple[Daemon, Wall]]:
    """Run a daemon over a folder, and give it with its wall clock."""
    wall = Wall(data.parent / f"{data.name}.wall")
    daemon = Daemon(data, *flags, env=wall.environment)
    try:
        yield daemon, wall
    finally:
        daemon.kill()


class Seen(NamedTuple):
    """What runs for whom at one moment: status and what is left of the window; the event's time as it tells it."""

    at_s: float
    now_ms: int
    statuses: dict[str, str]
    windows_ms: dict[str, int]


def look(daemon: Daemon, event_id: str) -> Seen:
    """Return what runs now."""
    listed = daemon.admin("GET", f"/v1/admin/events/{event_id}/visitors?limit=100")["visitors"]
    at_s = time.monotonic()
    now_ms = daemon.call("GET", f"/v1/events/{event_id}")[1]["now_ms"]
    statuses = {place["user_id"]: place["status"] for place in listed}
    windows = {place["user_id"]: place["window_ms"] for place in listed if place["window_ms"] is not None}
    return Seen(at_s, now_ms, statuses, windows)


def drift_ms(before: Seen, after: Seen) -> dict[str, int]:
    """Return by how much each window that still runs, and the time that is told, is off from what really went by."""
    went_by_ms = round((after.at_s - before.at_s) * 1000)
    run_on = [who for who in before.windows_ms if after.statuses[who] == before.statuses[who]]
    off = {who: before.windows_ms[who] - after.windows_ms[who] - went_by_ms for who in run_on}
    return {**off, "the time that is told": after.now_ms - before.now_ms - went_by_ms}
