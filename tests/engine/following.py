"""A primary and a follower in one loop: what is durable here is applied there, after a while, in pieces of any size."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from engine.backends.following import FollowingBackend
from engine.backends.memory import MemoryBackend
from engine.errors import Refused
from engine.records import Record


class Tap:
    """A journal that keeps what it starts from and every record it is given."""

    def __init__(self, journal: Any) -> None:
        self._journal = journal
        self.parts: list[Any] = []
        self.log: list[Record] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def snapshot_parts(self) -> Iterator[object]:
        """Yield the parts of the snapshot to start from."""
        self.parts = list(self._journal.snapshot_parts())
        return iter(self.parts)

    def replay(self) -> Iterator[tuple[int, Record]]:
        """Yield the records after it."""
        for lsn, record in self._journal.replay():
            self.log.append(record)
            yield lsn, record

    def append(self, records: Sequence[Record]) -> int:
        """Take records."""
        self.log += records
        return int(self._journal.append(records))


class DirectPrimary:
    """Asks a MemoryBackend in the same loop. `ship` says when the follower gets what it has not applied yet.

    By itself nothing is ahead of who asks: a barrier and an answer take along all that came before them. A test that
    sets `is_held` lets them wait for `ship`.
    """

    def __init__(self, backend: MemoryBackend, journal: Tap) -> None:
        self.backend = backend
        self.is_reachable = True
        self.is_held = False
        self.calls: list[str] = []
        self.heard: list[tuple[str, int, bool]] = []
        self.barriers = 0
        self.follower: FollowingBackend
        self._journal = journal
        self._first_lsn = 0
        self._shipped = asyncio.Event()

    def follow(self, follower: FollowingBackend) -> FollowingBackend:
        """Feed a backend that follows, from the beginning of what there is; returns it."""
        self.follower = follower
        if self._journal.parts:
            follower.venue.load(self._journal.parts)
        self._first_lsn = follower.venue.outbox.lsn
        self.ship()
        return follower

    @property
    def lag(self) -> int:
        """How many records the follower has not applied."""
        return self.backend.status().durable_version - self.follower.venue.outbox.lsn

    def ship(self, count: int | None = None) -> None:
        """Let the follower apply the next records, all of them or so many."""
        first, last = self.follower.venue.outbox.lsn, self.backend.status().durable_version
        due = self._journal.log[first - self._first_lsn : last - self._first_lsn]
        self.follower.advance(due if count is None else due[:count], self.backend.now_ms())
        self._shipped.set()

    async def call(self, verb: str, *arguments: object, **options: object) -> Any:
        """Run a verb and wait until the follower has applied it."""
        self.calls.append(verb)
        if not self.is_reachable:
            raise Refused("not_primary", "the primary cannot be reached from here", retry_after_s=1)
        await asyncio.sleep(0)
        try:
            return await getattr(self.backend, verb)(*arguments, **options)
        finally:
            await self._applied()

    async def barrier(self) -> None:
        """Wait until the follower has applied what may be spoken of now."""
        self.barriers += 1
        if self.is_reachable:
            await asyncio.sleep(0)
            await self._applied()

    async def _applied(self) -> None:
        lsn = self.backend.status().durable_version
        if not self.is_held:
            self.ship()
        while self.follower.venue.outbox.lsn < lsn:
            self._shipped.clear()
            await self._shipped.wait()

    def hear(self, event_id: str, arrival: int, visible: bool) -> None:
        """Note it; `tell_heard` passes it on."""
        self.heard.append((event_id, arrival, visible))

    def tell_heard(self) -> None:
        """Hand on who was heard of, as the link does once a second."""
        heard, self.heard = self.heard, []
        for event_id, arrival, visible in heard:
            self.backend.heard(event_id, [arrival], visible)
