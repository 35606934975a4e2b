"""Walks about presence and time: who is there, what runs out when, and what stands still."""

from engine.records import Parked
from tests.engine.room_pair import Pair
from tests.engine.room_walks import SETTINGS, absent, active, crowd, in_lobby, opened, parked, ready, to_edge, waiting

# ---- presence -----------------------------------------------------------------------------------------


def _heard_for(pair: Pair, *silences_ms: int) -> None:
    for ms in silences_ms:
        pair.wait(ms)
        pair.touch("u2")


def rule_presence_edge() -> Pair:
    for last_ms in (7_999, 8_000):
        pair = waiting()
        _heard_for(pair, 8_000, last_ms)
        pair.release(1)
        pair.check()
        assert pair.model.rows[0].status == "ready"
    pair = waiting()
    _heard_for(pair, *[1_000] * 16)
    pair.release(1)
    assert pair.model.rows[0].status == "ready"
    pair = waiting()
    _heard_for(pair, 8_000, 8_000, 1)
    pair.release(1)
    assert [row.status for row in pair.model.rows] == ["parked", "ready", "waiting"]
    return pair


def rule_presence_of_a_hidden_tab() -> Pair:
    for more_ms in (0, 1):
        pair = waiting()
        pair.touch("u1", visible=False)
        _heard_for(pair, *[8_000] * 5, more_ms)
        pair.release(1)
        pair.check()
        assert pair.model.rows[0].status == ("parked" if more_ms else "ready")
    pair = waiting()
    pair.touch("u1", visible=False)
    pair.touch("u1")
    _heard_for(pair, *[8_000] * 3)
    pair.release(1)
    assert pair.model.rows[0].status == "parked"
    return pair


def rule_presence_stands_still_while_nobody_is_heard() -> Pair:
    pair = waiting()
    pair.wait(500_000)
    pair.release(1)
    pair.check()
    pair.touch("u3")
    pair.wait(500_000)
    pair.touch("u3")
    pair.release(1)
    pair.check()
    assert [row.status for row in pair.model.rows] == ["ready", "ready", "waiting"]
    return pair


def rule_presence_of_a_new_join_and_of_a_proven_one() -> Pair:
    pair = waiting()
    _heard_for(pair, 8_000, 8_000)
    pair.join("u1", 1)
    pair.join("u3")
    pair.join("u4", 4)
    _heard_for(pair, 8_000)
    pair.release(9)
    pair.check()
    assert [row.status for row in pair.model.rows] == ["ready", "ready", "parked", "ready"]
    return pair


def rule_presence_is_not_what_an_old_token_shows() -> Pair:
    pair = waiting()
    pair.transfer("u1", 7)
    _heard_for(pair, 8_000, 8_000)
    pair.touch("u1", older=1)
    _heard_for(pair, 8_000)
    pair.release(1)
    assert pair.model.rows[0].status == "parked"
    pair.touch("u1", older=1)
    pair.check()
    return pair


def rule_presence_is_fresh_after_start_opening_and_reopening() -> Pair:
    pair = waiting()
    absent(pair)
    pair.commit()
    pair.crash()
    pair.release(1)
    pair.check()
    absent(pair)
    pair.close()
    pair.open()
    pair.release(1)
    pair.check()
    pair = in_lobby()
    crowd(pair, 3)
    absent(pair)
    pair.open()
    pair.release(2)
    pair.check()
    return pair


def rule_presence_when_parked_says_when_somebody_was_seen() -> Pair:
    pair = waiting()
    pair.wait(3_000)
    pair.touch("u1")
    absent(pair)
    pair.wait(2_000)
    pair.release(1)
    (record,) = [its for its in pair.venue.outbox.records if isinstance(its, Parked)]
    assert 4_000 <= record.last_seen_ms[0] <= 6_000, record
    return pair


