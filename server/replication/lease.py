"""The lease: who has the right to answer, and when the standby may take it over.

Why no two processes ever believe at the same moment that they have the right to answer alone
--------------------------------------------------------------------------------------------
The row of the witness (`Lease`) changes only by compare-and-set on its version, so its versions are one sequence, and
each was stored by one swap. Nothing is assumed of networks and processes: a request may arrive at any later time or
never, an answer may be lost, a process or machine may stop anywhere and go on later. One thing is assumed of clocks:
a second of one CLOCK_BOOTTIME, which counts while a machine sleeps, is at most 1.02 s (MARGIN) of another's; real ones
are off by less than 0.05 %. No two clocks are ever compared, and the witness's own is not read.

1. *The holder counts from before it sends.* A swap that stored a version with the holder in it gives the right until
   `began + lease_s`, `began` being read before the request went out. That is never later than when the version was
   stored. Only a swap whose own answer came counts: a version that is found by reading again (its answer was lost)
   is gone on from, but prolongs nothing, since it is not known which of several requests stored it.
2. *The watcher counts from when a read was complete.* The version was stored before that. When the read was started
   it perhaps was not, and a count from there could end before the holder's does.
3. *The watcher swaps the very version it waited for*, after `lease_s * MARGIN` of its own time: by 1 and 2 the right
   that came with this version has run out by any clock. A renewal that gave a later right would have stored a later
   version, and the swap would fail. A renewal that arrives after the swap fails itself: it compares too.
4. *Whoever takes over is told by its own swap*, or finds by reading exactly what it wanted to store, behind the version
   it compared. A request of unknown outcome is dead once the row has moved past the version it compares; until then
   nothing is concluded from not seeing it.
5. *A process that stood still* reads the clock before each answer (`is_valid`), and BOOTTIME has gone on.

Only the standby named in the row takes over by itself, so the row is the agreement about who holds all that was
acknowledged: it names a standby before that one is told that it is in step, and it names nobody before the primary
acknowledges anything without it. Both are swaps (`name_standby`) that the standby's own swap competes with.

A second way to have the right, in `roles`, rests on the same bound: the standby the row names promises, with every
acknowledgement, not to seek the lease before `lease_s * MARGIN` after the message it acknowledges had come.

The flock witness needs no time: the right ends with the process, and the kernel says when.
"""

import asyncio
from collections.abc import Callable
from enum import Enum

import structlog

from server.replication.witness import NOBODY, Lease, Witness, WitnessUnreachable, successor

log = structlog.get_logger("stanchion.lease")

# How much longer than the lease a watcher waits, as a factor.
MARGIN = 1.02
# Of a lease: the time between two renewals, between two reads of a watcher, and before something failed is tried again.
RENEWALS = 3
READS = 10
RETRIES = 10

_ALWAYS_NS = 1 << 62


class _Verdict(Enum):
    """What a row means to a process that wants to be primary."""

    TAKE = "take"
    WAIT = "wait"
    FOLLOW = "follow"


