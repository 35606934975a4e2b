"""Visitors who join at moments that were fixed beforehand, whatever becomes of the servers: an open loop over a pair.

Everybody makes one join, at their own moment, under one Idempotency-Key. Whoever is refused with a 503, loses the
connection or waits for a second asks the other address at once, and from then on again and again, a second or so
apart at first, until there is an answer. One process with plain protocols and no task or future per request keeps up
with thousands of joins a second next to the servers it asks.

Most ask where they believe the primary to be (the last address that did its work), some the other one, which sends a
join on. What everybody was answered, and when, is kept in their `Join`.
"""

import asyncio
import gc
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import cast
from urllib.parse import urlsplit

import msgspec

from tests.scenarios.client import PlaceReply, cut_answer, request
from tests.scenarios.people import EVENT

TIMEOUT_S = 1.0
TICK_S = 0.002
LANES = 1_000
SHUT_S = 0.1
RETRY_S = (0.5, 1.5)
PATIENCE, MOST_PATIENCE = 1.5, 8.0  # pauses grow, so that a server that is behind is not buried
ONE_IN = 50
_PLACES = msgspec.json.Decoder(PlaceReply)


@dataclass(slots=True, eq=False)
class Join:
    """One visitor: when they were due, when they first asked and were answered, and what; `attempts` counts requests.

    `doors` are the addresses that were asked, by index; `complaint` is what no join should be answered.
    """

    index: int
    due_s: float
    sent_s: float = 0.0
    answered_s: float | None = None
    attempts: int = 0
    door: int = 0
    place: PlaceReply | None = None
    complaint: str = ""

    @property
    def user_id(self) -> str:
        """Return who it is."""
        return f"f-{self.index}"

    @property
    def key(self) -> str:
        """Return the Idempotency-Key."""
        return f"flood-{self.index}"

    def is_right_within(self, seconds: float) -> bool:
        """Whether the answer came so soon after the moment it was due, after at most one retry."""
        return self.answered_s is not None and self.answered_s - self.due_s <= seconds and self.attempts <= 2


Ended = Callable[[Join, int, bytes], None]


