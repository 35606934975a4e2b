"""Walks about what is kept: a lost tail of the log, snapshots, and what replay refuses."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from engine import answering
from engine.actor import By
from engine.errors import Damaged
from engine.records import Released
from tests.engine.room_pair import SMALL_GAP, Pair
from tests.engine.room_walks import crowd, in_lobby, opened, to_edge, waiting
from tests.engine.rooms import RecordingVenue


def _lost(also: Callable[[Pair], object] = lambda pair: None) -> Pair:
    """Let u4 to u6 join and be lost."""
    pair = opened(max_waiting=None)
    crowd(pair, 3)
    also(pair)
    pair.commit()
    crowd(pair, 3, first=4)
    pair.commit()
    pair.wait(5_000)
    pair.crash(-2, lost=True)
    pair.check()
    return pair


def rule_lost_places_are_readmitted_once() -> Pair:
    pair = _lost()
    pair.join("u7", 7)
    assert pair.model.rows[-1].arrival == 4 + SMALL_GAP
    for token in pair.issued[3:6]:
        pair.readmit(token)
        pair.check()
        pair.readmit(token)
    assert [row.user_id for row in pair.model.line()] == ["u1", "u2", "u3", "u4", "u5", "u6", "u7"]
    for token in pair.issued[:3]:
        pair.readmit(token)
    pair.leave("u4")
    pair.readmit(pair.issued[3])
    pair.commit()
    pair.crash()
    pair.check()
    pair.release(3)
    return pair


def rule_lost_places_of_another_epoch_or_time_are_gone() -> Pair:
    pair = _lost()
    token = pair.issued[3]
    for other in (
        token._replace(epoch=pair.epoch),
        token._replace(wall_ms=pair.wall_ms + 1),
        token._replace(holder=replace(token.holder, arrival=4 + SMALL_GAP)),
        token._replace(holder=replace(token.holder, user_id="u1")),
    ):
        pair.readmit(other)
        pair.check()
    pair.join("u4", 4)
    pair.readmit(token)
    pair.check()
    pair.leave("u4")
    pair.readmit(token)
    return pair


def rule_lost_places_where_nobody_may_be() -> Pair:
    def ban_u5(pair: Pair) -> None:
        pair.join("u5", 5)
        pair.remove("u5", ban=True)

    pair = _lost(ban_u5)
    banned = next(its for its in pair.issued if its.holder.user_id == "u4")
    pair.remove("u3", ban=True)
    pair.readmit(banned._replace(holder=replace(banned.holder, user_id="u5")))
    pair.check()
    pair.close()
    pair.readmit(banned)
    pair.check()
    pair.open()
    pair.pause()
    pair.readmit(banned)
    return pair


def rule_lost_places_in_a_lobby_are_drawn() -> Pair:
    pair = in_lobby(max_waiting=None)
    crowd(pair, 3)
    pair.commit()
    crowd(pair, 2, first=4)
    pair.commit()
    pair.crash(-2, lost=True)
    for token in pair.issued[3:]:
        pair.readmit(token)
        pair.check()
    pair.open()
    pair.finish_draw()
    pair.check()
    return pair


def rule_lost_places_readmitted_are_present() -> Pair:
    pair = _lost()
    for _ in range(3):
        pair.wait(8_000)
        pair.touch("u1")
    pair.readmit(pair.issued[3])
    pair.release(9)
    pair.check()
    assert [row.status for row in pair.model.rows] == ["ready", "parked", "parked", "ready"]
    return pair


def rule_lost_places_are_places_of_an_identity() -> Pair:
    """Who joined anew and left has a later arrival than the place that is readmitted, which counts all the same."""
    for again in (lambda pair: None, _again):
        pair = _lost()
        pair.join("u4", 4)
        pair.leave("u4")
        pair.wait(1)
        pair.readmit(pair.issued[3])
        again(pair)
        pair.join("u4", 4)
        pair.touch("u4")
        pair.release(9)
        pair.redeem(4, 1, "r1")
        pair.complete(1)
        pair.release(9)
        pair.redeem(4, 1, "r1")
        pair.check()
        pair.wait(20_000)
        pair.expire()
        again(pair)
        pair.complete("u4")
        pair.join("u4", 4)
        pair.check()
        pair.finish()
    return pair


def _again(pair: Pair) -> None:
    pair.capture()
    pair.crash()
    pair.check()


def rule_lost_places_of_two_gaps() -> Pair:
    pair = _lost()
    pair.join("u7", 7)
    pair.commit()
    pair.join("u8", 8)
    pair.commit()
    pair.crash(-2, lost=True)
    for token in (pair.issued[3], pair.issued[7]):
        pair.readmit(token._replace(epoch=2))
        pair.check()
    pair.readmit(pair.issued[3])
    pair.check()
    return pair


def rule_lost_places_are_forgotten_with_the_rest() -> Pair:
    pair = _lost()
    pair.close()
    pair.wait(100_000)
    pair.expire()
    pair.check()
    pair.open()
    pair.readmit(pair.issued[3])
    return pair


def rule_replay_asserts_that_the_head_was_released() -> Pair:
    pair = waiting()
    pair.commit()
    released = Released("e1", pair.now_ms, [2], pair.now_ms + 12_000, False, "pacer", None, None)
    other = RecordingVenue()
    for record in pair.venue.log:
        other.apply(record)
    with pytest.raises(Damaged):
        other.apply(released)
    return pair


def rule_snapshot_keeps_what_is_known() -> Pair:
    for reopen in (True, False):
        pair = opened(admissions_left=9, max_active=9, max_waiting=None)
        pair.join("u1", 101, level=1, size=2, word="enqueue")
        crowd(pair, 4, first=2)
        pair.release(2)
        pair.redeem(1, 1, "r1")
        pair.room.release(1, By("ops", request="k1"), pair.now_ms, manual=True)
        pair.model.release(1, pair.now_ms, manual=True)
        pair.model.wrote.clear()
        pair.complete("u2")
        pair.transfer("u4", 7)
        pair.remove("u5", ban=True)
        pair.tell("soon")
        _again(pair)
        pair.pause()
        pair.wait(5_000)
        pair.tell("later")
        _again(pair)
        pair.wait(3_000)
        pair.resume()
        _again(pair)
        assert pair.room.released_under("k1") == 1
        assert answering.stats(pair.room.ledger, pair.now_ms).admissions_left == 6
        pair.redeem(1, 1, "r1")
        pair.join("u6", 106, level=1, word="enqueue")
        _again(pair)
        pair.configure(priority_boost=7)
        pair.complete("u1")
        pair.join("u1", 101, word="enqueue")
        pair.join("u5", 5)
        pair.touch("u4", older=1)
        pair.release(1)
        pair.wait(1_000)
        pair.close(outcome="sold out")
        pair.wait(40_000)
        pair.expire()
        _again(pair)
        if reopen:
            pair.open()
        else:
            to_edge(pair, 50_000, pair.expire)
        pair.check()
        pair.finish()
    return pair
