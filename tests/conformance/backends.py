"""The table of backends: how each is started on real storage, for one suite that runs on all of them.

Time is the test's own: every clock a backend asks is `Clock`. A `Host` runs one backend, ends it in good order, or
starts another from what lay on the disk at some moment, as after a kill.
"""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from engine.actor import By, Holder
from engine.backend import Backend
from engine.backends.following import FollowingBackend
from engine.backends.memory import MemoryBackend
from engine.venue import Venue
from engine.views import Place
from snapshots.backup import backup, restore
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage
from tests.engine.following import DirectPrimary, Tap

OPS, WHY = By("ops"), By("ops", "because of the rain")
DRAW_KEY = bytes(range(32))
WALL_MS = 1_790_000_000_000


@dataclass
class Clock:
    """A monotonic clock and a wall clock that move when the test says so."""

    monotonic_ms: int = 5_000
    wall_ms: int = WALL_MS

    def wait(self, seconds: float) -> None:
        """Let time pass on both."""
        self.monotonic_ms += int(seconds * 1000)
        self.wall_ms += int(seconds * 1000)


class Kind(NamedTuple):
    """How one backend is started on a folder, backed up while it runs, and restored into a new folder."""

    open: Callable[[Path, Clock], Awaitable[Backend]]
    back_up: Callable[[Path, Path], object]
    restore: Callable[[Path, Path], object]


async def open_memory(folder: Path, clock: Clock) -> Backend:
    """Start the embedded backend over a journal in `folder`."""
    journal = Journal.open(DiskStorage(folder), JournalOptions(segment_mib=1))
    backend = MemoryBackend(journal, lambda: clock.monotonic_ms, lambda: clock.wall_ms, DRAW_KEY)
    await backend.start()
    return backend


class Followed(FollowingBackend):
    """A follower and its primary as one backend: what is asked goes to the follower, the pacing is the primary's."""

    def __init__(self, primary: DirectPrimary, journal: Journal, clock: Clock) -> None:
        super().__init__(Venue(), primary, lambda: clock.monotonic_ms, journal)
        self._direct = primary

    async def tick(self) -> int:
        """Do the work of both."""
        nap_ms = await self._direct.backend.tick()
        self._direct.ship()
        await super().tick()
        return nap_ms

    async def touch(self, event_id: str, holder: Holder, *, visible: bool = True) -> Place:
        """Touch, and have it handed on at once."""
        place = await super().touch(event_id, holder, visible=visible)
        self._direct.tell_heard()
        return place

    async def close(self) -> None:
        """End both."""
        await super().close()
        await self._direct.backend.close()


async def open_followed(folder: Path, clock: Clock) -> Backend:
    """Start the embedded backend, and one that follows it, which is the one to be asked."""
    journal = Journal.open(DiskStorage(folder), JournalOptions(segment_mib=1))
    tap = Tap(journal)
    backend = MemoryBackend(tap, lambda: clock.monotonic_ms, lambda: clock.wall_ms, DRAW_KEY)
    await backend.start()
    primary = DirectPrimary(backend, tap)
    return primary.follow(Followed(primary, journal, clock))


BACKENDS: Mapping[str, Kind] = {
    "memory": Kind(open_memory, lambda folder, to: backup(DiskStorage(folder), to), restore),
    "memory through a follower": Kind(open_followed, lambda folder, to: backup(DiskStorage(folder), to), restore),
}


@dataclass
class Host:
    """One backend on one folder, and the machine it runs on."""

    name: str
    folder: Path
    clock: Clock = field(default_factory=Clock)
    killed: list[Backend] = field(default_factory=list)

    async def start(self) -> Backend:
        """Start it."""
        self.backend = await BACKENDS[self.name].open(self.folder, self.clock)
        return self.backend

    async def restart(self, down_s: float = 0) -> Backend:
        """End it in good order, and start it again after a while."""
        await self.backend.close()
        self.clock.wait(down_s)
        return await self.start()

    async def kill(self, down_s: float = 0) -> Backend:
        """Start another from what is on the disk now; the one that ran is not told."""
        self.killed.append(self.backend)
        now = self.folder.with_name(f"{self.folder.name}-{len(self.killed)}")
        shutil.copytree(self.folder, now)
        self.folder = now
        self.clock.wait(down_s)
        return await self.start()

    def back_up(self) -> Path:
        """Back up what is durable now, while the backend runs; returns where to."""
        to = self.folder.with_name(f"{self.folder.name}-backup")
        BACKENDS[self.name].back_up(self.folder, to)
        return to

    async def restore(self, backed_up: Path) -> Backend:
        """Start from a backup: what came after it is lost."""
        self.killed.append(self.backend)
        self.folder = self.folder.with_name(f"{self.folder.name}-restored")
        BACKENDS[self.name].restore(backed_up, self.folder)
        return await self.start()

    async def event(self, **settings: object) -> None:
        """Make event e1 and open it, or its lobby."""
        await self.backend.configure("e1", settings, OPS, replace=True)
        await self.backend.control("e1", "lobby" if settings.get("lobby") else "open", OPS)

    async def run(self, seconds: float, step_s: float = 1) -> None:
        """Let time pass and the backend's own work be done, step by step."""
        for _ in range(round(seconds / step_s)):
            self.clock.wait(step_s)
            await self.backend.tick()


@asynccontextmanager
async def hosting(name: str, folder: Path) -> AsyncIterator[Host]:
    """Yield a host that runs, and let go of everything it started."""
    host = Host(name, folder)
    await host.start()
    try:
        yield host
    finally:
        for backend in [host.backend, *host.killed]:
            await backend.close()
