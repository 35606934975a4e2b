"""The room: its tables cell by cell, and the rules around them."""

import pytest

from engine.actor import By
from engine.errors import Damaged, Refused
from engine.records import Joined, Left, Messaged, Released, Reopened, encode
from engine.register import STATUSES
from engine.room import Room
from engine.transitions import EVENT_ACTIONS, STATES, VISITOR_INPUTS
from engine.venue import Venue
from engine.views import EventChanged, PlacesChanged
from tests.engine.rooms import OPERATOR, WHY, make_room, rebuilt, records_of, room_in

T = 1_000_000


def refusal(code: str, reason: str | None = None) -> object:
    class Expecting:
        def __enter__(self) -> None:
            self.raises = pytest.raises(Refused)
            self.caught = self.raises.__enter__()

        def __exit__(self, *error: object) -> bool:
            swallowed = self.raises.__exit__(*error)  # type: ignore[arg-type]
            assert (self.caught.value.code, self.caught.value.reason) == (code, reason)
            return bool(swallowed)

    return Expecting()


# ---- the tables ------------------------------------------------------------------------------------


def test_every_action_says_what_it_does_in_every_state() -> None:
    assert all(set(cells) == set(STATES) for cells in EVENT_ACTIONS.values())


def test_every_input_says_what_it_does_at_every_status() -> None:
    for what, cells in VISITOR_INPUTS.items():
        assert set(cells) == set(STATUSES) - ({"none"} if what != "join" else set())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", ["open", "pause", "resume", "close"])
def test_an_operators_action_does_what_the_table_says(action: str, state: str) -> None:
    room, venue = room_in(state)
    cell = EVENT_ACTIONS[action][state]
    venue.drain()
    if cell.startswith("!"):
        with pytest.raises(Refused) as caught:
            room.control(action, WHY, T)
        assert caught.value.code == "conflict"
        assert venue.drain().records == []
        return
    changed = room.control(action, By("ops", "another reason"), T)
    kinds = [encode(record)[0] for record in venue.drain().records]
    assert (changed, kinds) == ((False, []) if cell == "=" else (True, [cell]))
    rebuilt(venue)


def test_an_event_closed_before_it_ever_opened_opens_for_the_first_time() -> None:
    room, venue = room_in("draft")
    room.control("close", WHY, T)
    room.control("open", OPERATOR, T)
    assert [encode(record)[0] for record in records_of(venue)][-1] == "opened"


def test_reopening_brings_everybody_back_to_their_place() -> None:
    room, venue = room_in("open")
    first, second = room.join("u1", 0, T), room.join("u2", 0, T)
    room.control("close", WHY, T)
    assert room.place(second.arrival).status == "closed"
    with refusal("closed", "closed"):
        room.join("u3", 0, T)
    room.control("open", OPERATOR, T)
    assert isinstance(records_of(venue)[-1], Reopened)
    assert (room.place(first.arrival).position, room.place(second.arrival).position) == (1, 2)


def test_a_join_before_the_opening_is_told_so_and_gets_no_place() -> None:
    room, _venue = room_in("draft")
    with refusal("not_open", "draft"):
        room.join("u1", 0, T)
    assert len(room.register) == 0


def test_pausing_never_refuses_a_join() -> None:
    room, _ = room_in("paused")
    place = room.join("u1", 0, T)
    assert (place.position, place.estimate and place.estimate.reason) == (1, "paused")


def test_a_new_reason_for_a_pause_is_a_message_and_moves_no_clock() -> None:
    room, venue = room_in("paused")
    before = room.event_time_ms(T + 50)
    room.control("pause", By("ops", "the till is broken"), T + 40)
    assert isinstance(records_of(venue)[-1], Messaged)
    assert room.reason == "the till is broken"
    assert room.event_time_ms(T + 90) == before


@pytest.mark.parametrize("action", ["pause", "close"])
def test_what_keeps_people_waiting_needs_a_reason_they_may_read(action: str) -> None:
    room, _ = room_in("open")
    with refusal("bad_request"):
        room.control(action, OPERATOR, T)
    with refusal("bad_request"):
        room.control(action, By("ops", "x" * 281), T)


