"""A network in memory: named hosts, links between their processes, and everything that can befall what is on its way.

A link behaves like a TCP connection that carries whole messages in order. What is sent arrives after a seeded time;
while the way is blocked (a partition, of both directions or of one) it waits, as TCP sends again, and arrives once
the way is free, unless the connection is reset first. What a killed process had sent still arrives, then the end; a
host without power just falls silent. A frozen process accepts connections and is sent to, and reads nothing.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from server.replication.link import Link, LinkClosed
from tests.simulation.virtual_loop import Group, VirtualLoop

LATENCY_S = (0.0001, 0.002)
RETRY_S = 0.2
UNDER_WAY_MAX_BYTES = 256 * 1024
SCHEME = "sim://"
Answered = TypeVar("Answered")


class End(Protocol):
    """What the network has to know of a process: whose handles its own are, and what it does with a new link."""

    group: Group
    context: Context
    host_name: str
    is_listening: bool
    ended: "asyncio.Future[BaseException | None]"

    def accept(self, link: Link) -> None: ...


def url_of(host_name: str) -> str:
    """Return the address of a host on this network."""
    return SCHEME + host_name


class SimulatedLink:
    """One end of a connection; implements `Link`. What the other end does shows here only once it has arrived."""

    def __init__(self, network: "Network", end: End) -> None:
        self.end = end
        self.out: Way
        self._network = network
        self._there: deque[bytes] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._is_closed = False
        self._is_ended = False

    async def send(self, data: bytes) -> None:
        while self.out.under_way_bytes > UNDER_WAY_MAX_BYTES and not self.is_over:
            await self._something()
        if self.is_over:
            raise LinkClosed("the connection is closed")
        self.out.put(data)

    async def receive(self) -> bytes:
        while not self._there and not self.is_over:
            await self._something()
        if self._is_closed or not self._there:
            raise LinkClosed("the connection is closed")
        data = self._there.popleft()
        self.back.read(len(data))
        return data

    def close(self) -> None:
        """End the connection: what was sent still arrives, then the other side is told; nothing more is read."""
        if not self._is_closed:
            self._is_closed = True
            self.out.put(None)
            self.wake()

    @property
    def back(self) -> "Way":
        """The way on which this end receives."""
        return self.out.target.out

    def arrive(self, data: bytes | None) -> None:
        """Take a message, or (None) the end, off the network; runs in this end's process."""
        if data is None:
            self._is_ended = True
        elif not self._is_ended:
            self._there.append(data)
        self.wake()

    @property
    def is_over(self) -> bool:
        return self._is_closed or self._is_ended

    async def _something(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def wake(self) -> None:
        """Let whoever waits at this end look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Way:
    """One direction of a connection: what is on its way, and how much of it is not yet read."""

    def __init__(self, network: "Network", source: SimulatedLink, target: SimulatedLink) -> None:
        self.source, self.target = source, target
        self.under_way_bytes = 0
        self.is_flipping = False
        self._network = network
        self._moving: deque[tuple[float, bytes | None]] = deque()
        self._is_moving = False
        self._newest_s = 0.0

    def put(self, data: bytes | None) -> None:
        """Send a message, or (None) the end, behind everything sent before."""
        self._newest_s = max(self._newest_s, self._network.arrival_s())
        self._moving.append((self._newest_s, data))
        self.under_way_bytes += len(data or b"")
        self._move()

    def lose(self) -> None:
        """Lose what is on its way."""
        self._moving.clear()

    def read(self, size_bytes: int) -> None:
        """Note that so much was read, which lets a sender that waited go on."""
        was_full = self.under_way_bytes > UNDER_WAY_MAX_BYTES
        self.under_way_bytes -= size_bytes
        if was_full:
            self._network.run_in(self.source.end, self.source.wake)

    def _move(self) -> None:
        if self._moving and not self._is_moving:
            self._is_moving = True
            self._network.at(self._moving[0][0], self._arrive)

    def _arrive(self) -> None:
        self._is_moving = False
        if not self._moving:
            return
        source, target = self.source.end, self.target.end
        if self._network.is_blocked(source.host_name, target.host_name):
            self._is_moving = True
            self._network.at(self._network.loop.time() + RETRY_S, self._arrive)
            return
        _, data = self._moving.popleft()
        if data is not None and self.is_flipping:
            data, self.is_flipping = self._network.flip(data), False
        self._network.run_in(target, self.target.arrive, data)
        self._move()


@dataclass(eq=False, slots=True)
class Connection:
    """Both ends of a connection and both ways of it."""

    ends: tuple[End, End]
    ways: tuple[Way, Way]  # from the first end, from the second

    @property
    def is_over(self) -> bool:
        """Whether both ends have closed it, or heard that the other one did."""
        return all(way.source.is_over for way in self.ways)

    def is_between(self, one: str, other: str) -> bool:
        return {one, other} == {end.host_name for end in self.ends}


@dataclass(eq=False, slots=True)
class Network:
    """All hosts, who listens on them, and the state of the ways between them.

    `silent` are hosts without power. `blocked` holds (from, to) pairs of hosts.
    """

    loop: VirtualLoop
    listening: dict[str, End] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    blocked: set[tuple[str, str]] = field(default_factory=set)
    connections: list[Connection] = field(default_factory=list)
    latency_s: tuple[float, float] = LATENCY_S

    # ---- what befalls it -------------------------------------------------------------------------------

    def block(self, source: str, target: str) -> None:
        """Let nothing pass from one host to another."""
        self.blocked.add((source, target))

    def part(self, one: str, other: str) -> None:
        """Let nothing pass between two hosts, in either direction."""
        self.blocked |= {(one, other), (other, one)}

    def heal(self) -> None:
        """Free all ways; what has waited arrives at its next try."""
        self.blocked.clear()

    def reset(self, one: str, other: str) -> int:
        """Break all connections between two hosts; what is on its way is lost. Return how many there were."""
        broken = [its for its in self.connections if its.is_between(one, other)]
        for connection in broken:
            self._break(connection, connection.ends)
        return len(broken)

    def flip_a_bit(self, source: str, target: str) -> None:
        """Let the next message that arrives on each connection from one host to another have a wrong bit."""
        for connection in self.connections:
            for way, end in zip(connection.ways, connection.ends, strict=True):
                if connection.is_between(source, target) and end.host_name == source:
                    way.is_flipping = True

    def process_ended(self, end: End, *, silently: bool) -> None:
        """Take a process away: the others are told after what it sent, or (its host has no power) never.

        What a silent host had sent is lost; the other side finds out by its own clock, or by what it sends after
        the host is back (`host_is_back`).
        """
        if self.listening.get(end.host_name) is end:
            del self.listening[end.host_name]
        for connection in [its for its in self.connections if end in its.ends]:
            if silently:
                connection.ways[connection.ends.index(end)].lose()
            else:
                connection.ways[connection.ends.index(end)].put(None)
                self.connections.remove(connection)

    def host_is_back(self, host_name: str) -> None:
        """Give a host its power back: the connections of the processes it had are reset."""
        self.silent.discard(host_name)
        for connection in list(self.connections):
            gone = [end for end in connection.ends if end.host_name == host_name and end.group.is_dead]
            if gone:
                self._break(connection, tuple(end for end in connection.ends if end not in gone))

    def _break(self, connection: Connection, told: tuple[End, ...]) -> None:
        for way in connection.ways:
            way.lose()
        for way, end in zip(connection.ways, reversed(connection.ends), strict=True):
            if end in told:
                way.put(None)  # travels like a message, so a way that is blocked holds it up
        self.connections.remove(connection)

    # ---- what it does ----------------------------------------------------------------------------------

    def is_blocked(self, source: str, target: str) -> bool:
        return (source, target) in self.blocked or source in self.silent or target in self.silent

    def arrival_s(self) -> float:
        """Return when something sent now arrives."""
        return self.loop.time() + self.loop.random.uniform(*self.latency_s)

    def at(self, when_s: float, callback: Callable[..., object], *arguments: object) -> None:
        """Call back at a moment, as the network itself: no process can be in the way."""
        self.loop.call_at(when_s, callback, *arguments, context=_NOBODY)

    def run_in(self, end: End, callback: Callable[..., object], *arguments: object) -> None:
        """Call soon, as a part of a process."""
        self.loop.call_soon(callback, *arguments, context=end.context)

    def flip(self, data: bytes) -> bytes:
        """Return a message with one bit flipped."""
        bit = self.loop.random.randrange(8 * len(data))
        return data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]

    async def pass_over(self, source: str, target: str) -> None:
        """Wait as long as a packet from one host to another takes, for ever if nothing passes."""
        await asyncio.sleep(self.arrival_s() - self.loop.time())
        while self.is_blocked(source, target):  # noqa: ASYNC110 (this is how TCP does it)
            await asyncio.sleep(RETRY_S)

    async def connect(self, source: End, url: str) -> Link:
        """Open a link to whoever listens at a host; raises ConnectionRefusedError, or waits while there is no way."""
        host_name = url.removeprefix(SCHEME)
        await self.pass_over(source.host_name, host_name)
        target = self.listening.get(host_name)
        await self.pass_over(host_name, source.host_name)
        if target is None or not target.is_listening or target.group.is_dead:
            raise ConnectionRefusedError(f"nobody listens at {url}")
        near, far = SimulatedLink(self, source), SimulatedLink(self, target)
        near.out, far.out = Way(self, near, far), Way(self, far, near)
        self.connections = [its for its in self.connections if not its.is_over]
        self.connections.append(Connection((source, target), (near.out, far.out)))
        self.run_in(target, target.accept, far)
        return near

    async def ask(
        self, source: End, host_name: str, work: Callable[[Any], Coroutine[Any, Any, Answered]], timeout_s: float
    ) -> Answered:
        """Have `work(process)` done by the process of another host and return what it came to.

        Raises ConnectionRefusedError where nobody is there, TimeoutError where no answer comes; whether it was
        done is then not known.
        """
        async with asyncio.timeout(timeout_s):
            await self.pass_over(source.host_name, host_name)
            target = self.listening.get(host_name)
            if target is None or target.group.is_dead:
                await self.pass_over(host_name, source.host_name)
                raise ConnectionRefusedError(f"nobody listens at {host_name}")
            answer = await self._done_by(target, work)
            await self.pass_over(host_name, source.host_name)
        return answer

    async def _done_by(self, target: End, work: Callable[[Any], Coroutine[Any, Any, Answered]]) -> Answered:
        """Run work as a part of a process; whoever waits is told what it came to, or that the process was killed."""
        answered: asyncio.Future[Answered] = self.loop.create_future()

        async def run() -> None:
            try:
                result = await work(target)
            except Exception as error:
                self.loop.call_soon(_settle, answered, None, error, context=_NOBODY)
            else:
                self.loop.call_soon(_settle, answered, result, None, context=_NOBODY)

        def begin() -> None:
            self.loop.create_task(run(), context=target.context.copy())

        self.run_in(target, begin)
        await asyncio.wait((answered, target.ended), return_when=asyncio.FIRST_COMPLETED)
        if answered.done():
            return answered.result()
        if target.host_name in self.silent:
            await asyncio.Event().wait()
        raise ConnectionResetError(f"the process at {target.host_name} is gone")


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


_NOBODY = Context()
Handler = Callable[[Link], Awaitable[None]]
