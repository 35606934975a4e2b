"""Steering: opening, pausing, closing and deleting an event, its lobby, and its settings."""

import pytest

from engine import answering
from engine.actor import By, Whom
from engine.draw import commitment_of
from engine.errors import Refused
from engine.records import LobbyOpened, Messaged, Opened, Reopened
from engine.views import EventChanged
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    SECRET,
    WHY,
    control,
    holder,
    join,
    join_many,
    kinds_of,
    rebuilt,
    records_of,
    refusal,
    room_in,
    seen,
)

T = 1_000_000
U1 = Whom(user_id="u1")
SCHEDULE = By("schedule")


def test_an_event_closed_before_it_ever_opened_opens_for_the_first_time() -> None:
    room, venue = room_in("draft")
    room.control("close", WHY, T)
    venue.drain()
    room.control("open", OPERATOR, T)
    assert kinds_of(venue) == ["opened"]


def test_a_lobby_that_was_closed_is_drawn_when_it_opens() -> None:
    room, venue = room_in("lobby")
    join_many(room, 5, T)
    control(room, "close", WHY, T)
    control(room, "open", OPERATOR, T)
    room.ledger.draw_all()
    assert sorted(seen(room, arrival, T).number or 0 for arrival in range(1, 6)) == [1, 2, 3, 4, 5]
    rebuilt(venue)


def test_reopening_brings_everybody_back_to_their_place() -> None:
    room, venue = room_in("open")
    first, second = join_many(room, 2, T)
    room.control("close", WHY, T)
    assert seen(room, second.arrival, T).status == "closed"
    with refusal("closed", "closed"):
        join(room, "u3", T)
    room.control("open", OPERATOR, T)
    assert isinstance(records_of(venue)[-1], Reopened)
    assert (seen(room, first.arrival, T).position, seen(room, second.arrival, T).position) == (1, 2)


def test_who_was_asleep_over_a_close_has_full_patience_after_reopening() -> None:
    situation = situations.parked()
    control(situation.room, "close", WHY, situation.now_ms)
    control(situation.room, "open", WHY, situation.now_ms + 999_000)
    assert seen(situation.room, 1, situation.now_ms + 999_000).window_ms == 300_000


def test_a_new_reason_for_a_pause_is_a_message_and_moves_no_clock() -> None:
    room, venue = room_in("paused")
    before = room.ledger.event_time_ms(T + 50)
    room.control("pause", By("ops", "the till is broken"), T + 40)
    assert isinstance(records_of(venue)[-1], Messaged)
    assert room.ledger.reason == "the till is broken"
    assert room.ledger.event_time_ms(T + 90) == before


@pytest.mark.parametrize("action", ["pause", "close"])
def test_what_keeps_people_waiting_needs_a_reason_they_may_read(action: str) -> None:
    room, _ = room_in("open")
    with refusal("bad_request"):
        room.control(action, OPERATOR, T)
    with refusal("bad_request"):
        room.control(action, By("ops", "x" * 281), T)


def test_deleting_waits_for_the_close_and_for_those_inside() -> None:
    room, venue = room_in("open")
    join(room, "u1", T)
    room.release(1, OPERATOR, T, manual=True)
    with refusal("conflict", "open"):
        venue.delete("e1", OPERATOR, T)
    room.control("close", WHY, T)
    with refusal("conflict", "not_empty"):
        venue.delete("e1", OPERATOR, T)
    room.complete(U1, "completed", "site", T)
    venue.delete("e1", OPERATOR, T)
    with refusal("not_found"):
        venue.room("e1")
    assert rebuilt(venue).rooms == {}


def test_what_changes_for_everybody_is_announced() -> None:
    room, venue = room_in("open")
    venue.drain()
    room.tell("doors in five minutes", OPERATOR, T)
    assert venue.drain().notices == [EventChanged("e1", venue.outbox.lsn)]
    room.tell("", OPERATOR, T)
    assert room.ledger.message is None


# ---- settings --------------------------------------------------------------------------------------------


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
    assert not room.configure(room.ledger.settings.as_map(), OPERATOR, T, replace=True)
    assert kinds_of(venue) == []


@pytest.mark.parametrize("make", [situations.waiting, situations.ready, situations.parked])
def test_the_boost_does_not_change_while_somebody_with_priority_may_still_be_let_in(make: object) -> None:
    room = make().room  # type: ignore[operator]
    assert room.configure({"priority_boost": 7}, WHY, T)
    vip = join(room, "vip", T, level=1)
    with refusal("conflict", "priority_in_line"):
        room.configure({"priority_boost": 8}, WHY, T)
    room.leave(holder(vip), T)
    assert room.configure({"priority_boost": 8}, WHY, T)


