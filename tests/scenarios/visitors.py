"""Visitors before a daemon that dies and comes back, with their devices, and the site that takes their passes.

One client plays many visitors, one request after the other: they join, ask, leave, come back and move to other
devices; the site redeems their passes, extends and completes. Whoever is let in mostly uses it. While windows are
short some fall silent, so that they are stepped over, let a turn go by, or leave a session open.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.scenarios.client import PlaceReply, Reply, request
from tests.scenarios.evidence import ENDED, Entry
from tests.scenarios.people import EVENT, Address, Client, jti_of

SILENT_SHARE = 0.15
NEAR_THE_HEAD = 6
A_MOMENT_S = 0.003  # so that there is something to extend


class SessionReply(msgspec.Struct):
    """What the site looks at in a session."""

    session: str


class CodeReply(msgspec.Struct):
    """What moves a place."""

    code: str


@dataclass(slots=True, eq=False)
class Held:
    """A place that a visitor holds: `key` proves it, `old_token` is that of the device before."""

    user_id: str
    number: int
    arrival: int
    token: str = field(repr=False)
    key: str
    body: dict[str, str]
    generation: int = 0
    old_token: str = field(default="", repr=False)
    pass_: str = field(default="", repr=False)
    redeem_key: str = ""
    session: str = field(default="", repr=False)
    is_silent: bool = False

    def about(self) -> dict[str, Any]:
        """Return whose place it is, as an Entry says it."""
        return {"user_id": self.user_id, "number": self.number, "arrival": self.arrival}


class Visitor(Client):
    """A client who plays many visitors, and the site they go on to."""

    def __init__(self, address: Address, index: int, chance: random.Random) -> None:
        super().__init__(address, index)
        self.tokens: dict[int, str] = {}
        self._chance = chance
        self._held: deque[Held] = deque()
        self._generations: dict[int, int] = {}
        self._joined = 0

    async def run(self) -> None:
        """Do one thing after the other until it is over."""
        actions: dict[Callable[[], Awaitable[object]], int] = {
            self.join: 25,
            self.look: 50,
            self.leave: 4,
            self.join_again: 5,
            self.return_: 3,
            self.slip: 2,
            self.transfer: 4,
            self.look_back: 2,
            self.wake: 3,
        }
        while not self.address.over:
            action = self._chance.choices(list(actions), list(actions.values()))[0]
            await action()

    def arrival_of_somebody(self) -> int | None:
        """Return the arrival of anybody who holds a place here, as far as is known."""
        return self._chance.choice(self._held).arrival if self._held else None

    def _somebody(self) -> Held | None:
        """Return one of those who wait longest and ask; now and then anybody."""
        if not self._held:
            return None
        index = int(self._chance.expovariate(1 / NEAR_THE_HEAD))
        held = self._held[index] if index < len(self._held) else self._chance.choice(self._held)
        return None if held.is_silent else held

    def _drop(self, held: Held) -> None:
        if held in self._held:
            self._held.remove(held)

    # ---- joining and leaving --------------------------------------------------------------------------

    async def join(self) -> None:
        """Join for somebody new, with a key; one in four lets the server make the id."""
        self._joined += 1
        name = f"v{self.index}-{self._joined}"
        await self._join({} if self._joined % 4 == 0 else {"user_id": name}, f"key-{name}")

    async def _join(self, body: dict[str, str], key: str, user_id: str = "") -> None:
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/join", body, key=key))
        if reply.status not in (200, 201):
            self.note_refusal("join", reply, sent_s, user_id=user_id, key=key)
            return
        place = reply.json(PlaceReply)
        if place.token is None:
            self.complain("join", reply, f"key {key}, which held this place or nobody's")
            return
        self.note("join", reply, sent_s, place, key=key, generation=self._generations.get(place.arrival, 0))
        if place.arrival not in self.tokens:
            self.tokens[place.arrival] = place.token
            held = Held(place.user_id, place.number, place.arrival, place.token, key, body)
            held.is_silent = self._falls_silent()
            self._held.append(held)

    def _falls_silent(self) -> bool:
        return self.address.is_hasty and self._chance.random() < SILENT_SHARE

    async def join_again(self) -> None:
        """Repeat a join that was answered before."""
        if self._held:
            held = self._chance.choice(self._held)
            await self._join(held.body, held.key, held.user_id)

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

    async def leave(self) -> Held | None:
        """Give somebody's place up."""
        return await self._leave(self._chance.choice(self._held)) if self._held else None

    async def _leave(self, held: Held) -> Held | None:
        self._drop(held)
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/leave", {}, bearer=held.token))
        if reply.status != 204:
            self.complain("leave", reply, held)
            return None
        left = PlaceReply("", held.number, held.user_id, held.arrival)
        self.note("leave", reply, sent_s, left, generation=held.generation)
        return held

    async def return_(self) -> None:
        """Leave and come back with the same key: a new place at the end."""
        held = await self.leave()
        if held is not None:
            await self._join(held.body, held.key, held.user_id)

    # ---- waiting --------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Ask for the place of one of those who wait longest, or of anybody, and go on with whoever is let in."""
        held = self._somebody()
        if held is not None:
            await self._look(held)

    async def wake(self) -> None:
        """Let somebody be heard of who had fallen silent."""
        silent = [held for held in self._held if held.is_silent]
        if silent:
            held = self._chance.choice(silent)
            held.is_silent = False
            await self._look(held)

    async def _look(self, held: Held) -> None:
        place = await self._ask_for(held, held.token, held.generation)
        if place is None:
            return
        if place.status == "ready":
            held.pass_ = place.pass_ or ""
            await self._be_let_in(held)
        elif place.status == "active":
            await self._stay(held)
        elif place.status == "expired" and held.session:
            await self._complete(held)
        elif place.status in ENDED:
            self._drop(held)

    async def _ask_for(self, held: Held, token: str, generation: int) -> PlaceReply | None:
        try:
            reply = await self.ask(request("GET", f"{EVENT}/position", bearer=token))
        except OSError:
            return None
        if reply.status != 200:
            self.complain("position", reply, held)
            self._drop(held)
            return None
        place = reply.json(PlaceReply)
        self.note("position", reply, reply.sent_s, place, generation=generation)
        return place

    # ---- devices --------------------------------------------------------------------------------------

    async def transfer(self) -> None:
        """Move a place to another device; sometimes a third one shows the same code."""
        held = self._somebody()
        if held is None:
            return
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/transfer", {}, bearer=held.token))
        if reply.status != 200:
            self.note_refusal("transfer", reply, sent_s, **held.about(), generation=held.generation)
            self._drop(held)
            return
        code = reply.json(CodeReply).code
        key = f"device-{held.arrival}-{held.generation + 1}"
        place = await self._accept(held, code, key)
        if place is None:
            self._drop(held)
            return
        held.old_token, held.token = held.token, place.token or ""
        held.key, held.body = key, {"user_id": held.user_id}
        held.generation += 1
        self._generations[held.arrival] = held.generation
        self.tokens[held.arrival] = held.token
        if self._chance.random() < 0.3:
            await self._accept(held, code, f"{key}-too", held.generation)

    async def _accept(self, held: Held, code: str, key: str, generation: int = 0) -> PlaceReply | None:
        """Show a code; `generation` is the one it makes, or made."""
        due = generation or held.generation + 1
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/transfer/accept", {"code": code}, key=key))
        if reply.status != 200:
            self.note_refusal("accept", reply, sent_s, **held.about(), key=key, generation=due)
            return None
        place = reply.json(PlaceReply)
        self.note("accept", reply, sent_s, place, key=key, generation=due)
        return place

    async def look_back(self) -> None:
        """Ask with a token from before a transfer, or try to be present with it."""
        moved = [held for held in self._held if held.old_token]
        if not moved:
            return
        held = self._chance.choice(moved[:NEAR_THE_HEAD])
        if self._chance.random() < 0.5:
            await self._ask_for(held, held.old_token, held.generation - 1)
            return
        raw = request("POST", f"{EVENT}/heartbeat", {}, bearer=held.old_token)
        reply, sent_s = await self.insist(raw)
        if reply.status == 200:
            self.note("heartbeat", reply, sent_s, reply.json(PlaceReply), generation=held.generation - 1)
        else:
            self.note_refusal("heartbeat", reply, sent_s, **held.about(), generation=held.generation - 1)

    # ---- inside ---------------------------------------------------------------------------------------

    async def _be_let_in(self, held: Held) -> None:
        """Most go on to the site; others take their time, or leave; while windows are short some let the turn go by."""
        what = self._chance.random()
        if what < 0.7:
            await self._redeem(held)
        elif what < 0.8:
            await self._extend_claim(held)
        elif what < 0.88:
            await self._complete(held)
        elif what < 0.92:
            await self._leave(held)
        else:
            held.is_silent = self.address.is_hasty

    async def _extend_claim(self, held: Held) -> None:
        await asyncio.sleep(A_MOMENT_S)
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/extend", {}, bearer=held.token))
        if reply.status == 200:
            self.note("extend_claim", reply, sent_s, reply.json(PlaceReply), generation=held.generation)
        else:
            self.note_refusal("extend_claim", reply, sent_s, **held.about(), generation=held.generation)

    async def _redeem(self, held: Held) -> None:
        """Redeem the pass, perhaps again with the same key, and perhaps with the key of somebody else."""
        held.redeem_key = f"redeem-{jti_of(held.pass_)}"
        reply = await self._redeem_with(held, held.redeem_key)
        if reply.status != 200:
            return
        held.session = reply.json(SessionReply).session
        if self._chance.random() < 0.2:
            await self._redeem_with(held, held.redeem_key)
        if self._chance.random() < 0.1:
            await self._redeem_with(held, f"{held.redeem_key}-too")
        await self._stay(held)

    async def _redeem_with(self, held: Held, key: str) -> Reply:
        body, bearer = {"pass": held.pass_}, self.address.site_key
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/redeem", body, bearer=bearer, key=key))
        about = held.about() | {"key": key, "jti": jti_of(held.pass_)}
        if reply.status == 200:
            told = Entry(self.index, "redeem", sent_s, reply.answered_s, answer=reply.body.decode())
            self.history.append(told._replace(**about))
        else:
            self.note_refusal("redeem", reply, sent_s, **about)
        return reply

    async def _stay(self, held: Held) -> None:
        """Most complete; others stay longer, or stay; while windows are short some never come back."""
        what = self._chance.random()
        if what < 0.6:
            await self._complete(held)
        elif what < 0.85 and held.session:
            await self._extend(held)
        else:
            held.is_silent = self._falls_silent()

    async def _extend(self, held: Held) -> None:
        await asyncio.sleep(A_MOMENT_S)
        body, bearer = {"session": held.session}, self.address.site_key
        reply, sent_s = await self.insist(request("POST", f"{EVENT}/extend", body, bearer=bearer))
        if reply.status == 200:
            told = Entry(self.index, "extend", sent_s, reply.answered_s, status="active")
            self.history.append(told._replace(**held.about()))
        else:
            self.note_refusal("extend", reply, sent_s, **held.about())

    async def _complete(self, held: Held) -> None:
        """End the stay, as the site names it: by session, by pass, or by user."""
        names = {"session": held.session, "pass": held.pass_, "user_id": held.user_id}
        name = self._chance.choice([name for name, value in names.items() if value])
        raw = request("POST", f"{EVENT}/complete", {name: names[name]}, bearer=self.address.site_key)
        reply, sent_s = await self.insist(raw)
        self._drop(held)
        if reply.status == 200:
            place = reply.json(PlaceReply)
            self.note("complete", reply, sent_s, place, arrival=place.number, epoch=None)
        else:
            self.note_refusal("complete", reply, sent_s, **held.about())
