"""The backend of a follower: it answers reads from a venue of its own, and has the primary decide the rest.

The venue is fed with records that may be spoken of (`advance`), so everything in it may be said at any time. What
it may not be is old: before a read looks, it passes a barrier, which returns once everything is applied that anybody
may have been told before. A visitor who joined at one server therefore finds the place at any other. Without a
primary in reach reads are answered at once, and `is_stale` says so. Pushes pass no barrier: they follow the records.

Presence is the primary's: what is heard here is handed on, many at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from engine import answering
from engine.actor import By, Entrant, Holder, Whom
from engine.backend import BackendStatus, Capabilities
from engine.backends.memory import MemoryBackend
from engine.backends.reading import AT_ONCE, LONGEST_NAP_MS, VenueReader
from engine.errors import Refused, StorageFailed
from engine.records import Record
from engine.venue import Venue
from engine.views import EventView, Place, ReleaseResult, Session

HEARD_IN = frozenset(("lobby", "waiting", "parked", "ready"))


class Primary(Protocol):
    """Whoever decides, reached over a link."""

    @property
    def is_reachable(self) -> bool:
        """Whether it can be asked."""

    async def call(self, verb: str, *arguments: object, **options: object) -> Any:
        """Have a verb run; returns once what it says is applied here. Raises Refused, as the primary did."""

    async def barrier(self) -> None:
        """Return once everything is applied here that may be spoken of now; at once where nobody can be asked."""

    def hear(self, event_id: str, arrival: int, visible: bool) -> None:
        """Hand on that somebody was heard of; soon, with others."""


class LogCopy(Protocol):
    """What a follower with a disk has of the primary's log."""

    def read_records(self, from_lsn: int, to_lsn: int) -> AsyncIterator[list[tuple[int, Record]]]:
        """Yield records from one LSN to another."""

    async def snapshot(self, lsn: int, at_ms: int, parts: Iterator[object]) -> object:
        """Write a snapshot of the state at an LSN."""

    def stats(self) -> Any:
        """Return a dataclass of numbers about log and snapshots."""