class _Reach:
    """Tells the log once that a witness is not reached, and once that it is again."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._is_lost = False

    def failed(self, error: WitnessUnreachable) -> None:
        if not self._is_lost:
            self._is_lost = True
            log.warning("witness_unreachable", witness=self._witness.describe(), error=str(error))

    def works(self) -> None:
        if self._is_lost:
            self._is_lost = False
            log.info("witness_reached", witness=self._witness.describe())


class LeaseKeeper:
    """The primary's side of the lease; one for each time that a process becomes the primary.

    `lease` is the row as it was last known to be this keeper's. `lost` resolves once, with the row that is not.
    """

    def __init__(self, witness: Witness, node_id: str, lease_s: float, now_ns: Callable[[], int]) -> None:
        self.lease: Lease | None = None
        self.valid_until_ns = 0
        self.lost: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._witness = witness
        self._node_id = node_id
        self._lease_s = lease_s
        self._now_ns = now_ns
        self._turn = asyncio.Lock()
        self._unanswered: list[Lease] = []
        self._resigned = False
        self._reach = _Reach(witness)

    def is_valid(self, now_ns: int) -> bool:
        """Return whether the lease gives the right to answer at `now_ns` of CLOCK_BOOTTIME."""
        return now_ns < self.valid_until_ns

    async def acquire(self, term: int, url: str, *, old_primary_is_dead: bool = False) -> Lease:
        """Take the lease for `term`, or return the row of whoever is to be followed instead.

        It was taken if the row returned has this holder and this term. A row of this holder and a higher term means:
        it took over once and ended before it had opened that term. Within its term the standby stays named, as it
        may hold what this process does not know of: go on alone only after `name_standby(None)`.

        A row of another holder and a lower term is watched for a lease; it is taken only when that holder is gone,
        and only when the row names no other standby, with whom the holder could go on without this witness, or the
        operator says that it is dead. Tries for as long as the witness is not reached.
        """
        watch = LeaseWatch(self._witness, self._lease_s, self._now_ns)
        first: Lease | None = None
        while True:
            try:
                row = await watch.look()
                first = first or row
                verdict = await self._judge(row, first, term, watch, old_primary_is_dead)
                if row is not None and verdict is _Verdict.FOLLOW:
                    return row
                if verdict is _Verdict.TAKE:
                    kept = row.standby if row is not None and row.term == term else None
                    async with self._turn:
                        if (stored := await self._swap(row, Lease(0, term, self._node_id, url, kept))) is not None:
                            return stored
            except WitnessUnreachable as error:
                self._reach.failed(error)
            await asyncio.sleep(self._lease_s / RETRIES)

    async def run(self) -> None:
        """Renew the lease until it is lost or given back."""
        while not self._is_over:
            began_ns = self._now_ns()
            pause_s = self._lease_s / RETRIES
            try:
                async with self._turn:
                    if await self._renew():
                        pause_s = self._lease_s / RENEWALS
            except WitnessUnreachable as error:
                self._reach.failed(error)
            await asyncio.sleep(max(0.0, pause_s - (self._now_ns() - began_ns) / 1e9))

    async def name_standby(self, standby: str | None) -> bool:
        """Write down who may take over; returns True once the row says so, and False when the lease was lost.

        Tries for as long as the witness is not reached. A call that is cancelled leaves open which of the two the row
        says, or will say: ask again before anything rests on it.
        """
        while not self._is_over:
            try:
                async with self._turn:
                    if self._is_over:
                        break
                    assert self.lease is not None, "a standby is named before the lease was acquired"
                    if await self._swap(self.lease, self.lease._replace(standby=standby)) is not None:
                        return True
                    await self._look()
            except WitnessUnreachable as error:
                self._reach.failed(error)
            await asyncio.sleep(self._lease_s / RETRIES)
        return False

    async def resign(self, successor_id: str | None = None) -> bool:
        """Give the lease back to `successor_id` (None: the standby it names), who then need not wait.

        Final: from the call on there is no right to answer, and every other way to it has to have been given up
        before. Returns False when the lease was lost already. Tries for as long as the witness is not reached; where
        it is cancelled, the lease runs out by itself.
        """
        self._resigned = True
        self.valid_until_ns = 0
        while self.lease is not None and not self.lost.done():
            try:
                async with self._turn:
                    standby = successor_id or self.lease.standby
                    if await self._swap(self.lease, self.lease._replace(holder=NOBODY, standby=standby)) is not None:
                        return True
                    await self._look()
            except WitnessUnreachable as error:
                self._reach.failed(error)
            await asyncio.sleep(self._lease_s / RETRIES)
        return False

    @property
    def _is_over(self) -> bool:
        return self._resigned or self.lost.done()

    async def _judge(
        self, row: Lease | None, first: Lease | None, term: int, watch: "LeaseWatch", is_said_dead: bool
    ) -> _Verdict:
        """Decide about a row that was read; `first` is the one that was read first."""
        if row is None or (row.holder == self._node_id and row.term <= term):
            return _Verdict.TAKE
        if row.term == term and row.holder == NOBODY:
            return _Verdict.TAKE  # only the primary of a term asks for that term: it gave the lease back, and may again
        is_named_another = row.standby not in (None, self._node_id)
        if row.term >= term or row != first or (is_named_another and not is_said_dead):
            return _Verdict.FOLLOW
        wait_s, unchanged_s = self._lease_s * MARGIN, watch.unchanged_s
        if row.holder == NOBODY or await self._witness.is_abandoned(row, unchanged_s, wait_s):
            return _Verdict.TAKE
        return _Verdict.FOLLOW if unchanged_s >= wait_s else _Verdict.WAIT

    async def _renew(self) -> bool:
        """Renew once, in turn; returns False where it has to be tried again soon."""
        if self._is_over:
            return False
        assert self.lease is not None, "a lease is renewed before it was acquired"
        if not self._witness.needs_renewal:
            await self._look()
            return True
        if await self._swap(self.lease, self.lease) is not None:
            return True
        await self._look()
        return False

    async def _swap(self, seen: Lease | None, wanted: Lease) -> Lease | None:
        """Swap in turn; what is stored is held, and counts from before it was sent."""
        sent = successor(seen, wanted)
        self._unanswered.append(sent)
        began_ns = self._now_ns()
        stored = await self._witness.swap(seen, wanted)
        self._reach.works()
        self._unanswered.remove(sent)
        if stored is None:
            return None
        self._hold(stored)
        if not self._resigned:
            is_timed = self._witness.needs_renewal
            self.valid_until_ns = began_ns + int(self._lease_s * 1e9) if is_timed else _ALWAYS_NS
        return stored

    async def _look(self) -> None:
        """Find out in turn why a swap was refused: by an own one whose answer was lost, or by somebody else's."""
        row = await self._witness.read()
        self._reach.works()
        assert self.lease is not None
        if row is not None and row in self._unanswered:
            self._hold(row)  # prolongs nothing: which of several requests stored it is not known
        elif row is None or (row.holder == self._node_id and row.version < self.lease.version):
            log.error("witness_forgot", known=self.lease, found=row)  # goes on from nothing: the lease runs out
        elif row != self.lease and not self.lost.done():
            self.valid_until_ns = 0
            log.warning("lease_lost", known=self.lease, found=row)
            self.lost.set_result(row)

    def _hold(self, row: Lease) -> None:
        self.lease = row
        self._unanswered.clear()


