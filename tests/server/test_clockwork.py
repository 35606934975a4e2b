"""Clockwork: due batches, opening and closing times, snapshots; with clocks that are set, not waited for."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from engine import answering
from engine.actor import By
from engine.errors import Refused, StorageFailed
from engine.room import Room
from engine.venue import Venue
from engine.views import BackendChanged, EventChanged, EventView, Notice
from server.clockwork import Schedule, Snapshots, release_due


class Backend:
    """A venue without a journal, as far as the clockwork asks."""

    def __init__(self) -> None:
        self.venue = Venue()
        self.version = 0
        self.snapshots = 0
        self.refuse: Exception | None = None
        self.ticks = 0
        self.now_ms = 0
        self.role = "primary"
        self.least_versions: list[int | None] = []
        self.announced: asyncio.Queue[list[Notice]] = asyncio.Queue()

    def make(self, event_id: str, **settings: object) -> Room:
        self.venue.configure(event_id, settings, By("admin"), 0, replace=True)
        return self.venue.room(event_id)

    async def notices(self) -> AsyncIterator[list[Notice]]:
        while True:
            yield await self.announced.get()

    async def events(self) -> list[EventView]:
        if self.refuse is not None:
            raise self.refuse
        return [answering.view(room.ledger) for room in self.venue.rooms.values()]

    async def event(self, event_id: str, *, least_version: int | None = None) -> EventView:
        self.least_versions.append(least_version)
        return answering.view(self.venue.room(event_id).ledger)

    async def control(self, event_id: str, action: str, by: By, outcome: str | None = None) -> EventView:
        if self.refuse is not None:
            raise self.refuse
        room = self.venue.room(event_id)
        room.control(action, by, self.now_ms, outcome=outcome, draw_id="d1", secret=bytes(32))
        return answering.view(room.ledger)

    async def tick(self) -> int:
        self.ticks += 1
        if self.ticks == 1:
            raise Refused("overloaded", "too much")
        if self.ticks > 3:
            raise asyncio.CancelledError
        return 0

    def status(self) -> Any:
        return self

    async def snapshot(self) -> Mapping[str, object]:
        if self.refuse is not None:
            raise self.refuse
        self.snapshots += 1
        return {}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def backend() -> Any:
    return Backend()


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---- batches ------------------------------------------------------------------------------------------


async def test_a_refused_batch_is_tried_again(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.clockwork.RETRY_S", 0)
    with pytest.raises(asyncio.CancelledError):
        await release_due(backend)
    assert backend.ticks == 4


# ---- opening and closing times ------------------------------------------------------------------------


async def test_a_draft_opens_when_its_time_has_come_and_not_before(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", opens_at_ms=2_000)
    schedule = Schedule(backend, clock)
    schedule.note(answering.view(room.ledger))
    await schedule.act()
    assert room.ledger.state == "draft"
    clock.now = 2_000
    await schedule.act()
    assert room.ledger.state == "open"


async def test_a_lobby_opens_at_its_time_and_then_the_event_at_its_own(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", lobby=True, lobby_opens_at_ms=2_000, opens_at_ms=3_000)
    backend.now_ms = 100_000
    schedule = Schedule(backend, clock)
    for now, state in ((1_999, "draft"), (2_000, "lobby"), (2_999, "lobby"), (3_000, "open")):
        clock.now = now
        schedule.note(answering.view(room.ledger))
        await schedule.act()
        assert room.ledger.state == state


async def test_a_lobby_that_is_due_right_after_a_start_opens_when_the_minute_is_over(
    backend: Any, clock: Clock
) -> None:
    room = backend.make("sale", lobby=True, opens_at_ms=500)
    room.control("lobby", By("admin"), 0, draw_id="d1", secret=bytes(32))
    schedule = Schedule(backend, clock)
    schedule.note(answering.view(room.ledger))
    for now_ms, state in ((59_999, "lobby"), (60_000, "open")):
        backend.now_ms = now_ms
        await schedule.act()
        assert room.ledger.state == state


async def test_an_open_or_paused_event_closes_at_its_time_with_a_reason(backend: Any, clock: Clock) -> None:
    schedule = Schedule(backend, clock)
    for event_id, actions in (("a", ["open"]), ("b", ["open", "pause"]), ("c", [])):
        room = backend.make(event_id, closes_at_ms=2_000)
        for action in actions:
            room.control(action, By("admin", "why"), 0)
        schedule.note(answering.view(room.ledger))
    clock.now = 2_001
    await schedule.act()
    assert [(room.ledger.state, room.ledger.reason) for room in backend.venue.rooms.values()] == [
        ("closed", "closing time")
    ] * 3


async def test_an_event_whose_both_times_have_passed_is_closed_and_never_opened(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", opens_at_ms=500, closes_at_ms=900)
    schedule = Schedule(backend, clock)
    schedule.note(answering.view(room.ledger))
    await schedule.act()
    assert room.ledger.state == "closed" and not room.ledger.opened


async def test_an_event_reopened_after_its_closing_time_stays_open(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", closes_at_ms=900)
    room.control("open", By("admin"), 0)
    schedule = Schedule(backend, clock)
    schedule.note(answering.view(room.ledger))
    await schedule.act()
    assert room.ledger.state == "closed"
    schedule.note(answering.view(room.ledger))
    room.control("open", By("admin"), 0)
    schedule.note(answering.view(room.ledger))
    await schedule.act()
    assert room.ledger.state == "open"


async def test_a_new_closing_time_counts_again_after_reopening(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", closes_at_ms=900)
    schedule = Schedule(backend, clock)
    room.control("close", By("admin", "why"), 0)
    schedule.note(answering.view(room.ledger))
    room.control("open", By("admin"), 0)
    room.configure({"closes_at_ms": 3_000}, By("admin"), 0)
    schedule.note(answering.view(room.ledger))
    clock.now = 3_000
    await schedule.act()
    assert room.ledger.state == "closed"


async def test_moving_the_opening_moves_what_is_due(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", opens_at_ms=2_000)
    schedule = Schedule(backend, clock)
    schedule.note(answering.view(room.ledger))
    room.configure({"opens_at_ms": 5_000}, By("admin", "later"), 0)
    schedule.note(answering.view(room.ledger))
    clock.now = 2_500
    await schedule.act()
    assert room.ledger.state == "draft"


async def test_what_the_log_cannot_take_now_is_tried_again(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", opens_at_ms=500)
    schedule = Schedule(backend, clock)
    schedule.note(answering.view(room.ledger))
    backend.refuse = Refused("storage_full", "no space")
    await schedule.act()
    assert room.ledger.state == "draft"
    backend.refuse = None
    await schedule.act()
    assert room.ledger.state == "open"


async def test_a_follower_leaves_times_to_the_primary_and_knows_them_when_it_becomes_one(
    backend: Any, clock: Clock
) -> None:
    room = backend.make("sale", opens_at_ms=2_000)
    schedule = Schedule(backend, clock)
    backend.role = "follower"
    following = asyncio.create_task(schedule._follow())
    backend.announced.put_nowait([BackendChanged(1)])
    await asyncio.sleep(0.01)
    clock.now = 2_000
    await schedule.act()
    assert room.ledger.state == "draft"
    backend.role = "primary"
    await schedule.act()
    assert room.ledger.state == "open"
    following.cancel()
    await asyncio.wait([following])


async def test_events_that_nobody_can_name_yet_are_looked_at_when_somebody_can(backend: Any, clock: Clock) -> None:
    room = backend.make("sale", opens_at_ms=500)
    backend.refuse = Refused("not_primary", "this server has just started")
    schedule = asyncio.create_task(Schedule(backend, clock).run())
    await asyncio.sleep(0.01)
    assert not schedule.done() and room.ledger.state == "draft"
    backend.refuse = None
    other = Schedule(backend, clock)
    following = asyncio.create_task(other._follow())
    backend.announced.put_nowait([EventChanged("sale", 3)])
    await asyncio.sleep(0.01)
    await other.act()
    assert (room.ledger.state, backend.least_versions) == ("open", [3])
    for task in (schedule, following):
        task.cancel()
    await asyncio.wait([schedule, following])


# ---- snapshots ----------------------------------------------------------------------------------------


async def test_a_snapshot_is_due_after_the_interval_when_something_was_added(backend: Any, clock: Clock) -> None:
    snapshots = Snapshots(backend, clock, interval_s=300, every_records=1_000)
    clock.now += 301
    assert not snapshots.is_due()
    backend.version = 1
    assert snapshots.is_due()
    await snapshots.write()
    assert (backend.snapshots, snapshots.is_due()) == (1, False)


async def test_very_many_records_do_not_wait_for_the_interval(backend: Any, clock: Clock) -> None:
    snapshots = Snapshots(backend, clock, interval_s=300, every_records=1_000)
    backend.version = 999
    assert not snapshots.is_due()
    backend.version = 1_000
    assert snapshots.is_due()


async def test_a_failed_snapshot_is_an_alarm_and_is_tried_again_after_the_interval(backend: Any, clock: Clock) -> None:
    snapshots = Snapshots(backend, clock, interval_s=300, every_records=1_000)
    backend.version, backend.refuse = 5_000, StorageFailed("no space")
    await snapshots.write()
    assert snapshots.alarm is not None and not snapshots.is_due()
    clock.now += 300
    backend.refuse = None
    assert snapshots.is_due()
    await snapshots.write()
    assert (backend.snapshots, snapshots.alarm) == (1, None)


async def test_nothing_is_written_where_nothing_was_added(backend: Any, clock: Clock) -> None:
    await Snapshots(backend, clock, interval_s=1, every_records=1_000).write()
    assert backend.snapshots == 0
