"""Those who talk to a daemon that dies and comes back: visitors, an operator, and an observer of the counts.

Each has one connection at a time, follows the daemon from life to life, insists on an answer where repeating is safe,
and writes down what it was answered before it goes on.
"""

import asyncio
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.scenarios.client import Connection, PlaceReply, Reply, request
from tests.scenarios.history import Entry, Observed
from tests.server.daemons import Daemon

EVENT = "/v1/events/sale"
ADMIN = "/v1/admin/events/sale"
PAGE = "page " * 10_000


class Counts(msgspec.Struct):
    """What the observer looks at."""

    released_automatic: int


class Released(msgspec.Struct):
    """What a release by hand answers."""

    released: int
    version: int


@dataclass(slots=True)
class Address:
    """Where the daemon listens now; it moves with every restart. `life` counts the restarts."""

    url: str = ""
    life: int = 0
    site_key: str = ""
    admin_key: str = ""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False

    def move(self, daemon: Daemon) -> None:
        """Tell everybody of a new life."""
        self.url, self.site_key, self.admin_key = daemon.url, daemon.site_key, daemon.admin_key
        self.life += 1
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()


class Client:
    """Somebody with one connection, who comes back after every loss of it, and a history of their own."""

    def __init__(self, address: Address, index: int) -> None:
        self.address = address
        self.index = index
        self.history: list[Entry] = []
        self.complaints: list[str] = []
        self.losses = 0
        self._connection: Connection | None = None
        self._life = 0

    async def ask(self, raw: bytes) -> Reply:
        """Ask once; raises OSError when the connection is lost or cannot be made."""
        if self._connection is None or self._life != self.address.life:
            self._life = self.address.life
            self._connection = await Connection.open(self.address.url)
        try:
            return await self._connection.ask(raw)
        except ConnectionError:
            self._connection = None
            self.losses += 1
            raise

    async def insist(self, raw: bytes) -> tuple[Reply, float]:
        """Ask until there is an answer that is no 503; returns it with the moment of the first attempt."""
        first_s = time.monotonic()
        while True:
            life, moved = self.address.life, self.address.moved
            try:
                reply = await self.ask(raw)
            except OSError:
                if self.address.life == life:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(moved.wait(), 0.5)
                continue
            if reply.status != 503:
                return reply, first_s
            await asyncio.sleep(0.02)

    def note(self, op: str, reply: Reply, sent_s: float, place: PlaceReply, **more: Any) -> None:
        """Write down an answer."""
        entry = Entry(
            self.index,
            op,
            sent_s,
            reply.answered_s,
            place.user_id,
            "",
            place.number,
            place.arrival,
            place.status,
            place.position,
            place.epoch,
            place.version,
        )
        self.history.append(entry._replace(**more))

    def complain(self, op: str, reply: Reply, about: object) -> None:
        """Note that something acknowledged before is now refused."""
        self.complaints.append(f"{op} of {about} was answered {reply.status} {reply.body[:200]!r}")


@dataclass(slots=True)
class Held:
    """A place a visitor holds."""

    user_id: str
    number: int
    arrival: int
    token: str = field(repr=False)
    key: str
    body: dict[str, str]