def test_deleting_waits_for_the_close_and_for_those_inside() -> None:
    room, venue = room_in("open")
    room.join("u1", 0, T)
    room.release(1, OPERATOR, T, manual=True)
    with refusal("conflict", "open"):
        venue.delete("e1", OPERATOR, T)
    room.control("close", WHY, T)
    with refusal("conflict", "not_empty"):
        venue.delete("e1", OPERATOR, T)
    room.complete("u1", "completed", "site", T)
    venue.delete("e1", OPERATOR, T)
    with refusal("not_found"):
        venue.room("e1")
    assert rebuilt(venue).rooms == {}


# ---- settings --------------------------------------------------------------------------------------


def test_settings_that_no_longer_may_change_are_refused_by_name() -> None:
    room, _ = room_in("open")
    with pytest.raises(Refused, match=r"queueing, opens_at_ms"):
        room.configure({"queueing": "reject", "opens_at_ms": 5}, WHY, T)
    assert room.configure({"batch_size": 500}, OPERATOR, T)


def test_a_closed_event_takes_only_new_texts() -> None:
    room, _ = room_in("closed")
    with refusal("conflict", "closed"):
        room.configure({"batch_size": 7}, WHY, T)
    assert room.configure({"name": "Over"}, OPERATOR, T)


def test_lowering_the_rate_or_moving_the_opening_needs_a_reason() -> None:
    room, _ = room_in("open")
    for changes in ({"batch_size": 50}, {"batch_interval_s": 20}):
        with refusal("bad_request"):
            room.configure(changes, OPERATOR, T)
        assert room.configure(changes, WHY, T)
    draft, _ = room_in("draft")
    draft.configure({"opens_at_ms": T}, OPERATOR, T)
    with refusal("bad_request"):
        draft.configure({"opens_at_ms": T + 1}, OPERATOR, T)


def test_the_same_settings_again_are_no_record() -> None:
    room, venue = room_in("open")
    venue.drain()
    assert not room.configure(room.settings.as_map(), OPERATOR, T, replace=True)
    assert venue.drain().records == []


# ---- visitors --------------------------------------------------------------------------------------


def test_numbers_are_given_in_the_order_of_arrival_and_never_twice() -> None:
    room, _ = room_in("open")
    numbers = []
    for index in range(50):
        place = room.join(f"u{index}", 0, T)
        numbers.append(place.number)
        if index % 3 == 0:
            room.leave(place.arrival, place.user_id, T)
    assert numbers == list(range(1, 51))


def test_joining_again_is_the_same_place_and_no_record() -> None:
    room, venue = room_in("open")
    first = room.join("u1", 11, T)
    room.join("u2", 12, T)
    venue.drain()
    again = room.join("u1", 11, T + 5)
    assert (again.number, again.position, again.fresh, again.proven) == (first.number, 1, False, True)
    assert venue.drain().records == []


def test_an_id_alone_proves_nothing() -> None:
    room, _ = room_in("open")
    room.join("u1", 11, T)
    assert not room.join("u1", 0, T).proven
    assert not room.join("u1", 99, T).proven
    room.join("u2", 0, T)
    assert not room.join("u2", 0, T).proven


def test_who_left_and_joins_again_stands_at_the_end() -> None:
    room, _ = room_in("open")
    first = room.join("u1", 0, T)
    room.join("u2", 0, T)
    room.leave(first.arrival, "u1", T)
    again = room.join("u1", 0, T)
    assert (again.number, again.position, again.fresh) == (3, 2, True)
    assert room.held_place(first.arrival, "u1").status == "left"


def test_leaving_twice_is_harmless() -> None:
    room, venue = room_in("open")
    place = room.join("u1", 0, T)
    room.leave(place.arrival, "u1", T)
    room.leave(place.arrival, "u1", T)
    assert sum(isinstance(record, Left) for record in records_of(venue)) == 1


@pytest.mark.parametrize(("arrival", "user_id"), [(1, "u2"), (3, "u1"), (0, ""), (-1, "u1"), (2**40, "u1")])
def test_a_place_that_is_not_yours_is_not_there(arrival: int, user_id: str) -> None:
    room, _ = room_in("open")
    room.join("u1", 0, T)
    for attempt in (room.held_place, lambda a, u: room.touch(a, u, T), lambda a, u: room.leave(a, u, T)):
        with refusal("not_found"):
            attempt(arrival, user_id)


