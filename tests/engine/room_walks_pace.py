"""Walks about pace and capacity: when batches leave, how many, and who counts as inside."""

from engine import answering, pacing
from tests.engine.room_pair import Pair
from tests.engine.room_walks import NOBODY, absent, batches, crowd, in_lobby, opened, to_edge
from tests.engine.rooms import PACER

# ---- pacing -------------------------------------------------------------------------------------------


def rule_pacing_first_batch_one_interval_after_opening() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 5)
    to_edge(pair, 10_000, pair.tick)
    to_edge(pair, 9_998, pair.tick)
    assert [at_ms for at_ms, _ in batches(pair)] == [10_000, 20_000]
    return pair


def rule_pacing_unused_allowance_is_lost() -> Pair:
    pair = opened(max_active=None)
    pair.wait(35_000)
    pair.tick()
    crowd(pair, 6)
    to_edge(pair, 10_000, pair.tick)
    pair.wait(30_000)
    pair.tick()
    pair.tick()
    return pair


def rule_pacing_a_late_tick_counts_from_when_it_ran() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 6)
    pair.wait(14_000)
    pair.tick()
    to_edge(pair, 10_000, pair.tick)
    return pair


def rule_pacing_a_batch_that_leaves_late_counts_from_then() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 6)
    pair.wait(10_000)
    due = pair.room.tick(pair.now_ms)
    assert pair.model.event.tick(pair.now_ms) and due == 2
    pair.wait(3_000)
    assert pair.room.release(due, PACER, pair.now_ms, manual=False).released == 2
    assert pair.model.release(due, pair.now_ms, manual=False) == (2, 0)
    pair.model.wrote.clear()
    pair.check()
    to_edge(pair, 10_000, pair.tick)
    return pair


def rule_pacing_a_full_interval_after_a_restart() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 6)
    pair.wait(10_000)
    pair.tick()
    pair.wait(7_000)
    pair.tell("soon")
    pair.commit()
    pair.crash()
    pair.check()
    to_edge(pair, 10_000, pair.tick)
    return pair


def rule_pacing_a_change_brings_no_batch_sooner() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 6)
    pair.wait(10_000)
    pair.tick()
    pair.wait(3_000)
    pair.configure(batch_interval_s=5)
    to_edge(pair, 2_000, pair.tick)
    pair.configure(batch_interval_s=20)
    to_edge(pair, 19_999, pair.tick)
    pair.configure(NOBODY, batch_size=1)
    pair.configure(NOBODY, batch_size=3)
    pair.configure(NOBODY, batch_interval_s=21)
    return pair


def rule_pacing_slices_check_the_cap_again() -> Pair:
    before, pacing.SLICE = pacing.SLICE, 2
    try:
        pair = opened(batch_size=6, max_active=5, max_waiting=None)
        crowd(pair, 9)
        pair.wait(10_000)
        count = pair.room.tick(pair.now_ms)
        pair.model.event.tick(pair.now_ms)
        done = pair._slice(count, 6, PACER, pair.now_ms, manual=False)
        pair.configure(max_active=3)
        pair.check()
        assert done == 2
        pair._release(count - done, 6 - done, PACER, manual=False)
        pair.check()
        pair.release(9)
        pair.check()
        pair.configure(max_active=7)
        absent(pair)
        pair.release(9)
    finally:
        pacing.SLICE = before
    return pair


def rule_pacing_manual_release_outside_the_rate_inside_the_cap() -> Pair:
    pair = opened()
    crowd(pair, 6)
    pair.release(3)
    pair.check()
    pair.wait(10_000)
    pair.tick()
    pair.check()
    pair.release(3)
    stats = answering.stats(pair.room.ledger, pair.now_ms)
    assert (stats.released_manual, stats.released_automatic) == (3, 1)
    return pair


def rule_pacing_manual_release_moves_no_tick() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 6)
    pair.wait(4_000)
    pair.release(1)
    pair.admit("u6")
    pair.check()
    to_edge(pair, 6_000, pair.tick)
    return pair


def rule_pacing_pause_holds_the_tick() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 6)
    pair.wait(4_000)
    pair.pause()
    pair.wait(9_000)
    pair.tick()
    pair.check()
    pair.release(1)
    pair.resume()
    pair.check()
    to_edge(pair, 6_000, pair.tick)
    return pair


def rule_pacing_reopening_begins_an_interval() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 6)
    pair.wait(4_000)
    pair.close()
    pair.wait(20_000)
    pair.tick()
    pair.open()
    to_edge(pair, 10_000, pair.tick)
    return pair


def rule_pacing_passthrough_has_no_rate_and_a_cap() -> Pair:
    pair = opened(queueing="passthrough", max_active=5)
    crowd(pair, 6)
    pair.wait(1_000)
    pair.tick()
    pair.check()
    assert batches(pair)[-1][1] == 5
    pair.wait(1_000)
    pair.tick()
    pair.complete("u1")
    pair.wait(1_000)
    pair.tick()
    return pair


# ---- capacity -----------------------------------------------------------------------------------------


def rule_capacity_margin() -> Pair:
    pair = opened(max_active=4, safety_margin=1)
    crowd(pair, 6)
    pair.release(9)
    pair.check()
    pair.admit("u6")
    pair.redeem(1, 1, "r1")
    pair.release(9)
    pair.wait(10_000)
    pair.tick()
    return pair


