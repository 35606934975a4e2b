"""`memory:` — the embedded backend: rooms in this process, every fact in a journal before it is spoken of.

The room changes when it decides; the answer waits for the journal. So every answer, reads and repeats
included, is held until the LSN it was computed at is durable, which costs nothing when the journal is idle.
The journal is given (see Journal below): the engine knows no files.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from engine import answering, pacing
from engine.actor import By, Entrant, Holder, Whom
from engine.backend import BackendStatus, Capabilities, check_settings
from engine.backends.reading import AT_ONCE, LONGEST_NAP_MS, VenueReader
from engine.draw import secret_of
from engine.errors import Refused, StorageFailed
from engine.records import Record
from engine.room import Room
from engine.venue import Venue
from engine.views import EventView, Notice, Place, ReleaseResult, Session

PACER = By("pacer")
ROOMS_PER_TURN = 100


class Journal(Protocol):
    """What the backend needs of a log: appended records become durable in order, or the process ends."""

    @property
    def epoch(self) -> int:
        """The epoch every record is written under."""

    @property
    def last_lsn(self) -> int:
        """The newest record taken."""

    @property
    def durable_lsn(self) -> int:
        """The newest record that may be spoken of."""

    @property
    def lost(self) -> str | None:
        """Say what history may be missing before this epoch, None when nothing is."""

    def snapshot_parts(self) -> Iterator[object]:
        """Yield the parts of the snapshot to start from; nothing when there is none."""

    def replay(self) -> Iterator[tuple[int, Record]]:
        """Yield the records after that snapshot, with their LSNs."""

    async def start(self) -> None:
        """Begin to take records."""

    def refusal(self, *, essential: bool) -> Refused | None:
        """Return why nothing may be appended now, None when all is well; essential records may go further."""

    def append(self, records: Sequence[Record]) -> int:
        """Take records and return the LSN of the last one."""

    def when_durable(self, lsn: int) -> "asyncio.Future[None] | None":
        """Return a future for the moment an LSN is durable, None when it is."""

    async def snapshot(self, lsn: int, at_ms: int, parts: Iterator[object]) -> object:
        """Write a snapshot of the state at an LSN."""

    def read_records(self, from_lsn: int) -> AsyncIterator[list[tuple[int, Record]]]:
        """Yield durable records from an LSN on."""

    def stats(self) -> Any:
        """Return a dataclass of numbers about log and snapshots, for status and metrics."""

    async def close(self) -> None:
        """Flush and let go."""


class MemoryBackend(VenueReader):
    """The line in this process.

    `clock_ms` is monotonic, `wall_ms` Unix time for display, `draw_key` what the secrets of draws are made of. Who has
    followed so far gives its `venue`, up to the journal's last record, and its event time, which goes on from there.
    """

    capabilities = Capabilities(
        exact_rank=True,
        durable=True,
        survives="SIGKILL and power loss",
        records=True,
        snapshots=True,
        draw=True,
        presence=True,
        signed_joins=True,
        offline_redemption=True,
    )

    def __init__(
        self,
        journal: Journal,
        clock_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        draw_key: bytes,
        venue: Venue | None = None,
        now_ms: int = 0,
    ) -> None:
        super().__init__(Venue() if venue is None else venue)
        self.epoch = self.venue.epoch
        self.degraded: Callable[[], tuple[str, ...]] = tuple
        self.replication: Callable[[], Mapping[str, object]] = dict
        self.is_in_doubt: Callable[[], bool] = bool
        self._is_built = venue is not None
        self._begins_ms = now_ms
        self._draw_key = draw_key
        self._journal = journal
        self._clock_ms = clock_ms
        self._wall_ms = wall_ms
        self._clock_offset_ms = 0
        self._wall_ahead_ms = 0
        self._undelivered: list[Notice] = []

    # ---- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        if not self._is_built:
            with _collector_off():  # rebuilding makes millions of objects, and none of them is garbage
                self._rebuild()
        last_ms = max(self._begins_ms, self.venue.outbox.last_ms)
        self._clock_offset_ms = (last_ms or self._wall_ms()) - self._clock_ms()
        await self._journal.start()
        self._wall_ahead_ms = self._wall_ms() - self.now_ms()
        self.epoch = self._journal.epoch
        self.venue.start(self.epoch, self.now_ms(), self._wall_ms(), self._journal.lost)
        await self._commit()

    def _rebuild(self) -> None:
        venue = self.venue
        parts = list(self._journal.snapshot_parts())
        if parts:
            venue.load(parts)
        for lsn, record in self._journal.replay():
            venue.apply(record)
            venue.outbox.notices.clear()  # nobody listens yet, and there may be millions
            assert venue.outbox.lsn == lsn, f"record {lsn} came where {venue.outbox.lsn} was due"

    async def close(self) -> None:
        self._listeners.end()
        await self._journal.close()

    # ---- visitors -----------------------------------------------------------------------------------

    async def join(self, event_id: str, entrant: Entrant) -> Place:
        room = self.venue.room(event_id)
        self._may_write(essential=False)
        place = room.join(entrant, self.now_ms())
        await self._commit()
        return place

    async def touch(self, event_id: str, holder: Holder, *, visible: bool = True) -> Place:
        room = self.venue.room(event_id)
        if holder.arrival in room.ledger.graces.at_ms:  # a touch that brings somebody back is a record
            self._may_write(essential=True)
        place = room.touch(holder, self.now_ms(), visible=visible)
        await (self._commit() if self.venue.outbox.records else self._durable(place.version))
        return place

    def heard(self, event_id: str, arrivals: Sequence[int], visible: bool) -> None:
        room = self.venue.rooms.get(event_id)
        if room is None:
            return
        for first in range(0, len(arrivals), pacing.SLICE):
            some = arrivals[first : first + pacing.SLICE]
            if self._refuses_everything():  # then nobody can come back to the line, and the others write nothing
                graces = room.ledger.graces.at_ms
                some = [arrival for arrival in some if arrival not in graces]
            room.heard(some, self.now_ms(), visible=visible)
            if self.venue.outbox.records:
                _let_go(self._commit())

    async def leave(self, event_id: str, holder: Holder) -> None:
        self._essential_room(event_id).leave(holder, self.now_ms())
        await self._commit()

    async def extend_claim(self, event_id: str, holder: Holder) -> Place:
        return await self._spoken(self._essential_room(event_id).extend_claim(holder, self.now_ms()))

    async def transfer(self, event_id: str, holder: Holder, proof: int) -> Place:
        return await self._spoken(self._essential_room(event_id).transfer(holder, proof, self.now_ms()))

    async def readmit(self, event_id: str, holder: Holder, epoch: int, issued_ms: int) -> Place:
        room = self.venue.room(event_id)
        self._may_write(essential=False)
        return await self._spoken(room.readmit(holder, epoch, issued_ms, self.now_ms()))

    # ---- the site and the operator about one visitor --------------------------------------------------

    async def redeem(
        self, event_id: str, number: int, release: int, subject: str, jti: str, request: str | None, actor: str
    ) -> Session:
        room, now_ms = self._essential_room(event_id), self.now_ms()
        wall_ms = now_ms + self._wall_ahead_ms
        session = room.redeem(number, release, subject, jti, request, actor, wall_ms, now_ms)
        await self._commit()
        return session

    async def extend_session(self, event_id: str, whom: Whom, actor: str) -> Session:
        session = self._essential_room(event_id).extend_session(whom, actor, self.now_ms())
        await self._commit()
        return session

    async def complete(self, event_id: str, whom: Whom, outcome: str, actor: str) -> Place:
        return await self._spoken(self._essential_room(event_id).complete(whom, outcome, actor, self.now_ms()))

    async def admit(self, event_id: str, whom: Whom, by: By) -> Place:
        return await self._spoken(self._essential_room(event_id).admit(whom, by, self.now_ms()))

    async def remove(self, event_id: str, whom: Whom, by: By, *, ban: bool = False) -> Place:
        room = self._essential_room(event_id)
        try:
            place = room.remove(whom, by, self.now_ms(), ban=ban)
        except Refused:
            await self._commit()  # a ban is recorded even where there was no place to take away
            raise
        return await self._spoken(place)

    def _essential_room(self, event_id: str) -> Room:
        """Return a room to write what may not be held up by a disk that is filling."""
        room = self.venue.room(event_id)
        self._may_write(essential=True)
        return room

    async def _spoken(self, place: Place) -> Place:
        await self._commit()
        return place

    # ---- releases -----------------------------------------------------------------------------------

    async def release(self, event_id: str, count: int, by: By) -> ReleaseResult:
        return await self._release(self.venue.room(event_id), count, by, manual=True)

    async def tick(self) -> int:
        nap_ms = LONGEST_NAP_MS
        for turn, room in enumerate(list(self.venue.rooms.values()), 1):
            await self._draw(room)
            await self._expire(room)
            if answering.next_release_ms(room.ledger, self.now_ms()) == 0 and not self._refuses_everything():
                due = room.tick(self.now_ms())
                if due:
                    await self._release(room, due, PACER, manual=False)
            nap_ms = min(nap_ms, answering.next_release_ms(room.ledger, self.now_ms()) or nap_ms)
            if turn % ROOMS_PER_TURN == 0:
                await asyncio.sleep(0)
        return nap_ms

    async def _expire(self, room: Room) -> None:
        """End what has run out, in slices."""
        more = True
        while more and not self._refuses_everything():
            more = room.expire(self.now_ms())
            if self.venue.outbox.records:
                await self._commit()

    def _refuses_everything(self) -> bool:
        return self._journal.refusal(essential=True) is not None

    async def _release(self, room: Room, count: int, by: By, *, manual: bool) -> ReleaseResult:
        """Release in slices of one moment, letting others run in between; what was begun under a key is completed."""
        now_ms, released, stepped_over = self.now_ms(), room.released_under(by.request), 0
        while True:
            self._may_write(essential=True)
            slice_ = room.release(max(0, count - released), by, now_ms, manual=manual)
            released += slice_.released
            stepped_over += slice_.stepped_over
            await self._commit()
            if not slice_.more:
                return slice_._replace(released=released, stepped_over=stepped_over)

    # ---- events -------------------------------------------------------------------------------------

    async def configure(
        self, event_id: str, changes: Mapping[str, object], by: By, *, replace: bool, revision: int | None = None
    ) -> tuple[EventView, bool]:
        check_settings(changes, self.capabilities)
        self._check_revision(event_id, revision)
        self._may_write(essential=False)
        created, _ = self.venue.configure(event_id, changes, by, self.now_ms(), replace=replace)
        return await self._view(self.venue.room(event_id)), created

    async def control(
        self, event_id: str, action: str, by: By, outcome: str | None = None, beacon: str | None = None
    ) -> EventView:
        room = self._essential_room(event_id)
        draw = room.ledger.draw
        draw_id = (
            f"{self.venue.epoch}-{self.venue.outbox.lsn + 1}" if draw is None or action == "lobby" else draw.draw_id
        )
        secret = secret_of(self._draw_key, event_id, draw_id)
        now_ms = self.now_ms()
        room.control(action, by, now_ms, outcome=outcome, draw_id=draw_id, secret=secret, beacon=beacon)
        await self._commit()
        await self._draw(room)
        return await self._view(room)

    async def tell(self, event_id: str, text: str, by: By) -> EventView:
        room = self.venue.room(event_id)
        self._may_write(essential=True)
        room.tell(text, by, self.now_ms())
        return await self._view(room)

    async def delete(self, event_id: str, by: By, revision: int | None = None) -> None:
        self._check_revision(event_id, revision)
        self._may_write(essential=True)
        self.venue.delete(event_id, by, self.now_ms())
        await self._commit()

    async def _view(self, room: Room) -> EventView:
        view = answering.view(room.ledger)
        await self._commit()
        return view

    def _check_revision(self, event_id: str, revision: int | None) -> None:
        room = self.venue.rooms.get(event_id)
        if revision is not None and (room is None or room.ledger.revision != revision):
            raise Refused("precondition_failed", "the event was changed meanwhile; read it again")

    # ---- the log ----------------------------------------------------------------------------------------

    async def records(self, from_version: int) -> AsyncIterator[Sequence[tuple[int, Record]]]:
        async for batch in self._journal.read_records(from_version):
            yield batch

    async def snapshot(self) -> Mapping[str, object]:
        lsn, at_ms, parts = self.venue.outbox.lsn, self.now_ms(), self.venue.capture()
        await self._durable(lsn)
        try:
            await self._journal.snapshot(lsn, at_ms, parts)
        except StorageFailed as error:  # not fatal: the log has everything
            raise Refused("backend_unavailable", f"no snapshot was written: {error}") from error
        return asdict(self._journal.stats())

    def status(self) -> BackendStatus:
        refusal = self._journal.refusal(essential=False)
        return BackendStatus(
            "memory",
            self.venue.epoch,
            self.venue.outbox.lsn,
            self._journal.durable_lsn,
            self.degraded(),
            refusal.code if refusal else None,
            {**asdict(self._journal.stats()), "replication": self.replication()},
            is_stale=self.is_stale,
        )

    @property
    def is_stale(self) -> bool:
        """Whether this process cannot tell at the moment that it is still the one to ask."""
        return self.is_in_doubt()

    # ---- small parts --------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Return the event time."""
        return self._clock_offset_ms + self._clock_ms()

    def _up_to_date(self, least_version: int | None = None) -> Awaitable[None]:
        """Return nothing to wait for: what is decided is decided here."""
        return AT_ONCE

    def _may_write(self, *, essential: bool) -> None:
        refusal = self._journal.refusal(essential=essential)
        if refusal is not None:
            raise refusal

    def _commit(self) -> Awaitable[None]:
        """Hand what was decided to the journal; what is returned is to be awaited before it is spoken of."""
        ready = self.venue.drain()
        if ready.records:
            self._journal.append(ready.records)
        if ready.notices:
            self._undelivered += ready.notices
            durable = self._journal.when_durable(ready.lsn)
            if durable is None:
                self._deliver(ready.lsn)
            else:
                durable.add_done_callback(lambda future: self._deliver_after(future, ready.lsn))
        return self._durable(ready.lsn)

    def _durable(self, lsn: int) -> Awaitable[None]:
        """Return what to await before anything up to an LSN is spoken of; a future of the caller's own, or nothing."""
        return self._journal.when_durable(lsn) or AT_ONCE

    def _deliver_after(self, durable: "asyncio.Future[None]", lsn: int) -> None:
        if not durable.cancelled() and durable.exception() is None:
            self._deliver(lsn)

    def _deliver(self, lsn: int) -> None:
        due = [notice for notice in self._undelivered if notice.version <= lsn]
        del self._undelivered[: len(due)]
        self._listeners.announce(due)


def _let_go(durable: Awaitable[None]) -> None:
    """Have nobody wait for it: a log that fails ends the process anyway."""
    if isinstance(durable, asyncio.Future):
        durable.add_done_callback(lambda future: future.cancelled() or future.exception())


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
