"""The admin API about visitors: find one, hear what happened, let one in, take a place away; and how fair it has been.

A timeline is read out of the log, from its first record to the LSN at which the place was found, so that place and
story agree. That is a pass over the whole log: it is read off the loop, a slice at a time, and one at a time.
"""

import asyncio
from typing import Any

from msgspec import UNSET

from engine.actor import By, Whom
from engine.backend import Backend
from engine.errors import Refused
from engine.timeline import Entry, Timeline
from engine.views import Place
from server import admin_wire as wire
from server.admin import EVENT, ONCE, AdminApi
from server.answers import Answer, json_answer
from server.routes import Call, Route

RECORDS_PER_SLICE = 2_000
NAMES = ("user_id", "number", "arrival")


class AdminVisitors:
    """The handlers."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._reading = asyncio.Lock()

    def routes(self, admin: AdminApi) -> list[Route]:
        """Return the rows, behind the admin API's gate."""
        post: dict[str, Any] = {"problems": (409,), "headers": ONCE}
        place, visitors = {200: wire.PlaceAnswer}, {200: wire.VisitorAnswer | wire.VisitorsAnswer}
        admitting, removing = wire.AdmitRequest, wire.RemoveRequest
        return [
            admin.row("POST", f"{EVENT}/admit", self.admit, "Let one visitor in now", place, body=admitting, **post),
            admin.row("POST", f"{EVENT}/remove", self.remove, "Take a place away", place, body=removing, **post),
            admin.row(
                "GET",
                f"{EVENT}/visitors",
                self.visitors,
                "One visitor with what happened, or a list of places",
                visitors,
                query=wire.VisitorsQuery,
            ),
            admin.row(
                "GET", f"{EVENT}/fairness", self.fairness, "How fair the line has been", {200: wire.FairnessAnswer}
            ),
        ]

    async def admit(self, call: Call, actor: str) -> Answer:
        """Let somebody in ahead of the others: outside the rate, inside the cap. Visitors may read the reason."""
        by = By(actor, call.body.reason, call.body.note)
        return _place_answer(await self._backend.admit(call.event_id, _whom(call.body), by))

    async def remove(self, call: Call, actor: str) -> Answer:
        """Take a place away for good; its pass or session is dead. A ban is kept even where there was no place left."""
        by, ban = By(actor, call.body.reason, call.body.note), call.body.ban
        return _place_answer(await self._backend.remove(call.event_id, _whom(call.body), by, ban=ban))

    async def visitors(self, call: Call, actor: str) -> Answer:
        """Answer one place with its timeline in words, or places in the order of joining, a page at a time."""
        query: wire.VisitorsQuery = call.query
        if all(getattr(query, name) is UNSET for name in NAMES):
            return await self._list(call.event_id, query)
        if query.status is not UNSET or query.after:
            raise Refused("bad_request", "status and after go with a list, not with one visitor", field="query")
        place = await self._backend.find(call.event_id, _whom(query))
        told = [wire.TimelineEntry(*entry) for entry in await self._timeline(place)]
        return json_answer(wire.VisitorAnswer(_place(place), told))

    async def _list(self, event_id: str, query: wire.VisitorsQuery) -> Answer:
        status = None if query.status is UNSET else query.status
        found = await self._backend.visitors(event_id, status, query.after, query.limit + 1)
        page = [_place(place) for place in found[: query.limit]]
        return json_answer(wire.VisitorsAnswer(page, page[-1].arrival if len(found) > query.limit else None))

    async def fairness(self, call: Call, actor: str) -> Answer:
        """Answer inversions and overshoot, which are 0 by rule, and turns not taken, by reason."""
        return json_answer(wire.FairnessAnswer(**(await self._backend.fairness(call.event_id))._asdict()))

    # ---- the timeline -------------------------------------------------------------------------------

    async def _timeline(self, place: Place) -> list[Entry]:
        if not self._backend.capabilities.records:
            return []
        async with self._reading:
            try:
                return await self._told(place)
            except Refused as refused:
                if refused.code != "gone":
                    raise
                return await self._told(place)  # it was pruned while it was read

    async def _told(self, place: Place) -> list[Entry]:
        first_lsn = await self._first_lsn(place.version)
        timeline = Timeline(place, is_whole=first_lsn == 1)
        async for batch in self._backend.records(first_lsn):
            for first in range(0, len(batch), RECORDS_PER_SLICE):
                for lsn, record in batch[first : first + RECORDS_PER_SLICE]:
                    if lsn <= place.version:
                        timeline.take(lsn, record)
                await asyncio.sleep(0)
            if batch[-1][0] >= place.version:
                break
        return timeline.entries()

    async def _first_lsn(self, newest_lsn: int) -> int:
        """Return the first LSN that the log still reaches back to; O(log n) looks into it where that is not 1."""
        if await self._reaches(1):
            return 1
        gone, kept = 1, newest_lsn
        while kept - gone > 1:
            between = (gone + kept) // 2
            if await self._reaches(between):
                kept = between
            else:
                gone = between
        return kept

    async def _reaches(self, lsn: int) -> bool:
        try:
            async for _ in self._backend.records(lsn):
                break
        except Refused as refused:
            if refused.code != "gone":
                raise
            return False
        return True


def _whom(said: Any) -> Whom:
    """Return whom exactly one of the three names means; raises Refused."""
    named = {name: getattr(said, name) for name in NAMES if getattr(said, name) not in (None, UNSET)}
    if len(named) != 1:
        raise Refused("bad_request", "name the visitor by exactly one of user_id, number and arrival", field="user_id")
    return Whom(**named)


def _place(place: Place) -> wire.AdminPlace:
    return wire.AdminPlace(*(getattr(place, name) for name in wire.AdminPlace.__struct_fields__))


def _place_answer(place: Place) -> Answer:
    return json_answer(wire.PlaceAnswer(_place(place)))
