"""Sessions, held against every backend: from the turn to the exit, over kills, pauses and downtime."""

import asyncio

import pytest

from engine.actor import Whom
from engine.backend import Backend
from engine.identities import subject_of
from tests.conformance.asking import holder, join, join_many, now, redeem, refused, whom
from tests.conformance.backends import OPS, WHY, Host

SETTINGS = {
    "batch_size": 2,
    "batch_interval_s": 3600,
    "claim_window_s": 60,
    "claim_max_s": 100,
    "session_ttl_s": 100,
    "session_max_s": 250,
    "grace_s": 300,
    "exit_grace_s": 30,
    "presence_timeout_s": 3600,
    "presence_timeout_hidden_s": 3600,
}


@pytest.fixture
async def backend(host: Host) -> Backend:
    """Return a backend with u1 … u4 at an event where u1 and u2 have their turn."""
    await host.event(**SETTINGS)
    await join_many(host.backend, 4)
    await host.backend.release("e1", 2, OPS)
    return host.backend


async def u(backend: Backend, index: int):  # type: ignore[no-untyped-def]
    """Return the place of u1, u2, …"""
    return await backend.find("e1", Whom(user_id=f"u{index}"))


async def test_a_pass_is_redeemed_once_and_its_retry_is_answered_the_same_even_after_a_kill(
    host: Host, backend: Backend
) -> None:
    place = await u(backend, 1)
    first = await redeem(backend, place, "k1")
    assert (first.status, first.number, first.left_ms, first.limit_left_ms) == ("active", 1, 100_000, 250_000)
    assert (await redeem(backend, place, "k1"))._replace(version=0) == first._replace(version=0)
    await refused(redeem(backend, place, "k2"), "pass_used", "active")
    await refused(redeem(backend, place, None), "pass_used", "active")
    for again in (host.kill, host.restart):
        backend = await again(3600)
        assert (await redeem(backend, place, "k1"))._replace(version=0) == first._replace(version=0)
        await refused(redeem(backend, place, "k2"), "pass_used", "active")


