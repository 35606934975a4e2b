"""When a standby becomes the primary by itself: it wins the lease row of the witness, and only then.

There are three ways to it. The primary that had named this standby is silent, and let the row run out; or, where the
witness is a lock on this machine, its process has ended, which the kernel tells at once. Or this process
was itself the primary that gave the row back for a handover, and nobody came to take it: then it has everything, and
takes it back in its own term. Or the row says that this process leads already: it did, or was about to, and was
started again when the witness could not be asked.
"""

import asyncio
from collections.abc import Callable

from server.replication.following import Following
from server.replication.lease import LeaseKeeper, LeaseWatch
from server.replication.settings import ReplicationSettings
from server.replication.witness import NOBODY, Lease, Witness, WitnessUnreachable
from snapshots.wal import RESTARTS_PER_TERM

UNTAKEN_LEASES = 3
LOOK_S = 0.1


class Takeover:
    """Watches the lease for one follower. `resigned_term` is the term that this process gave back last, 0 for none.

    `watch.lease` is the row as it was last seen.
    """

    def __init__(
        self,
        following: Following,
        witness: Witness,
        settings: ReplicationSettings,
        now_ns: Callable[[], int],
        resigned_term: int,
    ) -> None:
        self.watch = LeaseWatch(witness, settings.lease_s, now_ns)
        self._following = following
        self._witness = witness
        self._settings = settings
        self._now_ns = now_ns
        self._resigned_term = resigned_term

    async def won(self) -> Lease:
        """Wait until this process is to lead; returns the lease that says so."""
        looking = asyncio.create_task(self.watch.run())
        try:
            while True:
                await asyncio.sleep(min(self._settings.lease_s / 15, LOOK_S))
                lease: Lease | None = None
                if self._following.may_seek_promotion(self._now_ns(), is_timed=self._witness.needs_renewal):
                    lease = await self._seek()
                elif self._is_mine():
                    lease = self.watch.lease
                elif self._is_left_untaken():
                    lease = await self._take_back()
                if lease is not None:
                    return lease
        finally:
            looking.cancel()

    async def _seek(self) -> Lease | None:
        """Try to take over; from before the attempt until it failed nothing is acknowledged to anybody."""
        following, me = self._following, self._settings
        following.seek()
        while True:
            try:
                assert following.welcome is not None, "only a primary's word puts a standby in step"
                followed_term = following.welcome.epoch // RESTARTS_PER_TERM
                lease = await self.watch.try_take(followed_term, following.primary_node, me.node_id, me.url)
            except WitnessUnreachable:
                await asyncio.sleep(me.lease_s / 15)
                continue
            following.is_seeking = lease is not None
            return lease

    def _is_mine(self) -> bool:
        row = self.watch.lease
        return row is not None and row.holder == self._settings.node_id and self._following.is_whole

    def _is_left_untaken(self) -> bool:
        row = self.watch.lease
        is_mine = row is not None and (row.holder, row.term) == (NOBODY, self._resigned_term)
        return is_mine and self.watch.unchanged_s > UNTAKEN_LEASES * self._settings.lease_s

    async def _take_back(self) -> Lease | None:
        keeper = LeaseKeeper(self._witness, self._settings.node_id, self._settings.lease_s, self._now_ns)
        row = await keeper.acquire(self._resigned_term, self._settings.url)
        return row if (row.holder, row.term) == (self._settings.node_id, self._resigned_term) else None
