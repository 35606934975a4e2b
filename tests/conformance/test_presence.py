"""Presence, held against every backend that knows of it: nobody waits behind those who left, and they may come back."""

import asyncio

import pytest

from engine.actor import Holder, Whom
from engine.backend import Backend
from engine.views import Place
from tests.conformance.asking import holder, join, join_many, now
from tests.conformance.backends import OPS, WHY, Host

SETTINGS = {
    "batch_size": 3,
    "batch_interval_s": 3600,
    "presence_timeout_s": 20,
    "presence_timeout_hidden_s": 120,
    "grace_s": 300,
}


@pytest.fixture
async def backend(host: Host) -> Backend:
    """Return a backend whose event e1 is open."""
    await host.event(**SETTINGS)
    return host.backend


async def keep(host: Host, places: list[Place], seconds: int) -> None:
    """Let time pass while these are heard every five seconds."""
    for _ in range(0, seconds, 5):
        host.clock.wait(5)
        for place in places:
            await host.backend.touch("e1", holder(place))
    await host.backend.tick()


async def test_nobody_waits_behind_those_who_left(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 30)
    await keep(host, places[20:], 60)
    result = await backend.release("e1", 3, OPS)
    assert (result.released, result.stepped_over) == (3, 20)
    assert (await backend.touch("e1", holder(places[20]))).status == "ready"
    assert (await backend.release("e1", 1, OPS)).stepped_over == 0
    assert (await backend.fairness("e1")).skipped["absent"] == 20


async def test_whoever_was_stepped_over_comes_back_to_the_own_place(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 8)
    await keep(host, places[2:], 60)
    await backend.release("e1", 1, OPS)
    for again in (host.restart, host.kill):
        backend = await again()
        assert (await now(backend, places[1])).status == "parked"
    back = await backend.touch("e1", holder(places[1]))
    assert (back.status, back.position, back.number) == ("waiting", 1, 2)
    await backend.release("e1", 1, OPS)
    assert (await now(backend, places[1])).status == "ready"
    fairness = await backend.fairness("e1")
    assert (fairness.inversions, fairness.overshoot) == (0, 0)


async def test_a_hidden_tab_brings_nobody_back_and_has_more_patience(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 4)
    await backend.touch("e1", holder(places[1]), visible=False)
    await keep(host, places[3:], 60)
    await backend.release("e1", 1, OPS)
    assert [(await now(backend, place)).status for place in places] == ["parked", "ready", "waiting", "waiting"]
    assert (await backend.touch("e1", holder(places[0]), visible=False)).status == "parked"
    assert (await backend.touch("e1", holder(places[0]))).status == "waiting"


async def test_who_does_not_come_back_in_the_grace_is_out(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 3)
    await keep(host, places[1:], 60)
    await backend.release("e1", 1, OPS)
    await keep(host, places[1:], 295)
    assert (await now(backend, places[0])).status == "parked"
    await keep(host, places[1:], 5)
    ended = await now(backend, places[0])
    assert (ended.status, ended.cause) == ("expired", "absent")
    assert (await join(backend, "u1")).number == 4


async def test_a_silence_of_everybody_is_nobodys_absence(host: Host, backend: Backend) -> None:
    await join_many(backend, 5)
    host.clock.wait(3600)
    assert (await backend.release("e1", 3, OPS)).stepped_over == 0


async def test_after_a_restart_everybody_counts_as_just_heard(host: Host, backend: Backend) -> None:
    places = await join_many(backend, 3)
    await keep(host, places[2:], 60)
    backend = await host.kill()
    await keep(host, places[2:], 15)
    assert (await backend.release("e1", 2, OPS)).stepped_over == 0


async def test_grace_stands_still_while_the_event_is_paused_and_while_the_server_is_down(
    host: Host, backend: Backend
) -> None:
    places = await join_many(backend, 3)
    await keep(host, places[1:], 60)
    await backend.release("e1", 1, OPS)
    await backend.control("e1", "pause", WHY)
    await host.run(3600, 600)
    await backend.control("e1", "resume", OPS)
    assert (await now(backend, places[0])).window_ms == 300_000
    backend = await host.kill(86_400)
    assert (await now(backend, places[0])).window_ms == 300_000


async def test_an_id_alone_is_no_presence(host: Host, backend: Backend) -> None:
    first, second = await join(backend, "u1", 7), await join(backend, "u2", 8)
    for _ in range(12):
        host.clock.wait(5)
        await join(backend, "u1")
        await backend.place("e1", holder(first))
        await backend.find("e1", Whom(user_id="u1"))
        await backend.touch("e1", holder(second))
    assert (await backend.release("e1", 1, OPS)).stepped_over == 1
    assert (await join(backend, "u1", 7)).status == "waiting", "the holder's join is a touch"


@pytest.mark.slow
async def test_ten_thousand_who_left_do_not_hold_up_the_first_batch(host: Host, backend: Backend) -> None:
    gone, present = 10_000, 300
    await asyncio.gather(*(join(backend, f"u{index}") for index in range(gone + present)))
    here = [Holder(gone + index + 1, f"u{gone + index}") for index in range(present)]
    for _ in range(12):
        host.clock.wait(5)
        for who in here:
            await backend.touch("e1", who)
    result = await backend.release("e1", 100, OPS)
    assert (result.released, result.stepped_over) == (100, gone)
    assert (await backend.place("e1", here[99])).status == "ready"
    assert (await backend.place("e1", here[100])).position == 1
    back = await backend.touch("e1", Holder(17, "u16"))
    assert (back.position, back.number) == (1, 17)