class LeaseWatch:
    """The standby's side of the lease: sees whether it changes, and takes it over.

    `lease` is the row as it was last read, None where there is none or it was not read yet.
    """

    def __init__(self, witness: Witness, lease_s: float, now_ns: Callable[[], int]) -> None:
        self.lease: Lease | None = None
        self._witness = witness
        self._lease_s = lease_s
        self._now_ns = now_ns
        self._turn = asyncio.Lock()
        self._since_ns = now_ns()
        self._reach = _Reach(witness)

    @property
    def unchanged_s(self) -> float:
        """How long the row is known to be as it is, from when the read that first showed it was complete."""
        return (self._now_ns() - self._since_ns) / 1e9

    async def look(self) -> Lease | None:
        """Read the row now; raises WitnessUnreachable."""
        async with self._turn:
            row = await self._witness.read()
            self._reach.works()
            self._saw(row)
            return row

    async def run(self) -> None:
        """Read the row again and again."""
        while True:
            try:
                await self.look()
            except WitnessUnreachable as error:
                self._reach.failed(error)
            await asyncio.sleep(self._lease_s / READS)

    async def try_take(self, followed_term: int, followed_holder: str, me: str, url: str) -> Lease | None:
        """Take the lease for the next term from the primary that was followed; returns it, or None where it must not.

        It is taken only while the row names `me` the standby of that primary, and that one has given it back or let
        it run out. A WitnessUnreachable leaves open whether it was taken: call again until there is an answer, and
        acknowledge nothing before. `LeaseKeeper.acquire` then makes it a right to answer.
        """
        row = await self.look()
        if row is None or self._is_taken(row, followed_term, me):
            return row
        is_followed = row.term == followed_term and row.holder in (followed_holder, NOBODY)
        if not is_followed or row.standby != me:
            return None
        wait_s = self._lease_s * MARGIN
        if row.holder != NOBODY and not await self._witness.is_abandoned(row, self.unchanged_s, wait_s):
            return None
        stored = await self._witness.swap(row, Lease(0, followed_term + 1, me, url, None))
        if stored is None:
            row = await self.look()
            return row if row is not None and self._is_taken(row, followed_term, me) else None
        self._saw(stored)
        return stored

    def _is_taken(self, row: Lease, followed_term: int, me: str) -> bool:
        """Whether an earlier try succeeded after all: nobody else writes this name."""
        return (row.term, row.holder) == (followed_term + 1, me)

    def _saw(self, row: Lease | None) -> None:
        if row != self.lease:
            self.lease = row
            self._since_ns = self._now_ns()
