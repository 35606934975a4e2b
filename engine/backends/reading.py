"""What every backend over a venue answers in the same way: the reading verbs, and what it tells its listeners.

A backend says what it waits for before it looks (`_up_to_date`) and before what it saw may be spoken of
(`_durable`); the rest is the same for whoever decides and for whoever follows.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Generator, Sequence

from engine import answering
from engine.actor import Holder, Whom
from engine.backends.listeners import Listeners
from engine.room import Room
from engine.venue import Venue
from engine.views import EventView, Fairness, Notice, Place, Ranking, Session, Stats

LONGEST_NAP_MS = 250


class VenueReader(ABC):
    """Answers from a venue, and hands its notices to whoever listens."""

    def __init__(self, venue: Venue) -> None:
        self.venue = venue
        self._listeners = Listeners()

    @abstractmethod
    def now_ms(self) -> int:
        """Return the event time."""

    @abstractmethod
    def _up_to_date(self, least_version: int | None = None) -> Awaitable[None]:
        """Return what to await before a read looks; nothing where `least_version` is there and suffices."""

    @abstractmethod
    def _durable(self, lsn: int) -> Awaitable[None]:
        """Return what to await before anything up to an LSN is spoken of."""

    # ---- visitors -----------------------------------------------------------------------------------

    async def place(self, event_id: str, holder: Holder) -> Place:
        await self._up_to_date()
        place = self.venue.room(event_id).held_place(holder, self.now_ms())
        await self._durable(place.version)
        return place

    async def find(self, event_id: str, whom: Whom, *, least_version: int | None = None) -> Place:
        await self._up_to_date(least_version)
        room = self.venue.room(event_id)
        place = answering.place(room.ledger, room.find(whom), self.now_ms(), proven=False)
        await self._durable(place.version)
        return place

    async def visitors(self, event_id: str, status: str | None, after_arrival: int, limit: int) -> list[Place]:
        await self._up_to_date()
        ledger = self.venue.room(event_id).ledger
        places = answering.visitors(ledger, status, after_arrival, limit, self.now_ms())
        await self._durable(self.venue.outbox.lsn)
        return places

    async def session(self, event_id: str, whom: Whom) -> Session | None:
        await self._up_to_date()
        room = self.venue.room(event_id)
        session = answering.session(room.ledger, room.find(whom), self.now_ms())
        await self._durable(self.venue.outbox.lsn)
        return session

    # ---- events -------------------------------------------------------------------------------------

    async def event(self, event_id: str, *, least_version: int | None = None) -> EventView:
        await self._up_to_date(least_version)
        view = answering.view(self.venue.room(event_id).ledger)
        await self._durable(view.version)
        return view

    async def events(self) -> list[EventView]:
        await self._up_to_date()
        views = [answering.view(room.ledger) for _, room in sorted(self.venue.rooms.items())]
        await self._durable(self.venue.outbox.lsn)
        return views

    async def stats(self, event_id: str) -> Stats:
        await self._up_to_date()
        stats = answering.stats(self.venue.room(event_id).ledger, self.now_ms())
        await self._durable(stats.version)
        return stats

    async def fairness(self, event_id: str) -> Fairness:
        await self._up_to_date()
        fairness = answering.fairness(self.venue.room(event_id).ledger)
        await self._durable(fairness.version)
        return fairness

    async def draw_entries(self, event_id: str, after_number: int, limit: int) -> list[tuple[int, int]]:
        await self._up_to_date()
        room = self.venue.room(event_id)
        await self._draw(room)
        await self._durable(self.venue.outbox.lsn)
        return answering.draw_entries(room.ledger, after_number, limit)

    async def _draw(self, room: Room) -> None:
        """Write the rows of a draw that has begun, letting others run in between."""
        more = room.ledger.draw_step()
        while more:
            await asyncio.sleep(0)
            more = room.ledger.draw_step()

    # ---- push ---------------------------------------------------------------------------------------

    def ranks(self, event_id: str, arrivals: Sequence[int]) -> Ranking:
        return answering.ranks(self.venue.room(event_id).ledger, arrivals)

    def line_order(self, event_id: str, arrival: int) -> int:
        return answering.order(self.venue.room(event_id).ledger, arrival)

    def notices(self) -> AsyncIterator[Sequence[Notice]]:
        return self._listeners.listen()


class _AtOnce:
    """What to await when nothing has to be awaited; costs no coroutine."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


AT_ONCE = _AtOnce()
