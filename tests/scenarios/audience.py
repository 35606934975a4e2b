"""Those in the line besides the flood: visitors who live a whole life, an operator, and watchers of places.

All are slow, so that the servers are busy with the flood. Watchers ask now one server, now the other, for a place
that was answered before: no answer that does not call itself stale may be older than what its holder had seen.
"""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from tests.scenarios.client import Connection, PlaceReply, Reply, request
from tests.scenarios.flood import Flood, Join
from tests.scenarios.history import Entry
from tests.scenarios.judging_failover import FIRST_CLIENT, entry_of
from tests.scenarios.people import EVENT, Address, Operator
from tests.scenarios.visitors import Visitor

VISITORS = 4
WATCHERS = 2
PACE_S = 0.04


class SlowVisitor(Visitor):
    """A visitor who takes a breath before each request, and takes a 503 for no answer."""

    async def ask(self, raw: bytes) -> Reply:
        """Ask once; raises OSError where there is nobody to answer."""
        await asyncio.sleep(PACE_S)
        return _answered(await super().ask(raw))


class SlowOperator(Operator):
    """An operator who lets visitors in, a few a second, and takes a 503 for no answer."""

    async def ask(self, raw: bytes) -> Reply:
        """Ask once; raises OSError where there is nobody to answer."""
        return _answered(await super().ask(raw))

    async def run(self, chance: random.Random) -> None:
        """Work until it is over."""
        while not self.address.over:
            await asyncio.sleep(4 * PACE_S)
            what = chance.random()
            arrival = self._arrivals(chance)
            if what < 0.1 or arrival is None:
                await self.release(chance.randrange(1, 20))
            else:
                await self.manage("admit" if what < 0.9 else "remove", arrival, is_ban=what > 0.95)


def _answered(reply: Reply) -> Reply:
    if reply.status == 503:
        raise ConnectionError("there is no primary now")
    return reply


class WatchedPlace(PlaceReply):
    """A place, and whether whoever showed it could not ask its primary."""

    stale: bool = False


class Watcher:
    """Asks for places of the flood, at either address in turn."""

    def __init__(self, urls: tuple[str, str], flood: Flood, chance: random.Random) -> None:
        self._urls = urls
        self._flood = flood
        self._chance = chance
        self._connections: list[Connection | None] = [None, None]
        self.history: list[Entry] = []
        self.complaints: list[str] = []
        self.stale = 0

    async def run(self, address: Address) -> None:
        """Watch until it is over."""
        door = 0
        while not address.over:
            await asyncio.sleep(PACE_S)
            held = self._flood.held
            if held:
                newest = max(0, len(held) - 20) if self._chance.random() < 0.5 else 0
                with suppress(OSError):
                    await self._look(held[self._chance.randrange(newest, len(held))], door)
                door = 1 - door

    async def _look(self, join: Join, door: int) -> None:
        assert join.place is not None
        connection = self._connections[door] = self._connections[door] or await Connection.open(self._urls[door])
        try:
            reply = await connection.ask(request("GET", f"{EVENT}/position", bearer=join.place.token or ""))
        except OSError:
            self._connections[door] = None
            raise
        if reply.status == 200:
            place = reply.json(WatchedPlace)
            self.stale += place.stale
            entry = entry_of("position", FIRST_CLIENT + join.index, reply.sent_s, reply.answered_s, place)
            self.history.append(entry._replace(epoch=None) if place.stale else entry)
        elif reply.status != 503:
            self.complaints.append(f"position of {join.key} was answered {reply.status} {reply.body[:200]!r}")


class Audience:
    """Everybody besides the flood, and what they were told."""

    def __init__(self, urls: tuple[str, str], flood: Flood, seed: int) -> None:
        self.address = Address()
        self._chance = random.Random(f"{seed} operator")
        self._visitors = [SlowVisitor(self.address, i, random.Random(f"{seed} {i}")) for i in range(VISITORS)]
        self._operator = SlowOperator(self.address, VISITORS, self._arrival_of_somebody)
        self._watchers = [Watcher(urls, flood, random.Random(f"{seed} watcher {i}")) for i in range(WATCHERS)]

    def everybody(self) -> list[Coroutine[Any, Any, None]]:
        """Return what each of them does until it is over."""
        people = [visitor.run() for visitor in self._visitors]
        watching = [watcher.run(self.address) for watcher in self._watchers]
        return [*people, *watching, self._operator.run(self._chance)]

    def entries(self) -> list[Entry]:
        """Return their histories."""
        clients = (*self._visitors, self._operator, *self._watchers)
        return [entry for client in clients for entry in client.history]

    @property
    def complaints(self) -> list[str]:
        """Return what they were told that nobody should be told."""
        clients = (*self._visitors, self._operator, *self._watchers)
        return [complaint for client in clients for complaint in client.complaints]

    @property
    def stale_reads(self) -> int:
        """Return how many answers called themselves stale."""
        return sum(watcher.stale for watcher in self._watchers)

    def _arrival_of_somebody(self, chance: random.Random) -> int | None:
        return chance.choice(self._visitors).arrival_of_somebody()