class Visitor(Client):
    """A client who joins for many people, asks for their places, leaves, and completes as the site does."""

    def __init__(self, address: Address, index: int, chance: random.Random) -> None:
        super().__init__(address, index)
        self.tokens: dict[int, str] = {}
        self._chance = chance
        self._held: deque[Held] = deque()
        self._joined = 0

    async def run(self) -> None:
        """Do one thing after the other until it is over."""
        actions = {self.join: 50, self.look: 25, self.leave: 6, self.join_again: 6, self.return_: 3, self.slip: 2}
        while not self.address.over:
            action = self._chance.choices(list(actions), list(actions.values()))[0]
            await action()

    async def join(self) -> None:
        """Join for somebody new, with a key; one in four lets the server make the id."""
        self._joined += 1
        name = f"v{self.index}-{self._joined}"
        await self._join({} if self._joined % 4 == 0 else {"user_id": name}, f"key-{name}")

    async def _join(self, body: dict[str, str], key: str) -> None:
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/join", body, key=key))
        assert reply.status in (200, 201), reply.body
        place = reply.json(PlaceReply)
        if place.token is None:
            self.complain("join", reply, f"key {key}, which held this place or nobody's")
            return
        self.note("join", reply, sent_s, place, key=key)
        if place.arrival not in self.tokens:
            self.tokens[place.arrival] = place.token
            self._held.append(Held(place.user_id, place.number, place.arrival, place.token, key, body))

    async def join_again(self) -> None:
        """Repeat a join that was answered before."""
        if self._held:
            held = self._chance.choice(self._held)
            await self._join(held.body, held.key)

    async def slip(self) -> None:
        """Join without key and id; when the connection is lost nobody knows what became of it."""
        sent_s = time.monotonic()
        try:
            reply = await self.ask(request("POST", f"{EVENT}/join", {}))
        except OSError:
            self.history.append(Entry(self.index, "join", sent_s, None))
            return
        if reply.status == 201:
            place = reply.json(PlaceReply)
            self.note("join", reply, reply.sent_s, place)
            self.tokens[place.arrival] = place.token or ""

    async def look(self) -> None:
        """Ask for the place of the one who waits longest, or of anybody; the site completes whoever is ready."""
        if not self._held:
            return
        held = self._held[0] if self._chance.random() < 0.7 else self._chance.choice(self._held)
        try:
            reply = await self.ask(request("GET", f"{EVENT}/position", bearer=held.token))
        except OSError:
            return
        if reply.status != 200:
            self.complain("position", reply, held)
            self._held.remove(held)
            return
        place = reply.json(PlaceReply)
        self.note("position", reply, reply.sent_s, place)
        if place.status == "ready":
            await self._complete(held)
        elif place.status != "waiting":
            self._held.remove(held)

    async def _complete(self, held: Held) -> None:
        body = {"user_id": held.user_id}
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/complete", body, bearer=self.address.site_key))
        self._held.remove(held)
        if reply.status == 200:
            self.note("complete", reply, sent_s, reply.json(PlaceReply), arrival=held.arrival, position=None)
        else:
            self.complain("complete", reply, held)

    async def leave(self) -> Held | None:
        """Give somebody's place up."""
        if not self._held:
            return None
        held = self._chance.choice(self._held)
        self._held.remove(held)
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/leave", {}, bearer=held.token))
        if reply.status != 204:
            self.complain("leave", reply, held)
            return None
        self.note("leave", reply, sent_s, PlaceReply("", held.number, held.user_id, held.arrival))
        return held

    async def return_(self) -> None:
        """Leave and come back with the same key: a new place at the end."""
        held = await self.leave()
        if held is not None:
            await self._join(held.body, held.key)


class Operator(Client):
    """Releases by hand and changes a large page, so that segments fill."""

    _releases = 0

    async def run(self, chance: random.Random) -> None:
        """Work until it is over."""
        while not self.address.over:
            with suppress(OSError):
                if chance.random() < 0.15:
                    await self.release(chance.randrange(1, 20))
                else:
                    await self.patch(f"{PAGE}{chance.random()}")
            await asyncio.sleep(0.02)

    async def release(self, count: int) -> None:
        """Let the next in, once, however often it must be asked for."""
        self._releases += 1
        key = f"release-{self._releases}"
        body, bearer = {"count": count}, self.address.admin_key
        reply, sent_s = await self.insist(request("POST", f"{ADMIN}/release", body, bearer=bearer, key=key))
        if reply.status == 200:
            told = reply.json(Released)
            self.note("release", reply, sent_s, PlaceReply("", told.released, version=told.version), key=key)
        if reply.status != 200 or told.released > count:
            self.complain("release", reply, f"{count}")

    async def patch(self, text: str) -> None:
        """Change the page."""
        await self.ask(request("PATCH", ADMIN, {"page": {"text": text}}, bearer=self.address.admin_key))


class Observer(Client):
    """Looks at the counts all the time."""

    def __init__(self, address: Address, index: int) -> None:
        super().__init__(address, index)
        self.observed: list[Observed] = []
        self.released_more = asyncio.Event()

    async def run(self) -> None:
        """Look until it is over."""
        while not self.address.over:
            with suppress(OSError):
                reply = await self.ask(request("GET", f"{ADMIN}/stats", bearer=self.address.admin_key))
                if reply.status == 200:
                    released = reply.json(Counts).released_automatic
                    if self.observed and released > self.observed[-1].released:
                        self.released_more.set()
                    self.observed.append(Observed(reply.sent_s, reply.answered_s, released))
            await asyncio.sleep(0.01)