def test_completing_frees_the_slot_at_once_and_again_is_harmless() -> None:
    room, _ = room_in("open", {"max_active": 1})
    room.join("u1", 0, T)
    room.join("u2", 0, T)
    assert room.release(5, OPERATOR, T, manual=True).released == 1
    assert room.release(5, OPERATOR, T, manual=True).limited_by == "capacity"
    assert room.complete("u1", "completed", "site", T).status == "completed"
    assert room.complete("u1", "abandoned", "site", T).status == "completed"
    assert room.release(5, OPERATOR, T, manual=True).released == 1


def test_nobody_completes_who_was_not_released() -> None:
    room, _ = room_in("open")
    place = room.join("u1", 0, T)
    with refusal("not_active", "not_released"):
        room.complete("u1", "completed", "site", T)
    room.leave(place.arrival, "u1", T)
    with refusal("not_active", "ended"):
        room.complete("u1", "completed", "site", T)
    with refusal("not_found"):
        room.complete("stranger", "completed", "site", T)


def test_a_full_line_takes_nobody_until_somebody_goes() -> None:
    room, _ = room_in("open", {"max_waiting": 2})
    first = room.join("u1", 0, T)
    room.join("u2", 0, T)
    with refusal("queue_full"):
        room.join("u3", 0, T)
    assert room.join("u2", 0, T).position == 2
    room.leave(first.arrival, "u1", T)
    assert room.join("u3", 0, T).number == 3


def test_a_rejecting_event_still_serves_its_line() -> None:
    room, _ = room_in("open", {"queueing": "reject"})
    with refusal("rejecting"):
        room.join("u1", 0, T)


def test_priority_puts_ahead_by_its_level_times_the_boost() -> None:
    room, _ = room_in("open", {"priority_boost": 3})
    for index in range(10):
        room.join(f"u{index}", 0, T)
    assert room.join("vip", 0, T, level=2).position == 6  # effective 11 − 2·3 = 5, behind number 5


# ---- releases --------------------------------------------------------------------------------------


def test_batches_leave_one_interval_apart_and_the_first_one_after_the_opening() -> None:
    room, _ = room_in("open", {"batch_size": 2, "batch_interval_s": 10})
    for index in range(9):
        room.join(f"u{index}", 0, T)
    opened = 0
    assert room.tick(opened + 9_999) == 0
    assert room.tick(opened + 10_000) == 2
    assert room.tick(opened + 10_001) == 0
    assert room.tick(opened + 20_500) == 2
    assert room.next_release_ms(opened + 20_500) == 10_000


def test_a_pause_stands_still_for_the_pacing_too() -> None:
    room, _ = room_in("open", {"batch_interval_s": 10})
    room.join("u1", 0, 1)
    room.control("pause", WHY, 4_000)
    assert (room.next_release_ms(60_000), room.tick(60_000)) == (None, 0)
    room.control("resume", OPERATOR, 104_000)
    assert room.next_release_ms(104_000) == 6_000


def test_a_restart_waits_a_full_interval() -> None:
    room, venue = room_in("open", {"batch_interval_s": 10})
    room.join("u1", 0, 1)
    venue.start(7, 9_999, 0)
    assert room.next_release_ms(10_000) == 9_999
    assert room.tick(19_998) == 0
    assert room.tick(19_999) == 1


def test_a_change_of_settings_never_brings_a_batch_sooner_than_its_interval() -> None:
    room, _ = room_in("open", {"batch_size": 1, "batch_interval_s": 10})
    for index in range(5):
        room.join(f"u{index}", 0, 1)
    assert room.tick(10_000) == 1
    room.release(1, OPERATOR, 10_000, manual=False)
    room.configure({"batch_interval_s": 20}, WHY, 11_000)
    assert room.next_release_ms(11_000) == 19_000


def test_a_release_takes_the_head_in_slices_and_says_what_limited_it() -> None:
    room, venue = room_in("open")
    for index in range(1_500):
        room.join(f"u{index}", 0, T)
    result = room.release(5_000, OPERATOR, T, manual=True)
    assert (result.released, result.limited_by) == (1_000, None)
    result = room.release(4_000, OPERATOR, T, manual=True)
    assert (result.released, result.limited_by) == (500, "line")
    released = [record for record in records_of(venue) if isinstance(record, Released)]
    assert [number for record in released for number in record.numbers] == list(range(1, 1_501))


