"""The ledger: what it counts, a draw in steps, and its capture."""

import hashlib
import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from engine import venue as venues
from engine.actor import Whom
from engine.draw import mixed, order
from engine.errors import Damaged
from engine.ledger import ITEMS_PER_PART, TABLES
from engine.records import Checkpoint, Opened
from engine.register import LOBBY
from engine.room import Room
from engine.venue import Venue
from engine.views import LineDrawn
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    SECRET,
    WHY,
    RecordingVenue,
    control,
    facts,
    holder,
    join,
    join_many,
    make_room,
    rebuilt,
    records_of,
    reloaded,
    room_in,
    seen,
    whom,
)

T = 1_000_000


def test_time_of_the_event_stands_still_while_it_is_paused() -> None:
    room, _ = room_in("open")
    room.control("pause", WHY, 4_000)
    assert [room.ledger.event_time_ms(now_ms) for now_ms in (4_000, 99_000)] == [4_000, 4_000]
    room.control("resume", OPERATOR, 14_000)
    assert room.ledger.event_time_ms(15_000) == 5_000
    room.control("pause", WHY, 15_000)
    room.control("close", WHY, 20_000)
    assert room.ledger.event_time_ms(20_001) == 5_001


def test_those_inside_count_by_size_and_those_queued_by_place() -> None:
    room, _ = room_in("open")
    for user_id, size in (("a", 3), ("b", 1), ("c", 5)):
        join(room, user_id, T, size=size)
    room.release(2, OPERATOR, T, manual=True)
    assert (room.ledger.inside(), room.ledger.queued()) == (4, 1)


def test_the_parked_count_as_queued() -> None:
    assert situations.parked().room.ledger.queued() == 1


def test_a_deadline_is_that_of_whichever_window_runs() -> None:
    for make, window_ms in ((situations.ready, 60_000), (situations.active, 100_000), (situations.parked, 300_000)):
        situation = make()
        assert situation.room.ledger.deadline_ms(1) == situation.room.ledger.event_time_ms(situation.now_ms) + window_ms
    assert situations.waiting().room.ledger.deadline_ms(1) is None


# ---- the draw, in steps -----------------------------------------------------------------------------------------


def opened(count: int, settings: dict[str, object] | None = None) -> tuple[Room, RecordingVenue]:
    """Return a lobby of so many that has just opened: nobody has a number yet."""
    room, venue = room_in("lobby", settings)
    join_many(room, count, T)
    control(room, "open", OPERATOR, T)
    return room, venue


def numbers_of(room: Room, count: int) -> list[int | None]:
    return [seen(room, arrival, T).number for arrival in range(1, count + 1)]


def test_a_draw_gives_each_of_the_lobby_one_number_in_the_order_that_anybody_can_compute() -> None:
    room, _ = opened(500)
    room.ledger.draw_all()
    drawn = order(mixed(SECRET, None), range(1, 501))
    assert numbers_of(room, 500) == [drawn.index(arrival) + 1 for arrival in range(1, 501)]
    assert room.ledger.line.head(3) == [room.ledger.register.keys[arrival] for arrival in drawn[:3]]


def test_a_beacon_that_was_named_is_mixed_in() -> None:
    room, _ = room_in("draft", {"lobby": True})
    control(room, "lobby", OPERATOR, T, beacon="lottery")
    join_many(room, 50, T)
    control(room, "open", OPERATOR, T, beacon="4 8 15")
    room.ledger.draw_all()
    drawn = order(hashlib.sha256(SECRET + b"4 8 15").digest(), range(1, 51))
    assert list(room.ledger.register.drawn[1:]) == drawn


def test_until_the_draw_is_done_those_without_a_number_are_in_the_lobby() -> None:
    room, _ = opened(100)
    assert room.ledger.undrawn() == 100
    assert room.ledger.draw_step(140)
    states = [seen(room, arrival, T).status for arrival in range(1, 101)]
    assert (states.count("lobby"), states.count("waiting"), room.ledger.undrawn()) == (60, 40, 60)
    assert not room.ledger.draw_step(1_000)
    assert room.ledger.undrawn() == 0 and not room.ledger.draw_step(1_000)


def test_the_end_of_a_draw_is_announced_once() -> None:
    room, venue = opened(10)
    venue.drain()
    room.ledger.draw_all()
    room.ledger.draw_all()
    assert [notice for notice in venue.drain().notices if isinstance(notice, LineDrawn)] == [
        LineDrawn("e1", venue.outbox.lsn)
    ]