@pytest.mark.parametrize("changes", [{"max_active": 3}, {"safety_margin": 2}])
def test_no_setting_shuts_a_group_out_that_is_in_line(changes: dict[str, object]) -> None:
    room, _ = room_in("open", {"max_active": 5})
    group = join(room, "group", T, size=4)
    with refusal("conflict", "group_in_line"):
        room.configure(changes, WHY, T)
    assert room.configure({"max_active": 4}, WHY, T)
    room.leave(holder(group), T)
    assert room.configure({"max_active": 1}, WHY, T)


# ---- the lobby and its draw -------------------------------------------------------------------------------


def test_an_event_without_a_lobby_opens_none() -> None:
    room, _ = room_in("draft")
    with refusal("conflict", "no_lobby"):
        control(room, "lobby", WHY, T)


def test_a_lobby_binds_its_draw_and_shows_only_the_commitment() -> None:
    room, venue = room_in("lobby")
    (bound,) = [record for record in records_of(venue) if isinstance(record, LobbyOpened)]
    assert (bound.draw_id, bound.commitment, bound.beacon) == ("1-1", commitment_of(SECRET), None)
    assert SECRET.hex() not in repr(venue.log) + repr(list(venue.capture()))
    view = answering.view(room.ledger).draw
    assert view and (view.seed, view.count, view.entries_sha256) == (None, None, None)


def test_opening_reveals_the_secret_and_counts_the_lobby() -> None:
    room, venue = room_in("lobby")
    join_many(room, 4, T)
    room.leave(holder(seen(room, 2, T)), T)
    control(room, "open", OPERATOR, T)
    (opened,) = [record for record in records_of(venue) if isinstance(record, Opened)]
    assert (opened.seed, opened.beacon, opened.count) == (SECRET.hex(), None, 3)


def test_only_the_secret_that_was_bound_opens_a_lobby() -> None:
    room, venue = room_in("lobby")
    join_many(room, 3, T)
    venue.drain()
    with refusal("conflict", "draw_key"):
        control(room, "open", OPERATOR, T, secret=bytes(32))
    assert (kinds_of(venue), room.ledger.state) == ([], "lobby")


def test_a_named_beacon_is_required_and_one_that_was_not_named_is_left_out() -> None:
    room, _ = room_in("draft", {"lobby": True})
    control(room, "lobby", OPERATOR, T, beacon="lottery of 1 May")
    for missing in (None, ""):
        with pytest.raises(Refused) as caught:
            control(room, "open", OPERATOR, T, beacon=missing)
        assert (caught.value.code, caught.value.field) == ("bad_request", "beacon")
    assert control(room, "open", OPERATOR, T, beacon="4 8 15")
    plain, venue = room_in("lobby")
    control(plain, "open", OPERATOR, T, beacon="not asked for")
    assert records_of(venue)[-1].beacon is None  # type: ignore[union-attr]


def test_the_schedule_opens_no_lobby_within_a_minute_of_a_start() -> None:
    room, venue = room_in("lobby")
    venue.start(9, T, 0)
    with refusal("conflict", "just_started"):
        control(room, "open", SCHEDULE, T + 59_999)
    assert control(room, "open", SCHEDULE, T + 60_000)
    other, others = room_in("lobby")
    others.start(9, T, 0)
    assert control(other, "open", OPERATOR, T + 1)


def test_the_schedule_opens_an_event_without_a_lobby_at_once() -> None:
    room, venue = room_in("draft")
    venue.start(9, T, 0)
    assert control(room, "open", SCHEDULE, T + 1)


def test_pausing_a_lobby_holds_its_opening_and_needs_a_time_to_hold() -> None:
    room, venue = room_in("lobby", {"opens_at_ms": T + 5})
    assert control(room, "pause", WHY, T)
    assert (room.ledger.state, room.ledger.settings.opens_at_ms) == ("lobby", None)
    venue.drain()
    assert not control(room, "pause", WHY, T)
    assert kinds_of(venue) == []
    rebuilt(venue)


def test_what_was_drawn_once_is_not_drawn_again_at_reopening() -> None:
    room, _ = room_in("lobby")
    join_many(room, 30, T)
    control(room, "open", OPERATOR, T)
    room.ledger.draw_all()
    numbers = [seen(room, arrival, T).number for arrival in range(1, 31)]
    control(room, "close", WHY, T)
    control(room, "open", OPERATOR, T, secret=b"")
    assert [seen(room, arrival, T).number for arrival in range(1, 31)] == numbers
