"""Answering: places, ranks, waits, events and counts as they are told."""

import pytest

from engine import answering
from engine.actor import Whom
from engine.draw import ALGORITHM, commitment_of, entries_digest, mixed, order
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    PACER,
    SECRET,
    WHY,
    control,
    holder,
    join,
    join_many,
    redeem,
    refusal,
    room_in,
    run_out,
    seen,
)

T = 1_000_000


# ---- places ----------------------------------------------------------------------------------------------------


def test_a_position_is_a_rank_and_belongs_to_those_who_wait() -> None:
    room, _ = room_in("open")
    places = join_many(room, 5, T)
    room.leave(holder(places[1]), T)
    assert [seen(room, arrival, T).position for arrival in range(1, 6)] == [1, None, 2, 3, 4]
    assert all(seen(room, arrival, T).waiting == 4 for arrival in range(1, 6))


def test_in_a_lobby_there_is_neither_number_nor_position_nor_estimate() -> None:
    place = situations.in_lobby().place
    assert (place.status, place.number, place.position, place.estimate) == ("lobby", None, None, None)


@pytest.mark.parametrize(
    ("make", "window_ms", "limit_ms"),
    [
        (situations.waiting, None, None),
        (situations.parked, 300_000, None),
        (situations.ready, 60_000, 600_000),
        (situations.active, 100_000, 400_000),
        (situations.unclaimed, None, None),
    ],
)
def test_what_is_left_is_said_where_something_runs(make: object, window_ms: int | None, limit_ms: int | None) -> None:
    situation = make()  # type: ignore[operator]
    assert (situation.place.window_ms, situation.place.limit_ms) == (window_ms, limit_ms)


def test_what_is_left_is_never_below_nothing() -> None:
    situation = situations.ready()
    place = seen(situation.room, 1, situation.now_ms + 9_999_000)
    assert (place.status, place.window_ms, place.limit_ms) == ("ready", 0, 0)


def test_a_closed_event_shows_closed_to_whoever_was_not_let_in() -> None:
    for make, shown in ((situations.waiting, "closed"), (situations.parked, "closed"), (situations.ready, "ready")):
        situation = make()
        control(situation.room, "close", WHY, situation.now_ms)
        assert situation.place.status == shown
    lobby = situations.in_lobby()
    control(lobby.room, "close", WHY, T)
    assert lobby.place.status == "closed"


def test_a_place_tells_how_long_one_may_be_quiet_and_what_the_operator_says() -> None:
    situation = situations.waiting()
    situation.room.tell("doors at eight", OPERATOR, T)
    assert (situation.place.presence_timeout_s, situation.place.message) == (20, "doors at eight")


# ---- waits -----------------------------------------------------------------------------------------------------


def test_an_estimate_says_what_keeps_it_from_being_one() -> None:
    room, _ = room_in("open", {"admissions_left": 3})
    join_many(room, 5, T)
    reasons = [place.estimate and place.estimate.reason for place in (seen(room, a, T) for a in range(1, 6))]
    assert reasons[3:] == ["unlikely"] * 2 and "unlikely" not in reasons[:3]
    control(room, "pause", WHY, T)
    assert [seen(room, a, T).estimate.reason for a in (1, 5)] == ["paused", "unlikely"]  # type: ignore[union-attr]


def test_it_is_unlikely_for_those_behind_what_is_left_as_it_shrinks() -> None:
    room, _ = room_in("open", {"admissions_left": 3})
    join_many(room, 6, T)
    room.release(2, PACER, T, manual=False)
    reasons = [seen(room, a, T).estimate.reason for a in range(3, 7)]  # type: ignore[union-attr]
    assert [reason == "unlikely" for reason in reasons] == [False, True, True, True]
    room.configure({"admissions_left": 50}, OPERATOR, T)
    assert all(seen(room, a, T).estimate.reason != "unlikely" for a in range(3, 7))  # type: ignore[union-attr]


def test_ranks_of_many_are_their_positions_and_nought_for_those_gone() -> None:
    room, _ = room_in("open")
    arrivals = [place.arrival for place in join_many(room, 20, T)]
    room.leave(holder(seen(room, 4, T)), T)
    assert answering.ranks(room.ledger, [99, 4, 99, 5]).positions == [0, 0, 0, 4]
    ranking = answering.ranks(room.ledger, arrivals)
    places = [seen(room, arrival, T) for arrival in arrivals]
    assert ranking.positions == [place.position or 0 for place in places]
    waits = [place.estimate.seconds if place.estimate else 0 for place in places]
    assert all(abs(got - due) <= 1 for got, due in zip(ranking.waits, waits, strict=True))


def test_nobody_is_given_a_rank_while_a_draw_runs() -> None:
    room, _ = room_in("lobby")
    join_many(room, 50, T)
    control(room, "open", OPERATOR, T)
    room.ledger.draw_step(70)
    assert answering.ranks(room.ledger, [1, 2, 3]).positions == [0, 0, 0]
    room.ledger.draw_all()
    assert sorted(answering.ranks(room.ledger, order(mixed(SECRET, None), range(1, 51))).positions) == list(
        range(1, 51)
    )


def test_the_order_of_an_arrival_sorts_like_its_position() -> None:
    room, _ = room_in("open", {"priority_boost": 3})
    join_many(room, 9, T)
    join(room, "vip", T, level=2)
    by_order = sorted(range(1, 11), key=lambda arrival: answering.order(room.ledger, arrival))
    assert [seen(room, arrival, T).position for arrival in by_order] == list(range(1, 11))
    for nobody in (0, 99, -1):
        with refusal("not_found"):
            answering.order(room.ledger, nobody)