def test_an_empty_lobby_is_drawn_too() -> None:
    room, venue = opened(0)
    room.ledger.draw_all()
    assert join(room, "u1", T).number == 1
    rebuilt(venue)


def test_whoever_joins_while_the_draw_runs_stands_behind_all_the_drawn() -> None:
    room, venue = opened(100)
    room.ledger.draw_step(130)
    late = join(room, "late", T)
    assert (late.number, late.position) == (101, 101)
    room.ledger.draw_all()
    assert seen(room, late.arrival, T).position == 101
    rebuilt(venue)


def test_a_release_finishes_the_draw_first() -> None:
    room, venue = opened(2_500)
    assert room.release(1, OPERATOR, T, manual=True).released == 1
    assert room.ledger.undrawn() == 0
    assert seen(room, order(mixed(SECRET, None), range(1, 2_501))[0], T).status == "ready"
    rebuilt(venue)


FINISH_FIRST: dict[str, Callable[[Room, RecordingVenue], object]] = {
    "settings": lambda room, venue: room.configure({"priority_boost": 5}, WHY, T),
    "pause": lambda room, venue: control(room, "pause", WHY, T),
    "close": lambda room, venue: control(room, "close", WHY, T),
    "admit": lambda room, venue: room.admit(whom(seen(room, 7, T)), WHY, T),
    "release": lambda room, venue: room.release(3, OPERATOR, T, manual=True),
    "start": lambda room, venue: venue.start(9, T, 0),
    "capture": lambda room, venue: list(venue.capture()),
    "check": lambda room, venue: room.ledger.check(),
}


@pytest.mark.parametrize("what", FINISH_FIRST)
def test_whatever_would_come_out_otherwise_finishes_the_draw_first(what: str) -> None:
    room, venue = opened(60)
    room.ledger.draw_step(90)
    FINISH_FIRST[what](room, venue)
    assert room.ledger.undrawn() == 0
    rebuilt(venue)


def live_while_drawing(room: Room, venue: RecordingVenue, seed: int) -> None:
    """Let a draw go on in small steps, and people join, leave, touch and move to other devices in between."""
    chosen = random.Random(seed)
    more, late = True, 0
    while more:
        more = room.ledger.draw_step(chosen.randint(1, 60))
        for _ in range(chosen.randint(0, 3)):
            place = seen(room, chosen.randint(1, len(room.ledger.register)), T)
            what = chosen.choice(("join", "leave", "touch", "transfer", "remove"))
            if what == "join":
                late += 1
                join(room, f"late{late}", T, level=chosen.choice((0, 0, 3)))
            elif place.status not in ("lobby", "waiting"):
                continue
            elif what == "leave":
                room.leave(holder(place), T)
            elif what == "touch":
                room.touch(holder(place), T)
            elif what == "transfer":
                room.transfer(holder(place), chosen.getrandbits(40) + 1, T)
            else:
                room.remove(whom(place), WHY, T)
        venue.drain()


@pytest.mark.parametrize("seed", range(12))
def test_a_draw_in_steps_with_people_moving_in_between_is_the_replayed_one(seed: int) -> None:
    room, venue = opened(400, {"priority_boost": 40})
    live_while_drawing(room, venue, seed)
    room.ledger.check()
    rebuilt(venue)
    reloaded(venue)


