"""Releasing: when a batch leaves, who is in it, and how a slice stays short."""

import pytest

from engine import answering, releasing
from engine.actor import By, Holder
from engine.records import Parked, Released
from engine.room import Room
from engine.views import PlacesChanged, ReleaseResult
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    PACER,
    WHY,
    holder,
    join,
    join_many,
    rebuilt,
    records_of,
    refusal,
    reloaded,
    room_in,
    seen,
    status_of,
)

T = 1_000_000
PATIENCE = {"presence_timeout_s": 20, "presence_timeout_hidden_s": 20}


def release(room: Room, count: int, now_ms: int = T) -> ReleaseResult:
    return room.release(count, OPERATOR, now_ms, manual=True)


def all_of(room: Room, count: int, now_ms: int) -> list[ReleaseResult]:
    """Release slice by slice, as the backend does."""
    results, released, more = [], 0, True
    while more:
        results.append(release(room, count - released, now_ms))
        released, more = released + results[-1].released, results[-1].more
        assert len(results) < 100
    return results


def with_ghosts(ghosts: int, present: int, settings: dict[str, object] | None = None) -> tuple[Room, int]:
    """Return a room whose first so many are gone, and the time."""
    room, _ = room_in("open", PATIENCE | (settings or {}))
    places = join_many(room, ghosts + present, T)
    for now_ms in range(T, T + 60_001, 10_000):
        for place in places[ghosts:]:
            room.touch(holder(place), now_ms)
    return room, T + 60_000


# ---- when ----------------------------------------------------------------------------------------------------


def test_batches_leave_one_interval_apart_and_the_first_one_after_the_opening() -> None:
    room, _ = room_in("open", {"batch_size": 2, "batch_interval_s": 10})
    join_many(room, 9, T)
    opened = 0
    assert room.tick(opened + 9_999) == 0
    assert room.tick(opened + 10_000) == 2
    assert room.tick(opened + 10_001) == 0
    assert room.tick(opened + 20_500) == 2
    assert answering.next_release_ms(room.ledger, opened + 20_500) == 10_000


def test_a_pause_stands_still_for_the_pacing_too() -> None:
    room, _ = room_in("open", {"batch_interval_s": 10})
    join(room, "u1", 1)
    room.control("pause", WHY, 4_000)
    assert (answering.next_release_ms(room.ledger, 60_000), room.tick(60_000)) == (None, 0)
    room.control("resume", OPERATOR, 104_000)
    assert answering.next_release_ms(room.ledger, 104_000) == 6_000


def test_a_restart_waits_a_full_interval() -> None:
    room, venue = room_in("open", {"batch_interval_s": 10})
    join(room, "u1", 1)
    venue.start(7, 9_999, 0)
    assert answering.next_release_ms(room.ledger, 10_000) == 9_999
    assert (room.tick(19_998), room.tick(19_999)) == (0, 1)


def test_a_change_of_settings_never_brings_a_batch_sooner_than_its_interval() -> None:
    room, _ = room_in("open", {"batch_size": 1, "batch_interval_s": 10})
    join_many(room, 5, 1)
    assert room.tick(10_000) == 1
    room.release(1, PACER, 10_000, manual=False)
    room.configure({"batch_interval_s": 20}, WHY, 11_000)
    assert answering.next_release_ms(room.ledger, 11_000) == 19_000


def test_a_batch_that_came_due_while_nobody_waited_is_lost() -> None:
    room, _ = room_in("open", {"batch_size": 2, "batch_interval_s": 10})
    assert room.tick(10_000) == 0
    join_many(room, 9, 12_000)
    assert (room.tick(12_001), room.tick(20_000)) == (0, 2)


def test_the_rate_is_that_of_the_batches_that_left() -> None:
    room, venue = room_in("open", {"batch_size": 20, "batch_interval_s": 10})
    join_many(room, 300, 1)
    for now_ms in range(10_000, 100_001, 10_000):
        room.release(room.tick(now_ms), PACER, now_ms, manual=False)
    for known in (room, rebuilt(venue).room("e1"), reloaded(venue).room("e1")):
        assert answering.view(known.ledger).rate_per_minute == pytest.approx(120, rel=0.02)
        assert known.ledger.last_batch_ms == 100_000


