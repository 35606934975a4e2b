"""The primary's side of the stream: welcomes followers, ships the log to each, takes their word and their calls.

Each follower has one session with one sender, so that whatever travels to it has one order: first what it needs to
know, then what depends on it. The sender ships what is behind the follower's place, out of memory where it keeps up
and from the disk where it does not; there is no other difference between the two. Nothing is shipped before it is
durable here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from engine.backend import Backend
from engine.errors import Damaged, Refused
from server.replication.agreement import Agreement
from server.replication.lag import Lag
from server.replication.link import LinkClosed, SealedLink
from server.replication.messages import (
    Ack,
    Answer,
    Call,
    Follow,
    HandedOver,
    Handover,
    Heard,
    Hello,
    Message,
    Peers,
    Ring,
    RingTaken,
    Ship,
    SnapshotSlice,
    Welcome,
)
from server.replication.recent import Recent
from server.replication.replicated_journal import ReplicatedJournal
from server.replication.settings import ReplicationSettings
from server.replication.verbs import perform
from snapshots.journal import Journal
from snapshots.segments import LogPosition
from snapshots.shipping import Piece, is_in_log, read_pieces, segment_starts
from snapshots.snapshot import HEADER_BYTES, SnapshotHeader, decode_snapshot_header
from snapshots.storage import Storage
from snapshots.survey import segment_names
from snapshots.wal import RESTARTS_PER_TERM, first_chain, sequence_of

CALLS_AT_ONCE = 10_000
RING_TIMEOUT_S = 2.0
SILENCE_LIMIT_S = 30.0

log = structlog.get_logger("stanchion.replication")


class RingSource(Protocol):
    """The key ring as it is handed to followers."""

    def sealed(self, key: str) -> Ring:
        """Return the ring as it is now, for whoever opened a link with this key."""


@dataclass(slots=True, eq=False)
class Session:
    """One follower. `place` is the end of what was sent to it, `ring_taken` the newest ring it believes."""

    link: SealedLink
    hello: Hello
    follow: Follow
    place: LogPosition
    due_bytes: int = 0
    sent_lsn: int = -1
    acked_lsn: int = 0
    received_bytes: int = 0
    ring_taken: int = -1
    outbox: list[Message] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ring_wake: asyncio.Event = field(default_factory=asyncio.Event)
    calls: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)
    handing: "asyncio.Task[None] | None" = None

    def put(self, message: Message) -> None:
        """Have a message sent before the next Ship."""
        self.outbox.append(message)
        self.wake.set()


@dataclass(frozen=True, slots=True)
class PublisherEvents:
    """What the publisher has to tell whoever holds the role."""

    on_moved: Callable[[], None]
    on_higher_term: Callable[[int, str], None]
    on_handover: Callable[[Session], Coroutine[None, None, None]]
    on_fatal: Callable[[Damaged], None]
    on_peer: Callable[[str], None]


class Publisher:
    """Ships one journal. `boottime_ns` is CLOCK_BOOTTIME, `event_ms` the event clock of the backend."""

    def __init__(
        self,
        settings: ReplicationSettings,
        journal: Journal,
        replicated: ReplicatedJournal,
        agreement: Agreement,
        backend: Backend,
        ring: RingSource,
        clocks: tuple[Callable[[], int], Callable[[], int]],
        peers: Callable[[], list[str]],
        events: PublisherEvents,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._storage: Storage = journal.storage
        self._replicated = replicated
        self._agreement = agreement
        self._backend = backend
        self._ring = ring
        self._boottime_ns, self._event_ms = clocks
        self._peers = peers
        self._events = events
        self._recent = Recent(journal.position, settings.recent_bytes)
        self._moments: list[tuple[int, int]] = []
        self.sessions: dict[str, Session] = {}
        self._closed = False
        replicated.on_pieces = self._on_pieces
        replicated.on_moved = self.tell_all

    # ---- the log moves ------------------------------------------------------------------------------

    def _on_pieces(self, pieces: Sequence[Piece]) -> None:
        self._recent.add(pieces)
        size_bytes = sum(len(piece.data) for piece in pieces)
        for session in self.sessions.values():
            session.due_bytes += size_bytes
        self.tell_all()

    def tell_all(self) -> None:
        """Wake every sender: there is something to ship, or more of it may be spoken of."""
        for session in self.sessions.values():
            session.wake.set()

    def note_moment(self) -> None:
        """Remember where the log ends now, so that lag can be told in seconds; for about ten calls a second."""
        now_ns, lsn = self._boottime_ns(), self._journal.durable_lsn
        if not self._moments or self._moments[-1][0] < lsn:
            self._moments.append((lsn, now_ns))
        least = min((session.acked_lsn for session in self.sessions.values()), default=lsn)
        while self._moments and (self._moments[0][0] <= least or len(self._moments) > 36_000):
            self._moments.pop(0)

    def lag(self, session: Session) -> Lag:
        """Return how far a follower is behind."""
        since_ns = next((at_ns for lsn, at_ns in self._moments if lsn > session.acked_lsn), None)
        seconds = 0.0 if since_ns is None else (self._boottime_ns() - since_ns) / 1e9
        records = max(0, self._journal.durable_lsn - session.acked_lsn)
        return Lag(records, max(0, session.due_bytes - session.received_bytes), seconds if records else 0.0)

    def lags(self) -> Mapping[str, Lag]:
        """Return how far each follower is behind, by its node id."""
        return {node_id: self.lag(session) for node_id, session in self.sessions.items()}

    # ---- keys -----------------------------------------------------------------------------------------

    async def hand_on(self, generation: int, ring_for: Callable[[str], Ring | None]) -> None:
        """Give every follower a new ring; returns once each believes it, or was sent away for not saying so.

        Whoever opened its link with a key that ends by it gets none, and is sent away. A follower that joins meanwhile
        was given the new ring in `serve`, and is waited for like the others.
        """
        for session in list(self.sessions.values()):
            ring = ring_for(session.link.key)
            if ring is None:
                self._drop(session, "the replication key it came with has ended")
            else:
                session.put(ring)
        with suppress(TimeoutError):
            async with asyncio.timeout(RING_TIMEOUT_S):
                while unsure := self._without_ring(generation):
                    unsure[0].ring_wake.clear()
                    await unsure[0].ring_wake.wait()
        for session in self._without_ring(generation):
            self._drop(session, "it did not confirm the new keys")

    def _without_ring(self, generation: int) -> list[Session]:
        return [session for session in self.sessions.values() if session.ring_taken < generation]

    def _drop(self, session: Session, why: str) -> None:
        """Send a follower away: nothing that it says is heard from here on."""
        log.warning("follower_dropped", node_id=session.hello.node_id, why=why)
        self._forget(session)

    # ---- a follower comes -----------------------------------------------------------------------------

    async def serve(self, link: SealedLink, hello: Hello, follow: Follow) -> None:
        """Serve one follower until its link closes."""
        session = await self._welcome(link, hello, follow)
        if session is None:
            return
        if self._closed:
            raise LinkClosed("this server has just ceased to be the primary")
        earlier = self.sessions.pop(hello.node_id, None)
        if earlier is not None:
            earlier.link.close()
        session.due_bytes = _bytes_between(self._storage, session.place, self._recent.end)
        self.sessions[hello.node_id] = session
        session.put(self._ring.sealed(link.key))  # from here on it hears of changes: none may lie before
        if follow.is_standby:
            self._agreement.joined(hello.node_id, session.acked_lsn, self._boottime_ns())
        self._events.on_peer(hello.url)
        log.info("follower_joined", node_id=hello.node_id, url=hello.url, standby=follow.is_standby)
        sending = asyncio.create_task(self._send(session))
        try:
            await self._receive(session)
        except (LinkClosed, TimeoutError):
            pass
        finally:
            sending.cancel()
            self._forget(session)
            await asyncio.wait([sending])
            if not sending.cancelled() and (error := sending.exception()) is not None:
                log.error("sending_failed", node_id=hello.node_id, exc_info=error)

    def _forget(self, session: Session) -> None:
        node_id = session.hello.node_id
        session.link.close()
        session.ring_wake.set()
        for task in session.calls.values():
            task.cancel()
        if self.sessions.get(node_id) is session:
            del self.sessions[node_id]
            self._agreement.left(node_id)
            log.info("follower_left", node_id=node_id, lsn=session.acked_lsn)

    async def _welcome(self, link: SealedLink, hello: Hello, follow: Follow) -> Session | None:
        """Answer until it is clear from where the follower goes on; None where it does not."""
        while True:
            if follow.epoch // RESTARTS_PER_TERM > self._journal.epoch // RESTARTS_PER_TERM:
                self._events.on_higher_term(follow.epoch, hello.url)
                await link.send(
                    self.welcome(link, "refused", problem="this primary is of an older term; it steps down")
                )
                return None
            if (problem := self._problem_with(follow)) is not None:
                log.error("follower_refused", node_id=hello.node_id, url=hello.url, why=problem)
                await link.send(self.welcome(link, "refused", problem=problem))
                return None
            begin, place = await self._begin(follow)
            starts = await asyncio.to_thread(segment_starts, self._storage) if begin == "cut" else []
            await link.send(self.welcome(link, begin, starts=starts))
            if begin == "snapshot":
                place = await self._send_snapshot(link)
            if begin in ("here", "snapshot"):
                assert place is not None
                held_lsn = place.lsn if follow.is_standby and begin == "here" else 0
                return Session(link, hello, follow, place, acked_lsn=held_lsn)
            if begin == "refused":
                return None
            answer = await link.receive()
            if not isinstance(answer, Follow):
                raise LinkClosed("a follower was to say from where it goes on")
            follow = answer

    def _problem_with(self, follow: Follow) -> str | None:
        """Return why a follower is not taken in at all; whoever only asks who leads is told so in any case."""
        if follow.asks_only:
            return None
        if self._settings.mode == "single":
            return "this primary takes no followers: it was started with replication=single"
        if follow.log_id and follow.log_id != self._journal.log_id:
            return "the data of this follower is of another cluster: start it on an empty folder"
        return None

    async def _begin(self, follow: Follow) -> tuple[str, LogPosition | None]:
        """Return how a follower has to begin, and the place behind which it goes on."""
        if follow.asks_only:
            return "refused", None
        if follow.position is None:
            if self._journal.newest_snapshot() is not None:
                return "snapshot", None
            return "here", LogPosition(0, first_chain(self._journal.log_id), 0, 0)
        if await asyncio.to_thread(is_in_log, self._storage, follow.position, follow.epoch):
            return "here", follow.position
        same_term = follow.epoch // RESTARTS_PER_TERM == self._journal.epoch // RESTARTS_PER_TERM
        if same_term and follow.committed_lsn > self._journal.durable_lsn:
            self._events.on_fatal(
                Damaged(
                    f"{self._storage.place}: a follower holds records up to LSN {follow.committed_lsn} that were "
                    f"answered for, and this log ends at LSN {self._journal.durable_lsn}: acknowledged records are "
                    "missing here. Nothing was changed. Ways out: promote that follower, or copy its data folder."
                )
            )
            return "refused", None
        return "cut", None

    def welcome(
        self, link: SealedLink, begin: str, *, starts: Sequence[LogPosition] = (), problem: str = ""
    ) -> Welcome:
        """Return what a follower is told about this primary."""
        return Welcome(
            begin,
            "primary",
            self._journal.epoch,
            self._journal.log_id,
            self._settings.url,
            self._settings.public_url,
            self._settings.mode,
            self._settings.lease_s,
            self._ring.sealed(link.key).sealed,
            self._peers(),
            list(starts),
            problem,
        )

    async def _send_snapshot(self, link: SealedLink) -> LogPosition:
        """Send the newest snapshot; returns the place before the segment that its position lies in."""
        name = self._journal.newest_snapshot()
        assert name is not None, "only a snapshot that is there is promised"
        header = decode_snapshot_header(await asyncio.to_thread(self._storage.read, name, 0, HEADER_BYTES))
        if not isinstance(header, SnapshotHeader):
            raise LinkClosed(f"the newest snapshot cannot be sent: {header}")
        starts = await asyncio.to_thread(segment_starts, self._storage)
        place = next((start for start in starts if start.sequence == header.position.sequence - 1), None)
        if place is None:
            raise LinkClosed("the log behind the newest snapshot is gone")
        async for message in self._slices(name):
            await link.send(message)
        return place

    async def _slices(self, name: str) -> AsyncIterator[SnapshotSlice]:
        size_bytes, step = self._storage.size_bytes(name), self._settings.slice_bytes
        for offset in range(0, size_bytes, step):
            data = await asyncio.to_thread(self._storage.read, name, offset, step)
            yield SnapshotSlice(name, data, offset + step >= size_bytes)

    # ---- sending ----------------------------------------------------------------------------------------

    async def _send(self, session: Session) -> None:
        """Send what is due, and something at least once per heartbeat; a failure closes the link."""
        try:
            while True:
                pieces = await self._due(session)
                if not pieces and not session.outbox and session.sent_lsn == self._replicated.durable_lsn:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._settings.heartbeat_s):
                            await session.wake.wait()
                    session.wake.clear()
                    pieces = await self._due(session)
                else:
                    session.wake.clear()
                await self._send_turn(session, pieces)
        except LinkClosed:
            pass
        except Refused as refused:
            log.warning("follower_dropped", node_id=session.hello.node_id, why=refused.detail)
        finally:
            session.link.close()

    async def _send_turn(self, session: Session, pieces: Sequence[Piece]) -> None:
        """Send one Ship, and then the answers that may depend on it."""
        outbox, session.outbox = session.outbox, []
        committed_lsn = session.sent_lsn = self._replicated.durable_lsn
        if pieces:
            session.place = pieces[-1].end
        ship = Ship(
            [piece.data for piece in pieces],
            committed_lsn,
            self._journal.durable_lsn,
            self._recent.total_bytes,
            self._event_ms(),
            self._boottime_ns(),
            self._agreement.is_in_step(session.hello.node_id),
        )
        await session.link.send(ship)
        for message in outbox:
            await session.link.send(message)

    async def _due(self, session: Session) -> list[Piece]:
        """Return the next pieces behind a follower's place."""
        pieces = self._recent.after(session.place, self._settings.ship_bytes)
        if pieces is None:
            pieces = await asyncio.to_thread(
                read_pieces, self._storage, session.place, self._settings.ship_bytes, self._recent.end
            )
        return pieces

    # ---- receiving --------------------------------------------------------------------------------------

    async def _receive(self, session: Session) -> None:
        while True:
            async with asyncio.timeout(SILENCE_LIMIT_S):
                message = await session.link.receive()
            match message:
                case Ack():
                    self._acked(session, message)
                case Call():
                    self._called(session, message)
                case Heard():
                    with suppress(Refused):  # the event is gone, or the disk is full: presence can wait
                        self._backend.heard(message.event_id, message.visible, True)
                        self._backend.heard(message.event_id, message.hidden, False)
                case RingTaken():
                    session.ring_taken = max(session.ring_taken, message.generation)
                    session.ring_wake.set()
                case Handover():
                    session.handing = asyncio.create_task(self._events.on_handover(session))
                case _:
                    raise LinkClosed("a follower says what only a primary does")

    def _acked(self, session: Session, ack: Ack) -> None:
        session.acked_lsn, session.received_bytes = ack.lsn, ack.received_bytes
        if session.follow.is_standby:
            self._agreement.answered(session.hello.node_id, ack.lsn, ack.sent_ns, self._boottime_ns())
            self._replicated.speak()
            self._events.on_moved()

    def _called(self, session: Session, call: Call) -> None:
        """Run a verb for a follower; an empty one asks how far may be spoken of now."""
        if not call.body:
            refused = self._replicated.right_refusal()
            lsn = self._replicated.durable_lsn
            session.put(Answer(call.call_id, lsn, b"", refused is not None))
            return
        if len(session.calls) >= CALLS_AT_ONCE:
            raise LinkClosed("a follower has too many calls under way")
        session.calls[call.call_id] = asyncio.create_task(self._run_call(session, call))

    async def _run_call(self, session: Session, call: Call) -> None:
        try:
            session.put(await perform(self._backend, call))
        finally:
            session.calls.pop(call.call_id, None)

    # ---- the end ------------------------------------------------------------------------------------------

    async def finish(self, session: Session, handed_over: HandedOver) -> None:
        """Tell the follower that takes over that all is there, and see that it leaves this machine."""
        session.put(handed_over)
        while session.outbox and self.sessions.get(session.hello.node_id) is session:
            session.wake.set()
            await asyncio.sleep(0.001)

    def tell_peers(self) -> None:
        """Tell every follower where the others are."""
        for session in self.sessions.values():
            session.put(Peers(self._peers()))

    async def close(self) -> None:
        """Send every follower away."""
        self._closed = True
        for session in list(self.sessions.values()):
            session.link.close()


def _bytes_between(storage: Storage, place: LogPosition, end: LogPosition) -> int:
    """Return how many bytes of the log stand between two places."""
    if place.sequence == end.sequence:
        return end.offset - place.offset
    sizes = {sequence_of(name): storage.size_bytes(name) for name in segment_names(storage)}
    between = sum(size for sequence, size in sizes.items() if place.sequence < sequence < end.sequence)
    return sizes.get(place.sequence, place.offset) - place.offset + between + end.offset