@pytest.mark.parametrize("seed", range(4))
def test_a_checkpoint_that_is_due_while_the_draw_runs_waits_for_its_end(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(venues, "CHECKPOINT_EVERY", 25)
    room, venue = opened(400)
    live_while_drawing(room, venue, seed)
    for index in range(60):
        join(room, f"after{index}", T)
        venue.drain()
    log = records_of(venue)
    at = next(at for at, record in enumerate(log) if isinstance(record, Opened))
    after = [record for record in log[at:] if isinstance(record, Checkpoint)]
    assert len(after) >= 3
    rebuilt(venue)


@pytest.mark.parametrize("seed", range(4))
def test_a_capture_in_the_middle_of_a_draw_and_the_records_after_it_make_the_same(seed: int) -> None:
    room, venue = opened(300)
    room.ledger.draw_step(400)
    join(room, "late", T)
    room.leave(holder(seen(room, 5, T)), T)
    at = len(records_of(venue))
    other = Venue()
    other.load(list(venue.capture()))
    live_while_drawing(room, venue, seed)
    for record in records_of(venue)[at:]:
        other.apply(record)
    assert facts(other) == facts(rebuilt(venue))


def test_a_draw_cut_off_half_way_by_a_kill_comes_out_the_same() -> None:
    room, venue = opened(300)
    room.ledger.draw_step(450)
    room.leave(holder(seen(room, 5, T)), T)
    again = rebuilt(venue).room("e1")
    assert numbers_of(again, 300) == numbers_of(room, 300)
    assert again.ledger.register.drawn == room.ledger.register.drawn


def test_who_leaves_the_lobby_while_the_draw_runs_has_left_and_keeps_the_number_that_was_drawn() -> None:
    room, venue = opened(100)
    room.ledger.draw_step(110)
    arrival = room.ledger.register.with_status(LOBBY)[0]
    room.leave(holder(seen(room, arrival, T)), T)
    room.ledger.draw_all()
    place = seen(room, arrival, T)
    assert place.status == "left" and place.number == order(mixed(SECRET, None), range(1, 101)).index(arrival) + 1
    assert len(room.ledger.line) == 99
    rebuilt(venue)


# ---- capture, load, check ---------------------------------------------------------------------------------------


def crowded() -> RecordingVenue:
    """Return a venue with something in every table."""
    situation = situations.active()
    room, now_ms = situation.room, situation.now_ms
    join(room, "group", now_ms, 3, size=4, level=2, word="enqueue")
    room.transfer(holder(join(room, "mover", now_ms, 8)), 9, now_ms)
    join(room, "banned", now_ms)
    room.remove(whom(seen(room, 5, now_ms)), WHY, now_ms, ban=True)
    return situation.venue


def test_every_table_is_captured_and_loaded() -> None:
    venue = crowded()
    assert all(getattr(venue.room("e1").ledger, name) for name in TABLES)
    ledger = reloaded(venue).room("e1").ledger
    for name in TABLES:
        assert getattr(ledger, name) == getattr(venue.room("e1").ledger, name)


def test_a_capture_read_late_shows_the_tables_as_they_were() -> None:
    venue = crowded()
    room, at = venue.room("e1"), len(records_of(venue))
    before = {name: dict(getattr(room.ledger, name)) for name in TABLES}
    parts = venue.capture()
    room.complete(Whom(user_id="u1"), "completed", "site", T)
    room.transfer(holder(seen(room, 4, T)), 99, T)
    room.release(9, replace(OPERATOR, request="k"), T, manual=True)
    room.tell("hello", OPERATOR, T)
    other = Venue()
    other.load(parts)
    assert {name: getattr(other.room("e1").ledger, name) for name in TABLES} == before
    for record in records_of(venue)[at:]:
        other.apply(record)
    assert facts(other) == facts(venue)


def test_parts_are_small_however_large_a_table_is() -> None:
    room, venue = room_in("open")
    for index in range(ITEMS_PER_PART + 5):
        join(room, f"u{index}", T, size=2)
    sizes = [len(part[2]) for part in venue.capture() if part[:2] == ["table", "sizes"]]  # type: ignore[index]
    assert sizes == [ITEMS_PER_PART, 5]


def test_rows_that_do_not_add_up_are_damage() -> None:
    parts = list(crowded().capture())
    parts = [part for part in parts if part[0] != "rows"]  # type: ignore[index]
    with pytest.raises(Damaged, match="do not add up"):
        Venue().load(parts)


SPOILED: dict[str, Callable[[Room], object]] = {
    "a line that lost somebody": lambda room: room.ledger.line.drop_head(1),
    "a session without a deadline": lambda room: room.ledger.sessions.clear(1),
    "a limit of somebody outside": lambda room: room.ledger.limits_ms.setdefault(2, 5),
    "a redemption that is gone": lambda room: room.ledger.redemptions.clear(),
    "a group counted short": lambda room: setattr(room.ledger, "extra_inside", 1),
    "an identity in two places": lambda room: room.ledger.register.user_ids.__setitem__(3, "other"),
    "a name that leads elsewhere": lambda room: room.ledger.register.by_user.update(other=3),
    "presence of nobody": lambda room: room.ledger.presence.add(T, room.ledger.settings),
    "a status changed behind its back": lambda room: room.ledger.register.status.__setitem__(2, LOBBY),
}


@pytest.mark.parametrize("what", SPOILED)
def test_the_checker_finds(what: str) -> None:
    room = crowded().room("e1")
    room.ledger.check()
    SPOILED[what](room)
    with pytest.raises(AssertionError):
        room.ledger.check()


def test_a_ledger_of_its_own_begins_empty_and_sound() -> None:
    ledger = make_room(Venue()).ledger
    ledger.check()
    assert (ledger.state, ledger.inside(), ledger.queued(), ledger.admissions_left()) == ("draft", 0, 0, None)