# ---- who -----------------------------------------------------------------------------------------------------


def test_a_release_takes_the_head_in_slices_and_says_what_limited_it() -> None:
    room, venue = room_in("open")
    join_many(room, 1_500, T)
    first = release(room, 5_000)
    assert (first.released, first.limited_by, first.more) == (1_000, None, True)
    last = release(room, 4_000)
    assert (last.released, last.limited_by, last.more) == (500, "line", False)
    released = [record for record in records_of(venue) if isinstance(record, Released)]
    assert [number for record in released for number in record.numbers] == list(range(1, 1_501))


def test_a_slice_that_gave_all_that_was_asked_is_the_last_one() -> None:
    room, _ = room_in("open")
    join_many(room, 1_500, T)
    assert [(result.released, result.more) for result in all_of(room, 1_000, T)] == [(1_000, False)]
    assert [(result.released, result.more) for result in all_of(room, 500, T)] == [(500, False)]


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_asked_is_nothing_done(count: int) -> None:
    room, venue = room_in("open")
    join_many(room, 3, T)
    venue.drain()
    result = release(room, count)
    assert (result.released, result.limited_by, result.more, venue.drain().records) == (0, None, False, [])


def test_nobody_waits_behind_those_who_left() -> None:
    room, now_ms = with_ghosts(30, 10)
    result = release(room, 5, now_ms)
    assert (result.released, result.stepped_over, result.more) == (5, 30, False)
    assert [status_of(room, arrival) for arrival in (1, 30, 31, 35, 36)] == [
        "parked", "parked", "ready", "ready", "waiting",
    ]  # fmt: skip
    assert release(room, 5, now_ms).stepped_over == 0, "the cost of stepping over was paid twice"


def test_who_was_stepped_over_is_written_before_who_was_let_in_with_when_they_were_heard() -> None:
    situation = situations.parked()
    parked, released = records_of(situation.venue)[-2:]
    assert isinstance(parked, Parked) and isinstance(released, Released)
    assert (parked.numbers, parked.last_seen_ms, released.numbers) == ([1], [situations.START_MS], [2])


def test_a_crowd_of_those_who_left_is_stepped_over_slice_by_slice() -> None:
    room, now_ms = with_ghosts(3_500, 200)
    results = all_of(room, 100, now_ms)
    assert [result.stepped_over for result in results] == [1_000, 1_000, 1_000, 500]
    assert [result.released for result in results] == [0, 0, 0, 100]
    assert [seen(room, arrival, now_ms).status for arrival in (3_501, 3_600, 3_601)] == ["ready", "ready", "waiting"]


def test_those_stepped_over_and_those_let_in_are_told_so() -> None:
    room, venue = room_in("open", PATIENCE)
    gone, here = join_many(room, 2, T)
    for now_ms in range(T, T + 60_001, 10_000):
        room.touch(holder(here), now_ms)
    venue.drain()
    release(room, 1, T + 60_000)
    lsn = venue.outbox.lsn
    assert venue.drain().notices == [
        PlacesChanged("e1", (gone.arrival,), "parked", lsn - 1),
        PlacesChanged("e1", (here.arrival,), "ready", lsn),
    ]


def test_whoever_comes_back_after_being_stepped_over_is_next() -> None:
    room, now_ms = with_ghosts(3, 10)
    release(room, 2, now_ms)
    place = room.touch(Holder(2, "u2"), now_ms)
    assert (place.status, place.position, place.number) == ("waiting", 1, 2)
    release(room, 1, now_ms)
    assert status_of(room, 2) == "ready"


def test_a_line_of_nobody_present_parks_them_and_lets_nobody_in() -> None:
    room, now_ms = with_ghosts(5, 1)
    room.leave(Holder(6, "u6"), now_ms)
    result = release(room, 3, now_ms)
    assert (result.released, result.stepped_over, result.limited_by) == (0, 5, "line")


