"""The follower's side of the stream: find the primary, take its log, keep it, and answer for it.

For each Ship, in this order: verify, append, flush, acknowledge, and apply what may be spoken of. What came in
meanwhile is taken together, so one flush serves it all. A gap or a contradiction drops the link, and the next
session begins with what is really on the disk; nothing is ever skipped.

An edge, a follower without a data folder, does the same without the disk, and acknowledges what it has applied.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from engine.errors import Damaged, Refused
from server.replication.barrier import BARRIER, Barrier
from server.replication.hearing import Hearing
from server.replication.lag import Lag, told
from server.replication.lease import MARGIN
from server.replication.link import Link, LinkClosed, SealedLink, TurnedAway, WrongKey, greet
from server.replication.messages import (
    Ack,
    Answer,
    Call,
    Follow,
    HandedOver,
    Handover,
    Hello,
    Message,
    Peers,
    Ring,
    RingTaken,
    Ship,
    Welcome,
)
from server.replication.outbox import Outbox, read_into, slices_of
from server.replication.replica import LogLeftBehind, Replica, StateDiffers
from server.replication.settings import ReplicationSettings
from server.replication.verbs import Caller
from snapshots.shipping import ChainCheck
from snapshots.snapshot import SNAPSHOT_FOLDER, read_parts
from snapshots.standby import CutReport, StandbyLog
from snapshots.storage import Storage
from snapshots.wal import RESTARTS_PER_TERM, FrameHeader

CONNECT_TIMEOUT_S = 10.0
HEAR_EVERY_S = 1.0
COMPLAIN_EVERY_S = 10.0
TURNED_AWAY_PAUSE_S = 2.0
INBOX_LIMIT = 256

log = structlog.get_logger("stanchion.replication")

LinkOpener = Callable[[str], Awaitable[Link]]


class RingTaker(Protocol):
    """Whoever keeps the key ring of a follower."""

    def take(self, sealed: bytes, key: str) -> None:
        """Believe these keys from now on. Raises Refused where they cannot be opened."""


@dataclass(frozen=True, slots=True)
class FollowingEvents:
    """What a follower has to tell whoever holds the role: a new backend, and the primary's peers."""

    on_replica: Callable[[Replica], None]
    on_welcome: Callable[[Welcome, str], None]
    on_peers: Callable[[list[str]], None]
    on_cut: Callable[[CutReport], None]


