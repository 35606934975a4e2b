"""Joining: who may take a new place, and where it stands."""

import pytest

from engine import joining
from engine.errors import Refused
from engine.joining import key_at_joining
from engine.line import number_of, order_key
from engine.register import lobby_key
from tests.engine.rooms import OPERATOR, control, holder, join, join_many, rebuilt, refusal, reloaded, room_in, seen

T = 1_000_000


def test_a_newcomer_stands_at_the_own_number_and_in_a_lobby_has_none() -> None:
    assert key_at_joining("open", 7, 0, 1_000) == order_key(7)
    assert number_of(key_at_joining("lobby", 7, 3, 1_000)) == 0
    assert key_at_joining("lobby", 7, 3, 1_000) == lobby_key(7)


def test_numbers_are_given_in_the_order_of_arrival_and_never_twice() -> None:
    room, _ = room_in("open")
    numbers = []
    for index in range(50):
        place = join(room, f"u{index}", T)
        numbers.append(place.number)
        if index % 3 == 0:
            room.leave(holder(place), T)
    assert numbers == list(range(1, 51))


@pytest.mark.parametrize(("state", "code"), [("draft", "not_open"), ("closed", "closed")])
def test_where_nobody_may_join_it_is_said_why_and_nobody_gets_a_place(state: str, code: str) -> None:
    room, _ = room_in(state)
    with refusal(code, state):
        join(room, "u1", T)
    assert len(room.ledger.register) == 0


def test_pausing_never_refuses_a_join() -> None:
    room, _ = room_in("paused")
    place = join(room, "u1", T)
    assert (place.position, place.estimate and place.estimate.reason) == (1, "paused")


def test_a_full_line_takes_nobody_until_somebody_goes() -> None:
    room, _ = room_in("open", {"max_waiting": 2})
    first, _second = join_many(room, 2, T)
    with refusal("queue_full"):
        join(room, "u3", T)
    assert join(room, "u2", T).position == 2
    room.leave(holder(first), T)
    assert join(room, "u3", T).number == 3


def test_a_lobby_counts_as_a_line_that_may_be_full() -> None:
    room, _ = room_in("lobby", {"max_waiting": 2})
    join_many(room, 2, T)
    with refusal("queue_full"):
        join(room, "u3", T)


def test_a_rejecting_event_takes_nobody_new() -> None:
    room, _ = room_in("open", {"queueing": "reject"})
    with pytest.raises(Refused) as caught:
        join(room, "u1", T)
    assert (caught.value.code, caught.value.retry_after_s) == ("rejecting", 30)


def test_when_all_numbers_are_given_out_nobody_joins_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "NUMBER_LIMIT", 4)
    room, _ = room_in("open")
    join_many(room, 3, T)
    with refusal("queue_full"):
        join(room, "u4", T)
    assert not join(room, "u3", T).fresh


# ---- on the word of the shop ------------------------------------------------------------------------------


def test_priority_puts_ahead_by_its_level_times_the_boost() -> None:
    room, venue = room_in("open", {"priority_boost": 3})
    join_many(room, 10, T)
    place = join(room, "vip", T, level=2)
    assert (place.number, place.position) == (11, 6)  # effective 11 − 2·3 = 5, behind number 5
    rebuilt(venue)


def test_nobody_is_put_ahead_of_an_equal_who_came_before() -> None:
    room, _ = room_in("open", {"priority_boost": 1_000})
    places = [join(room, f"vip{index}", T, level=9) for index in range(5)]
    assert [place.position for place in places] == [1, 2, 3, 4, 5]


def test_priority_counts_from_the_number_that_was_drawn() -> None:
    room, venue = room_in("lobby", {"priority_boost": 50})
    join_many(room, 40, T)
    join(room, "vip", T, level=1)
    control(room, "open", OPERATOR, T)
    room.ledger.draw_all()
    vip = seen(room, 41, T)
    assert vip.number is not None and vip.number > 1
    assert vip.position == 2, "effective 1, behind number 1 itself"
    rebuilt(venue)


def test_a_signed_event_is_joined_with_a_token_or_by_the_site() -> None:
    room, _ = room_in("open", {"join_policy": "signed"})
    with refusal("bad_enqueue_token"):
        join(room, "u1", T)
    assert join(room, "u1", T, 5, word="enqueue").fresh
    assert join(room, "u2", T, 0, word="site").fresh


def test_an_enqueue_token_makes_one_place_and_no_second_one() -> None:
    room, venue = room_in("open")
    place = join(room, "u1", T, 5, word="enqueue")
    again = join(room, "u1", T, 5, word="enqueue")
    assert (again.arrival, again.fresh, again.proven, again.generation) == (1, False, True, 0)
    room.leave(holder(place), T)
    for known in (room, rebuilt(venue).room("e1"), reloaded(venue).room("e1")):
        with refusal("enqueue_token_used", "used"):
            join(known, "u1", T, 5, word="enqueue")


def test_a_new_enqueue_token_takes_the_place_over_and_an_old_one_does_not() -> None:
    room, venue = room_in("open")
    join(room, "u1", T, 5, word="enqueue")
    over = join(room, "u1", T, 6, word="enqueue")
    assert (over.arrival, over.proven, over.generation) == (1, True, 1)
    old = join(room, "u1", T, 5, word="enqueue")
    assert (old.arrival, old.proven, old.generation) == (1, False, 1)
    rebuilt(venue)


def test_a_token_that_took_a_place_over_is_spent() -> None:
    room, venue = room_in("open")
    join(room, "u1", T, 5, word="enqueue")
    place = join(room, "u1", T, 6, word="enqueue")
    room.leave(holder(place), T)
    for known in (room, rebuilt(venue).room("e1")):
        with refusal("enqueue_token_used", "used"):
            join(known, "u1", T, 6, word="enqueue")


def test_a_word_that_is_no_enqueue_token_is_never_spent() -> None:
    room, _ = room_in("open")
    room.leave(holder(join(room, "u1", T, 5)), T)
    assert join(room, "u1", T, 5).fresh


# ---- groups -------------------------------------------------------------------------------------------------


def test_a_group_that_could_never_enter_together_is_told_so() -> None:
    room, _ = room_in("open", {"max_active": 5, "safety_margin": 1})
    with refusal("at_capacity", "group_too_large"):
        join(room, "g1", T, size=5)
    assert join(room, "g1", T, size=4).fresh


def test_without_a_cap_a_group_may_be_of_any_size() -> None:
    room, _ = room_in("open")
    assert join(room, "g1", T, size=500).fresh
