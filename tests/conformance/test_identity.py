"""Who holds a place, held against every backend: words of the shop, groups, transfers, places that were lost."""

import pytest
from msgspec.structs import replace

from engine.actor import Holder, Whom
from engine.backend import Backend
from tests.conformance.asking import holder, join, join_many, now, redeem, refused, whom
from tests.conformance.backends import OPS, WHY, Host

SIGNED = {"join_policy": "signed", "priority_boost": 10}


@pytest.fixture
async def backend(host: Host) -> Backend:
    """Return a backend whose event e1 is open."""
    await host.event(batch_interval_s=3600)
    return host.backend


# ---- transfers ---------------------------------------------------------------------------------------------------


async def test_a_transfer_moves_the_place_and_its_retry_is_answered_the_same_over_a_kill(
    host: Host, backend: Backend
) -> None:
    old = holder(await join(backend, "u1", 11))
    moved = await backend.transfer("e1", old, 22)
    assert (moved.generation, moved.arrival) == (1, old.arrival)
    for again in (host.restart, host.kill):
        backend = await again()
        assert (await backend.transfer("e1", old, 22)).generation == 1
        await refused(backend.transfer("e1", old, 33), "gone", "used")
        assert (await join(backend, "u1", 22)).proven and not (await join(backend, "u1", 11)).proven


async def test_a_token_from_before_a_transfer_only_reads(host: Host, backend: Backend) -> None:
    old = holder(await join(backend, "u1", 11))
    await backend.transfer("e1", old, 22)
    backend = await host.kill()
    assert not (await backend.touch("e1", old)).proven
    assert not (await backend.place("e1", old)).proven
    await refused(backend.leave("e1", old), "read_only")
    await refused(backend.extend_claim("e1", old), "read_only")
    assert (await backend.touch("e1", replace(old, generation=1))).proven


async def test_a_place_is_transferred_at_every_status_it_may_have(backend: Backend) -> None:
    places = await join_many(backend, 3)
    await backend.release("e1", 2, OPS)
    await redeem(backend, places[0])
    moved = [await backend.transfer("e1", holder(place), 99) for place in places]
    assert [place.status for place in moved] == ["active", "ready", "waiting"]
    await backend.leave("e1", holder(moved[2]))
    await refused(backend.transfer("e1", holder(moved[2]), 5), "conflict", "ended")


# ---- words of the shop ---------------------------------------------------------------------------------------------


async def test_a_signed_event_is_joined_with_a_token_that_makes_one_place(host: Host) -> None:
    if not host.backend.capabilities.signed_joins:
        return
    await host.event(**SIGNED)
    backend = host.backend
    await refused(join(backend, "u1", 5), "bad_enqueue_token")
    place = await join(backend, "u1", 5, word="enqueue")
    assert ((await join(backend, "u1", 5, word="enqueue")).arrival, place.fresh) == (place.arrival, True)
    await backend.leave("e1", holder(place))
    for again in (host.restart, host.kill):
        backend = await again()
        await refused(join(backend, "u1", 5, word="enqueue"), "enqueue_token_used", "used")
    assert (await join(backend, "u1", 6, word="enqueue")).fresh


async def test_a_new_word_of_the_shop_takes_the_place_over(host: Host) -> None:
    if not host.backend.capabilities.signed_joins:
        return
    await host.event(**SIGNED)
    old = await join(host.backend, "u1", 5, word="enqueue")
    new = await join(host.backend, "u1", 6, word="enqueue")
    assert (new.arrival, new.proven, new.generation, new.fresh) == (old.arrival, True, 1, False)
    by_site = await join(host.backend, "u1", 7, word="site")
    assert (by_site.arrival, by_site.proven, by_site.generation) == (old.arrival, True, 2)
    backend = await host.kill()
    stale = await join(backend, "u1", 5, word="enqueue")
    assert (stale.proven, stale.generation) == (False, 2)
    await refused(backend.leave("e1", holder(old)), "read_only")


async def test_priority_puts_ahead_and_stays_over_a_kill(host: Host) -> None:
    if not host.backend.capabilities.signed_joins:
        return
    await host.event(priority_boost=3)
    await join_many(host.backend, 10)
    vip = await join(host.backend, "vip", 5, level=2, word="enqueue")
    assert (vip.number, vip.position) == (11, 6)
    assert (await now(await host.kill(), vip)).position == 6


# ---- groups -----------------------------------------------------------------------------------------------------