async def test_of_many_redeems_of_one_pass_at_once_exactly_one_succeeds(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    answers = await asyncio.gather(
        *(redeem(backend, place, f"k{index}") for index in range(200)), return_exceptions=True
    )
    succeeded = [index for index, answer in enumerate(answers) if not isinstance(answer, BaseException)]
    assert len(succeeded) == 1
    backend = await host.kill()
    assert (await redeem(backend, place, f"k{succeeded[0]}")).jti == answers[succeeded[0]].jti  # type: ignore[union-attr]
    await refused(redeem(backend, place, f"k{succeeded[0] + 1}"), "pass_used")


async def test_a_pass_of_nobody_or_of_somebody_else_is_not_redeemed(backend: Backend) -> None:
    stranger = subject_of("e1", "u2")
    await refused(backend.redeem("e1", 1, 1, stranger, "j", "k", "site"), "pass_expired", "unknown")
    await refused(backend.redeem("e1", 99, 1, stranger, "j", "k", "site"), "pass_expired", "unknown")
    await refused(redeem(backend, await u(backend, 3)), "pass_expired", "lapsed")
    await refused(redeem(backend, await u(backend, 1), release=2), "pass_expired", "lapsed")


async def test_a_turn_is_extended_up_to_its_limit(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    host.clock.wait(50)
    assert (await backend.extend_claim("e1", holder(place))).window_ms == 50_000
    host.clock.wait(40)
    await host.backend.tick()
    assert (await backend.extend_claim("e1", holder(place))).window_ms == 10_000
    await refused(backend.extend_claim("e1", holder(await u(backend, 3))), "not_active", "waiting")


async def test_a_turn_that_went_by_comes_once_more_and_then_no_more(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    await host.run(66, 11)
    lapsed = await now(backend, place)
    assert (lapsed.status, lapsed.release) == ("parked", 1)
    assert (await backend.touch("e1", holder(place))).position == 1
    assert (await backend.release("e1", 1, OPS)).released == 1
    await refused(redeem(backend, place, release=1), "pass_expired", "lapsed")
    backend = await host.kill()
    assert ((await now(backend, place)).status, (await now(backend, place)).release) == ("ready", 2)
    await host.run(66, 11)
    ended = await now(backend, place)
    assert (ended.status, ended.cause) == ("expired", "unclaimed")


async def test_a_second_turn_may_be_redeemed(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    await host.run(66, 11)
    await backend.touch("e1", holder(place))
    await backend.release("e1", 1, OPS)
    assert (await redeem(backend, place, release=2)).status == "active"


async def test_a_session_runs_out_and_frees_its_slot(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    await redeem(backend, place)
    assert (await backend.stats("e1")).inside == 2
    await host.run(100, 10)
    ended = await now(backend, place)
    assert (ended.status, ended.cause) == ("expired", "session")
    assert (await backend.stats("e1")).inside == 0
    assert await backend.session("e1", whom(place)) is None
    assert (await backend.complete("e1", whom(place), "completed", "site")).status == "completed"


async def test_a_session_is_extended_within_its_limit(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    await refused(backend.extend_session("e1", whom(place), "site"), "not_active", "ready")
    await redeem(backend, place)
    for _ in range(3):
        host.clock.wait(60)
        await backend.tick()
        session = await backend.extend_session("e1", whom(place), "site")
    assert (session.left_ms, session.limit_left_ms) == (70_000, 70_000)
    await host.run(70, 10)
    await refused(backend.extend_session("e1", whom(place), "site"), "gone", "expired")


async def test_who_completed_sees_the_confirmation_for_the_exit_grace(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    await redeem(backend, place)
    assert (await backend.complete("e1", whom(place), "completed", "site")).status == "completed"
    host.clock.wait(29)
    session = await backend.session("e1", whom(place))
    assert session and (session.status, session.left_ms) == ("completed", 1_000)
    host.clock.wait(1)
    assert await backend.session("e1", whom(place)) is None
    await refused(redeem(backend, place), "pass_used", "ended")


async def test_a_pause_and_a_downtime_shorten_no_window(host: Host, backend: Backend) -> None:
    ready, active = await u(backend, 1), await u(backend, 2)
    await redeem(backend, active)
    host.clock.wait(10)
    await backend.control("e1", "pause", WHY)
    await host.run(7200, 900)
    backend = await host.kill(86_400)
    await host.run(7200, 900)
    await backend.control("e1", "resume", OPS)
    assert ((await now(backend, ready)).window_ms, (await now(backend, active)).window_ms) == (50_000, 90_000)
    backend = await host.restart(86_400)
    assert ((await now(backend, ready)).window_ms, (await now(backend, active)).window_ms) == (50_000, 90_000)
    assert (await redeem(backend, active)).left_ms == 90_000


async def test_a_wall_clock_that_jumps_changes_no_window(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    for jump_ms in (10**9, -(10**10)):
        host.clock.wall_ms += jump_ms
        await backend.tick()
        assert (await now(backend, place)).window_ms == 60_000
        backend = await host.kill()
        assert (await now(backend, place)).window_ms == 60_000


async def test_closing_leaves_those_inside_their_time(host: Host, backend: Backend) -> None:
    place = await u(backend, 1)
    await backend.control("e1", "close", WHY)
    assert (await redeem(backend, place)).status == "active"
    assert (await now(backend, await u(backend, 3))).status == "closed"
    await refused(backend.delete("e1", OPS), "conflict", "not_empty")
    await host.run(110, 10)
    await backend.delete("e1", OPS)
    await refused(backend.event("e1"), "not_found")


async def test_admitting_stays_within_the_cap(backend: Backend) -> None:
    await backend.configure("e1", {"max_active": 3}, OPS, replace=False)
    assert (await backend.admit("e1", Whom(number=4), WHY)).status == "ready"
    assert (await backend.admit("e1", Whom(number=4), WHY)).status == "ready"
    await refused(backend.admit("e1", Whom(number=3), WHY), "at_capacity", "capacity")
    await refused(backend.admit("e1", Whom(number=3), OPS), "bad_request")
    assert (await backend.fairness("e1")).admitted == 1


async def test_who_is_removed_is_out_and_the_pass_is_dead(host: Host, backend: Backend) -> None:
    ready, active = await u(backend, 1), await u(backend, 2)
    await redeem(backend, active)
    for place in (ready, active):
        removed = await backend.remove("e1", whom(place), WHY)
        assert (removed.status, removed.cause) == ("removed", "removed")
    await refused(redeem(backend, ready), "pass_expired", "ended")
    await refused(redeem(backend, active), "pass_used", "ended")
    assert await backend.session("e1", whom(active)) is None
    assert (await join(backend, "u1")).fresh, "removing somebody is no ban"


async def test_a_ban_holds_over_a_kill_with_or_without_a_place(host: Host, backend: Backend) -> None:
    await backend.remove("e1", Whom(user_id="u1"), WHY, ban=True)
    await backend.leave("e1", holder(await u(backend, 3)))
    await refused(backend.remove("e1", Whom(user_id="u3"), WHY, ban=True), "conflict", "ended")
    backend = await host.kill()
    for user_id in ("u1", "u3"):
        await refused(join(backend, user_id), "banned")


async def test_where_passes_are_checked_offline_a_turn_that_runs_out_counts_as_used(host: Host) -> None:
    if not host.backend.capabilities.offline_redemption:
        return
    await host.event(**SETTINGS, redemption="offline")
    place = await join(host.backend, "u1")
    await host.backend.release("e1", 1, OPS)
    await host.run(66, 11)
    assert (await now(host.backend, place)).status == "active"


async def test_who_was_there_is_forgotten_after_the_retention(host: Host, backend: Backend) -> None:
    await backend.configure("e1", {"retention_s": 1_000}, OPS, replace=False)
    await redeem(backend, await u(backend, 1))
    await backend.control("e1", "close", WHY)
    await host.run(990, 110)
    assert (await u(backend, 1)).status == "expired"
    await host.run(20, 10)
    await refused(backend.find("e1", Whom(user_id="u1")), "not_found")
    assert await backend.visitors("e1", None, 0, 100) == []
    backend = await host.kill()
    assert await backend.visitors("e1", None, 0, 100) == []
    assert (await backend.event("e1")).state == "closed"
