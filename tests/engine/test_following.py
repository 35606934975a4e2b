"""A follower: what it says is never older than what anybody was told before, and what decides, decides elsewhere."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import fields

import pytest
from msgspec.structs import replace

from engine.actor import By, Entrant, Holder, Whom
from engine.backend import Backend
from engine.backends.following import FollowingBackend
from engine.backends.memory import MemoryBackend
from engine.errors import Refused
from engine.venue import Venue
from engine.views import EventChanged, LineDrawn, Notice, PlacesChanged
from tests.engine.following import DirectPrimary, Tap
from tests.engine.rooms import facts
from tests.engine.test_memory import DRAW_KEY, GatedJournal

OPS, WHY = By("ops"), By("ops", "why")
U1, U2 = Holder(1, "u1"), Holder(2, "u2")

READS: dict[str, Callable[[FollowingBackend], Awaitable[object]]] = {
    "place": lambda backend: backend.place("e1", U1),
    "touch": lambda backend: backend.touch("e1", U1),
    "find": lambda backend: backend.find("e1", Whom(user_id="u1")),
    "visitors": lambda backend: backend.visitors("e1", None, 0, 10),
    "session": lambda backend: backend.session("e1", Whom(user_id="u1")),
    "event": lambda backend: backend.event("e1"),
    "events": lambda backend: backend.events(),
    "stats": lambda backend: backend.stats("e1"),
    "fairness": lambda backend: backend.fairness("e1"),
    "draw_entries": lambda backend: backend.draw_entries("e1", 0, 10),
}
WRITES: dict[str, Callable[[FollowingBackend], Awaitable[object]]] = {
    "join": lambda backend: backend.join("e1", Entrant("u9", 9)),
    "leave": lambda backend: backend.leave("e1", U1),
    "extend_claim": lambda backend: backend.extend_claim("e1", U1),
    "transfer": lambda backend: backend.transfer("e1", U1, 7),
    "readmit": lambda backend: backend.readmit("e1", U1, 1, 5),
    "redeem": lambda backend: backend.redeem("e1", 1, 1, "subject", "jti", None, "site"),
    "extend_session": lambda backend: backend.extend_session("e1", Whom(user_id="u1"), "site"),
    "complete": lambda backend: backend.complete("e1", Whom(user_id="u1"), "completed", "site"),
    "admit": lambda backend: backend.admit("e1", Whom(user_id="u1"), WHY),
    "remove": lambda backend: backend.remove("e1", Whom(user_id="u1"), WHY, ban=True),
    "release": lambda backend: backend.release("e1", 1, OPS),
    "configure": lambda backend: backend.configure("e1", {"name": "x"}, OPS, replace=False, revision=1),
    "control": lambda backend: backend.control("e1", "pause", WHY, None, None),
    "tell": lambda backend: backend.tell("e1", "hello", OPS),
    "delete": lambda backend: backend.delete("e1", OPS, 1),
}
ITS_OWN = {"start", "close", "tick", "heard", "ranks", "line_order", "notices", "records", "snapshot", "status"}


@pytest.fixture
def clock() -> list[int]:
    return [1_000]


async def primary_at(clock: list[int]) -> DirectPrimary:
    """Return a primary where u1, u2 and u3 wait at e1; its follower's clock is its own and began elsewhere."""
    journal = Tap(GatedJournal())
    backend = MemoryBackend(journal, lambda: clock[0], lambda: 5_000, DRAW_KEY)
    await backend.start()
    await backend.configure("e1", {"presence_timeout_s": 20, "batch_interval_s": 60}, OPS, replace=True)
    await backend.control("e1", "open", OPS)
    for user_id in ("u1", "u2", "u3"):
        await backend.join("e1", Entrant(user_id))
    primary = DirectPrimary(backend, journal)
    primary.follow(FollowingBackend(Venue(), primary, lambda: clock[0] + 7_000_000, None))
    return primary


@pytest.fixture
async def primary(clock: list[int]) -> DirectPrimary:
    return await primary_at(clock)


@pytest.fixture
def follower(primary: DirectPrimary) -> FollowingBackend:
    return primary.follower


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# ---- reads ------------------------------------------------------------------------------------------


