"""Those who talk to a daemon that dies and comes back: an operator, an observer of the counts, and what all share.

Each has one connection at a time, follows the daemon from life to life, insists on an answer where repeating is safe,
and writes down what it was answered before it goes on. Visitors and the site are in `tests.scenarios.visitors`.
"""

import asyncio
import random
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
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


class Refusal(msgspec.Struct):
    """What is looked at in a refusal."""

    code: str


class Managed(msgspec.Struct):
    """What an operator is answered about one place."""

    place: PlaceReply


class PassClaims(msgspec.Struct):
    """What is looked at in a pass: the name of the admission."""

    jti: str


@dataclass(slots=True)
class Address:
    """Where the daemon listens now; it moves with every restart.

    `life` counts the restarts; `is_hasty` says that windows are short and some fall silent.
    """

    url: str = ""
    life: int = 0
    site_key: str = ""
    admin_key: str = ""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False
    is_hasty: bool = False

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
        """Write down an answer, with the name of the pass in it."""
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
            jti=jti_of(place.pass_),
        )
        self.history.append(entry._replace(**more))

    def note_refusal(self, op: str, reply: Reply, sent_s: float, **about: Any) -> None:
        """Write down that something was refused; anything but a refusal is a complaint."""
        if 400 <= reply.status < 500:
            code = reply.json(Refusal).code
            self.history.append(Entry(self.index, op, sent_s, reply.answered_s, refusal=code)._replace(**about))
        else:
            self.complain(op, reply, about)

    def complain(self, op: str, reply: Reply, about: object) -> None:
        """Note that something acknowledged before is now refused."""
        self.complaints.append(f"{op} of {about} was answered {reply.status} {reply.body[:200]!r}")


class Operator(Client):
    """Releases by hand, lets single ones in, takes places away, and changes a large page, so that segments fill."""

    def __init__(self, address: Address, index: int, arrivals: Callable[[random.Random], int | None]) -> None:
        super().__init__(address, index)
        self._arrivals = arrivals
        self._actions = 0

    async def run(self, chance: random.Random) -> None:
        """Work until it is over; `arrivals` picks somebody who holds a place."""
        while not self.address.over:
            with suppress(OSError):
                what = chance.random()
                arrival = self._arrivals(chance) if what < 0.3 else None
                if arrival is not None:
                    await self.manage("admit" if what < 0.15 else "remove", arrival, is_ban=what > 0.25)
                elif what < 0.45:
                    await self.release(chance.randrange(1, 20))
                else:
                    await self.patch(f"{PAGE}{chance.random()}")
            await asyncio.sleep(0.02)

    def _key(self, what: str) -> str:
        self._actions += 1
        return f"{what}-{self._actions}"

    async def release(self, count: int) -> None:
        """Let the next in, once, however often it must be asked for."""
        key = self._key("release")
        body, bearer = {"count": count}, self.address.admin_key
        reply, sent_s = await self.insist(request("POST", f"{ADMIN}/release", body, bearer=bearer, key=key))
        if reply.status == 200:
            told = reply.json(Released)
            self.note("release", reply, sent_s, PlaceReply("", told.released, version=told.version), key=key)
        if reply.status != 200 or told.released > count:
            self.complain("release", reply, f"{count}")

    async def manage(self, op: str, arrival: int, *, is_ban: bool) -> None:
        """Let one in, or take a place away; 409 where it has ended or the event is full."""
        body: dict[str, object] = {"arrival": arrival, "reason": "as they asked"}
        if op == "remove":
            body["ban"] = is_ban
        bearer, key = self.address.admin_key, self._key(op)
        reply, sent_s = await self.insist(request("POST", f"{ADMIN}/{op}", body, bearer=bearer, key=key))
        if reply.status == 200:
            self.note(op, reply, sent_s, reply.json(Managed).place, epoch=None)
        elif reply.status != 409:
            self.complain(op, reply, arrival)

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


def jti_of(pass_: str | None) -> str:
    """Return the name of the admission that a pass stands for, "" without one."""
    if pass_ is None:
        return ""
    claims = pass_.split(".")[1]
    return msgspec.json.decode(urlsafe_b64decode(claims + "=" * (-len(claims) % 4)), type=PassClaims).jti
