"""The lease: what its holder and its watcher do, one rule at a time; whole lives by seed are in test_lease_lives."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.replication.lease import LeaseKeeper, LeaseWatch
from server.replication.witness import NOBODY, Lease, LeaseTable, MemoryWitness, WitnessUnreachable
from tests.simulation.virtual_loop import OWNER, Group, VirtualLoop, lead

LINE = b"line"
LEASE_S = 1.0


class Scene:
    """A table, and the witnesses of nodes; what travels can be delayed, lost and counted."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.table = LeaseTable()
        self.lost: set[str] = set()
        self.delay_s = 0.001
        self.under_way = self.most_under_way = 0

    @property
    def row(self) -> Lease | None:
        return self.table.rows.get(LINE)

    def now_ns(self) -> int:
        return int(self.loop.time() * 1e9)

    def witness(self, node_id: str) -> MemoryWitness:
        return MemoryWitness(self.table, LINE, node_id, self._travel)

    async def _travel(self, stage: str) -> None:
        self.under_way += stage == "request"
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(self.delay_s)
        self.under_way -= stage == "answer" or stage in self.lost
        if stage in self.lost:
            raise WitnessUnreachable(f"the {stage} is lost")

    def keeper(self, node_id: str) -> LeaseKeeper:
        return LeaseKeeper(self.witness(node_id), node_id, LEASE_S, self.now_ns)

    def watch(self, node_id: str) -> LeaseWatch:
        return LeaseWatch(self.witness(node_id), LEASE_S, self.now_ns)

    def is_valid(self, keeper: LeaseKeeper) -> bool:
        return keeper.is_valid(self.now_ns())


Act = Callable[[Scene], Awaitable[None]]


def played(act: Act) -> Callable[[], None]:
    """Make a test of a coroutine function that gets a scene: it runs in virtual time."""

    def test() -> None:
        async def life(loop: VirtualLoop) -> None:
            await act(Scene(loop))

        lead(1, life)

    test.__name__ = act.__name__
    return test


async def holding(scene: Scene, node_id: str = "a", term: int = 1) -> tuple[LeaseKeeper, "asyncio.Task[None]"]:
    keeper = scene.keeper(node_id)
    row = await keeper.acquire(term, f"http://{node_id}")
    assert (row.holder, row.term) == (node_id, term)
    return keeper, asyncio.create_task(keeper.run())