class FollowingBackend(VenueReader):
    """The line as a follower holds it. `clock_ms` is monotonic; without a `journal` (an edge) nothing is kept."""

    def __init__(self, venue: Venue, primary: Primary, clock_ms: Callable[[], int], journal: LogCopy | None) -> None:
        super().__init__(venue)
        self._primary = primary
        self._clock_ms = clock_ms
        self._journal = journal
        self._clock_offset_ms = venue.outbox.last_ms - clock_ms()
        self.replication: Callable[[], Mapping[str, object]] = dict
        self._is_drawing = False
        self._is_closed = False
        keeps = journal is not None
        self.capabilities: Capabilities = replace(MemoryBackend.capabilities, records=keeps, snapshots=keeps)

    # ---- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Nothing is to be done: what is stored was taken up by whoever feeds the venue."""

    async def close(self) -> None:
        """Let go of the venue, which somebody else may write to from now on."""
        self._is_closed = True
        self._listeners.end()

    def advance(self, records: Sequence[Record], now_ms: int) -> None:
        """Apply records that may be spoken of, and tell what they changed; `now_ms` is the primary's event time.

        Raises Damaged. The rows of a large draw are written later, in steps.
        """
        for record in records:
            self.venue.apply(record, draws=False)
        now_ms = max(now_ms, self.venue.outbox.last_ms)
        self._clock_offset_ms = max(self._clock_offset_ms, now_ms - self._clock_ms())
        self._tell()
        if not self._is_drawing and any(room.ledger.drawing is not None for room in self.venue.rooms.values()):
            self._is_drawing = True
            asyncio.get_running_loop().call_soon(self._draw_on)

    def _draw_on(self) -> None:
        """Write the next rows of the draws that have begun."""
        if self._is_closed:
            return
        steps = [room.ledger.draw_step() for room in self.venue.rooms.values()]
        self._is_drawing = any(steps)
        self._tell()
        if self._is_drawing:
            asyncio.get_running_loop().call_soon(self._draw_on)

    def _tell(self) -> None:
        notices = self.venue.outbox.drain().notices
        if notices:
            self._listeners.announce(notices)

    # ---- reads --------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The primary's, as of what is applied here."""
        return self.venue.epoch

    @property
    def is_stale(self) -> bool:
        """Whether nobody can say how old this is."""
        return not self._primary.is_reachable

    def now_ms(self) -> int:
        """Return the primary's event time, as far as it is known; it never goes back."""
        return self._clock_offset_ms + self._clock_ms()

    async def _up_to_date(self, least_version: int | None = None) -> None:
        if least_version is None or self.venue.outbox.lsn < least_version:
            await self._primary.barrier()
            if self._is_closed:
                raise Refused("not_primary", "this server's role is changing", retry_after_s=1)

    def _durable(self, lsn: int) -> Awaitable[None]:
        """Return nothing to wait for: what is applied here may be spoken of."""
        return AT_ONCE

    async def place(self, event_id: str, holder: Holder) -> Place:
        try:
            return await super().place(event_id, holder)
        except Refused as refused:
            raise self._what_is_known(refused) from None

    async def touch(self, event_id: str, holder: Holder, *, visible: bool = True) -> Place:
        await self._up_to_date()
        room = self.venue.rooms.get(event_id)
        if room is not None and self._primary.is_reachable and holder.arrival in room.ledger.graces.at_ms:
            returned: Place = await self._primary.call("touch", event_id, holder, visible=visible)
            return returned
        try:
            place = self.venue.room(event_id).held_place(holder, self.now_ms())
        except Refused as refused:
            raise self._what_is_known(refused) from None
        if place.proven and place.status in HEARD_IN:
            self._primary.hear(event_id, place.arrival, visible)
        return place

    def _what_is_known(self, refused: Refused) -> Refused:
        """Return why there is no place, or, where this state may be too old to know of it, that nobody knows."""
        if refused.code == "not_found" and self.is_stale:
            return Refused(
                "not_primary", "this place is not known here, and the primary is out of reach", retry_after_s=1
            )
        return refused

    def heard(self, event_id: str, arrivals: Sequence[int], visible: bool) -> None:
        for arrival in arrivals:
            self._primary.hear(event_id, arrival, visible)

    # ---- what the primary decides --------------------------------------------------------------------

    async def join(self, event_id: str, entrant: Entrant) -> Place:
        place: Place = await self._primary.call("join", event_id, entrant)
        return place

    async def leave(self, event_id: str, holder: Holder) -> None:
        await self._primary.call("leave", event_id, holder)

    async def extend_claim(self, event_id: str, holder: Holder) -> Place:
        place: Place = await self._primary.call("extend_claim", event_id, holder)
        return place

    async def transfer(self, event_id: str, holder: Holder, proof: int) -> Place:
        place: Place = await self._primary.call("transfer", event_id, holder, proof)
        return place

    async def readmit(self, event_id: str, holder: Holder, epoch: int, issued_ms: int) -> Place:
        place: Place = await self._primary.call("readmit", event_id, holder, epoch, issued_ms)
        return place

    async def redeem(
        self, event_id: str, number: int, release: int, subject: str, jti: str, request: str | None, actor: str
    ) -> Session:
        session: Session = await self._primary.call("redeem", event_id, number, release, subject, jti, request, actor)
        return session

    async def extend_session(self, event_id: str, whom: Whom, actor: str) -> Session:
        session: Session = await self._primary.call("extend_session", event_id, whom, actor)
        return session

    async def complete(self, event_id: str, whom: Whom, outcome: str, actor: str) -> Place:
        place: Place = await self._primary.call("complete", event_id, whom, outcome, actor)
        return place

    async def admit(self, event_id: str, whom: Whom, by: By) -> Place:
        place: Place = await self._primary.call("admit", event_id, whom, by)
        return place

    async def remove(self, event_id: str, whom: Whom, by: By, *, ban: bool = False) -> Place:
        place: Place = await self._primary.call("remove", event_id, whom, by, ban=ban)
        return place

    async def release(self, event_id: str, count: int, by: By) -> ReleaseResult:
        result: ReleaseResult = await self._primary.call("release", event_id, count, by)
        return result

    async def configure(
        self, event_id: str, changes: Mapping[str, object], by: By, *, replace: bool, revision: int | None = None
    ) -> tuple[EventView, bool]:
        result: tuple[EventView, bool] = await self._primary.call(
            "configure", event_id, changes, by, replace=replace, revision=revision
        )
        return result

    async def control(
        self, event_id: str, action: str, by: By, outcome: str | None = None, beacon: str | None = None
    ) -> EventView:
        view: EventView = await self._primary.call("control", event_id, action, by, outcome, beacon)
        return view

    async def tell(self, event_id: str, text: str, by: By) -> EventView:
        view: EventView = await self._primary.call("tell", event_id, text, by)
        return view

    async def delete(self, event_id: str, by: By, revision: int | None = None) -> None:
        await self._primary.call("delete", event_id, by, revision)

    async def tick(self) -> int:
        """Release nobody; only the time to the next batch, which the primary keeps without a record, goes on here."""
        nap_ms, now_ms = LONGEST_NAP_MS, self.now_ms()
        for room in self.venue.rooms.values():
            if answering.next_release_ms(room.ledger, now_ms) == 0:
                room.tick(now_ms)
            nap_ms = min(nap_ms, answering.next_release_ms(room.ledger, now_ms) or nap_ms)
        return nap_ms

    # ---- the log ------------------------------------------------------------------------------------

    async def records(self, from_version: int) -> AsyncIterator[Sequence[tuple[int, Record]]]:
        async for batch in self._kept().read_records(from_version, self.venue.outbox.lsn):
            yield batch

    async def snapshot(self) -> Mapping[str, object]:
        journal = self._kept()
        try:
            await journal.snapshot(self.venue.outbox.lsn, self.venue.outbox.last_ms, self.venue.capture())
        except StorageFailed as error:  # not fatal: the log has everything
            raise Refused("backend_unavailable", f"no snapshot was written: {error}") from error
        return asdict(journal.stats())

    def _kept(self) -> LogCopy:
        if self._journal is None:
            raise Refused("not_found", "this server keeps no log; ask one that does")
        return self._journal

    def status(self) -> BackendStatus:
        is_stale, lsn = self.is_stale, self.venue.outbox.lsn
        return BackendStatus(
            "memory",
            self.venue.epoch,
            lsn,
            lsn,
            ("the primary is out of reach",) if is_stale else (),
            "not_primary" if is_stale else None,
            {**({} if self._journal is None else asdict(self._journal.stats())), "replication": self.replication()},
            "follower",
            is_stale,
        )