def test_every_verb_of_the_contract_is_read_here_or_sent_on_or_its_own() -> None:
    verbs = {name for name, value in vars(Backend).items() if inspect.isfunction(value) and name[0] != "_"}
    assert verbs == set(READS) | set(WRITES) | ITS_OWN


@pytest.mark.parametrize("name", READS)
async def test_a_read_waits_for_what_may_have_been_told_before(
    name: str, primary: DirectPrimary, follower: FollowingBackend
) -> None:
    primary.is_held = True
    await primary.backend.leave("e1", U2)
    await primary.backend.configure("e1", {"name": "late"}, OPS, replace=False)
    reading = asyncio.ensure_future(READS[name](follower))
    await settle()
    assert not reading.done()
    primary.ship(1)
    await settle()
    assert not reading.done(), "half of it is not enough"
    primary.ship()
    await asyncio.wait_for(reading, 5)


@pytest.mark.parametrize("name", READS)
async def test_a_follower_answers_what_its_primary_answers(
    name: str, primary: DirectPrimary, follower: FollowingBackend, clock: list[int]
) -> None:
    await primary.backend.release("e1", 1, OPS)
    clock[0] += 4_000
    primary.ship()
    assert await READS[name](follower) == await READS[name](primary.backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", READS)
async def test_without_a_primary_reads_are_answered_at_once_and_say_that_they_may_be_old(
    name: str, primary: DirectPrimary, follower: FollowingBackend
) -> None:
    primary.is_held = True
    await primary.backend.leave("e1", U2)
    assert not follower.is_stale
    primary.is_reachable = False
    await asyncio.wait_for(READS[name](follower), 5)
    assert follower.is_stale and primary.lag == 1


async def test_who_was_told_of_a_version_that_is_here_waits_for_nothing(
    primary: DirectPrimary, follower: FollowingBackend
) -> None:
    here = follower.status().version
    primary.is_held = True
    await primary.backend.leave("e1", U2)
    await follower.find("e1", Whom(arrival=1), least_version=here)
    await follower.event("e1", least_version=here)
    assert primary.barriers == 0
    later = asyncio.ensure_future(follower.find("e1", Whom(arrival=2), least_version=here + 1))
    await settle()
    assert not later.done()
    primary.ship()
    assert (await asyncio.wait_for(later, 5)).status == "left"


async def test_a_place_that_may_be_too_new_for_a_stale_follower_is_not_called_gone(
    primary: DirectPrimary, follower: FollowingBackend
) -> None:
    primary.is_held = True
    new = await primary.backend.join("e1", Entrant("new"))
    primary.is_reachable = False
    for ask in (follower.place, follower.touch):
        with pytest.raises(Refused) as caught:
            await ask("e1", Holder(new.arrival, "new"))
        assert (caught.value.code, caught.value.status) == ("not_primary", 503)
    primary.is_held, primary.is_reachable = False, True
    assert (await follower.place("e1", Holder(new.arrival, "new"))).position == 4
    with pytest.raises(Refused) as caught:
        await follower.place("e1", Holder(9, "nobody"))
    assert caught.value.code == "not_found"


async def test_a_read_that_waits_while_the_role_changes_is_refused(
    primary: DirectPrimary, follower: FollowingBackend
) -> None:
    primary.is_held = True
    await primary.backend.leave("e1", U2)
    reading = asyncio.ensure_future(follower.place("e1", U1))
    await settle()
    await follower.close()
    primary.ship()
    with pytest.raises(Refused) as caught:
        await asyncio.wait_for(reading, 5)
    assert caught.value.code == "not_primary"


# ---- presence ---------------------------------------------------------------------------------------


async def test_a_touch_is_answered_here_and_handed_on(primary: DirectPrimary, follower: FollowingBackend) -> None:
    assert (await follower.touch("e1", U1, visible=False)).position == 1
    assert (primary.calls, primary.heard) == ([], [("e1", 1, False)])
    follower.heard("e1", [2, 3], True)
    assert primary.heard[1:] == [("e1", 2, True), ("e1", 3, True)]


async def test_a_touch_of_who_is_parked_is_the_primarys_to_decide(
    primary: DirectPrimary, follower: FollowingBackend, clock: list[int]
) -> None:
    for _ in range(8):
        clock[0] += 5_000
        primary.backend.heard("e1", [2, 3], True)
    await primary.backend.release("e1", 1, OPS)
    assert (await follower.place("e1", U1)).status == "parked"
    assert (await follower.touch("e1", U1)).status == "waiting"
    assert (primary.calls, primary.heard) == (["touch"], [])
    assert follower.ranks("e1", [1, 3]).positions == [1, 2]


async def test_a_touch_of_who_is_parked_is_a_look_while_nobody_can_decide(
    primary: DirectPrimary, follower: FollowingBackend, clock: list[int]
) -> None:
    for _ in range(8):
        clock[0] += 5_000
        primary.backend.heard("e1", [2, 3], True)
    await primary.backend.release("e1", 1, OPS)
    primary.ship()
    primary.is_reachable = False
    assert (await follower.touch("e1", U1)).status == "parked"


async def test_neither_an_old_device_nor_an_ended_place_is_a_word_of_a_holder(
    primary: DirectPrimary, follower: FollowingBackend
) -> None:
    await follower.transfer("e1", U1, 7)
    await follower.leave("e1", U2)
    assert not (await follower.touch("e1", U1)).proven
    assert (await follower.touch("e1", U2)).status == "left"
    assert primary.heard == []
    await follower.touch("e1", replace(U1, generation=1))
    assert primary.heard == [("e1", 1, True)]


# ---- writes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
async def test_what_decides_is_sent_on_as_it_was_asked(name: str, primary: DirectPrimary, clock: list[int]) -> None:
    """A follower gives what a primary in the same state gives, refusals included, and both come to the same state."""
    other, outcomes = await primary_at(clock), list[object]()
    for backend in (primary.follower, other.backend):
        try:
            outcomes.append(await WRITES[name](backend))  # type: ignore[arg-type]
        except Refused as refused:
            outcomes.append((refused.code, refused.detail, refused.reason))
    assert outcomes[0] == outcomes[1]
    assert (primary.calls, primary.lag) == ([name], 0)
    assert facts(primary.follower.venue) == facts(primary.backend.venue) == facts(other.backend.venue)


async def test_an_answer_waits_until_it_is_applied_here(primary: DirectPrimary, follower: FollowingBackend) -> None:
    primary.is_held = True
    joining = asyncio.ensure_future(follower.join("e1", Entrant("new")))
    await settle()
    assert primary.lag == 1 and not joining.done()
    primary.ship()
    place = await asyncio.wait_for(joining, 5)
    assert (place.position, follower.ranks("e1", [place.arrival]).positions) == (4, [4])


async def test_without_a_primary_nothing_is_decided(primary: DirectPrimary, follower: FollowingBackend) -> None:
    primary.is_reachable = False
    with pytest.raises(Refused) as caught:
        await follower.join("e1", Entrant("new"))
    assert caught.value.code == "not_primary"


# ---- what it tells ------------------------------------------------------------------------------------


async def test_a_follower_announces_what_is_applied_and_not_before(
    primary: DirectPrimary, follower: FollowingBackend
) -> None:
    theirs, ours = primary.backend.notices(), follower.notices()
    primary.is_held = True
    await primary.backend.release("e1", 2, OPS)
    await primary.backend.tell("e1", "hello", OPS)
    announced: list[Notice] = []
    while len(announced) < 2:
        announced += await anext(theirs)
    hearing = asyncio.ensure_future(anext(ours))
    await settle()
    assert not hearing.done()
    primary.ship()
    assert await asyncio.wait_for(hearing, 5) == announced
    assert [type(notice) for notice in announced] == [PlacesChanged, EventChanged]
    await follower.close()
    assert [batch async for batch in ours] == []


async def test_a_large_draw_holds_up_nobody_and_is_told_at_its_end(
    primary: DirectPrimary, follower: FollowingBackend
) -> None:
    await primary.backend.configure("e2", {"lobby": True}, OPS, replace=True)
    await primary.backend.control("e2", "lobby", OPS)
    for index in range(1_600):
        await primary.backend.join("e2", Entrant(f"v{index}"))
    primary.ship()
    notices, turns, seen = follower.notices(), 0, list[Notice]()
    await primary.backend.control("e2", "open", OPS)
    primary.ship()
    assert follower.venue.room("e2").ledger.undrawn()
    assert follower.ranks("e2", [1]).positions == [0]
    while follower.venue.room("e2").ledger.undrawn():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 3
    while not any(isinstance(notice, LineDrawn) for notice in seen):
        seen += await asyncio.wait_for(anext(notices), 5)
    primary.backend.venue.room("e2").ledger.draw_all()
    assert facts(follower.venue) == facts(primary.backend.venue)


async def test_a_follower_that_is_closed_leaves_its_venue_alone(
    primary: DirectPrimary, follower: FollowingBackend
) -> None:
    await primary.backend.configure("e2", {"lobby": True}, OPS, replace=True)
    await primary.backend.control("e2", "lobby", OPS)
    for index in range(1_600):
        await primary.backend.join("e2", Entrant(f"v{index}"))
    await primary.backend.control("e2", "open", OPS)
    primary.ship()
    await follower.close()
    undrawn = follower.venue.room("e2").ledger.undrawn()
    await settle()
    assert follower.venue.room("e2").ledger.undrawn() == undrawn > 0


# ---- time, status, log ----------------------------------------------------------------------------------


async def test_the_clock_is_the_primarys_and_never_goes_back(
    primary: DirectPrimary, follower: FollowingBackend, clock: list[int]
) -> None:
    assert follower.now_ms() == primary.backend.now_ms()
    clock[0] += 500
    assert follower.now_ms() == primary.backend.now_ms()
    follower.advance([], follower.now_ms() - 300)
    assert follower.now_ms() == primary.backend.now_ms(), "what comes late says nothing"
    follower.advance([], follower.now_ms() + 200)
    assert follower.now_ms() == primary.backend.now_ms() + 200


async def test_the_time_to_the_next_batch_goes_on_without_a_record(
    primary: DirectPrimary, follower: FollowingBackend, clock: list[int]
) -> None:
    for user in (1, 2, 3):
        await primary.backend.leave("e1", Holder(user, f"u{user}"))
    for seconds in (59, 2, 30):
        clock[0] += seconds * 1000
        await primary.backend.tick()
        await follower.tick()
        theirs, ours = await primary.backend.stats("e1"), await follower.stats("e1")
        assert theirs.next_release_in_ms == ours.next_release_in_ms
        assert primary.lag == 0
    assert 0 < await follower.tick() <= 250


async def test_a_follower_says_what_it_is(primary: DirectPrimary, follower: FollowingBackend) -> None:
    status = follower.status()
    assert (status.role, status.is_stale, status.refuses_joins, status.degraded) == ("follower", False, None, ())
    assert (status.epoch, status.version) == (primary.backend.epoch, primary.backend.status().version)
    assert follower.epoch == primary.backend.epoch == 1
    primary.is_reachable = False
    status = follower.status()
    assert (status.is_stale, status.refuses_joins) == (True, "not_primary")
    assert status.degraded


async def test_one_without_a_disk_has_neither_records_nor_snapshots_and_the_rest_of_a_primarys_capabilities(
    follower: FollowingBackend,
) -> None:
    with pytest.raises(Refused):
        [batch async for batch in follower.records(1)]
    with pytest.raises(Refused):
        await follower.snapshot()
    lacks = {
        field.name
        for field in fields(follower.capabilities)
        if getattr(follower.capabilities, field.name) != getattr(MemoryBackend.capabilities, field.name)
    }
    assert lacks == {"records", "snapshots"}


async def test_a_promoted_follower_goes_on_where_it_was(
    primary: DirectPrimary, follower: FollowingBackend, clock: list[int]
) -> None:
    clock[0] += 12_345
    primary.ship()
    now_ms, before = follower.now_ms(), follower.status().version
    await follower.close()
    journal = GatedJournal(epoch=1 << 20, last_lsn=before, durable_lsn=before)
    promoted = MemoryBackend(journal, lambda: clock[0], lambda: 5_000, DRAW_KEY, follower.venue, now_ms)
    await promoted.start()
    assert (promoted.now_ms(), promoted.epoch) == (now_ms, 1 << 20)
    assert journal.log[0].at_ms == now_ms
    assert (await promoted.join("e1", Entrant("new"))).number == 4