@played
async def test_the_first_to_come_holds_the_lease_and_renews_it(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    assert scene.row == keeper.lease == Lease(1, 1, "a", "http://a", None)
    for _ in range(100):
        await asyncio.sleep(0.1)
        assert scene.is_valid(keeper)
    assert scene.row is not None and 28 <= scene.row.version <= 31


@played
async def test_the_right_counts_from_before_the_request_was_sent(scene: Scene) -> None:
    scene.delay_s = 0.3
    keeper = scene.keeper("a")
    async with asyncio.timeout(5):
        await keeper.acquire(1, "")
    began_ns = scene.now_ns() - int(0.6e9)
    assert keeper.valid_until_ns == pytest.approx(began_ns + LEASE_S * 1e9, abs=1000)


@played
async def test_a_holder_that_cannot_renew_has_no_right_after_the_lease(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    scene.lost = {"request"}
    await asyncio.sleep(0.5)
    assert scene.is_valid(keeper)
    await asyncio.sleep(0.6)
    assert not scene.is_valid(keeper) and not keeper.lost.done()
    scene.lost = set()
    await asyncio.sleep(0.2)
    assert scene.is_valid(keeper)


@played
async def test_a_frozen_holder_that_wakes_has_no_right_from_its_first_step_on(scene: Scene) -> None:
    group, found = Group("a"), []

    async def process() -> None:
        keeper, _ = await holding(scene)
        while True:
            await asyncio.sleep(0.1)
            found.append(scene.is_valid(keeper))

    OWNER.set(group)
    running = asyncio.create_task(process())
    OWNER.set(None)
    await asyncio.sleep(1.05)
    assert found == [True] * len(found) and len(found) >= 9
    group.is_frozen = True
    await asyncio.sleep(3)
    found.clear()
    scene.lost = {"request"}
    scene.loop.thaw(group)
    await asyncio.sleep(0.05)
    assert found == [False]
    running.cancel()


@played
async def test_a_renewal_whose_answer_was_lost_prolongs_nothing_and_the_next_one_does(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    until_ns = keeper.valid_until_ns
    scene.lost = {"answer"}
    await asyncio.sleep(0.8)
    assert scene.row is not None and scene.row.version > 1 and keeper.valid_until_ns == until_ns
    scene.lost = set()
    await asyncio.sleep(0.15)
    assert scene.is_valid(keeper) and keeper.valid_until_ns > until_ns and not keeper.lost.done()


@played
async def test_a_row_that_is_somebody_elses_ends_the_right_at_once_and_says_whose_it_is(scene: Scene) -> None:
    keeper, running = await holding(scene)
    other = Lease(7, 2, "b", "http://b", None)
    scene.table.rows[LINE] = other
    assert await keeper.lost == other
    assert not scene.is_valid(keeper)
    await running
    assert await keeper.name_standby("c") is False and await keeper.resign() is False
    assert scene.row == other


@played
async def test_a_second_process_of_the_same_name_takes_the_lease_from_the_first(scene: Scene) -> None:
    first, _ = await holding(scene)
    second, _ = await holding(scene)
    await first.lost
    await asyncio.sleep(3)
    assert scene.is_valid(second) and not scene.is_valid(first)


@played
async def test_a_row_that_is_gone_is_not_made_again_by_its_holder(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    del scene.table.rows[LINE]
    await asyncio.sleep(2)
    assert scene.row is None and not scene.is_valid(keeper) and not keeper.lost.done()


@played
async def test_a_lease_that_needs_no_renewal_is_valid_until_it_is_lost(scene: Scene) -> None:
    witness = scene.witness("a")
    witness.needs_renewal = False
    keeper = LeaseKeeper(witness, "a", LEASE_S, scene.now_ns)
    await keeper.acquire(1, "")
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(100)
    assert scene.is_valid(keeper) and scene.row == Lease(1, 1, "a", "", None)
    scene.table.rows[LINE] = Lease(2, 2, "b", "", None)
    await running
    assert not scene.is_valid(keeper)


# ---- naming a standby --------------------------------------------------------------------------------------


@played
async def test_a_standby_is_named_when_the_row_says_so(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    for standby in ("b", None, "c", "c"):
        assert await keeper.name_standby(standby) is True
        assert scene.row is not None and scene.row.standby == standby
        await asyncio.sleep(1)
        assert scene.row.standby == standby
    assert scene.is_valid(keeper)


@played
async def test_naming_a_standby_goes_on_until_the_witness_is_reached(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    scene.lost = {"answer"}
    naming = asyncio.create_task(keeper.name_standby("b"))
    await asyncio.sleep(5)
    assert not naming.done()
    scene.lost = set()
    assert await naming is True
    assert scene.row is not None and scene.row.standby == "b"


@played
async def test_what_was_asked_for_last_stands_although_something_earlier_is_still_under_way(scene: Scene) -> None:
    keeper, running = await holding(scene)
    running.cancel()
    scene.delay_s = 0.9
    naming = asyncio.create_task(keeper.name_standby("b"))
    await asyncio.sleep(0.01)
    naming.cancel()
    scene.delay_s = 0.001
    assert await keeper.name_standby(None) is True
    await scene.table.settle()
    assert scene.row is not None and scene.row.standby is None and not keeper.lost.done()


@played
async def test_renewals_and_namings_are_never_under_way_together(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    scene.delay_s = 0.05
    for turn in range(50):
        await asyncio.gather(*(keeper.name_standby(name) for name in ("b", None, "c")))
        await asyncio.sleep(0.01 * turn)
    assert scene.most_under_way == 1 and not keeper.lost.done()


# ---- acquiring ---------------------------------------------------------------------------------------------


@played
async def test_a_restart_keeps_the_standby_of_its_term_and_a_new_term_begins_without(scene: Scene) -> None:
    scene.table.rows[LINE] = Lease(5, 1, "a", "http://old", "b")
    assert await scene.keeper("a").acquire(1, "http://a") == Lease(6, 1, "a", "http://a", "b")
    assert await scene.keeper("a").acquire(2, "http://a") == Lease(7, 2, "a", "http://a", None)


@pytest.mark.parametrize("holder", ["a", "b"])
@pytest.mark.parametrize("is_dead", [False, True])
def test_a_higher_term_is_followed_whoever_holds_it(holder: str, is_dead: bool) -> None:
    higher = Lease(5, 3, holder, "http://there", None)

    async def act(scene: Scene) -> None:
        scene.table.rows[LINE] = higher
        keeper = scene.keeper("a")
        assert await keeper.acquire(2, "http://a", old_primary_is_dead=is_dead) == higher == scene.row
        assert not scene.is_valid(keeper)

    played(act)()


@played
async def test_a_holder_of_a_lower_term_that_is_alive_is_followed(scene: Scene) -> None:
    old, _ = await holding(scene)
    row = await scene.keeper("b").acquire(2, "http://b", old_primary_is_dead=True)
    assert row.holder == "a" and scene.is_valid(old)


@played
async def test_a_holder_of_a_lower_term_that_is_silent_is_replaced_after_the_lease(scene: Scene) -> None:
    old, running = await holding(scene)
    running.cancel()
    row = await scene.keeper("b").acquire(2, "http://b")
    assert row == Lease(2, 2, "b", "http://b", None)
    assert scene.now_ns() >= old.valid_until_ns


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_silent_holder_that_may_go_on_with_its_standby_is_replaced_only_when_it_is_said_to_be_dead(
    is_dead: bool,
) -> None:
    async def act(scene: Scene) -> None:
        scene.table.rows[LINE] = Lease(5, 1, "a", "http://a", "c")
        row = await scene.keeper("b").acquire(2, "http://b", old_primary_is_dead=is_dead)
        assert row.holder == ("b" if is_dead else "a")

    played(act)()


@played
async def test_acquiring_goes_on_until_the_witness_is_reached(scene: Scene) -> None:
    scene.lost = {"answer"}
    keeper = scene.keeper("a")
    acquiring = asyncio.create_task(keeper.acquire(1, "http://a"))
    await asyncio.sleep(5)
    assert not acquiring.done() and not scene.is_valid(keeper)
    scene.lost = set()
    assert (await acquiring).holder == "a" and scene.is_valid(keeper)


# ---- taking over -------------------------------------------------------------------------------------------


async def taken(scene: Scene, watch: LeaseWatch, **other: Any) -> Lease | None:
    """Try to take over from "a" of term 1, as "b"."""
    asked = {"followed_term": 1, "followed_holder": "a", "me": "b", "url": "http://b", **other}
    return await watch.try_take(**asked)


@played
async def test_the_named_standby_takes_over_when_the_lease_has_run_out_and_not_before(scene: Scene) -> None:
    keeper, running = await holding(scene)
    await keeper.name_standby("b")
    watch = scene.watch("b")
    looking = asyncio.create_task(watch.run())
    await asyncio.sleep(3)
    assert await taken(scene, watch) is None
    running.cancel()
    row = None
    while row is None:
        await asyncio.sleep(0.01)
        row = await taken(scene, watch)
    assert row == scene.row and row[1:] == (2, "b", "http://b", None)
    assert keeper.valid_until_ns < scene.now_ns() < keeper.valid_until_ns + 0.2e9
    assert await taken(scene, watch) == row
    looking.cancel()


@pytest.mark.parametrize(
    "row",
    [
        Lease(5, 1, "a", "", None),
        Lease(5, 1, "a", "", "c"),
        Lease(5, 1, "c", "", "b"),
        Lease(5, 2, "a", "", "b"),
        Lease(5, 0, "a", "", "b"),
        Lease(5, 1, NOBODY, "", "c"),
        None,
    ],
)
def test_nobody_takes_what_is_not_his_to_take(row: Lease | None) -> None:
    async def act(scene: Scene) -> None:
        if row is not None:
            scene.table.rows[LINE] = row
        watch = scene.watch("b")
        await watch.look()
        await asyncio.sleep(100)
        assert await taken(scene, watch) is None and scene.row == row

    played(act)()


@played
async def test_a_lease_that_was_given_back_needs_no_waiting(scene: Scene) -> None:
    keeper, running = await holding(scene)
    await keeper.name_standby("c")
    assert await keeper.resign("b") is True
    assert not scene.is_valid(keeper)
    row = await taken(scene, scene.watch("b"))
    assert row is not None and row.holder == "b"
    await running
    assert not keeper.lost.done()


@played
async def test_giving_back_ends_the_right_before_the_witness_is_told(scene: Scene) -> None:
    keeper, _ = await holding(scene)
    scene.delay_s = 0.3
    await asyncio.sleep(0.4)  # a renewal is under way
    resigning = asyncio.create_task(keeper.resign("b"))
    while not resigning.done():
        await asyncio.sleep(0.01)
        assert not scene.is_valid(keeper)
    assert scene.row is not None and scene.row.holder == NOBODY


@played
async def test_a_takeover_whose_answer_was_lost_is_found_by_asking_again(scene: Scene) -> None:
    scene.table.rows[LINE] = Lease(5, 1, "a", "", "b")
    watch = scene.watch("b")
    await watch.look()
    await asyncio.sleep(2)
    scene.delay_s = 0.4
    scene.loop.call_later(1.3, scene.lost.add, "answer")  # behind the answer of the read, before that of the swap
    with pytest.raises(WitnessUnreachable):
        await taken(scene, watch)
    scene.lost = set()
    assert scene.row == await taken(scene, watch) == Lease(6, 2, "b", "http://b", None)


@played
async def test_a_watcher_counts_from_when_the_read_was_complete(scene: Scene) -> None:
    scene.table.rows[LINE] = Lease(5, 1, "a", "", "b")
    scene.delay_s = 0.4
    watch = scene.watch("b")
    await watch.look()
    assert watch.unchanged_s == 0
    await asyncio.sleep(0.2)
    assert await taken(scene, watch) is None, (
        "only a lease has gone by once this has read again, and that is not enough"
    )
    assert await taken(scene, watch) is not None


@played
async def test_of_a_restarting_holder_and_its_standby_exactly_one_gets_the_lease(scene: Scene) -> None:
    for version in range(1, 200, 2):
        scene.table.rows[LINE] = Lease(version, 1, "a", "", "b")
        watch = scene.watch("b")
        await watch.look()
        await asyncio.sleep(2)
        took, held = await asyncio.gather(taken(scene, watch), scene.keeper("a").acquire(1, ""))
        assert (took is None) == (held.holder == "a")
