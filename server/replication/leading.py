"""Being primary: what follows from holding the line, for as long as this process may.

The journal is opened, the lease is held, and only then is anybody answered. It ends when the log fails, when the
witness or a peer tells of a higher term, or when the line was handed over in good order; in every case whoever
waits is told `not_primary`, and nothing is promised any more.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from engine.backends.memory import MemoryBackend
from engine.errors import Damaged, Refused, StorageFailed
from engine.venue import Venue
from server.replication.agreement import Agreement, Standing
from server.replication.lag import Lag, told
from server.replication.lease import LeaseKeeper
from server.replication.messages import HandedOver
from server.replication.publisher import Publisher, PublisherEvents, RingSource, Session
from server.replication.replicated_journal import ReplicatedJournal
from server.replication.settings import ReplicationSettings
from server.replication.witness import Lease
from snapshots.journal import Journal
from snapshots.wal import RESTARTS_PER_TERM

HANDOVER_TIMEOUT_S = 5.0

log = structlog.get_logger("stanchion.replication")


@dataclass(frozen=True, slots=True)
class Clocks:
    """`boottime_ns` is CLOCK_BOOTTIME, which no freeze stops; `clock_ms` is monotonic, `wall_ms` Unix time."""

    boottime_ns: Callable[[], int]
    clock_ms: Callable[[], int]
    wall_ms: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Stepdown:
    """Why this process is primary no longer, and where the new one is ("" where that is not known).

    `is_handed_over`: it gave up of its own accord, with nothing missing here.
    """

    why: str
    url: str
    is_handed_over: bool = False


class Leading:
    """One time as primary. `keeper` holds the lease where there is a witness."""

    def __init__(
        self,
        settings: ReplicationSettings,
        journal: Journal,
        keeper: LeaseKeeper | None,
        clocks: Clocks,
        draw_key: bytes,
        ring: RingSource,
        peers: Callable[[], list[str]],
        on_peer: Callable[[str], None],
        venue: Venue | None = None,
        now_ms: int = 0,
    ) -> None:
        self._settings = settings
        self.journal = journal
        self._keeper = keeper
        self._boottime_ns = clocks.boottime_ns
        timeout_ns = int(settings.standby_timeout_s * 1e9)
        self.agreement = Agreement(settings.mode == "sync", timeout_ns)
        self.replicated = ReplicatedJournal(journal, self.agreement, clocks.boottime_ns, self.may_speak, self._no_right)
        self.backend = MemoryBackend(self.replicated, clocks.clock_ms, clocks.wall_ms, draw_key, venue, now_ms)
        self.backend.degraded = self.degraded
        if keeper is not None:
            self.backend.is_in_doubt = lambda: not self.may_speak()
        events = PublisherEvents(self._moved, self._superseded, self._hand_over, self._fatal, on_peer)
        event_clock = (clocks.boottime_ns, self.backend.now_ms)
        self.publisher = Publisher(
            settings, journal, self.replicated, self.agreement, self.backend, ring, event_clock, peers, events
        )
        self._wake = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self._ended: asyncio.Future[Stepdown] = asyncio.get_running_loop().create_future()
        self._period_s = min(settings.lease_s, settings.standby_timeout_s) / 20
        self._tasks: list[asyncio.Task[None]] = []
        self._is_giving_up = False

    @property
    def term(self) -> int:
        """The term of every record this process writes."""
        return self.journal.epoch // RESTARTS_PER_TERM

    def may_speak(self) -> bool:
        """Whether answers may leave: the lease is valid, or the standby that could take over promised to wait.

        Without a witness nobody takes over by itself, so there is nothing to look at, not even a clock.
        """
        if self._is_giving_up or self._keeper is None:
            return not self._is_giving_up
        now_ns, agreement = self._boottime_ns(), self.agreement
        if self._keeper.is_valid(now_ns):
            return True
        is_named = agreement.standing in (Standing.IN_STEP, Standing.LEAVING)
        return is_named and now_ns < agreement.contact_ns + self._settings.lease_s * 1e9

    def _no_right(self) -> Refused:
        return Refused("not_primary", "this server cannot tell whether it is still the primary", retry_after_s=1)

    # ---- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Rebuild the line where there is none yet, and begin to take records; raises StorageFailed.

        That may take longer than the lease, so the lease is renewed from here on; where it is lost, `run` says so.
        """
        if self._keeper is not None:
            self._keeper.lost.add_done_callback(self._on_lost)
            self._tasks.append(asyncio.create_task(self._keeper.run()))
        starting = asyncio.create_task(self.backend.start())
        try:
            while not starting.done() and not self._ended.done():
                await asyncio.wait([starting], timeout=self._period_s)
                self.replicated.speak()
            if self._ended.done():
                self.replicated.resign(self._no_right())
            await starting
        except Refused:
            if self.journal.failed.done() and (failure := self.journal.failed.result()) is not None:
                raise failure from None
            if not self._ended.done():
                raise

    async def run(self) -> Stepdown:
        """Lead until it ends; raises StorageFailed or Damaged where the process has to end with it."""
        self._tasks += [asyncio.create_task(self._tick()), asyncio.create_task(self._grant())]
        self.journal.failed.add_done_callback(self._on_failed)
        tasks = self._tasks
        for task in tasks:
            task.add_done_callback(self._on_died)
        try:
            return await self._ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def close(self, why: Refused) -> None:
        """Refuse whoever waits, send the followers away, and let the folder go."""
        self.replicated.resign(why)
        await self.publisher.close()
        await self.backend.close()

    def _end(self, stepdown: Stepdown) -> None:
        if not self._ended.done():
            self._ended.set_result(stepdown)

    def _fail(self, error: BaseException) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _on_lost(self, lost: "asyncio.Future[Lease]") -> None:
        if not lost.cancelled():
            self._end(Stepdown("the witness names another primary", lost.result().url))

    def _on_failed(self, failed: "asyncio.Future[StorageFailed | None]") -> None:
        if not failed.cancelled() and (error := failed.result()) is not None:
            self._fail(error)

    def _on_died(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # ---- what happens ------------------------------------------------------------------------------------

    def _moved(self) -> None:
        self._acknowledged.set()
        if self.agreement.wish is not None:
            self._wake.set()

    def _superseded(self, epoch: int, url: str) -> None:
        self._end(Stepdown(f"a peer knows of term {epoch // RESTARTS_PER_TERM}", url))

    def superseded(self, term: int, url: str) -> None:
        """A higher term was heard of."""
        if term > self.term:
            self._end(Stepdown(f"a peer leads term {term}", url))

    def _fatal(self, error: Damaged) -> None:
        self._fail(error)

    async def _tick(self) -> None:
        """Notice silence, and the end of the right to answer."""
        while True:
            await asyncio.sleep(self._period_s)
            now_ns = self._boottime_ns()
            standing = self.agreement.standing
            self.agreement.tick(now_ns)
            if self.agreement.standing is not standing:
                log.warning("standby_silent", standby=self.agreement.standby, now=self.agreement.standing.value)
            if self.agreement.wish is not None:
                self._wake.set()
            if self.may_speak():
                self.replicated.speak()
            else:
                self.replicated.refuse_waiting()
            self.publisher.note_moment()

    async def _grant(self) -> None:
        """Have the witness write down what the agreement wishes; without one it is so."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            wish = self.agreement.wish
            if wish is None:
                continue
            if self._keeper is not None and not await self._keeper.name_standby(wish.standby):
                return
            self.agreement.granted(wish, self._boottime_ns())
            log.info("standby_in_step" if wish.standby else "going_on_alone", standby=wish.standby)
            self.replicated.speak()
            self.publisher.tell_all()

    async def _hand_over(self, session: Session) -> None:
        """Stop, see that the follower has everything, and give the line up to it; or say why not, and go on."""
        refused = Refused("not_primary", "the line is being handed over to another server", retry_after_s=1)
        if not session.follow.is_standby:
            session.put(HandedOver(0, "a follower without a data folder cannot take over"))
            return
        self.replicated.stop_taking(refused)
        try:
            async with asyncio.timeout(HANDOVER_TIMEOUT_S):
                while not self._is_all_with(session):
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        except TimeoutError:
            self.replicated.go_on_taking()
            session.put(HandedOver(0, "the follower did not catch up in time"))
            return
        if self._keeper is not None and not await self._give_up_lease(self._keeper, session.hello.node_id):
            session.put(HandedOver(0, "the witness could not be told; whoever it names leads"))
            self._end(Stepdown("a handover was left half done", session.hello.url, is_handed_over=True))
            return
        await self.publisher.finish(session, HandedOver(self.journal.last_lsn))
        self._end(Stepdown("handed over", session.hello.url, is_handed_over=True))

    async def _give_up_lease(self, keeper: LeaseKeeper, successor_id: str) -> bool:
        """Have the witness name the successor; from here on nothing is answered any more, whatever comes of it."""
        self._is_giving_up = True
        try:
            async with asyncio.timeout(HANDOVER_TIMEOUT_S):
                return await keeper.resign(successor_id)
        except TimeoutError:
            return False

    def _is_all_with(self, session: Session) -> bool:
        return self.journal.last_lsn == self.replicated.durable_lsn == session.acked_lsn

    # ---- what it is ----------------------------------------------------------------------------------------

    def degraded(self) -> tuple[str, ...]:
        """Return what is weaker now than the mode promises."""
        told = []
        if self.agreement.is_degraded:
            told.append("no standby is in step: nobody could take over, and answers may rest on this disk alone")
        if not self.may_speak():
            told.append("the right to answer has run out")
        return tuple(told)

    def facts(self) -> dict[str, object]:
        """Return how this primary stands with its followers, for status pages and metrics."""
        agreement, lags = self.agreement, self.publisher.lags()
        worst = max(lags.values(), key=lambda lag: lag.records, default=Lag(0, 0, 0.0))
        facts: dict[str, object] = {"standing": agreement.standing.value, "standby": agreement.standby}
        facts |= {"in_step": agreement.is_covered, "followers": len(lags)}
        return facts | told(worst)