def rule_parked_returns_to_the_head() -> Pair:
    pair = parked()
    pair.touch("u1", visible=False)
    pair.check()
    pair.touch("u1")
    pair.check()
    assert pair.model.line()[0].user_id == "u1"
    pair.release(1)
    return pair


# ---- windows ------------------------------------------------------------------------------------------


def rule_claim_window_and_leeway() -> Pair:
    pair = ready()
    to_edge(pair, 17_000, pair.expire)
    assert pair.model.rows[0].status == "parked"
    pair.redeem(1, 1, "r1")
    pair.touch("u1")
    pair.redeem(1, 1, "r1")
    pair.release(1)
    pair.redeem(1, 1, "r1")
    pair.check()
    to_edge(pair, 17_000, pair.expire)
    assert (pair.model.rows[0].status, pair.model.rows[0].cause) == ("expired", "unclaimed")
    pair.redeem(1, 2, "r1")
    return pair


def rule_claim_window_of_the_admitted() -> Pair:
    pair = waiting()
    pair.admit("u3")
    pair.wait(8_000)
    pair.extend_claim("u3")
    to_edge(pair, 17_000, pair.expire)
    return pair


def rule_claim_extended_up_to_a_limit() -> Pair:
    pair = ready()
    pair.extend_claim("u1")
    for _ in range(5):
        pair.wait(6_000)
        pair.extend_claim("u1")
        pair.check()
    to_edge(pair, 5_000, pair.expire)
    return pair


def rule_claim_of_the_extended_ends_after_that_of_others() -> Pair:
    pair = waiting()
    pair.release(2)
    pair.wait(6_000)
    pair.extend_claim("u1")
    pair.capture()
    pair.crash()
    to_edge(pair, 11_000, pair.expire)
    assert [row.status for row in pair.model.rows] == ["ready", "parked", "waiting"]
    return pair


def rule_claim_offline() -> Pair:
    pair = opened(redemption="offline")
    crowd(pair, 3)
    pair.release(2)
    pair.redeem(2, 1, "r1")
    to_edge(pair, 17_000, pair.expire)
    assert pair.model.rows[0].status == "active"
    pair.redeem(1, 1, "r1")
    pair.check()
    to_edge(pair, 19_998, pair.expire)
    assert pair.model.rows[0].status == "expired"
    return pair


def rule_session_and_its_limit() -> Pair:
    pair = active()
    pair.extend_session("u1")
    for _ in range(4):
        pair.wait(15_000)
        pair.expire()
        pair.extend_session("u1")
        pair.check()
    assert pair.model.rows[0].status == "expired"
    pair.complete("u1")
    pair.check()
    pair.wait(2_000)
    pair.check()
    pair.wait(12_000)
    pair.check()
    pair = active()
    to_edge(pair, 20_000, pair.expire)
    return pair


def rule_session_keeps_the_limits_it_began_with() -> Pair:
    pair = active()
    pair.configure(session_max_s=100, session_ttl_s=60, claim_max_s=90)
    pair.extend_session("u1")
    pair.check()
    pair.redeem(1, 1, "r1")
    pair.check()
    pair.release(1)
    return pair


def rule_exit_grace_after_completing() -> Pair:
    pair = active()
    pair.complete("u1")
    to_edge(pair, 12_000)
    pair = ready()
    pair.complete("u1")
    pair.check()
    return pair


def rule_grace_of_the_parked() -> Pair:
    pair = parked()
    pair.wait(3_000)
    pair.touch("u1", visible=False)
    to_edge(pair, 22_000, pair.expire)
    assert (pair.model.rows[0].status, pair.model.rows[0].cause) == ("expired", "absent")
    return pair


def rule_grace_begins_anew_after_restart_and_reopening() -> Pair:
    pair = parked()
    pair.wait(20_000)
    pair.tell("soon")
    pair.commit()
    pair.crash()
    to_edge(pair, 25_000, pair.expire)
    pair = parked()
    pair.wait(20_000)
    pair.close()
    pair.wait(20_000)
    pair.expire()
    pair.check()
    pair.open()
    to_edge(pair, 25_000, pair.expire)
    return pair