class Following:
    """Follows whoever is primary. It is the `Primary` of its backend: calls and barriers go over its link.

    Without a log of its own (an edge) it has a `scratch` storage, where a snapshot lies while it is read.
    """

    def __init__(
        self,
        settings: ReplicationSettings,
        keys: Callable[[], list[str]],
        scratch: Storage | None,
        standby_log: StandbyLog | None,
        open_link: LinkOpener,
        ring: RingTaker,
        clocks: tuple[Callable[[], int], Callable[[], int]],
        events: FollowingEvents,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._scratch = scratch
        self._log = standby_log
        self._open_link = open_link
        self._ring = ring
        self._boottime_ns, self._clock_ms = clocks
        self._events = events
        self._outbox = Outbox()
        self._caller = Caller(self._outbox.take)
        self._link: SealedLink | None = None
        self._check = None if standby_log else ChainCheck.anywhere()
        self._ring_key = ""
        self._hearing = Hearing()
        self._barrier = Barrier(lambda: self._outbox.put(Call(BARRIER, b"")))
        self._handed_over: asyncio.Future[HandedOver] | None = None
        self._received_bytes = 0
        self._stopped = False
        self.replica = Replica(self, self._clock_ms, standby_log)
        self.welcome: Welcome | None = None
        self.welcomed = asyncio.Event()
        self.primary_node = ""
        self.is_caught_up = False
        self.in_step = False
        self.is_seeking = False
        self.committed_lsn = self.replica.applied_lsn
        self.end_lsn = self.replica.held_lsn
        self.promised_ns = 0
        self.caught_up_ns = 0
        self._complained_ns = 0
        self.end_bytes = 0
        self._bytes_before: int | None = None

    # ---- what the backend asks of its primary ----------------------------------------------------------

    @property
    def is_reachable(self) -> bool:
        """Whether the link stands, this follower has caught up once, and the primary may speak for the line."""
        return self._link is not None and self.is_caught_up and self._barrier.is_answered

    async def call(self, verb: str, *arguments: object, **options: object) -> Any:
        """Have the primary run a verb; returns once what it says is applied here."""
        if self._link is None:
            raise self.no_primary()
        return await self._caller.call(verb, *arguments, **options)

    async def barrier(self) -> None:
        """Return once this follower has applied what may be spoken of now; at once where nobody can say."""
        if self._link is not None and self.is_caught_up:
            await self._barrier.passed()

    def hear(self, event_id: str, arrival: int, visible: bool) -> None:
        """Note that somebody was heard of; the primary is told within a second."""
        self._hearing.note(event_id, arrival, visible)

    def no_primary(self) -> Refused:
        """Return the refusal of what only a primary does."""
        url = None if self.welcome is None else self.welcome.public_url
        return Refused("not_primary", "the primary cannot be reached from here", retry_after_s=1, primary_url=url)

    # ---- life ------------------------------------------------------------------------------------------

    async def run(self, candidates: Callable[[], list[str]]) -> None:
        """Follow for ever. `candidates` are the places to ask, the likeliest first.

        Raises LogLeftBehind where the state has to be built anew, StanchionError where a person is needed.
        """
        hearing = asyncio.create_task(self._tell_heard())
        try:
            while True:
                urls, is_turned_away = candidates(), False
                for url in urls:
                    try:
                        await self._try(url)
                    except TurnedAway as error:
                        if isinstance(error, WrongKey) and self.welcome is None and not self.replica.held_lsn:
                            raise  # it never followed: most likely a wrong file was named at its start
                        log.error("turned_away", url=url, why=str(error))
                        is_turned_away = True
                self._complain(urls)
                await asyncio.sleep(TURNED_AWAY_PAUSE_S if is_turned_away else random.uniform(0.05, 0.25))
        finally:
            hearing.cancel()

    def _complain(self, urls: list[str]) -> None:
        """Say now and then that no primary is found."""
        now_ns = self._boottime_ns()
        if now_ns - self._complained_ns >= COMPLAIN_EVERY_S * 1e9:
            self._complained_ns = now_ns
            log.warning("no_primary_found", tried=urls)

    async def _try(self, url: str) -> None:
        """Ask at one place and follow it for as long as it leads; raises TurnedAway."""
        tried: list[str] = []
        while url and url not in tried and len(tried) < 4:
            tried.append(url)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    link, hello = await self._connect(url)
            except TurnedAway:
                raise
            except (OSError, TimeoutError, LinkClosed) as error:
                log.debug("primary_unreachable", url=url, problem=str(error) or type(error).__name__)
                return
            try:
                url = await self._session(link, hello)
            except TurnedAway:
                raise
            except LinkClosed as error:
                log.info("link_closed", url=url, why=str(error))
                return
            finally:
                link.close()
                self._lose_link()

    async def _connect(self, url: str) -> tuple[SealedLink, Hello]:
        link = await self._open_link(url)
        try:
            return await greet(link, self._keys(), self._settings.node_id, self._settings.url)
        except BaseException:
            link.close()
            raise

    def _lose_link(self) -> None:
        if self._link is None:
            return
        self._link = None
        self._caller.drop(self.no_primary())
        self._barrier.give_up()
        if self._handed_over is not None and not self._handed_over.done():
            self._handed_over.set_exception(Refused("backend_unavailable", "the primary went away meanwhile"))

    # ---- a session -------------------------------------------------------------------------------------

    async def _session(self, link: SealedLink, hello: Hello) -> str:
        """Follow one primary until the link closes; returns where else to ask when it is none."""
        await self.hold_what_is_kept()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await link.send(self._follow())
            welcome = await self._welcomed(link)
        while welcome.begin == "cut":
            self._check_term(welcome)
            await self._cut(welcome)
            await link.send(self._follow())
            welcome = await self._welcomed(link)
        if welcome.begin == "elsewhere":
            return welcome.primary_url
        if welcome.begin == "refused":
            raise TurnedAway(f"{hello.url} refuses: {welcome.problem}")
        self._check_term(welcome)
        if welcome.ring:
            self._ring.take(welcome.ring, link.key)
        self.welcome, self.primary_node = welcome, hello.node_id
        self.welcomed.set()
        self._events.on_welcome(welcome, hello.node_id)
        if welcome.begin == "snapshot":
            await self._take_snapshot(link)
        self._received_bytes, self._bytes_before = 0, None
        await self._stream(link)
        return ""

    def _check_term(self, welcome: Welcome) -> None:
        """Have nothing to do with a primary of an older term, above all not on its word cut anything off."""
        if welcome.epoch // RESTARTS_PER_TERM < self._epoch // RESTARTS_PER_TERM:
            raise LinkClosed(f"{welcome.primary_url} leads an older term than this follower knows")

    @property
    def _epoch(self) -> int:
        return self._log.epoch if self._log is not None else self._checked.epoch

    @property
    def _checked(self) -> ChainCheck:
        assert self._check is not None, "a standby's log does its own checking"
        return self._check

    def _follow(self) -> Follow:
        if self._log is not None:
            log_id, position = self._log.log_id, self._log.position
            known_lsn = max(self.committed_lsn, self._log.durable_lsn)
        else:
            log_id, position, known_lsn = b"", self._checked.position, self.committed_lsn
        nothing = position is None or position.sequence == 0
        return Follow(log_id, None if nothing else position, self._epoch, known_lsn, self._log is not None)

    async def _welcomed(self, link: SealedLink) -> Welcome:
        message = await link.receive()
        if not isinstance(message, Welcome):
            raise LinkClosed("a welcome was due")
        return message

    async def _cut(self, welcome: Welcome) -> None:
        """Go back to where this log and the primary's are the same, and keep what is behind it aside."""
        place = None if self._log is None else self._log.best_cut(welcome.starts)
        applied_lsn = self.replica.applied_lsn
        if self._log is not None:
            why = f"the primary of term {welcome.epoch // RESTARTS_PER_TERM} never had it"
            if place is None:
                report = await asyncio.to_thread(self._log.start_over)
            else:
                report = await asyncio.to_thread(self._log.cut, place, why)
            self._events.on_cut(report)
        else:
            self._check = ChainCheck.anywhere()
        if applied_lsn > (0 if place is None else place.lsn) or self.replica.held_lsn > applied_lsn:
            raise LogLeftBehind

    async def _take_snapshot(self, link: SealedLink) -> None:
        """Put a snapshot in the place of whatever there was."""
        if self.replica.held_lsn:
            if self._log is not None and self._log.position.sequence:
                self._events.on_cut(await asyncio.to_thread(self._log.start_over))
            raise LogLeftBehind
        if self._log is not None:
            await self._log.receive_snapshot(slices_of(link))
            self.replica.load(self._log.snapshot_parts())
        else:
            self.replica.load(await self._parts(link))

    async def _parts(self, link: SealedLink) -> Iterable[object]:
        """Return the parts of a snapshot that passes through; it lies in the scratch folder only while it is read."""
        scratch, name = self._scratch, f"{SNAPSHOT_FOLDER}/received"
        assert scratch is not None, "an edge has a place for a snapshot"
        scratch.make_folder(SNAPSHOT_FOLDER)
        file = await scratch.create_slices(name)
        try:
            async for data in slices_of(link):
                await file.write(data)
            await file.fsync()
        finally:
            await file.close()
        parts = await asyncio.to_thread(lambda: list(read_parts(scratch, name)))
        scratch.unlink(name)
        return parts

    async def _stream(self, link: SealedLink) -> None:
        """Take what comes until the link closes; one task reads, one sends, this one does what is said."""
        inbox: asyncio.Queue[Message] = asyncio.Queue(INBOX_LIMIT)
        self._outbox = Outbox()
        self._caller = Caller(self._outbox.take, self.replica.applied_lsn)
        self._link, self._ring_key = link, link.key
        reading = asyncio.create_task(read_into(inbox, link, 2 * self._settings.lease_s))
        sending = asyncio.create_task(self._outbox.send_over(link))  # where it cannot, reading ends, too
        taking = asyncio.create_task(self._take_all(inbox))
        try:
            await asyncio.wait({reading, taking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._lose_link()
            link.close()
            for task in (reading, sending, taking):
                task.cancel()
            await asyncio.wait({reading, sending, taking})
        for task in (taking, reading, sending):
            if task.cancelled() or (error := task.exception()) is None:
                continue
            if isinstance(error, LinkClosed):
                raise LinkClosed(str(error))  # a new one: the task's own and this frame would hold each other
            raise error

    async def _take_all(self, inbox: "asyncio.Queue[Message]") -> None:
        while True:
            batch = [await inbox.get()]
            while not inbox.empty():
                batch.append(inbox.get_nowait())
            await self._take([message for message in batch if isinstance(message, Ship)])
            for message in batch:
                self._take_word(message)
                inbox.task_done()

    async def _take(self, ships: list[Ship]) -> None:
        """Append, flush, acknowledge, apply: everything that came, at once."""
        if not ships:
            return
        pieces = [piece for ship in ships for piece in ship.pieces]
        newest = ships[-1]
        await self._keep(pieces)
        self._received_bytes += sum(map(len, pieces))
        self.committed_lsn = max(self.committed_lsn, newest.committed_lsn)
        self.end_lsn, self.end_bytes = newest.end_lsn, newest.end_bytes
        self.caught_up_ns = self.caught_up_ns or self._boottime_ns()
        if self._log is not None:
            self._acknowledge(self._log.position.lsn, newest)
        try:
            await self.replica.apply(self.committed_lsn, newest.now_ms)
        except Damaged as error:
            raise StateDiffers(str(error)) from error
        if self._log is None:
            self._acknowledge(self.replica.applied_lsn, newest)
        self._caller.applied(self.replica.applied_lsn)
        self._barrier.applied(self.replica.applied_lsn)
        if self.replica.held_lsn >= newest.end_lsn:
            self.caught_up_ns = self._boottime_ns()
            self._bytes_before = newest.end_bytes - self._received_bytes
            if not self.is_caught_up:
                self.is_caught_up = True
                self._events.on_replica(self.replica)

    async def _keep(self, pieces: list[bytes]) -> None:
        """Verify the pieces, write them where there is a disk, and hold their records."""
        try:
            if self._log is not None:
                for header, piece in await self._log.append(pieces):
                    self.replica.take(header, piece)
            else:
                for piece in pieces:
                    taken = self._checked.take(piece)
                    if isinstance(taken, FrameHeader):
                        self.replica.take(taken, piece)
        except Damaged as error:
            log.error("stream_contradicts", problem=str(error))
            raise LinkClosed(f"what came does not continue this log: {error}") from error

    async def hold_what_is_kept(self) -> None:
        """Hold what came onto the disk when the link was lost: nobody waited for that append any more."""
        if self._log is not None and self._log.position.lsn > self.replica.held_lsn:
            async for batch in self._log.read_records(self.replica.held_lsn + 1):
                self.replica.hold(batch)

    def _acknowledge(self, lsn: int, newest: Ship) -> None:
        """Say what is safe here; whoever is in step promises with it not to take over for a while."""
        if self.is_seeking:
            return
        self.in_step = newest.in_step
        self.promised_ns = self._boottime_ns()
        self._outbox.put(Ack(lsn, newest.sent_ns, self._received_bytes))

    def _take_word(self, message: Message) -> None:
        match message:
            case Ship():
                return
            case Answer(call_id=call_id) if call_id == BARRIER:
                self._barrier.answered(message, self.replica.applied_lsn)
            case Answer():
                self._caller.answered(message)
            case Ring():
                self._ring.take(message.sealed, self._ring_key)
                self._outbox.put(RingTaken(message.generation))
            case Peers():
                self._events.on_peers(message.urls)
            case HandedOver():
                if self._handed_over is not None and not self._handed_over.done():
                    self._handed_over.set_result(message)
            case _:
                raise LinkClosed("a primary says what only a follower does")

    async def _tell_heard(self) -> None:
        while True:
            await asyncio.sleep(HEAR_EVERY_S)
            if self._link is not None:
                for heard in self._hearing.take():
                    self._outbox.put(heard)

    # ---- taking over -------------------------------------------------------------------------------------

    async def ask_to_hand_over(self, timeout_s: float) -> HandedOver:
        """Ask the primary to stop and hand over; returns once everything it has is here. Raises Refused."""
        if self._link is None:
            raise self.no_primary()
        self._handed_over = asyncio.get_running_loop().create_future()
        self._outbox.put(Handover())
        try:
            async with asyncio.timeout(timeout_s):
                return await self._handed_over
        except TimeoutError:
            raise Refused("backend_unavailable", "the primary did not hand over in time", retry_after_s=1) from None

    def seek(self) -> None:
        """Acknowledge nothing from here on, until `is_seeking` is unset: this follower wants to take over."""
        self.is_seeking = True
        if self._link is not None:
            self._link.close()
            self._lose_link()

    def lag(self) -> Lag | None:
        """Return how far this follower was behind when it last heard of its primary; None where it never did."""
        if not self.caught_up_ns:
            return None
        records = max(0, self.end_lsn - self.replica.applied_lsn)
        before = self.end_bytes - self._received_bytes if self._bytes_before is None else self._bytes_before
        size_bytes = max(0, self.end_bytes - before - self._received_bytes)
        is_behind = records > 0 or self._link is None
        seconds = (self._boottime_ns() - self.caught_up_ns) / 1e9
        return Lag(records, size_bytes, seconds if is_behind else 0.0)

    def facts(self) -> dict[str, object]:
        """Return how this follower stands with its primary, for status pages and metrics."""
        return {"connected": self.is_reachable, "in_step": self.in_step, **told(self.lag())}

    @property
    def is_whole(self) -> bool:
        """Whether there is a state on the disk here that one could lead with."""
        return self._log is not None and self._log.is_whole

    def may_seek_promotion(self, now_ns: int, *, is_timed: bool) -> bool:
        """Whether this standby was in step and has reason to think that its primary is gone.

        `is_timed`: only time can tell, so the promise given with the last acknowledgement has to be over. Otherwise the
        witness knows who is alive, and losing the link is reason enough to ask it.
        """
        if self._log is None or not self.in_step:
            return False
        if not is_timed:
            return self._link is None
        return now_ns - self.promised_ns >= self._settings.lease_s * MARGIN * 1e9
