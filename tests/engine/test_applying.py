"""Applying: replay equals live, and what cannot follow from the state is damage."""

import pytest
from msgspec.structs import replace

from engine import answering
from engine import venue as venues
from engine.actor import Entrant, Holder, Whom
from engine.applying import REQUESTS_KEPT, apply
from engine.errors import Damaged
from engine.records import (
    Admitted,
    Completed,
    Expired,
    Extended,
    Joined,
    Lapsed,
    Left,
    Opened,
    Parked,
    Readmitted,
    Record,
    Redeemed,
    Released,
    Removed,
    Returned,
    Transferred,
)
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    SECRET,
    WHY,
    control,
    facts,
    holder,
    join,
    join_many,
    rebuilt,
    redeem,
    refusal,
    reloaded,
    room_in,
    run_out,
    seen,
)

T = 1_000_000
GAP = 40


@pytest.fixture(autouse=True)
def small_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venues, "RENUMBER_GAP", GAP)


# What cannot follow where u1 (1) waits at the head, u2 (2) behind, u3 (3) left, and nobody else was here.
IMPOSSIBLE: dict[str, tuple[Record, str]] = {
    "an arrival that was due before": (Joined("e1", T, 2, 2, "u9", 0, 0, 1, False), "where 4 was due"),
    "an arrival that skips one": (Joined("e1", T, 5, 5, "u9", 0, 0, 1, False), "where 4 was due"),
    "a place that was not lost": (Readmitted("e1", T, 1, 1, "u9", 0), "was not lost"),
    "parking somebody who left": (Parked("e1", T, [3], [T]), "did not wait"),
    "coming back without having been parked": (Returned("e1", T, 1), "was not parked"),
    "releasing past the head": (Released("e1", T, [2], T, True, "ops", None, None), "not the head"),
    "releasing more than there are": (Released("e1", T, [1, 2, 3], T, True, "ops", None, None), "not the head"),
    "admitting somebody who left": (Admitted("e1", T, 3, T, "ops", "why", None), "did not wait"),
    "a lapse of somebody who was not ready": (Lapsed("e1", T, 1), "was not ready"),
    "redeeming without a turn": (Redeemed("e1", T, 1, "j", None, 0, T, T, False, "site"), "was not ready"),
    "extending where nothing runs": (Extended("e1", T, 1, T, "site"), "nothing runs"),
    "ending an end": (Left("e1", T, 3), "holds no place"),
    "expiring an end": (Expired("e1", T, 3, "absent"), "holds no place"),
    "removing an end": (Removed("e1", T, 3, "ops", "why", None), "holds no place"),
    "ending what never began": (Left("e1", T, 9), "never given out"),
    "an arrival below one": (Left("e1", T, 0), "never given out"),
    "completing late what did not expire": (Completed("e1", T, 1, "completed", True, "site"), "was not expired"),
    "transferring an end": (Transferred("e1", T, 3, 1, 5, False), "holds no place"),
    "drawing a lobby that never was": (Opened("e1", T, SECRET.hex(), None, 2, "ops", None), "never bound"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_follow_is_damage_that_names_the_event(what: str) -> None:
    room, _ = room_in("open")
    room.leave(holder(join_many(room, 3, T)[2]), T)
    record, says = IMPOSSIBLE[what]
    with pytest.raises(Damaged, match=rf"event e1: .*{says}"):
        apply(room.ledger, record)


def test_a_draw_of_another_number_than_are_there_is_damage() -> None:
    room, _ = room_in("lobby")
    join_many(room, 3, T)
    with pytest.raises(Damaged, match="3 are in the lobby, 4 were drawn"):
        apply(room.ledger, Opened("e1", T, SECRET.hex(), None, 4, "ops", None))


@pytest.mark.parametrize("make", [*situations.AT.values(), situations.session_over, situations.ready_again])
def test_every_situation_is_the_same_after_replay_and_after_a_snapshot(make: object) -> None:
    situation = make()  # type: ignore[operator]
    situation.room.ledger.check()
    rebuilt(situation.venue)
    reloaded(situation.venue)


def test_a_snapshot_and_the_records_after_it_make_the_same_room() -> None:
    situation = situations.active()
    join_many(situation.room, 5, situation.now_ms)
    venue = situation.venue
    venue.drain()
    other, at = reloaded(venue), len(venue.log)
    situation.wait(200)
    run_out(situation.room, situation.now_ms)
    situation.release(2)
    control(situation.room, "pause", WHY, situation.now_ms)
    venue.drain()
    for record in venue.log[at:]:
        other.apply(record)
    assert facts(other) == facts(venue)


def test_only_the_newest_keys_of_releases_are_kept() -> None:
    room, _ = room_in("open")
    join_many(room, REQUESTS_KEPT + 2, T)
    for index in range(REQUESTS_KEPT + 2):
        room.release(1, replace(OPERATOR, request=f"k{index}"), T, manual=True)
    assert len(room.ledger.released_under) == REQUESTS_KEPT
    assert [room.released_under(f"k{index}") for index in (0, 1, 2, REQUESTS_KEPT + 1)] == [0, 0, 1, 1]


# ---- how many are left ------------------------------------------------------------------------------------------


def test_admissions_left_count_down_from_what_was_said_and_up_again_for_turns_not_taken() -> None:
    situation = situations.ready({"admissions_left": 3})
    ledger = situation.room.ledger
    assert ledger.admissions_left() == 2
    situation.wait(70)
    situation.run_out()
    assert ledger.admissions_left() == 3
    situation.hear()
    situation.release(2)
    assert ledger.admissions_left() == 1
    redeem(situation.room, 1, situation.now_ms, release=2)
    situation.room.leave(holder(situation.place), situation.now_ms)
    assert ledger.admissions_left() == 1, "who used the pass has taken what there was"
    situation.room.leave(holder(seen(situation.room, 2, situation.now_ms)), situation.now_ms)
    assert ledger.admissions_left() == 2
    assert rebuilt(situation.venue).room("e1").ledger.admissions_left() == 2
    situation.room.configure({"admissions_left": 1}, WHY, situation.now_ms)
    assert ledger.admissions_left() == 1


# ---- a lost tail -------------------------------------------------------------------------------------------------


def lost() -> situations.Situation:
    """Three places are kept; what came after them was lost with epoch 1, and epoch 5 goes on behind a gap."""
    room, venue = room_in("open")
    join_many(room, 3, T)
    venue.start(5, T + 10, 77_000, "a backup was restored")
    return situations.Situation(room, venue, T + 10)


def lost_holder(arrival: int, user_id: str) -> Holder:
    return Holder(arrival, user_id)


def test_a_place_that_was_lost_is_taken_up_again_ahead_of_those_who_came_later() -> None:
    situation = lost()
    room, now_ms = situation.room, situation.now_ms
    late = join(room, "late", now_ms)
    assert late.number == 3 + GAP + 1
    place = room.readmit(lost_holder(4, "u4"), 1, 76_999, now_ms)
    assert (place.number, place.position, place.status, place.proven) == (4, 4, "waiting", True)
    assert seen(room, late.arrival, now_ms).position == 5
    assert room.touch(lost_holder(4, "u4"), now_ms).proven
    rebuilt(situation.venue)
    reloaded(situation.venue)


@pytest.mark.parametrize(
    ("arrival", "user_id", "epoch", "issued_ms", "code"),
    [
        (2, "u9", 1, 1, "not_found"),
        (4 + GAP, "u4", 1, 1, "not_found"),
        (0, "u4", 1, 1, "not_found"),
        (4, "u4", 5, 1, "gone"),
        (4, "u4", 1, 77_001, "gone"),
        (4, "u1", 1, 1, "gone"),
    ],
    ids=["is held", "behind the gap", "no arrival", "of this epoch", "made later", "has another place"],
)
def test_what_was_not_lost_or_is_not_theirs_is_not_taken_up(
    arrival: int, user_id: str, epoch: int, issued_ms: int, code: str
) -> None:
    situation = lost()
    with refusal(code, "lost" if code == "gone" else None):
        situation.room.readmit(lost_holder(arrival, user_id), epoch, issued_ms, situation.now_ms)
    assert seen(situation.room, 1, situation.now_ms).waiting == 3


def test_a_lost_place_is_taken_up_once_and_not_by_the_banned_or_where_all_is_over() -> None:
    situation = lost()
    room, now_ms = situation.room, situation.now_ms
    room.readmit(lost_holder(4, "u4"), 1, 1, now_ms)
    with refusal("gone", "lost"):
        room.readmit(lost_holder(4, "u5"), 1, 1, now_ms)
    room.remove(Whom(user_id="u1"), WHY, now_ms, ban=True)
    with refusal("banned"):
        room.readmit(lost_holder(5, "u1"), 1, 1, now_ms)
    control(room, "close", WHY, now_ms)
    with refusal("closed", "closed"):
        room.readmit(lost_holder(6, "u6"), 1, 1, now_ms)


def test_who_was_readmitted_late_was_overtaken_for_that_reason() -> None:
    situation = lost()
    room, now_ms = situation.room, situation.now_ms
    join(room, "late", now_ms)
    room.release(4, replace(OPERATOR, actor="pacer"), now_ms, manual=False)
    room.readmit(lost_holder(4, "u4"), 1, 1, now_ms)
    room.release(1, replace(OPERATOR, actor="pacer"), now_ms, manual=False)
    assert answering.fairness(room.ledger).overtaken == {"returned": 0, "readmitted": 1, "unexplained": 0}


def test_who_joined_anew_and_left_may_still_take_up_the_lost_place() -> None:
    situation = lost()
    room, now_ms = situation.room, situation.now_ms
    room.leave(holder(room.join(Entrant("u4"), now_ms)), now_ms)
    assert room.readmit(lost_holder(4, "u4"), 1, 1, now_ms).number == 4
    assert room.find(Whom(user_id="u4")) == 4
    for known in (rebuilt(situation.venue), reloaded(situation.venue)):
        assert known.room("e1").find(Whom(user_id="u4")) == 4