class Lane(asyncio.Protocol):
    """One keep-alive connection to an address; a status of 0 says that no answer will come."""

    def __init__(self, door: "Door") -> None:
        self.join: Join | None = None
        self._door = door
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def ask(self, join: Join, raw: bytes) -> None:
        """Send a request; one at a time."""
        assert self._transport is not None
        self.join = join
        self._transport.write(raw)

    def give_up(self) -> None:
        """Hang up on a request that has waited too long."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        answer = cut_answer(buffer)
        if answer is None:
            return
        status, body, self._buffer = answer
        join, self.join = self.join, None
        self._door.free(self)
        if join is not None:
            self._door.ended(join, status, body)

    def connection_lost(self, exc: Exception | None) -> None:
        join, self.join = self.join, None
        self._door.lost(self)
        if join is not None:
            self._door.ended(join, 0, b"")


class Door:
    """One of the two addresses, with its connections; whoever finds none free waits in line for one.

    While connections are refused, those who come in the next tenth of a second are refused at once.
    """

    def __init__(self, url: str, ended: Ended, timeout_s: float) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._host, self._port = parts.hostname, parts.port
        self.ended = ended
        self._timeout_s = timeout_s
        self._lanes: set[Lane] = set()
        self._idle: list[Lane] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[float, Join, bytes]] = deque()
        self._asked: deque[tuple[float, Join, int, Lane]] = deque()
        self._shut_until_s = 0.0

    @property
    def is_shut(self) -> bool:
        """Whether nobody listens there, as far as was seen a moment ago."""
        return time.monotonic() < self._shut_until_s

    def ask(self, join: Join, raw: bytes) -> None:
        """Send a request over a connection of its own for the time."""
        if self.is_shut:
            self.ended(join, 0, b"")
        elif self._idle:
            self._send(self._idle.pop(), join, raw)
        else:
            self._waiting.append((time.monotonic() + self._timeout_s, join, raw))
            if len(self._lanes) + len(self._opening) < LANES:
                task = asyncio.create_task(self._open())
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)

    def _send(self, lane: Lane, join: Join, raw: bytes) -> None:
        self._asked.append((time.monotonic() + self._timeout_s, join, join.attempts, lane))
        lane.ask(join, raw)

    async def _open(self) -> None:
        try:
            _, lane = await asyncio.get_running_loop().create_connection(lambda: Lane(self), self._host, self._port)
        except OSError:
            self._shut_until_s = time.monotonic() + SHUT_S
            waiting, self._waiting = self._waiting, deque()
            for _, join, _ in waiting:
                self.ended(join, 0, b"")
            return
        self._lanes.add(lane)
        self.free(lane)

    def free(self, lane: Lane) -> None:
        """Take a connection back, for whoever waits longest."""
        if self._waiting:
            _, join, raw = self._waiting.popleft()
            self._send(lane, join, raw)
        else:
            self._idle.append(lane)

    def lost(self, lane: Lane) -> None:
        """Forget a connection."""
        self._lanes.discard(lane)
        with suppress(ValueError):
            self._idle.remove(lane)

    def expire(self, now_s: float) -> None:
        """Hang up on those who have waited too long, for an answer or for a connection."""
        while self._asked and self._asked[0][0] <= now_s:
            _, join, attempt, lane = self._asked.popleft()
            if lane.join is join and join.attempts == attempt:
                lane.give_up()
        while self._waiting and self._waiting[0][0] <= now_s:
            self.ended(self._waiting.popleft()[1], 0, b"")

    async def close(self) -> None:
        """Hang up on everybody."""
        for task in self._opening:
            task.cancel()
        for lane in self._lanes:
            lane.join = None
            lane.give_up()
        await asyncio.sleep(0)


@dataclass(slots=True)
class Flood:
    """The joins of one run. `beyond` is the share that begins at the address that is not believed the primary.

    `on_answer` is called with each join as it is answered. Tokens are kept of one in fifty, or with `keeps_tokens` of
    all.
    """

    urls: tuple[str, str]
    rate_per_s: float
    chance: random.Random
    beyond: float = 0.1
    keeps_tokens: bool = False
    timeout_s: float = TIMEOUT_S
    retry_s: tuple[float, float] = RETRY_S
    on_answer: Callable[[Join], None] = lambda join: None
    joins: list[Join] = field(default_factory=list)
    held: list[Join] = field(default_factory=list)
    unanswered: int = 0
    late_s: list[float] = field(default_factory=list)
    is_over: bool = False
    _doors: list[Door] = field(default_factory=list)
    _believed: int = 0
    _retries: list[tuple[float, int, Join]] = field(default_factory=list)

    async def run(self) -> None:
        """Let visitors come until it is over, and then until everybody has an answer."""
        self._doors = [Door(url, self._ended, self.timeout_s) for url in self.urls]
        started_s, due = time.monotonic(), 0
        with _few_collections():
            while not self.is_over or self.unanswered:
                now_s = time.monotonic()
                while not self.is_over and started_s + due / self.rate_per_s <= now_s:
                    self._come(started_s + due / self.rate_per_s)
                    due += 1
                while self._retries and self._retries[0][0] <= now_s:
                    self._ask(heappop(self._retries)[2], self._believed)
                for door in self._doors:
                    door.expire(now_s)
                await asyncio.sleep(TICK_S)
        for door in self._doors:
            await door.close()

    def _come(self, due_s: float) -> None:
        join = Join(len(self.joins), due_s, time.monotonic())
        self.joins.append(join)
        self.late_s.append(join.sent_s - due_s)
        self.unanswered += 1
        self._ask(join, self._believed ^ (self.chance.random() < self.beyond))

    def _ask(self, join: Join, door: int) -> None:
        join.attempts += 1
        join.door = door
        raw = request("POST", f"{EVENT}/join", {"user_id": join.user_id}, key=join.key)
        self._doors[door].ask(join, raw)

    def _ended(self, join: Join, status: int, body: bytes) -> None:
        if status in (200, 201):
            self._answered(join, body)
        elif status in (0, 503):
            self._try_again(join)
        else:
            join.complaint = f"{join.key} was answered {status} {body[:200]!r}"
            self.unanswered -= 1

    def _answered(self, join: Join, body: bytes) -> None:
        join.answered_s = time.monotonic()
        join.place = place = _PLACES.decode(body)
        self.unanswered -= 1
        if place.token is None:
            join.complaint = f"{join.key} was answered without a token: {body[:200]!r}"
        elif join.index % ONE_IN == 0:
            self.held.append(join)
        elif not self.keeps_tokens:
            place.token = ""
        self.on_answer(join)

    def _try_again(self, join: Join) -> None:
        """Ask the other one at once, then again a second or so later, wherever somebody listens."""
        if self._doors[self._believed].is_shut and not self._doors[1 - self._believed].is_shut:
            self._believed = 1 - self._believed
        if join.attempts == 1:
            self._ask(join, 1 - join.door)
        else:
            pause_s = self.chance.uniform(*self.retry_s) * min(MOST_PATIENCE, PATIENCE ** (join.attempts - 2))
            heappush(self._retries, (time.monotonic() + pause_s, join.index, join))


@contextmanager
def _few_collections() -> Iterator[None]:
    """Keep the collector from walking over a million places again and again: none of them is garbage."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
