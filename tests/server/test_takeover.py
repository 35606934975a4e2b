"""A standby leads when it has won the row of the witness, and a primary whose handover nobody took leads again."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from server.replication.settings import ReplicationSettings
from server.replication.takeover import UNTAKEN_LEASES, Takeover
from server.replication.witness import NOBODY, Lease, LeaseTable, MemoryWitness
from snapshots.wal import RESTARTS_PER_TERM
from tests.simulation.virtual_loop import VirtualLoop, lead

CLUSTER = bytes(16)
LEASE_S = 1.0


class Scene:
    """The process "b", which followed "a" in term 1, and the row that the witness has."""

    def __init__(
        self, loop: VirtualLoop, row: Lease, *, in_step: bool = False, resigned_term: int = 0, is_whole: bool = True
    ) -> None:
        table = LeaseTable()
        table.rows[CLUSTER] = row
        self.table = table
        self.sought: list[bool] = []
        self.in_step, self.is_timed = in_step, True
        self.following = SimpleNamespace(
            may_seek_promotion=self.may_seek_promotion,
            seek=lambda: self.sought.append(True),
            welcome=SimpleNamespace(epoch=RESTARTS_PER_TERM),
            primary_node="a",
            is_seeking=True,
            is_whole=is_whole,
        )
        settings = ReplicationSettings("b", "sim://b", lease_s=LEASE_S)
        self.witness = MemoryWitness(table, CLUSTER, "b")

        def now_ns() -> int:
            return int(loop.time() * 1e9)

        self.takeover = Takeover(self.following, self.witness, settings, now_ns, resigned_term)  # type: ignore[arg-type]

    def may_seek_promotion(self, now_ns: int, *, is_timed: bool) -> bool:
        self.is_timed = is_timed
        return self.in_step

    @property
    def row(self) -> Lease:
        return self.table.rows[CLUSTER]

    async def won_within(self, seconds: float) -> Lease | None:
        try:
            return await asyncio.wait_for(self.takeover.won(), seconds)
        except TimeoutError:
            return None


def alive(life: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    lead(1, life)


def test_a_standby_in_step_takes_over_once_the_row_has_not_changed_for_a_lease() -> None:
    async def life(loop: VirtualLoop) -> None:
        scene = Scene(loop, Lease(5, 1, "a", "sim://a", "b"), in_step=True)
        began_s = loop.time()
        lease = await scene.won_within(5)
        assert lease is not None
        assert (lease.term, lease.holder, lease.standby) == (2, "b", None)
        assert loop.time() - began_s > LEASE_S
        assert scene.following.is_seeking, "nothing is acknowledged any more"

    alive(life)


@pytest.mark.parametrize("is_dead", [True, False])
def test_where_the_witness_knows_who_is_alive_nobody_waits_for_a_lease_and_nobody_alive_is_followed(
    is_dead: bool,
) -> None:
    async def tells(*_: object) -> bool:
        return is_dead

    async def life(loop: VirtualLoop) -> None:
        scene = Scene(loop, Lease(5, 1, "a", "sim://a", "b"), in_step=True)
        scene.witness.needs_renewal, scene.witness.is_abandoned = False, tells  # type: ignore[method-assign]
        lease = await scene.won_within(LEASE_S / 2)
        assert scene.sought and scene.is_timed is False
        assert (lease is not None, scene.row.holder) == (is_dead, "b" if is_dead else "a")
        assert scene.following.is_seeking == is_dead

    alive(life)


def test_a_standby_that_the_row_does_not_name_goes_on_following() -> None:
    async def life(loop: VirtualLoop) -> None:
        scene = Scene(loop, Lease(5, 1, "a", "sim://a", None), in_step=True)
        assert await scene.won_within(5) is None
        assert scene.sought
        assert not scene.following.is_seeking
        assert scene.row.holder == "a"

    alive(life)


def test_what_was_handed_over_and_is_not_taken_is_taken_back_in_the_same_term() -> None:
    async def life(loop: VirtualLoop) -> None:
        scene = Scene(loop, Lease(5, 1, NOBODY, "sim://b", "a"), resigned_term=1)
        began_s = loop.time()
        lease = await scene.won_within(10)
        assert lease is not None
        assert (lease.term, lease.holder) == (1, "b")
        assert loop.time() - began_s > UNTAKEN_LEASES * LEASE_S

    alive(life)


def test_nobody_takes_back_what_another_one_gave() -> None:
    async def life(loop: VirtualLoop) -> None:
        for resigned_term in (0, 2):
            scene = Scene(loop, Lease(5, 1, NOBODY, "sim://a", "c"), resigned_term=resigned_term)
            assert await scene.won_within(10) is None
            assert scene.row.holder == NOBODY

    alive(life)


def test_whoever_the_row_says_leads_does_so_unless_its_disk_is_another_one() -> None:
    async def life(loop: VirtualLoop) -> None:
        row = Lease(5, 2, "b", "sim://b", None)
        assert await Scene(loop, row).won_within(5) == row
        assert await Scene(loop, row, is_whole=False).won_within(5) is None

    alive(life)
