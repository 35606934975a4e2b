"""Which role this process has, and how it changes: the one place where a primary becomes a follower and back.

A process starts as what it is told to be, after asking: a primary first asks the witness and the followers it
remembers whether a higher term exists, and follows if it does. From then on one loop runs one role after the other.
The `Seat` is what the rest of the process holds; between two roles it answers `not_primary`.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog

from engine.backends.seat import Seat
from engine.errors import Damaged, Refused
from server.replication.following import Following, FollowingEvents
from server.replication.ground import Ground
from server.replication.inquiry import ask, who_leads_since
from server.replication.leading import Clocks, Leading, Stepdown
from server.replication.lease import LeaseKeeper
from server.replication.link import Link, LinkClosed, Reception
from server.replication.messages import Follow, Welcome
from server.replication.replica import LogLeftBehind, Replica, StateDiffers
from server.replication.takeover import Takeover
from server.replication.witness import Lease, Witness, WitnessUnreachable
from snapshots.journal import Journal
from snapshots.shipping import newest_segment
from snapshots.standby import CutReport, StandbyLog
from snapshots.wal import RESTARTS_PER_TERM

ASK_TIMEOUT_S = 1.0
ASK_PEERS_EVERY_S = 5.0
HANDOVER_TIMEOUT_S = 10.0

log = structlog.get_logger("stanchion.replication")


class Member:
    """One process among those that hold one line. `seat` is its backend, whatever role it has."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._settings = ground.settings
        self.seat = Seat.empty()
        self.reception = Reception(ground.keys.handshake_keys, ground.settings.node_id, ground.settings.url)
        self.leading: Leading | None = None
        self.following: Following | None = None
        self.last_cut: CutReport | None = None
        self.promoted_lost: str | None = None
        self._log: StandbyLog | None = None
        self._witness: Witness | None = None
        self._urls: list[str] = [url for url in ground.peers.load() if url != ground.settings.url]
        self._primary_url = ground.follow or ""
        self._promotion: asyncio.Future[_Promotion] = asyncio.get_running_loop().create_future()
        self._takeover: Takeover | None = None
        self._resigned_term = 0
        self._welcomed = asyncio.Event()
        self._has_differed = False
        self._settled = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.found: tuple[str, ...] = ()
        self.alarms: tuple[str, ...] = ()
        self.seat.vacate(self._not_primary("this server has just started"))

    @property
    def role(self) -> str:
        """What this process is now."""
        return "primary" if self.leading else "follower" if self.following else "none"

    @property
    def term(self) -> int:
        """The newest term this process knows of."""
        if self.leading is not None:
            return self.leading.term
        welcome = self.following.welcome if self.following is not None else None
        known = 0 if self._log is None else self._log.epoch
        return max(known, 0 if welcome is None else welcome.epoch) // RESTARTS_PER_TERM

    # ---- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find out the role and be ready for it; a primary is open for writes when this returns."""
        if self._ground.follow is None:
            await self._start_as_primary()
        if self.leading is None:
            self._open_log()
            self._follow_anew()

    async def run(self) -> None:
        """Run one role after the other; raises StanchionError where the process has to end."""
        if self._running is not None:
            running, self._running = self._running, None
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                running.cancel()
                await asyncio.wait([running])
                raise
        while True:
            if self.leading is not None:
                await self._lead(self.leading)
            else:
                await self._follow()

    async def first_welcome(self) -> None:
        """Wait, as a follower that knows nothing yet, until a primary has handed it its keys; raises what ends it."""
        running = asyncio.create_task(self.run())
        welcomed = asyncio.create_task(self._welcomed.wait())
        await asyncio.wait({running, welcomed}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            welcomed.cancel()
            await running
        self._running = running

    def retire(self) -> None:
        """Nobody is answered any more; what is still to be written need not wait for anybody else."""
        if self.leading is not None:
            self.leading.replicated.retire()

    async def close(self) -> None:
        """Let everything go in good order."""
        refused = self._not_primary("this server is shutting down")
        if self.leading is not None:
            await self.leading.close(refused)
        elif self.following is not None:
            await self.following.replica.backend.close()
            if self._log is not None:
                await self._log.close()
        if self._witness is not None:
            await self._witness.close()

    async def serve(self, link: Link) -> None:
        """Serve one link that somebody opened here."""
        sealed, hello = await self.reception.admit(link)
        try:
            follow = await sealed.receive()
            if not isinstance(follow, Follow):
                raise LinkClosed("a follower says first from where it follows")
            if self.leading is not None:
                await self.leading.publisher.serve(sealed, hello, follow)
            else:
                await sealed.send(self._elsewhere())
        except LinkClosed:
            pass
        finally:
            sealed.close()

    def _elsewhere(self) -> Welcome:
        known = "" if self.following is None or self.following.welcome is None else self._primary_url
        settings, epoch = self._settings, self.term * RESTARTS_PER_TERM
        log_id = b"" if self._log is None else self._log.log_id
        return Welcome(
            "elsewhere", self.role, epoch, log_id, known, "", settings.mode, settings.lease_s, b"", self._urls, []
        )

    def _not_primary(self, detail: str) -> Refused:
        return Refused("not_primary", detail, retry_after_s=1)

    # ---- as primary ------------------------------------------------------------------------------------

    async def _start_as_primary(self) -> None:
        """Lead, unless somebody else does."""
        storage, known = self._ground.storage, None
        assert storage is not None, "a primary has a data folder"
        known = newest_segment(storage)
        term = max(1, 0 if known is None else known.epoch // RESTARTS_PER_TERM)
        if known is not None and (url := await who_leads_since(self._ground, self._urls, term)) is not None:
            self._primary_url = url
            return
        journal = Journal.open(storage, self._ground.options)
        self.found, self.alarms = journal.found.sentences, journal.found.alarms
        self._ground.peers.save(self._urls)
        await self._take_the_lead(journal)

    async def _take_the_lead(self, journal: Journal, replica: Replica | None = None, now_ms: int = 0) -> None:
        """Hold the lease where there is one, and open for writes; follow instead where the witness says so."""
        keeper = None
        if (witness := self._open_witness(journal.log_id)) is not None:
            keeper, term = self._keeper(witness), journal.epoch // RESTARTS_PER_TERM
            held = await keeper.acquire(term, self._settings.url)
            if (held.holder, held.term) != (self._settings.node_id, term) or not await keeper.name_standby(None):
                await self._yield_to(journal, held)
                return
        keys = self._ground.keys
        leading = Leading(
            self._settings,
            journal,
            keeper,
            self._clocks,
            keys.draw_key,
            keys,
            lambda: list(self._urls),
            self._meet,
            None if replica is None else replica.venue,
            now_ms,
        )
        leading.backend.replication = self.status
        await leading.start()
        self.leading, self.following, self._log = leading, None, None
        self._settled.set()
        keys.lead(leading.publisher.hand_on)
        self.seat.take(leading.backend)
        log.info("leading", term=leading.term, epoch=journal.epoch, lost=journal.lost)

    async def _yield_to(self, journal: Journal, held: Lease) -> None:
        """Be a follower after all; a term that this process took and did not live to write down is taken up again."""
        await journal.close()
        if held.holder == self._settings.node_id:
            assert self._ground.storage is not None
            options = replace(self._ground.options, least_epoch=held.term * RESTARTS_PER_TERM)
            await self._take_the_lead(Journal.open(self._ground.storage, options))
            return
        self._primary_url = held.url

    @property
    def _clocks(self) -> Clocks:
        return self._ground.clocks

    def _keeper(self, witness: Witness) -> LeaseKeeper:
        return LeaseKeeper(witness, self._settings.node_id, self._settings.lease_s, self._clocks.boottime_ns)

    def _open_witness(self, cluster_id: bytes) -> Witness | None:
        if self._witness is None and self._ground.open_witness is not None:
            self._witness = self._ground.open_witness(cluster_id)
        return self._witness

    async def _lead(self, leading: Leading) -> None:
        """Lead until it ends, then become a follower."""
        asking = asyncio.create_task(self._look_for_higher_terms(leading))
        try:
            stepdown = await leading.run()
        finally:
            asking.cancel()
        await self._step_down(leading, stepdown)

    async def _step_down(self, leading: Leading, stepdown: Stepdown) -> None:
        log.warning("stepping_down", why=stepdown.why, primary=stepdown.url, term=leading.term)
        refused = self._not_primary(f"this server is no longer the primary: {stepdown.why}")
        self.seat.vacate(refused)
        self._ground.keys.lead(None)
        self.leading = None
        await leading.close(refused)
        self._primary_url = stepdown.url or self._primary_url
        self._resigned_term = leading.term if stepdown.is_handed_over else 0
        self._open_log()
        self._follow_anew()

    async def _look_for_higher_terms(self, leading: Leading) -> None:
        """Ask the followers that are not here whether one of them was promoted meanwhile, first when it opens."""
        while True:
            here = [session.hello.url for session in leading.publisher.sessions.values()]
            for url in [url for url in self._urls if url not in here]:
                if (welcome := await ask(self._ground, url)) is not None:
                    leading.superseded(welcome.epoch // RESTARTS_PER_TERM, welcome.primary_url or url)
            await asyncio.sleep(ASK_PEERS_EVERY_S)

    # ---- as follower ------------------------------------------------------------------------------------

    def _open_log(self) -> None:
        if self._ground.storage is not None and self._log is None:
            self._log = StandbyLog.open(self._ground.storage, self._ground.options)
            self.found, self.alarms = self._log.found.sentences, self._log.found.alarms
            self._ground.peers.save(self._urls)

    def _follow_anew(self) -> None:
        """Begin to follow with a state built from what is on the disk."""
        events = FollowingEvents(self._take_replica, self._take_welcome, self._take_peers, self._take_cut)
        self.following = Following(
            self._settings,
            self._ground.keys.handshake_keys,
            self._ground.scratch,
            self._log,
            self._ground.open_link,
            self._ground.keys,
            (self._clocks.boottime_ns, self._clocks.clock_ms),
            events,
        )
        self._promotion = asyncio.get_running_loop().create_future()
        self._settled.set()
        if self.following.replica.held_lsn:
            self._take_replica(self.following.replica)

    async def _follow(self) -> None:
        """Follow until this process is to lead, or its state has to be built anew."""
        following = self.following
        assert following is not None
        if (lease := await self._held_lease()) is not None:
            await self._promote(following, _Promotion(None, lease))
            return
        tasks = [asyncio.create_task(following.run(self._candidates))]
        if self._ground.open_witness is not None and self._log is not None:
            tasks.append(asyncio.create_task(self._watch(following)))
        try:
            ends: list[asyncio.Future[Any]] = [*tasks, self._promotion]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and isinstance(error := task.exception(), LogLeftBehind):
                if isinstance(error, StateDiffers):
                    await self._distrust(error)
                await self._build_anew()
                return
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if self._promotion.done():
            await self._promote(following, self._promotion.result())

    async def _held_lease(self) -> Lease | None:
        """Return the lease where the witness says that this process is primary: it was promoted, and started again."""
        if self._log is None or not self._log.log_id or (witness := self._open_witness(self._log.log_id)) is None:
            return None
        with suppress(WitnessUnreachable):
            row = await witness.read()
            if row is not None and row.holder == self._settings.node_id:
                return row
        return None

    async def _distrust(self, error: StateDiffers) -> None:
        """Give up a state that is not the primary's and start over from a snapshot; only once."""
        log.critical("state_differs", problem=str(error))
        if self._has_differed:
            raise Damaged(f"{error}: it does so after a new start, too; look at the primary's memory and version")
        self._has_differed = True
        if self._log is not None:
            self._take_cut(await asyncio.to_thread(self._log.start_over))

    async def _build_anew(self) -> None:
        """Close what is there and build the state from the disk, which holds only what the new primary has, too."""
        self.seat.vacate(self._not_primary("this server is taking up the state of a new primary"))
        if self.following is not None:
            await self.following.replica.backend.close()
        if self._log is not None:
            await self._log.close()
            self._log = None
        self._open_log()
        self._follow_anew()

    def _candidates(self) -> list[str]:
        """Return where the primary may be, the likeliest first."""
        row = None if self._takeover is None else self._takeover.watch.lease
        named = "" if row is None else row.url
        order = [self._primary_url, named, self._ground.follow or "", *self._urls]
        return [url for url in dict.fromkeys(order) if url and url != self._settings.url]

    def _take_replica(self, replica: Replica) -> None:
        replica.backend.replication = self.status
        self.seat.take(replica.backend)

    def _take_welcome(self, welcome: Welcome, node_id: str) -> None:
        self._primary_url = welcome.primary_url
        self._take_peers([*welcome.peers, welcome.primary_url])
        self._welcomed.set()
        log.info("following", primary=welcome.primary_url, node_id=node_id, epoch=welcome.epoch, begin=welcome.begin)

    def _take_peers(self, urls: list[str]) -> None:
        for url in urls:
            self._meet(url)

    def _meet(self, url: str) -> None:
        if url and url != self._settings.url and url not in self._urls:
            self._urls.append(url)
            self._ground.peers.save(self._urls)
            if self.leading is not None:
                self.leading.publisher.tell_peers()

    def _take_cut(self, report: CutReport) -> None:
        self.last_cut = report
        log.error("history_put_aside", what=report.sentence)

    # ---- becoming primary ----------------------------------------------------------------------------------

    async def _watch(self, following: Following) -> None:
        """Be promoted as soon as the witness agrees."""
        if not (cluster_id := b"" if self._log is None else self._log.log_id):
            await following.welcomed.wait()
            assert following.welcome is not None
            cluster_id = following.welcome.log_id
        witness = self._open_witness(cluster_id)
        assert witness is not None
        takeover = Takeover(following, witness, self._settings, self._clocks.boottime_ns, self._resigned_term)
        self._takeover = takeover
        lease = await takeover.won()
        if not self._promotion.done():
            self._promotion.set_result(_Promotion(None, lease))

    async def promote(self, *, old_primary_is_dead: bool = False) -> str:
        """Make this standby the primary, by hand; returns what may have been lost, "" for nothing. Raises Refused."""
        following = self.following
        if self.leading is not None:
            raise Refused("conflict", "this server is the primary already", reason="is_primary")
        if following is None or self._log is None:
            raise Refused("conflict", "a follower without a data folder cannot be promoted", reason="no_data")
        if not self._log.is_whole:
            raise Refused("conflict", "this standby has not received the whole state yet", reason="not_here_yet")
        self._check_idle()
        lost, handed = "", None
        if following.is_reachable:
            try:
                handed = await following.ask_to_hand_over(HANDOVER_TIMEOUT_S)
            except Refused:
                if following.is_reachable:
                    raise  # otherwise its primary went away just now, as it may have a moment earlier
        if handed is not None and handed.problem:
            raise Refused("conflict", f"the primary did not hand over: {handed.problem}", reason="not_handed_over")
        if handed is None:
            await self._check_dead(old_primary_is_dead)
            lsn = following.replica.held_lsn if self._log is None else self._log.position.lsn
            lost = f"what was acknowledged after LSN {lsn} by the primary of term {self.term}"
        self._check_idle()
        self._settled.clear()
        self._promotion.set_result(_Promotion(lost or None, None))
        await self._settled.wait()
        if self.leading is None:
            raise Refused("conflict", f"the witness names another primary: {self._primary_url}", reason="not_the_heir")
        return lost

    def _check_idle(self) -> None:
        if self._promotion.done() or self._log is None:
            raise Refused("conflict", "a promotion is under way here already", reason="promotion_under_way")

    async def _check_dead(self, is_said_so: bool) -> None:
        """Refuse where the old primary may be alive: a port that refuses is dead, silence says nothing."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                link = await self._ground.open_link(self._primary_url)
        except ConnectionRefusedError:
            return
        except (OSError, TimeoutError, LinkClosed):
            if is_said_so:
                return
            raise Refused(
                "conflict",
                f"{self._primary_url} does not answer, and may be alive behind a broken network: only you can know. "
                "Make sure that it is stopped, and say --old-primary-is-dead",
                reason="old_primary_unknown",
            ) from None
        link.close()
        if not is_said_so:
            raise Refused(
                "conflict", "the primary answers, but this follower is not connected to it yet", reason="not_following"
            )

    async def _promote(self, following: Following, promotion: "_Promotion") -> None:
        """Win the next term, make it durable, apply what is held, and open for writes."""
        standby_log, lease = self._log, promotion.lease
        assert standby_log is not None
        self.seat.vacate(self._not_primary("this server is becoming the primary"))
        await following.hold_what_is_kept()
        term = self.term + 1 if lease is None else lease.term
        if lease is None and (witness := self._open_witness(standby_log.log_id)) is not None:
            lease = await self._keeper(witness).acquire(term, self._settings.url, old_primary_is_dead=True)
            if (lease.holder, lease.term) != (self._settings.node_id, term):
                self._primary_url = lease.url
                await self._build_anew()
                return
        journal = standby_log.promote(term * RESTARTS_PER_TERM, promotion.lost)
        replica = following.replica
        now_ms = replica.apply_everything()
        await replica.backend.close()
        self.promoted_lost, self._log = promotion.lost, None
        await self._take_the_lead(journal, replica, now_ms)
        if self.leading is None:
            self.following = None
            self._open_log()
            self._follow_anew()

    def status(self) -> Mapping[str, Any]:
        """Return mode, term and lag, for status pages and metrics."""
        facts = {"mode": self._settings.mode, "term": self.term, "committed_lsn": self.committed_lsn}
        if self.leading is not None:
            facts |= self.leading.facts()
        elif self.following is not None:
            facts |= {"primary_url": self._primary_url, **self.following.facts()}
        facts |= {"lost": self.promoted_lost, "wrong_keys": self.reception.wrong_keys}
        facts["put_aside"] = None if self.last_cut is None else self.last_cut.sentence
        return facts

    @property
    def committed_lsn(self) -> int:
        """The newest LSN that may be spoken of, as far as is known here."""
        if self.leading is not None:
            return self.leading.replicated.durable_lsn
        return 0 if self.following is None else self.following.committed_lsn


@dataclass(frozen=True, slots=True)
class _Promotion:
    """What may have been lost, and the lease where the witness gave one."""

    lost: str | None
    lease: Lease | None
