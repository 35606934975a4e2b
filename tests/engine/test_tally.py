"""The tally: fairness counted from what was released, and by which reason anybody was overtaken."""

from engine import answering
from engine.actor import Whom
from engine.tally import Tally
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    PACER,
    WHY,
    holder,
    join,
    join_many,
    rebuilt,
    reloaded,
    room_in,
    run_out,
)

T = 1_000_000


def test_numbers_let_in_in_order_overtake_nobody() -> None:
    tally = Tally()
    for number in (1, 2, 5, 9):
        tally.let_in(number, 0, 1_000, None)
    assert (sum(tally.overtaken.values()), tally.waited_ms) == (0, 4_000)


def test_a_lower_number_behind_a_higher_one_was_overtaken_for_its_reason() -> None:
    tally = Tally()
    for number, reason in ((5, None), (3, "returned"), (4, None), (2, "readmitted")):
        tally.let_in(number, 0, 0, reason)
    assert tally.overtaken == {"returned": 1, "readmitted": 1, "unexplained": 1}


def test_fairness_is_promised_among_equal_levels_only() -> None:
    tally = Tally()
    tally.let_in(9, 2, 0, None)
    tally.let_in(1, 0, 0, None)
    assert sum(tally.overtaken.values()) == 0
    tally.let_in(8, 2, 0, None)
    assert tally.overtaken["unexplained"] == 1


def test_the_peak_and_the_overshoot_are_the_most_there_ever_was() -> None:
    tally = Tally()
    for inside, cap in ((3, 5), (9, None), (7, 6), (2, 6)):
        tally.fill(inside, cap)
    assert (tally.peak_inside, tally.overshoot) == (9, 1)


def test_what_is_dumped_loads_into_the_same_counts() -> None:
    tally, other = Tally(), Tally()
    tally.let_in(4, 1, 7, None)
    tally.let_in(3, 1, 7, None)
    tally.fill(4, 3)
    other.load(tally.dump())
    tally.let_in(5, 1, 1, None)
    assert other.dump() == {**tally.dump(), "newest": {1: 4}, "waited_ms": 14}


# ---- in a room ---------------------------------------------------------------------------------------------


def test_whoever_comes_back_was_overtaken_because_they_returned() -> None:
    situation = situations.parked()
    room = situation.room
    room.release(1, PACER, situation.now_ms, manual=False)
    join(room, "u3", situation.now_ms)
    room.release(1, PACER, situation.now_ms, manual=False)
    situation.hear()
    room.release(1, PACER, situation.now_ms, manual=False)
    fairness = answering.fairness(room.ledger)
    assert (fairness.overtaken, fairness.inversions) == ({"returned": 1, "readmitted": 0, "unexplained": 0}, 0)
    assert answering.fairness(rebuilt(situation.venue).room("e1").ledger) == fairness
    assert answering.fairness(reloaded(situation.venue).room("e1").ledger) == fairness


def test_a_release_by_hand_and_an_admission_are_counted_apart() -> None:
    room, _ = room_in("open")
    join_many(room, 6, T)
    room.release(2, PACER, T, manual=False)
    room.release(1, OPERATOR, T, manual=True)
    room.admit(Whom(user_id="u6"), WHY, T)
    stats, fairness = answering.stats(room.ledger, T), answering.fairness(room.ledger)
    assert (stats.released_automatic, stats.released_manual, fairness.admitted, fairness.peak_inside) == (2, 1, 1, 4)
    room.release(9, PACER, T, manual=False)
    assert answering.fairness(room.ledger).inversions == 0


def test_turns_that_were_not_taken_are_counted_by_their_reason() -> None:
    situation = situations.unclaimed()
    room, now_ms = situation.room, situation.now_ms
    room.leave(holder(join(room, "u3", now_ms)), now_ms)
    join(room, "u4", now_ms)
    room.remove(Whom(user_id="u4"), WHY, now_ms)
    join(room, "u5", now_ms)
    situation.wait(50)
    room.release(5, OPERATOR, situation.now_ms, manual=True)
    assert room.ledger.tally.skipped == {"absent": 1, "unclaimed": 2, "removed": 1, "left": 1}


def test_whoever_leaves_inside_took_their_turn() -> None:
    situation = situations.left()
    run_out(situation.room, situation.now_ms)
    assert situation.room.ledger.tally.skipped["left"] == 0


def test_the_average_wait_is_that_of_those_released() -> None:
    room, _ = room_in("open")
    join(room, "u1", T)
    join(room, "u2", T + 4_000)
    room.release(2, OPERATOR, T + 10_000, manual=True)
    stats = answering.stats(room.ledger, T)
    assert (stats.average_wait_s, stats.released_manual, stats.counts["ready"]) == (8.0, 2, 2)