# ---- the cap ---------------------------------------------------------------------------------------------------


def test_no_release_goes_over_the_cap_and_a_slot_that_is_freed_is_given_again() -> None:
    room, _ = room_in("open", {"max_active": 3, "safety_margin": 1})
    join_many(room, 9, T)
    result = release(room, 5)
    assert (result.released, result.limited_by) == (2, "capacity")
    room.leave(Holder(1, "u1"), T)
    assert release(room, 5).released == 1


def test_lowering_the_cap_stops_releases_and_expels_nobody() -> None:
    room, _ = room_in("open", {"max_active": 3})
    join_many(room, 9, T)
    release(room, 3)
    room.configure({"max_active": 1}, WHY, T)
    assert release(room, 3).limited_by == "capacity"
    assert room.ledger.inside() == 3


def test_a_group_counts_by_its_size_and_holds_up_those_behind_it_where_it_does_not_fit() -> None:
    room, venue = room_in("open", {"max_active": 5})
    for user_id, size in (("a", 2), ("b", 2), ("c", 3), ("d", 1)):
        join(room, user_id, T, size=size)
    result = release(room, 9)
    assert (result.released, result.limited_by, room.ledger.inside()) == (2, "capacity", 4)
    assert status_of(room, 4) == "waiting", "somebody small was let past a group"
    room.leave(Holder(1, "a"), T)
    assert (release(room, 9).released, room.ledger.inside()) == (1, 5)
    for known in (rebuilt(venue), reloaded(venue)):
        assert known.room("e1").ledger.inside() == 5


def test_whoever_is_gone_behind_a_full_house_is_not_stepped_over() -> None:
    room, _ = room_in("open", PATIENCE | {"max_active": 1})
    here, gone, _ = join_many(room, 3, T)
    for now_ms in range(T, T + 60_001, 10_000):
        room.touch(holder(here), now_ms)
    assert release(room, 5, T + 60_000).released == 1
    assert release(room, 5, T + 60_000) == ReleaseResult(0, 0, "capacity", False, room.ledger.outbox.lsn)
    assert status_of(room, gone.arrival) == "waiting"


# ---- by hand ---------------------------------------------------------------------------------------------------


def test_a_release_repeated_under_its_key_is_remembered_through_replay_and_snapshot() -> None:
    room, venue = room_in("open")
    join_many(room, 30, T)
    by = By("ops", request="k1")
    room.release(7, by, T, manual=True)
    room.release(2, by, T, manual=True)
    release(room, 4)
    for known in (venue, rebuilt(venue), reloaded(venue)):
        assert known.room("e1").released_under("k1") == 9
        assert known.room("e1").released_under("k2") == known.room("e1").released_under(None) == 0


def test_a_release_while_paused_is_a_canary_and_while_closed_is_refused() -> None:
    room, _ = room_in("paused")
    join(room, "u1", T)
    assert release(room, 1).released == 1
    closed, _ = room_in("closed")
    with refusal("conflict", "closed"):
        release(closed, 1)


def test_choosing_changes_nothing() -> None:
    room, now_ms = with_ghosts(3, 5)
    before = room.ledger.register.digest()
    chosen = releasing.choose(room.ledger, 2)
    assert (chosen.present, chosen.absent, chosen.more) == ([4, 5], [1, 2, 3], False)
    assert (room.ledger.register.digest(), len(room.ledger.line), now_ms) == (before, 8, T + 60_000)


def test_a_batch_size_lowered_between_two_slices_holds_for_the_rest_of_the_batch() -> None:
    room, _ = room_in("open", {"batch_size": 1_500})
    join_many(room, 2_000, T)
    assert room.release(1_500, PACER, T + 1, manual=False).more
    room.configure({"batch_size": 1_200}, WHY, T + 1)
    assert room.release(500, PACER, T + 1, manual=False).released == 200
    assert room.release(300, PACER, T + 1, manual=False).released == 0
    assert room.release(1_200, PACER, T + 10_001, manual=False).released == 800