def rule_capacity_counts_ready_and_active() -> Pair:
    pair = opened(max_active=2)
    crowd(pair, 5)
    pair.release(1)
    pair.redeem(1, 1, "r1")
    pair.release(9)
    pair.check()
    pair.wait(10_000)
    pair.tick()
    pair.admit("u5")
    pair.check()
    pair.leave("u1")
    pair.admit("u5")
    return pair


def rule_capacity_counts_sizes() -> Pair:
    pair = opened(max_active=5, batch_size=4)
    pair.join("u1", 101, size=2, word="enqueue")
    pair.join("u2", 102, size=2, word="enqueue")
    pair.join("u3", 103, size=3, word="enqueue")
    pair.join("u4", 104, size=1, word="enqueue")
    pair.join("u5", 105, size=6, word="enqueue")
    pair.join("u5", 106, size=5, word="enqueue")
    pair.release(9)
    pair.check()
    pair.wait(10_000)
    pair.tick()
    pair.check()
    pair.admit("u3")
    pair.admit("u4")
    pair.check()
    pair.redeem(1, 1, "r1")
    pair.complete("u1")
    pair.check()
    pair.release(9)
    pair.check()
    pair.commit()
    pair.crash()
    pair.leave("u2")
    pair.wait(17_000)
    pair.expire()
    pair.check()
    pair.release(9)
    return pair


def rule_capacity_lowering_expels_nobody() -> Pair:
    pair = opened(max_active=4)
    crowd(pair, 6)
    pair.release(4)
    pair.configure(max_active=2)
    pair.check()
    pair.release(2)
    pair.complete("u1")
    pair.release(2)
    pair.complete("u2")
    pair.complete("u3")
    pair.check()
    pair.release(9)
    return pair


def rule_capacity_stays_large_enough_for_a_group() -> Pair:
    pair = opened(max_active=4, safety_margin=1)
    pair.join("u1", 101, size=3, word="enqueue")
    pair.configure(max_active=3)
    pair.configure(safety_margin=2)
    pair.configure(max_active=5, safety_margin=2)
    pair.check()
    pair.release(1)
    pair.configure(safety_margin=3)
    pair.redeem(1, 1, "r1")
    pair.configure(safety_margin=3)
    return pair


def rule_capacity_a_group_is_not_overtaken() -> Pair:
    pair = opened(max_active=3)
    pair.join("u1", 101, size=2, word="enqueue")
    pair.join("u2", 102, size=2, word="enqueue")
    pair.join("u3", 3)
    pair.release(9)
    pair.check()
    for _ in range(3):
        pair.wait(8_000)
        pair.touch("u3")
    pair.release(9)
    return pair


def rule_pacing_a_batch_ends_where_the_event_is_paused_or_closed() -> Pair:
    for stop in (Pair.pause, Pair.close):
        pair = opened(max_active=None)
        crowd(pair, 6)
        pair.wait(10_000)
        due = pair.room.tick(pair.now_ms)
        assert pair.model.event.tick(pair.now_ms) and due == 2
        stop(pair)
        assert pair.room.release(due, PACER, pair.now_ms, manual=False).released == 0
        pair.check()
        pair.finish()
    return pair


def rule_admit_nobody_out_of_a_lobby() -> Pair:
    pair = in_lobby()
    crowd(pair, 3)
    pair.leave("u1")
    for user_id in ("u1", "u2", "u9"):
        pair.admit(user_id)
    return pair


def rule_capacity_a_full_event_steps_over_nobody() -> Pair:
    pair = opened(max_active=1)
    crowd(pair, 3)
    pair.release(1)
    for _ in range(3):
        pair.wait(5_000)
        pair.touch("u1")
        pair.touch("u3")
    pair.wait(5_000)
    pair.touch("u3")
    pair.release(1)
    pair.tick()
    pair.check()
    assert pair.model.rows[1].status == "waiting"
    pair.complete("u1")
    pair.release(1)
    pair.check()
    assert [row.status for row in pair.model.rows] == ["completed", "parked", "ready"]
    return pair


def rule_parked_head_is_overtaken_for_a_reason() -> Pair:
    pair = opened(max_active=None)
    crowd(pair, 4)
    absent(pair)
    pair.tick()
    pair.check()
    pair.touch("u1")
    pair.touch("u3")
    pair.wait(10_000)
    pair.tick()
    pair.check()
    assert answering.fairness(pair.room.ledger).overtaken == {"returned": 1, "readmitted": 0, "unexplained": 0}
    return pair


def rule_pacing_slices_are_of_one_moment_and_the_clock_goes_on() -> Pair:
    before, pacing.SLICE = pacing.SLICE, 1
    try:
        pair = opened(batch_size=3, max_active=None)
        crowd(pair, 4)

        def later() -> None:
            pair.wait(5)
            pair.tell("soon")

        pair.wait(10_000)
        pair.tick(later)
        pair.check()
        pair.commit()
        pair.crash()
        assert pair.now_ms > pair.venue.log[-2].at_ms, "the last slice is of the moment the batch was begun"
        pair.check()
    finally:
        pacing.SLICE = before
    return pair


def rule_pacing_slices_check_the_batch_again() -> Pair:
    before, pacing.SLICE = pacing.SLICE, 2
    try:
        pair = opened(batch_size=6, max_active=None, max_waiting=None)
        crowd(pair, 9)
        pair.wait(10_000)
        pair.tick(lambda: pair.configure(batch_size=3))
        pair.check()
        assert len(pair.model.line()) == 6, "what has left of a batch counts when the rest may be fewer"
        pair.wait(10_000)
        pair.tick()
        pair.check()
    finally:
        pacing.SLICE = before
    return pair
