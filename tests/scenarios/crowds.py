"""Crowds that come in without HTTP: an embedded backend over a real data folder, and many who join it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from engine.actor import By, Entrant
from engine.backends.memory import MemoryBackend
from engine.tokens import proof_of
from engine.views import Place
from server.keys import load_or_create
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage

OPERATOR = By("ops", "the scenario wants it")
AT_ONCE = 2_000


def key_of(user_id: str) -> str:
    """Return the Idempotency-Key somebody of a crowd joins with."""
    return f"key-{user_id}"


@asynccontextmanager
async def backend_in(
    data: Path, monotonic_ms: Callable[[], int], wall_ms: Callable[[], int]
) -> AsyncIterator[MemoryBackend]:
    """Run a backend over a data folder with keys of its own until the block ends."""
    keys, _ = load_or_create(data, wall_ms)
    journal = Journal.open(DiskStorage(data), JournalOptions())
    backend = MemoryBackend(journal, monotonic_ms, wall_ms, keys.ring.draw_key)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def join_all(backend: MemoryBackend, event_id: str, user_ids: Sequence[str]) -> list[Place]:
    """Let everybody join in this order, and return their places once all are durable."""
    places: list[Place] = []
    for first in range(0, len(user_ids), AT_ONCE):
        entrants = [Entrant(user_id, proof_of(key_of(user_id))) for user_id in user_ids[first : first + AT_ONCE]]
        places += await asyncio.gather(*(backend.join(event_id, entrant) for entrant in entrants))
    return places
