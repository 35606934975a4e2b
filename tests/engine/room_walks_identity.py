"""Walks about identity: whose a place is, who may have one, and in what order they stand."""

from engine import answering
from engine.actor import By
from tests.engine.room_pair import Pair
from tests.engine.room_walks import SETTINGS, absent, crowd, in_lobby, opened, parked, waiting

# ---- identity -----------------------------------------------------------------------------------------


def rule_identity_spent_tokens() -> Pair:
    pair = opened()
    pair.join("u1", 101, level=3, word="enqueue")
    pair.join("u1", 101, word="enqueue")
    pair.join("u1", 102, word="enqueue")
    pair.join("u1", 101, word="enqueue")
    pair.join("u1", 55, word="site")
    pair.join("u1", 55, word="site")
    pair.join("u1", 0, word="site")
    pair.join("u1", 0, word="site")
    pair.check()
    pair.commit()
    pair.crash()
    pair.leave("u1")
    for proof in (101, 102, 55, 103):
        pair.join("u1", proof, word="enqueue")
        pair.check()
    return pair


def rule_identity_only_tokens_are_spent() -> Pair:
    pair = opened()
    for word in ("visitor", "site"):
        pair.join("u1", 5, word=word)
        pair.check()
        pair.leave("u1")
    pair.join("u1", 5, word="enqueue")
    pair.leave("u1")
    pair.join("u1", 5, word="enqueue")
    return pair


def rule_identity_signed_joins() -> Pair:
    pair = opened(join_policy="signed")
    pair.join("u1", 1)
    pair.join("u1", 1, word="site")
    pair.join("u2", 102, word="enqueue")
    pair.join("u2", 3)
    return pair


def rule_identity_transfer_and_its_retry() -> Pair:
    pair = waiting()
    pair.transfer("u1", 7)
    pair.transfer("u1", 7, older=1)
    pair.transfer("u1", 8, older=1)
    pair.transfer("u1", 0)
    pair.transfer("u1", 0, older=1)
    pair.transfer("u1", 9)
    pair.transfer("u1", 9, older=2)
    pair.join("u1", 7)
    pair.join("u1", 9)
    pair.join("u1", 1)
    for older in (1, 2):
        pair.touch("u1", older=older)
        pair.leave("u1", older=older)
    pair.check()
    return pair


def rule_identity_transfer_retry_is_a_touch() -> Pair:
    pair = parked()
    pair.transfer("u1", 7)
    pair.check()
    absent(pair)
    absent(pair)
    pair.release(1)
    pair.check()
    pair.transfer("u1", 7, older=1)
    pair.check()
    return pair


def rule_identity_nobody_elses_place() -> Pair:
    pair = waiting()
    for arrival, user_id in ((1, "u2"), (0, ""), (4, "u1"), (99, "u1")):
        row = pair.model.rows[0].__class__(arrival, user_id, 0)
        pair.touch(row)
        pair.look(row)
        pair.leave(row)
        pair.transfer(row, 3)
        pair.extend_claim(row)
    for whom in (0, 4, 99):
        pair.complete(whom)
        pair.admit(whom)
        pair.remove(whom)
    return pair


def rule_identity_ban() -> Pair:
    pair = waiting()
    pair.leave("u1")
    pair.remove("u1", ban=True)
    pair.remove("u1", ban=True)
    pair.join("u1", 1)
    pair.remove("u2", ban=True)
    pair.join("u2", 901, word="enqueue")
    pair.join("u2", 3, word="site")
    pair.commit()
    pair.crash()
    pair.join("u1", 1)
    pair.join("u2", 1)
    first = pair.model.newest("u3")
    pair.leave("u3")
    pair.join("u3", 3)
    assert first is not None
    pair.remove(first, ban=True)
    pair.join("u3", 3)
    pair.check()
    pair.leave("u3")
    pair.join("u3", 3)
    return pair


def rule_identity_full_line() -> Pair:
    pair = opened(max_waiting=3)
    crowd(pair, 3)
    pair.join("u9", 9)
    pair.join("u1", 1)
    absent(pair)
    pair.release(1)
    pair.check()
    pair.join("u9", 9)
    pair.join("u8", 8)
    pair = in_lobby(max_waiting=2)
    crowd(pair, 3)
    pair.open()
    pair.join("u9", 9)
    return pair


def rule_identity_reject_still_serves_the_line() -> Pair:
    pair = Pair(**SETTINGS | {"queueing": "reject", "lobby": True})
    pair.join("u1", 1)
    pair.lobby()
    pair.join("u1", 1)
    pair.open()
    pair.join("u1", 1)
    pair.wait(10_000)
    pair.tick()
    return pair


def rule_order_of_levels() -> Pair:
    pair = opened(max_waiting=None, max_active=None, batch_size=3)
    for number, level in enumerate((0, 0, 0, 1, 2, 9, 0, 1), 1):
        pair.join(f"u{number}", 100 + number, level=level, word="enqueue")
        pair.check()
    pair.wait(10_000)
    pair.tick()
    pair.check()
    pair.configure(priority_boost=3)
    for row in list(pair.model.rows):
        pair.leave(row)
    pair.configure(priority_boost=3)
    pair.join("u19", 119)
    pair.join("u20", 120, level=2, word="enqueue")
    pair.check()
    pair.wait(10_000)
    pair.tick()
    return pair


def rule_admissions_left_are_told_early() -> Pair:
    pair = opened(admissions_left=2)
    crowd(pair, 4)
    reasons = []
    for row in pair.model.rows:
        estimate = answering.place(pair.room.ledger, row.arrival, pair.now_ms).estimate
        reasons.append(estimate.reason if estimate else "none")
    assert [reason == "unlikely" for reason in reasons] == [False, False, True, True], reasons
    pair.release(1)
    assert answering.stats(pair.room.ledger, pair.now_ms).admissions_left == 1
    pair.configure(name="x")
    assert answering.stats(pair.room.ledger, pair.now_ms).admissions_left == 1
    pair.configure(admissions_left=5)
    assert answering.stats(pair.room.ledger, pair.now_ms).admissions_left == 5
    return pair


def rule_release_by_hand_once_for_each_key() -> Pair:
    pair = waiting()
    by = By("ops", request="k1")
    pair.room.release(2, by, pair.now_ms, manual=True)
    pair.model.release(2, pair.now_ms, manual=True)
    pair.model.wrote.clear()
    pair.commit()
    pair.crash()
    assert pair.room.released_under("k1") == 2 and pair.room.released_under("k2") == 0
    return pair