# ---- events ----------------------------------------------------------------------------------------------------


def test_a_view_of_an_event_counts_the_line_and_the_released() -> None:
    room, _ = room_in("open")
    join_many(room, 9, T)
    room.release(2, PACER, T, manual=False)
    room.release(1, OPERATOR, T, manual=True)
    view = answering.view(room.ledger)
    assert (view.state, view.waiting, view.released, view.serving_number, view.draw) == ("open", 6, 3, 3, None)


def test_a_reason_and_an_outcome_are_told_and_gone_when_the_event_goes_on() -> None:
    room, _ = room_in("open")
    control(room, "close", WHY, T, outcome="sold out")
    view = answering.view(room.ledger)
    assert (view.state, view.reason, view.outcome) == ("closed", WHY.reason, "sold out")
    control(room, "open", OPERATOR, T)
    view = answering.view(room.ledger)
    assert (view.state, view.reason, view.outcome) == ("open", None, None)


def test_a_draw_is_told_step_by_step() -> None:
    room, _ = room_in("draft", {"lobby": True})
    assert answering.draw(room.ledger) is None
    control(room, "lobby", OPERATOR, T, beacon="lottery")
    join_many(room, 30, T)
    room.leave(holder(seen(room, 4, T)), T)
    bound = answering.draw(room.ledger)
    assert bound == ("1-1", ALGORITHM, commitment_of(SECRET), "lottery", None, None, None, None)
    control(room, "open", OPERATOR, T, beacon="4 8 15")
    opening = answering.draw(room.ledger)
    assert opening and opening[4:] == ("4 8 15", SECRET.hex(), 29, None)
    room.ledger.draw_all()
    done = answering.draw(room.ledger)
    assert done and done.entries_sha256 == entries_digest(set(range(1, 31)) - {4})


def test_entries_of_a_draw_come_in_order_of_number_page_by_page() -> None:
    room, _ = room_in("lobby")
    join_many(room, 30, T)
    control(room, "open", OPERATOR, T)
    room.ledger.draw_all()
    pages = [answering.draw_entries(room.ledger, after, 12) for after in (0, 12, 24, 30, 99)]
    assert [len(page) for page in pages] == [12, 12, 6, 0, 0]
    entries = [entry for page in pages for entry in page]
    assert entries == list(zip(order(mixed(SECRET, None), range(1, 31)), range(1, 31), strict=True))
    assert answering.draw_entries(situations.waiting().room.ledger, 0, 10) == []


# ---- counts ----------------------------------------------------------------------------------------------------


def test_counts_are_by_status_and_add_up() -> None:
    situation = situations.parked()
    join_many(situation.room, 4, situation.now_ms)
    stats = answering.stats(situation.room.ledger, situation.now_ms)
    assert stats.counts == {
        "lobby": 0, "waiting": 3, "parked": 1, "ready": 1, "active": 0,
        "completed": 0, "expired": 0, "left": 0, "removed": 0,
    }  # fmt: skip
    assert (sum(stats.counts.values()), stats.arrivals, stats.inside) == (5, 5, 1)


def test_the_next_batch_is_told_while_the_event_is_open() -> None:
    room, _ = room_in("open", {"batch_interval_s": 10})
    assert answering.next_release_ms(room.ledger, 4_000) == 6_000
    assert answering.next_release_ms(room.ledger, 40_000) == 0
    for state in ("draft", "paused", "closed", "lobby"):
        assert answering.next_release_ms(room_in(state)[0].ledger, 40_000) is None


def test_visitors_are_told_by_arrival_page_by_page() -> None:
    room, _ = room_in("open")
    for place in join_many(room, 12, T)[::3]:
        room.leave(holder(place), T)
    names = [place.user_id for place in answering.visitors(room.ledger, None, 0, 100, T)]
    assert names == [f"u{index}" for index in range(1, 13)]
    left = answering.visitors(room.ledger, "left", 0, 2, T)
    assert [place.arrival for place in left] == [1, 4]
    assert [place.arrival for place in answering.visitors(room.ledger, "left", 4, 9, T)] == [7, 10]
    assert answering.visitors(room.ledger, "ready", 0, 9, T) == []


def test_nobody_in_a_gap_is_told_as_a_visitor() -> None:
    room, venue = room_in("open")
    join(room, "u1", T)
    venue.start(5, T, 0, "a backup was restored")
    join(room, "u2", T)
    assert [place.user_id for place in answering.visitors(room.ledger, None, 0, 9, T)] == ["u1", "u2"]


def test_fairness_is_told_as_it_was_counted() -> None:
    situation = situations.active()
    fairness = answering.fairness(situation.room.ledger)
    assert (fairness.released, fairness.peak_inside, fairness.inversions, fairness.overshoot) == (1, 1, 0, 0)


def test_a_session_tells_what_was_promised_and_what_is_left() -> None:
    room = situations.ready().room
    redeem(room, 1, T)
    session = answering.session(room.ledger, 1, T + 30_000)
    assert session and (session.length_ms, session.left_ms, session.limit_left_ms) == (100_000, 70_000, 370_000)
    room.extend_session(Whom(user_id="u1"), "site", T + 30_000)
    extended = answering.session(room.ledger, 1, T + 30_000)
    assert extended and (extended.length_ms, extended.left_ms) == (100_000, 100_000)
    run_out(room, T + 130_000)
    assert answering.session(room.ledger, 1, T + 130_000) is None
