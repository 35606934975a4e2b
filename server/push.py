"""The sweep: every connected visitor gets the exact new position after a release.

Positions are state, not messages (DESIGN.md, idea 5). A socket has no queue: it remembers what it was shown,
and a sweep walks the sockets of an event in line order, in slices of about two milliseconds, and writes the
newest position to each whose position fell. A slice asks for its ranks once. What the kernel does not take at once
is a reader too slow for its socket: it is passed over until its buffer is empty, so it costs one frame and
delays nobody, and gets the newest state when it reads again, or is closed when it does not.

Frames are built by hand and written to the transport; nothing here awaits a client. A change that comes in
while a sweep runs starts another one right after, at most one every `push_interval_ms`; those whose status
changed (released, left) are told first, outside the sweep.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fcntl import ioctl
from math import inf
from operator import attrgetter
from termios import TIOCOUTQ
from typing import Protocol

import msgspec
import structlog
from msgspec.structs import replace

from engine.actor import Whom
from engine.backend import Backend
from engine.errors import Refused
from engine.views import BackendChanged, EventChanged, EventGone, LineDrawn, Notice, Place, PlacesChanged
from server.audience import Audience, Socket
from server.wire import PlaceAnswer

SLICE_S = 0.002
SOCKETS_PER_RANKING = 64
PING_EVERY_S = 20.0
DEAD_AFTER_S = 65.0
SLOW_AFTER_S = 30.0

CLOSE_NORMAL, CLOSE_BACK_OFF, CLOSE_GONE = 1000, 4001, 4410
PING_FRAME = b"\x89\x00"

log = structlog.get_logger("stanchion.push")


class Desk(Protocol):
    """Whoever renders places."""

    def render(self, place: Place, token: str | None, shown: int | None = None) -> PlaceAnswer:
        """Return the wire form of a place."""


class Hub:
    """All sockets of this process. `run` is a core task: when it ends, the process ends."""

    def __init__(self, backend: Backend, desk: Desk, push_interval_ms: int = 500) -> None:
        self._backend = backend
        self._desk = desk
        self._interval_s = push_interval_ms / 1000
        self._audiences: dict[str, Audience] = {}
        self._pings: deque[Socket] = deque()
        self._heard: list[Socket] = []
        self._hears = asyncio.Event()
        self._newcomers: dict[Socket, bool] = {}
        self._noticed_version = inf  # until notices are listened for, any may have been missed
        self._wake = asyncio.Event()
        self._counts = {"sockets": 0, "sweeps": 0, "pushes": 0, "slow_skipped": 0, "slow_closed": 0, "dead_closed": 0}
        self._sweep_s = 0.0
        self.draining = False

    # ---- sockets ------------------------------------------------------------------------------------

    def add(self, socket: Socket, version: int, *, waits: bool) -> None:
        """Take a socket into its event's audience; O(log n).

        It was told its place as of `version`. Where a notice of something as new has come already, before the socket,
        that is looked at again. `waits`: it was told a position, so having none now is a change.
        """
        audience = self._audiences.get(socket.event_id)
        if audience is None:
            audience = self._audiences[socket.event_id] = Audience()
        audience.add(socket)
        self._pings.append(socket)
        self._counts["sockets"] += 1
        if version <= self._noticed_version:
            self._newcomers[socket] = waits
            self._wake.set()

    def remove(self, socket: Socket) -> None:
        """Forget a socket; O(log n)."""
        socket.closed = True
        audience = self._audiences.get(socket.event_id)
        if audience and audience.remove(socket):
            self._counts["sockets"] -= 1
            if not audience.sockets:
                del self._audiences[socket.event_id]

    def stats(self) -> Mapping[str, float]:
        """Return counts and the seconds the last sweep took, for metrics."""
        return {**self._counts, "sweep_seconds_last": self._sweep_s}

    async def close(self) -> None:
        """Send everybody away, to come back later with back-off; in slices."""
        self.draining = True
        for event_id in list(self._audiences):
            await self._each(self._all(event_id), lambda socket: socket.end(CLOSE_BACK_OFF))

    def hear(self, socket: Socket, now_s: float) -> None:
        """Note that a visitor was heard of; told to the backend with all others of this moment."""
        socket.heard_s = now_s
        self._heard.append(socket)
        self._hears.set()

    # ---- the core tasks -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the backend's notices, sweep and ping until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._sweep_for_ever())
            tasks.create_task(self._ping_for_ever())
            tasks.create_task(self._hear_for_ever())

    async def _follow(self) -> None:
        self._noticed_version = self._backend.status().version
        async for notices in self._backend.notices():
            for notice in notices:
                with suppress(Refused):  # the event is gone meanwhile, and the notice of that is on its way
                    await self._take(notice)
            self._wake.set()

    async def _take(self, notice: Notice) -> None:
        if isinstance(notice, BackendChanged):
            self._noticed_version = notice.version
            for everybody in list(self._audiences.values()):
                await self._retell(everybody, notice.version)
                everybody.dirty = True
            return
        self._noticed_version = max(self._noticed_version, notice.version)
        audience = self._audiences.get(notice.event_id)
        if audience is None:
            return
        if isinstance(notice, PlacesChanged):
            await self._tell_changed(audience, notice)
            audience.dirty = True
        elif isinstance(notice, LineDrawn):
            await self._rearrange(audience, notice.version)
            audience.dirty = True
        elif isinstance(notice, EventChanged):
            await self._tell_event(notice)
        elif isinstance(notice, EventGone):
            await self._each(self._all(notice.event_id), lambda socket: socket.end(CLOSE_GONE))

    async def _tell_changed(self, audience: Audience, notice: PlacesChanged) -> None:
        """Tell those concerned what they are now, in slices: whoever is let in is handed a pass of their own."""
        slice_s = time.monotonic()
        for arrival in notice.arrivals:
            sockets = audience.at(self._backend.line_order(notice.event_id, arrival))
            if sockets:
                place = await self._backend.find(notice.event_id, Whom(arrival=arrival), least_version=notice.version)
                for socket in sockets:
                    self._tell_place(socket, place)
            if time.monotonic() - slice_s > SLICE_S:
                await asyncio.sleep(0)
                slice_s = time.monotonic()

    def _tell_place(self, socket: Socket, place: Place) -> None:
        """Push a whole place; a socket from before a transfer sees it without the pass."""
        is_holder = socket.is_holder = socket.holder.generation >= place.generation
        answer = self._desk.render(replace(place, proven=is_holder), None, socket.shown)
        if answer.position is not None:
            socket.shown = answer.position
        payload = ready_push(answer) if answer.pass_ is not None else place_push(answer)
        self._deliver(socket, payload, place.version)

    async def _rearrange(self, audience: Audience, version: int) -> None:
        """Put those who were in the lobby where their numbers are, and tell them; in slices."""
        slice_s = time.monotonic()
        for socket in list(audience.sockets):
            event_id, arrival = socket.event_id, socket.holder.arrival
            if socket.closed or (now := self._backend.line_order(event_id, arrival)) == socket.order:
                continue
            audience.move(socket, now)
            place = await self._backend.find(event_id, Whom(arrival=arrival), least_version=version)
            if not socket.closed:
                self._tell_place(socket, place)
            if time.monotonic() - slice_s > SLICE_S:
                await asyncio.sleep(0)
                slice_s = time.monotonic()

    async def _retell(self, audience: Audience, version: int) -> None:
        """Tell everybody their place, and put them where it is in line now: another backend may know otherwise.

        Whose place it does not have comes again with the token, which says more than an arrival.
        """
        slice_s = time.monotonic()
        for socket in list(audience.sockets):
            try:
                now = self._backend.line_order(socket.event_id, socket.holder.arrival)
                whom = Whom(arrival=socket.holder.arrival)
                place = await self._backend.find(socket.event_id, whom, least_version=version)
            except Refused:
                socket.end(CLOSE_BACK_OFF)
                continue
            if socket.closed:
                continue
            if place.user_id != socket.holder.user_id:
                socket.end(CLOSE_BACK_OFF)
                continue
            if now != socket.order:
                audience.move(socket, now)
            self._tell_place(socket, place)
            if time.monotonic() - slice_s > SLICE_S:
                await asyncio.sleep(0)
                slice_s = time.monotonic()

    async def _tell_event(self, notice: EventChanged) -> None:
        try:
            view = await self._backend.event(notice.event_id, least_version=notice.version)
        except Refused:
            return
        facts = {"state": view.state, "reason": view.reason, "message": view.message, "outcome": view.outcome}
        payload = msgspec.json.encode({"type": "event", **facts, "version": view.version})
        await self._each(self._all(notice.event_id), lambda socket: self._deliver(socket, payload, view.version))

    async def _sweep_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._look_at_newcomers()
            for event_id, audience in list(self._audiences.items()):
                if audience.dirty:
                    await self._wait_for_turn(audience)
                    with suppress(Refused):  # the event is gone meanwhile, and the notice of that is on its way
                        await self.sweep(event_id)

    async def _look_at_newcomers(self) -> None:
        """See whether what sockets were told when they came still holds: a change may have come before the socket."""
        newcomers, self._newcomers = self._newcomers, {}
        slice_s = time.monotonic()
        for group in _by_event(newcomers):
            audience = self._audiences.get(group[0].event_id)
            if audience is not None:
                await self._look_at(audience, group, newcomers)
            if time.monotonic() - slice_s > SLICE_S:
                await asyncio.sleep(0)
                slice_s = time.monotonic()

    async def _look_at(self, audience: Audience, group: Sequence[Socket], newcomers: Mapping[Socket, bool]) -> None:
        event_id = group[0].event_id
        try:
            version, placeless = self._push_positions(event_id, audience, sorted(group, key=attrgetter("order")))
            for socket in placeless:
                if newcomers.get(socket):
                    whom = Whom(arrival=socket.holder.arrival)
                    place = await self._backend.find(event_id, whom, least_version=version)
                    if not socket.closed:
                        self._tell_place(socket, place)
        except Refused as refused:
            for socket in group:
                socket.end(CLOSE_GONE if refused.code == "not_found" else CLOSE_BACK_OFF)

    async def _wait_for_turn(self, audience: Audience) -> None:
        early_s = audience.swept_at_s + self._interval_s - time.monotonic()
        if early_s > 0:
            await asyncio.sleep(early_s)

    async def sweep(self, event_id: str) -> None:
        """Bring every socket of an event up to date, front of the line first, never holding the loop over SLICE_S."""
        audience = self._audiences.get(event_id)
        if audience is None:
            return
        audience.dirty = False
        started_s = slice_s = audience.swept_at_s = time.monotonic()
        for group in audience.groups(SOCKETS_PER_RANKING):
            self._push_positions(event_id, audience, group)
            now_s = time.monotonic()
            if now_s - slice_s > SLICE_S:
                await asyncio.sleep(0)
                slice_s = time.monotonic()
        self._counts["sweeps"] += 1
        self._sweep_s = time.monotonic() - started_s

    def _push_positions(self, event_id: str, audience: Audience, sockets: Sequence[Socket]) -> tuple[int, list[Socket]]:
        """Tell those, given in line order, whose position fell; returns the version, and who has no position."""
        placeless: list[Socket] = []
        ranking = self._backend.ranks(event_id, [socket.holder.arrival for socket in sockets])
        epoch, version, pushed, slow = self._backend.epoch, ranking.version, 0, 0
        for socket, position, wait_s in zip(sockets, ranking.positions, ranking.waits, strict=True):
            if 0 < position < socket.shown:
                payload = _encode(_PositionPush(position, position - 1, wait_s, version))
                if socket.write(payload, epoch, version):
                    socket.shown = position
                    socket.slow_since_s = 0.0
                    pushed += 1
                else:
                    slow += 1
                    self._passed_over(socket)
            elif position == 0:
                placeless.append(socket)
        self._counts["pushes"] += pushed
        self._counts["slow_skipped"] += slow
        if slow:
            audience.dirty = True
        return version, placeless

    def _passed_over(self, socket: Socket) -> None:
        now_s = time.monotonic()
        if not socket.slow_since_s:
            socket.slow_since_s = now_s
        elif now_s - socket.slow_since_s > SLOW_AFTER_S and not socket.closed:
            self._counts["slow_closed"] += 1
            socket.closed = True
            socket.transport.abort()

    def _deliver(self, socket: Socket, payload: bytes, version: int) -> None:
        """Write what must not be lost; a reader too slow even for this is cut off and reads its place anew."""
        if not socket.write(payload, self._backend.epoch, version):
            self._counts["slow_closed"] += 1
            socket.end(CLOSE_BACK_OFF)

    async def _ping_for_ever(self) -> None:
        """One wheel for all: each second a twentieth of the sockets is pinged, and those unheard of are cut off."""
        while True:
            await asyncio.sleep(1.0)
            due = len(self._pings) // int(PING_EVERY_S) + 1
            await self._each(self._turn(due), self._ping)

    async def _hear_for_ever(self) -> None:
        """Tell the backend who was heard of, as soon as anybody was."""
        while True:
            await self._hears.wait()
            self._hears.clear()
            self._tell_heard()

    def _tell_heard(self) -> None:
        """Tell the backend who was heard of; a device that a place has moved away from is no word of its holder."""
        heard, self._heard = self._heard, []
        arrivals: dict[tuple[str, bool], list[int]] = {}
        for socket in heard:
            if socket.is_holder and not socket.closed:
                arrivals.setdefault((socket.event_id, socket.visible), []).append(socket.holder.arrival)
        for (event_id, visible), some in arrivals.items():
            self._backend.heard(event_id, some, visible)

    def _turn(self, count: int) -> Iterator[Socket]:
        """Yield the next sockets of the wheel, so many; those that are closed leave it and do not count."""
        for _ in range(len(self._pings)):
            if count == 0:
                return
            socket = self._pings.popleft()
            if not socket.closed:
                self._pings.append(socket)
                count -= 1
                yield socket

    def _ping(self, socket: Socket) -> None:
        now_s = time.monotonic()
        if socket.is_stream:
            if socket.takes() and _has_acknowledged(socket.transport):
                self.hear(socket, now_s)
            if socket.takes():
                socket.transport.write(b":\n\n")
        elif now_s - socket.heard_s > DEAD_AFTER_S:
            self._counts["dead_closed"] += 1
            socket.transport.abort()
        elif socket.takes():
            socket.transport.write(PING_FRAME)

    def _all(self, event_id: str) -> Iterator[Socket]:
        audience = self._audiences.get(event_id)
        if audience is not None:
            for group in audience.groups(SOCKETS_PER_RANKING):
                yield from group

    async def _each(self, sockets: Iterable[Socket], act: Callable[[Socket], None]) -> None:
        """Do something to many sockets in slices."""
        slice_s = time.monotonic()
        for socket in sockets:
            act(socket)
            if time.monotonic() - slice_s > SLICE_S:
                await asyncio.sleep(0)
                slice_s = time.monotonic()


def _by_event(sockets: Iterable[Socket]) -> Iterator[list[Socket]]:
    """Yield sockets that are open in groups of one event each, small enough to be ranked at once."""
    groups: dict[str, list[Socket]] = {}
    for socket in sockets:
        if not socket.closed:
            group = groups.setdefault(socket.event_id, [])
            group.append(socket)
            if len(group) == SOCKETS_PER_RANKING:
                yield groups.pop(socket.event_id)
    yield from groups.values()


def _has_acknowledged(transport: asyncio.Transport) -> bool:
    """Return whether the peer has taken in all that was sent: a stream says nothing, so this is its word of presence.

    The last ping went out PING_EVERY_S ago; a half-open connection leaves it unacknowledged.
    """
    descriptor = transport.get_extra_info("socket")
    return descriptor is not None and not any(ioctl(descriptor.fileno(), TIOCOUTQ, bytes(4)))


def place_push(answer: PlaceAnswer) -> bytes:
    """Return the push of a whole place: its wire form with a type before the rest."""
    return b'{"type":"place",' + _encode(answer)[1:]


def ready_push(answer: PlaceAnswer) -> bytes:
    """Return the push that lets somebody in."""
    return _encode(
        _ReadyPush(answer.status, answer.pass_, answer.pass_expires_ms, answer.enter_url, answer.epoch, answer.version)
    )


class _PositionPush(msgspec.Struct, tag_field="type", tag="place", gc=False):
    """How far it is now, for one visitor; made for every socket after a release."""

    position: int
    ahead: int
    estimated_wait_seconds: int
    version: int


class _ReadyPush(msgspec.Struct, tag_field="type", tag="ready", rename={"pass_": "pass"}):
    """It is this visitor's turn."""

    status: str
    pass_: str | None
    pass_expires_ms: int | None
    enter_url: str | None
    epoch: int
    version: int


_encode = msgspec.json.Encoder().encode