async def test_a_group_is_one_place_and_counts_by_its_size_under_the_cap(host: Host, backend: Backend) -> None:
    await backend.configure("e1", {"max_active": 5}, OPS, replace=False)
    places = [await join(backend, f"g{size}{index}", size=size) for index, size in enumerate((3, 2, 4, 1))]
    await refused(join(backend, "g6", size=6), "at_capacity", "group_too_large")
    assert (await backend.release("e1", 9, OPS)).released == 2
    backend = await host.kill()
    stats = await backend.stats("e1")
    assert (stats.inside, stats.counts["ready"]) == (5, 2)
    await backend.leave("e1", holder(places[1]))
    assert (await backend.release("e1", 9, OPS)).limited_by == "capacity"
    assert (await now(backend, places[3])).status == "waiting", "somebody small was let past a group"
    await backend.leave("e1", holder(places[0]))
    assert (await backend.release("e1", 9, OPS)).released == 2
    assert (await backend.fairness("e1")).overshoot == 0


# ---- what the operator says ----------------------------------------------------------------------------------------


async def test_it_is_said_early_to_whom_it_is_unlikely_to_reach(host: Host, backend: Backend) -> None:
    await backend.configure("e1", {"admissions_left": 3}, OPS, replace=False)
    places = await join_many(backend, 6)
    await backend.release("e1", 2, OPS)
    backend = await host.kill()
    reasons = [(await now(backend, place)).estimate.reason for place in places[2:]]  # type: ignore[union-attr]
    assert [reason == "unlikely" for reason in reasons] == [False, True, True, True]
    assert (await backend.stats("e1")).admissions_left == 1


async def test_visitors_are_told_page_by_page_over_a_kill(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 25)
    for place in places[::5]:
        await backend.leave("e1", holder(place))
    backend = await host.kill()
    pages = [await backend.visitors("e1", None, after, 10) for after in (0, 10, 20, 25)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert [place.user_id for page in pages for place in page] == [f"u{index}" for index in range(1, 26)]
    assert [place.arrival for place in await backend.visitors("e1", "left", 0, 100)] == [1, 6, 11, 16, 21]


async def test_fairness_is_counted_the_same_after_a_kill(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 12)
    await host.run(3600, 3600)
    await backend.remove("e1", whom(places[11]), WHY)
    await backend.release("e1", 2, OPS)
    before = await backend.fairness("e1")
    if backend.capabilities.snapshots:
        await backend.snapshot()
    assert (await (await host.kill()).fairness("e1"))._replace(version=0) == before._replace(version=0)


# ---- places that were lost -------------------------------------------------------------------------------------------


async def test_a_place_that_came_after_a_backup_is_taken_up_again_when_that_is_restored(
    host: Host, backend: Backend
) -> None:
    await join_many(backend, 3)
    backed_up = host.back_up()
    epoch, issued_ms = backend.status().epoch, host.clock.wall_ms
    lost = await join(backend, "lost")
    host.clock.wait(60)
    backend = await host.restore(backed_up)
    late = await join(backend, "late")
    assert late.number > 1_000, "numbers that may be in somebody's hands are given again"  # type: ignore[operator]
    who = Holder(lost.arrival, "lost")
    await refused(backend.touch("e1", who), "not_found")
    await refused(backend.readmit("e1", who, backend.status().epoch, issued_ms), "gone", "lost")
    back = await backend.readmit("e1", who, epoch, issued_ms)
    assert (back.arrival, back.position, back.status) == (lost.arrival, 4, "waiting")
    assert (await now(backend, late)).position == 5
    await refused(backend.readmit("e1", Holder(lost.arrival, "other"), epoch, issued_ms), "gone", "lost")
    backend = await host.kill()
    assert (await backend.touch("e1", who)).position == 4
    assert (await backend.find("e1", Whom(user_id="lost"))).number == lost.number


async def test_who_joined_anew_does_not_hold_the_lost_place_beside_it(host: Host, backend: Backend) -> None:
    backed_up = host.back_up()
    epoch, issued_ms = backend.status().epoch, host.clock.wall_ms
    lost = await join(backend, "u1")
    backend = await host.restore(backed_up)
    again = await join(backend, "u1")
    await refused(backend.readmit("e1", Holder(lost.arrival, "u1"), epoch, issued_ms), "gone", "lost")
    await backend.leave("e1", holder(again))
    assert (await backend.readmit("e1", Holder(lost.arrival, "u1"), epoch, issued_ms)).number == lost.number


async def test_a_lost_place_that_had_moved_comes_back_to_the_device_it_moved_to(host: Host, backend: Backend) -> None:
    backed_up = host.back_up()
    epoch, issued_ms = backend.status().epoch, host.clock.wall_ms
    first = holder(await join(backend, "u1"))
    second = holder(await backend.transfer("e1", first, 7))
    backend = await host.restore(backed_up)
    assert (await backend.readmit("e1", second, epoch, issued_ms)).generation == 1
    for restored in (backend, await host.kill()):
        assert (await restored.touch("e1", second)).proven
        assert not (await restored.touch("e1", first)).proven
        await refused(restored.leave("e1", first), "read_only")