def test_a_released_visitor_is_ready_and_everybody_else_moves_up() -> None:
    room, venue = room_in("open", {"claim_window_s": 60})
    first, second = room.join("u1", 0, T), room.join("u2", 0, T)
    venue.drain()
    room.release(1, OPERATOR, T, manual=True)
    place = room.place(first.arrival)
    assert (place.status, place.position, place.estimate) == ("ready", None, None)
    assert place.ready_until_ms == room.event_time_ms(T) + 60_000
    assert room.place(second.arrival).position == 1
    assert venue.drain().notices == [PlacesChanged("e1", (first.arrival,), "ready", venue.outbox.lsn)]
    assert room.view().serving_number == 1


def test_a_release_repeated_under_its_key_is_remembered_through_replay_and_snapshot() -> None:
    room, venue = room_in("open")
    for index in range(30):
        room.join(f"u{index}", 0, T)
    room.release(7, By("ops", request="k1"), T, manual=True)
    room.release(2, By("ops", request="k1"), T, manual=True)
    room.release(4, OPERATOR, T, manual=True)
    loaded = Venue()
    loaded.load(venue.capture())
    for known in (venue, rebuilt(venue), loaded):
        assert known.room("e1").released_under("k1") == 9
        assert known.room("e1").released_under("k2") == known.room("e1").released_under(None) == 0


def test_a_release_while_paused_is_a_canary_and_while_closed_is_refused() -> None:
    room, _ = room_in("paused")
    room.join("u1", 0, T)
    assert room.release(1, OPERATOR, T, manual=True).released == 1
    closed, _ = room_in("closed")
    with refusal("conflict", "closed"):
        closed.release(1, OPERATOR, T, manual=True)


def test_replay_refuses_a_release_that_is_not_the_head() -> None:
    room, _ = room_in("open")
    room.join("u1", 0, T)
    room.join("u2", 0, T)
    with pytest.raises(Damaged, match="not the head"):
        room.apply(Released("e1", T, [2], T, True, "ops", None, None))


def test_replay_refuses_what_cannot_follow() -> None:
    room, _ = room_in("open")
    room.join("u1", 0, T)
    with pytest.raises(Damaged, match="given out before"):
        room.apply(Joined("e1", T, 1, 1, "u9", 0))
    with pytest.raises(Damaged, match="holds no place"):
        room.apply(Left("e1", T, 2))


def test_the_average_wait_is_that_of_those_released() -> None:
    room, _ = room_in("open")
    room.join("u1", 0, T)
    room.join("u2", 0, T + 4_000)
    room.release(2, OPERATOR, T + 10_000, manual=True)
    stats = room.stats(T)
    assert (stats.average_wait_s, stats.released_manual, stats.counts["ready"]) == (8.0, 2, 2)


def test_what_changes_for_everybody_is_announced() -> None:
    room, venue = room_in("open")
    venue.drain()
    room.tell("doors in five minutes", OPERATOR, T)
    assert venue.drain().notices == [EventChanged("e1", venue.outbox.lsn)]
    assert room.view().message == "doors in five minutes"
    room.tell("", OPERATOR, T)
    assert room.view().message is None


def test_ranks_of_many_are_their_positions_and_nought_for_those_gone() -> None:
    room, _ = room_in("open")
    arrivals = [room.join(f"u{index}", 0, T).arrival for index in range(20)]
    room.leave(arrivals[3], "u3", T)
    assert room.ranks([99, 4, 99, 5]).positions == [0, 0, 0, 4]
    with refusal("not_found"):
        room.order(99)
    ranking = room.ranks(arrivals)
    assert ranking.positions == [room.place(arrival).position or 0 for arrival in arrivals]
    waits = [place.estimate.seconds if (place := room.place(a)).estimate else 0 for a in arrivals]
    assert all(abs(got - due) <= 1 for got, due in zip(ranking.waits, waits, strict=True))


def test_the_checker_finds_a_line_that_lost_somebody() -> None:
    room = make_room(Venue())
    room.control("open", OPERATOR, T)
    place = room.join("u1", 0, T)
    room.line.remove(room.register.keys[place.arrival])
    with pytest.raises(AssertionError):
        room.check()


def test_a_room_needs_nothing_but_its_arguments() -> None:
    assert isinstance(make_room(Venue()), Room)
