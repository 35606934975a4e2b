"""The table of backends: how each is started on real storage, for one suite that runs on all of them.

`restart` closes nothing and starts a second backend on the same storage, as after a kill.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from engine.backend import Backend
from engine.backends.memory import MemoryBackend
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage

Opener = Callable[[Path], Awaitable[Backend]]


async def open_memory(folder: Path) -> Backend:
    """Start the embedded backend over a journal in `folder`."""
    journal = Journal.open(DiskStorage(folder), JournalOptions(segment_mib=1))
    backend = MemoryBackend(journal, lambda: time.monotonic_ns() // 1_000_000, lambda: time.time_ns() // 1_000_000)
    await backend.start()
    return backend


BACKENDS: Mapping[str, Opener] = {"memory": open_memory}


@asynccontextmanager
async def running(name: str, folder: Path) -> AsyncIterator[Backend]:
    """Yield a started backend and close it."""
    backend = await BACKENDS[name](folder)
    try:
        yield backend
    finally:
        await backend.close()
