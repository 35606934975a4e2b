"""Data folders with many visitors in line, made by the engine and the journal themselves, without HTTP."""

import asyncio
import shutil
from pathlib import Path

import uvloop

from bench.processes import EVENT, SETTINGS
from engine.actor import By, Entrant
from engine.backends.memory import MemoryBackend
from server.keys import load_or_create
from server.main import monotonic_ms, wall_ms
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage

CHUNK = 5_000
BENCH = By("bench")
DRAW_KEY = bytes(32)  # no bench draws over HTTP


def user_id_of(index: int) -> str:
    """Return a 36-character id, as a UUID is."""
    return f"{index:08x}-0000-4000-8000-{index:012x}"


def make_folder(data: Path, visitors: int, *, snapshot: bool) -> None:
    """Make a data folder with an open event and so many waiting; with a snapshot, or with the log alone."""
    uvloop.run(_fill(data, visitors, snapshot))


async def _fill(data: Path, visitors: int, snapshot: bool) -> None:
    load_or_create(data, wall_ms)
    journal = Journal.open(DiskStorage(data), JournalOptions())
    backend = MemoryBackend(journal, monotonic_ms, wall_ms, DRAW_KEY)
    await backend.start()
    await backend.configure(EVENT, SETTINGS, BENCH, replace=True)
    await backend.control(EVENT, "open", BENCH)
    venue = backend.venue
    room = venue.room(EVENT)
    for first in range(0, visitors, CHUNK):
        for index in range(first, min(first + CHUNK, visitors)):
            room.join(Entrant(user_id_of(index), 1), monotonic_ms())
        ready = venue.drain()
        durable = journal.when_durable(journal.append(ready.records))
        if durable is not None:
            await durable
    if snapshot:
        await backend.snapshot()
    await backend.close()


def copy_with_snapshot(source: Path, target: Path) -> None:
    """Copy a folder that has a log alone, and give the copy a snapshot."""
    shutil.copytree(source, target)
    asyncio.run(_snapshot(target))


async def _snapshot(data: Path) -> None:
    backend = MemoryBackend(Journal.open(DiskStorage(data), JournalOptions()), monotonic_ms, wall_ms, DRAW_KEY)
    await backend.start()
    await backend.snapshot()
    await backend.close()
