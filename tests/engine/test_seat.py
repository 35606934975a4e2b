"""The seat: one backend for the rest of the process, whoever sits there."""

import asyncio
import inspect

import pytest

from engine.actor import By, Entrant, Holder
from engine.backend import Backend
from engine.backends.following import FollowingBackend
from engine.backends.memory import MemoryBackend
from engine.backends.seat import ITS_OWN, VERBS, Seat
from engine.errors import Refused
from engine.venue import Venue
from engine.views import BackendChanged, EventChanged, Notice
from tests.engine.following import DirectPrimary, Tap
from tests.engine.test_memory import DRAW_KEY, GatedJournal

OPS = By("ops")
WHY = Refused("not_primary", "between two roles", reason="moving", retry_after_s=3)


async def backend_at(epoch: int) -> MemoryBackend:
    backend = MemoryBackend(GatedJournal(epoch=epoch), lambda: 1_000, lambda: 5_000, DRAW_KEY)
    await backend.start()
    await backend.configure("e1", {}, OPS, replace=True)
    await backend.control("e1", "open", OPS)
    return backend


def contract() -> set[str]:
    return {name for name, value in vars(Backend).items() if inspect.isfunction(value) and name[0] != "_"}


def test_every_verb_is_bound_or_the_seats_own_and_nothing_falls_through_to_the_contract() -> None:
    assert set(VERBS) | ITS_OWN == contract() and not set(VERBS) & ITS_OWN
    for name in ITS_OWN | {"capabilities", "epoch", "is_stale"}:
        assert name in vars(Seat), f"the seat has no {name} of its own"


async def test_verbs_are_those_of_whoever_sits_there_with_nothing_in_between() -> None:
    seat, first, second = Seat.empty(), await backend_at(1), await backend_at(2)
    for backend in (first, second):
        seat.take(backend)
        for verb in VERBS:
            assert getattr(seat, verb) == getattr(backend, verb)
        assert (seat.epoch, seat.is_stale, seat.capabilities) == (backend.epoch, False, backend.capabilities)
        assert seat.status() == backend.status()
        assert (await seat.join("e1", Entrant("u1"))).number == 1


async def test_an_empty_seat_refuses_every_verb_with_an_error_of_its_own() -> None:
    seat = Seat.empty()
    seat.take(await backend_at(7))
    seat.vacate(WHY)
    seen = []
    for verb in VERBS:
        with pytest.raises(Refused) as caught:
            getattr(seat, verb)("e1", 1)
        refused = caught.value
        assert (refused.code, refused.reason, refused.retry_after_s) == ("not_primary", "moving", 3)
        seen.append(refused)
    assert len({id(refused) for refused in seen}) == len(VERBS)


async def test_an_empty_seat_can_still_be_asked_how_it_fares_and_takes_presence_for_nothing() -> None:
    seat = Seat.empty()
    assert (seat.status().role, seat.status().epoch, seat.is_stale) == ("none", 0, True)
    backend = await backend_at(7)
    seat.take(backend)
    seat.vacate(WHY)
    status = seat.status()
    assert (status.role, status.epoch, status.version) == ("none", 7, backend.status().version)
    assert (status.refuses_joins, status.degraded, status.is_stale) == ("not_primary", ("between two roles",), True)
    assert (seat.epoch, seat.capabilities) == (7, backend.capabilities)
    seat.heard("e1", [1, 2], True)


async def test_presence_reaches_whoever_sits_there() -> None:
    seat = Seat.empty()
    journal = Tap(GatedJournal())
    backend = MemoryBackend(journal, lambda: 1_000, lambda: 5_000, DRAW_KEY)
    await backend.start()
    primary = DirectPrimary(backend, journal)
    seat.take(primary.follow(FollowingBackend(Venue(), primary, lambda: 0, None)))
    seat.heard("e1", [4], False)
    assert primary.heard == [("e1", 4, False)]


async def test_notices_go_on_from_one_role_to_the_next_and_say_that_it_changed() -> None:
    seat, first, second = Seat.empty(), await backend_at(1), await backend_at(2)
    seen: list[Notice] = []

    async def listen() -> None:
        async for batch in seat.notices():
            seen.extend(batch)

    async def heard(count: int) -> list[Notice]:
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(seen) == count
        return seen[-1:]

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    seat.take(first)
    assert await heard(1) == [BackendChanged(first.status().version)]
    await first.tell("e1", "one", OPS)
    assert await heard(2) == [EventChanged("e1", first.status().version)]
    seat.vacate(WHY)
    await first.tell("e1", "nobody sits there", OPS)
    seat.take(second)
    await second.tell("e1", "at once", OPS)
    await heard(4)
    assert seen[2:] == [BackendChanged(second.status().version - 1), EventChanged("e1", second.status().version)]
    seat.take(second)
    await first.tell("e1", "it has left", OPS)
    await second.tell("e1", "the same again", OPS)
    assert await heard(5) == [EventChanged("e1", second.status().version)]
    await seat.close()
    await asyncio.wait_for(listening, 5)
    assert len(seen) == 5


async def test_who_listens_later_is_not_told_of_what_was_before() -> None:
    seat, backend = Seat.empty(), await backend_at(1)
    seat.take(backend)
    notices = seat.notices()
    await backend.tell("e1", "hello", OPS)
    assert await asyncio.wait_for(anext(notices), 5) == [EventChanged("e1", backend.status().version)]


async def test_a_closed_seat_has_closed_whoever_sat_there() -> None:
    seat, backend = Seat.empty(), await backend_at(1)
    await seat.start()
    seat.take(backend)
    notices = backend.notices()
    await seat.close()
    assert [batch async for batch in notices] == []
    with pytest.raises(Refused) as caught:
        await seat.touch("e1", Holder(1, "u1"))
    assert caught.value.code == "backend_unavailable"
    await Seat.empty().close()