def rule_windows_stand_still_under_a_pause() -> Pair:
    for make, length_ms in ((parked, 25_000), (ready, 17_000), (active, 20_000)):
        pair = make()
        pair.wait(1_000)
        pair.pause()
        pair.wait(100_000)
        pair.expire()
        pair.extend_claim("u1")
        pair.check()
        pair.resume()
        pair.check()
        to_edge(pair, length_ms - 1_000, pair.expire)
    return pair


def rule_windows_stand_still_while_down() -> Pair:
    for make, length_ms in ((ready, 17_000), (active, 20_000)):
        pair = make()
        pair.wait(1_000)
        pair.tell("soon")
        pair.commit()
        pair.wait(100_000)
        pair.crash()
        pair.check()
        to_edge(pair, length_ms - 1_000, pair.expire)
    return pair


def rule_windows_of_those_inside_run_out_after_closing() -> Pair:
    for make, length_ms in ((ready, 17_000), (active, 20_000)):
        pair = make()
        pair.pause()
        pair.wait(5_000)
        pair.close()
        pair.wait(1_000)
        to_edge(pair, length_ms - 1_000, pair.expire)
        pair.wait(60_000)
        pair.expire()
    return pair


def rule_purge_after_retention() -> Pair:
    pair = active()
    pair.remove("u3", ban=True)
    pair.pause()
    pair.wait(5_000)
    pair.close()
    to_edge(pair, 90_000, pair.expire)
    pair.check()
    assert not pair.model.rows
    for user_id in ("u1", "u9"):
        pair.touch(user_id)
        pair.complete(user_id)
    pair.open()
    pair.join("u3", 3)
    pair.check()
    return pair


def rule_purge_waits_for_those_inside() -> Pair:
    pair = opened(session_ttl_s=200, session_max_s=200)
    crowd(pair, 2)
    pair.release(1)
    pair.redeem(1, 1, "r1")
    pair.close()
    pair.wait(150_000)
    pair.expire()
    pair.check()
    pair.delete(SETTINGS)
    pair.complete("u1")
    pair.expire()
    pair.check()
    pair.delete(SETTINGS)
    return pair


def rule_windows_overdue_are_not_run_under_a_pause() -> Pair:
    for make, wait_ms in ((ready, 17_000), (active, 20_000), (parked, 25_000)):
        pair = make()
        pair.wait(wait_ms)
        pair.pause()
        pair.expire()
        pair.check()
        pair.redeem(1, 1, "r1")
        pair.check()
        pair.resume()
        pair.expire()
        pair.check()
        pair.finish()
    return pair


def rule_presence_a_start_or_reopening_is_no_silence() -> Pair:
    def reopen(pair: Pair) -> None:
        pair.close(outcome="sold out")
        pair.check()
        pair.open()

    def restart(pair: Pair) -> None:
        pair.tell("soon")
        pair.commit()
        pair.crash()

    for begin in (reopen, restart):
        pair = waiting()
        pair.touch("u1", visible=False)
        pair.wait(8_000)
        begin(pair)
        pair.check()
        _heard_for(pair, 0, 8_000, 8_000)
        pair.release(1)
        pair.check()
        assert pair.model.rows[0].status == "ready"
        _heard_for(pair, 1)
        pair.release(1)
        pair.finish()
    pair = waiting()
    pair.touch("u1", visible=False)
    reopen(pair)
    _heard_for(pair, 8_000, 8_000, 1)
    pair.release(1)
    pair.check()
    assert pair.model.rows[0].status == "parked"
    return pair


def rule_purge_of_no_event_that_is_not_closed() -> Pair:
    pair = waiting()
    pair.wait(95_000)
    pair.expire()
    pair.check()
    pair.pause()
    pair.expire()
    return pair
