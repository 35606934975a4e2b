"""The clients of a simulated life: they join wherever they get through, come again, and note what they are told."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from engine.actor import Entrant, Holder
from engine.errors import Refused
from engine.passes import subject_of
from engine.views import Place
from tests.simulation.history import NEVER_S, Answered, History
from tests.simulation.network import Network
from tests.simulation.processes import Process

EVENT = "sale"
SETTINGS = {
    "name": "Sale",
    "batch_size": 2,
    "batch_interval_s": 2,
    "presence_timeout_s": 3600,
    "presence_timeout_hidden_s": 3600,
    "claim_window_s": 3600,
    "claim_max_s": 3600,
    "session_ttl_s": 3600,
}
PATIENCE_S = 1.5
COMING_S = 7.0
PAUSES_S = (0.3, 2.5)
IMPATIENT_S = (0.05, 0.3)
NEAR_SHARE = 0.6
NEAR_S = (-0.05, 1.0)
LOST = frozenset({"not_found", "gone"})


class Reply(NamedTuple):
    """What a node says: a value, or the code of a refusal, and the circumstances."""

    value: Any
    refused: str
    spoken_s: float
    by: str
    role: str
    epoch: int
    is_stale: bool
    is_alone: bool
    wall_ms: int


Ask = Callable[[Any], Awaitable[Any]]


class Crowd:
    """All visitors. `nodes` are the hosts they may ask; `is_over` ends their coming and going.

    `is_alone` says whether the primary stands alone at this moment.
    """

    def __init__(self, network: Network, clients: Process, nodes: list[str], history: History, random: Random) -> None:
        self.network = network
        self.clients = clients
        self.nodes = nodes
        self.history = history
        self.random = random
        self.is_over = False
        self.pauses_s = PAUSES_S
        self.is_alone: Callable[[], bool] = lambda: False

    async def reply(self, process: Process, ask: Ask) -> Reply:
        """Run a verb at a node, as its server would, and say how things stood when the answer left."""
        member, value, refused = process.node, None, ""
        try:
            value = await ask(member.seat)
        except Refused as error:
            refused = error.code
        return Reply(
            value,
            refused,
            self.network.loop.time(),
            process.group.name,
            member.role,
            member.seat.epoch if not refused else 0,
            member.seat.is_stale if not refused else False,
            self.is_alone(),
            process.wall_ms(),
        )

    async def ask(self, visitor: str, verb: str, node: str, ask: Ask) -> Reply | None:
        """Ask a node and note what it came to; None where nothing came back."""
        sent_s = self.network.loop.time()
        try:
            reply = await self.network.ask(self.clients, node, lambda process: self.reply(process, ask), PATIENCE_S)
        except (TimeoutError, OSError):
            self.note(Answered(visitor, verb, node, "", sent_s, NEVER_S, NEVER_S, "silence"))
            return None
        place = reply.value if isinstance(reply.value, Place) else None
        self.note(
            Answered(
                visitor,
                verb,
                reply.by,
                reply.role,
                sent_s,
                reply.spoken_s,
                self.network.loop.time(),
                reply.refused or "ok",
                reply.epoch,
                0 if place is None else place.version,
                0 if place is None else place.arrival,
                0 if place is None else place.number or 0,
                None if place is None else place.position,
                "" if place is None else place.status,
                reply.is_stale,
                reply.is_alone,
            )
        )
        return reply

    def note(self, answered: Answered) -> None:
        self.history.answers.append(answered)

    def any_node(self) -> str:
        return self.random.choice(self.nodes)


class Visitor:
    """One visitor, from the first try to join to the last look."""

    def __init__(self, crowd: Crowd, name: str, moments_s: Sequence[float]) -> None:
        """Come near one of some moments, or at any time."""
        self._crowd = crowd
        self._random = Random(crowd.random.random())
        is_near = moments_s and self._random.random() < NEAR_SHARE
        near_s = self._random.choice(moments_s) + self._random.uniform(*NEAR_S) if is_near else COMING_S
        self._comes_s = max(0.0, near_s) if is_near else self._random.uniform(0, COMING_S)
        self.name = name
        self.holder: Holder | None = None
        self.node = crowd.any_node()
        self.has_left = False
        self._epoch = 0
        self._issued_ms = 0

    async def visit(self) -> None:
        """Join, look now and then, go shopping when let in, perhaps leave."""
        await asyncio.sleep(self._comes_s)
        while self.holder is None and not self._crowd.is_over:
            await self._join()
            await asyncio.sleep(self._random.uniform(0.05, 0.4))
        while not self._crowd.is_over and not self.has_left:
            await self._look()
            await asyncio.sleep(self._random.uniform(*self._crowd.pauses_s))

    async def _say(self, verb: str, ask: Ask) -> Reply | None:
        reply = await self._crowd.ask(self.name, verb, self.node, ask)
        if reply is None or reply.refused in ("not_primary", "backend_unavailable", "overloaded"):
            self.node = self._crowd.any_node()
        return reply

    async def _join(self) -> None:
        reply = await self._say("join", lambda seat: seat.join(EVENT, Entrant(self.name, 7)))
        if reply is not None and not reply.refused:
            self._take_token(reply)

    def _take_token(self, reply: Reply) -> None:
        place = reply.value
        self.holder = Holder(place.arrival, self.name, place.generation)
        self._epoch, self._issued_ms = reply.epoch, reply.wall_ms // 1000 * 1000

    async def _look(self) -> None:
        if self._random.random() < 0.06:
            await self._leave()
        elif self._random.random() < 0.2:
            self.node = self._crowd.any_node()
        reply = await self.touch() if self._random.random() < 0.7 else await self._place()
        if reply is None or reply.refused or self.has_left:
            return
        if reply.value.status == "ready" and self._random.random() < 0.5:
            place, subject = reply.value, subject_of(EVENT, self.name)
            await self._say(
                "redeem",
                lambda seat: seat.redeem(
                    EVENT, place.number, place.release, subject, f"{place.number}-{place.release}", self.name, "site"
                ),
            )

    async def touch(self) -> Reply | None:
        """Look and be seen; a place that was lost with a tail of the log is taken up again, as the server does it."""
        holder = self.holder
        assert holder is not None
        reply = await self._say("touch", lambda seat: seat.touch(EVENT, holder, visible=True))
        if reply is not None and reply.refused == "not_found":
            epoch, issued_ms = self._epoch, self._issued_ms
            reply = await self._say("readmit", lambda seat: seat.readmit(EVENT, holder, epoch, issued_ms))
        return reply

    async def _place(self) -> Reply | None:
        holder = self.holder
        assert holder is not None
        return await self._say("place", lambda seat: seat.place(EVENT, holder))

    async def _leave(self) -> None:
        holder = self.holder
        assert holder is not None
        self.has_left = True
        while not self._crowd.is_over:
            reply = await self._say("leave", lambda seat: seat.leave(EVENT, holder))
            if reply is not None and (not reply.refused or reply.refused in LOST):
                return
            await asyncio.sleep(self._random.uniform(0.05, 0.4))

    async def last_look(self) -> None:
        """When all is healed: everybody who was given a place asks for it until told."""
        if self.holder is None or self.has_left:
            return
        for _ in range(40):
            reply = await self.touch()
            if reply is not None and (not reply.refused or reply.refused in LOST) and not reply.is_stale:
                return
            await asyncio.sleep(0.25)
        self._crowd.history.violations.append(f"{self.name} cannot get through to anybody although all is healed")
