"""Windows: claim window, session and grace: how they begin, get longer, stand still and end."""

import pytest

from engine import answering
from engine.actor import Whom
from engine.records import Expired, Extended, Lapsed, Purged, Redeemed, kind_of
from engine.room import Room
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    WHY,
    RecordingVenue,
    control,
    holder,
    join,
    join_many,
    kinds_of,
    rebuilt,
    records_of,
    redeem,
    refusal,
    reloaded,
    room_in,
    run_out,
    seen,
    status_of,
)
from tests.engine.situations import Situation

T = situations.START_MS
U1 = Whom(user_id="u1")


def ended(situation: Situation) -> list[object]:
    """Return what has run out now, as kinds of records."""
    situation.venue.drain()
    situation.run_out()
    return kinds_of(situation.venue)


# ---- the claim window ------------------------------------------------------------------------------------------


def test_a_turn_may_be_claimed_for_five_seconds_longer_than_it_says() -> None:
    situation = situations.ready()
    assert situation.place.window_ms == 60_000
    situation.now_ms += 64_999
    assert (ended(situation), situation.place.window_ms) == ([], 0)
    redeem(situation.room, 1, situation.now_ms)
    late = situations.ready()
    late.now_ms += 65_000
    assert ended(late) == ["lapsed"]
    with refusal("pass_expired", "lapsed"):
        redeem(late.room, 1, late.now_ms)


def test_a_turn_that_went_by_comes_once_more_at_the_own_place_and_then_no_more() -> None:
    situation = situations.lapsed()
    assert (situation.place.status, situation.room.ledger.inside()) == ("parked", 0)
    situation.hear()
    assert (situation.place.status, situation.place.position) == ("waiting", 1)
    situation.release()
    assert (situation.place.status, situation.place.release) == ("ready", 2)
    situation.wait(66)
    assert ended(situation) == ["expired"]
    assert (situation.place.status, situation.place.cause) == ("expired", "unclaimed")
    rebuilt(situation.venue)


def test_the_pass_of_the_first_turn_does_not_redeem_in_the_second() -> None:
    situation = situations.ready_again()
    with refusal("pass_expired", "lapsed"):
        redeem(situation.room, 1, situation.now_ms, release=1)
    assert redeem(situation.room, 1, situation.now_ms, release=2).status == "active"


def test_extending_a_turn_gives_a_window_from_now_on_and_never_more_than_the_limit() -> None:
    situation = situations.ready({"claim_window_s": 60, "claim_max_s": 100})
    situation.now_ms += 30_000
    place = situation.room.extend_claim(situation.holder, situation.now_ms)
    assert (place.window_ms, place.limit_ms) == (60_000, 70_000)
    situation.now_ms += 30_000
    assert situation.room.extend_claim(situation.holder, situation.now_ms).window_ms == 40_000
    situation.venue.drain()
    situation.now_ms += 10_000
    assert situation.room.extend_claim(situation.holder, situation.now_ms).window_ms == 30_000
    assert kinds_of(situation.venue) == [], "nothing more was to be had, so nothing is written"
    rebuilt(situation.venue)


def test_where_passes_are_checked_offline_a_turn_that_runs_out_is_taken_for_used() -> None:
    situation = situations.ready({"redemption": "offline"})
    situation.now_ms += 65_000
    assert ended(situation) == ["redeemed"]
    (record,) = [record for record in records_of(situation.venue) if isinstance(record, Redeemed)]
    assert (record.assumed, record.actor, record.jti) == (True, "pacer", "")
    assert situation.place.status == "active"
    rebuilt(situation.venue)


# ---- the session -----------------------------------------------------------------------------------------------


def test_a_pass_is_redeemed_once_and_its_own_retry_is_answered_the_same() -> None:
    situation = situations.ready()
    room = situation.room
    first = redeem(room, 1, T, request="k1")
    assert (first.status, first.jti, first.length_ms, first.limit_length_ms) == ("active", "jti-1-1", 100_000, 400_000)
    assert redeem(room, 1, T, request="k1") == first
    for other in ("k2", None):
        with refusal("pass_used", "active"):
            redeem(room, 1, T, request=other)
    later = redeem(room, 1, T + 40_000, request="k1")
    assert (later.began_wall_ms, later.length_ms, later.left_ms) == (first.began_wall_ms, 100_000, 60_000)
    for known in (rebuilt(situation.venue), reloaded(situation.venue)):
        assert redeem(known.room("e1"), 1, T, request="k1") == first
        with refusal("pass_used", "active"):
            redeem(known.room("e1"), 1, T, request="k2")


def test_a_pass_without_a_key_to_repeat_it_under_is_used_by_its_first_redeem() -> None:
    situation = situations.ready()
    redeem(situation.room, 1, T, request=None)
    with refusal("pass_used", "active"):
        redeem(situation.room, 1, T, request=None)


@pytest.mark.parametrize("number", [0, -1, 99, 2**32, 2**40])
def test_a_number_that_nobody_has_holds_no_pass(number: int) -> None:
    room = situations.ready().room
    with refusal("pass_expired", "unknown"):
        room.redeem(number, 1, None, "j", "k", "site", 0, T)


def test_a_pass_of_somebody_else_is_not_known_here() -> None:
    room = situations.ready().room
    with refusal("pass_expired", "unknown"):
        room.redeem(1, 1, "the subject of another", "j", "k", "site", 0, T)
    assert room.redeem(1, 1, None, "j", "k", "site", 0, T).user_id == "u1"


def test_a_pass_that_was_used_says_so_when_all_is_over() -> None:
    for make in (situations.session_over,):
        situation = make()
        with refusal("pass_used", "ended"):
            redeem(situation.room, 1, situation.now_ms)
    done = situations.active()
    done.room.complete(U1, "completed", "site", T)
    with refusal("pass_used", "ended"):
        redeem(done.room, 1, T)


def test_extending_a_session_gives_its_length_again_within_the_limit() -> None:
    situation = situations.active()
    room = situation.room
    assert room.extend_session(U1, "site", T + 50_000).left_ms == 100_000
    for seconds in range(100, 351, 50):
        room.extend_session(U1, "site", T + seconds * 1000)
    assert room.extend_session(U1, "site", T + 350_000).left_ms == 50_000
    situation.now_ms = T + 400_000
    assert ended(situation) == ["expired"]
    with refusal("gone", "expired"):
        room.extend_session(U1, "site", T + 400_000)


def test_a_session_ends_to_the_moment_and_frees_the_slot() -> None:
    situation = situations.active()
    situation.now_ms = T + 99_999
    assert ended(situation) == []
    situation.now_ms = T + 100_000
    assert ended(situation) == ["expired"]
    assert (situation.place.cause, situation.room.ledger.inside()) == ("session", 0)


def test_who_completed_is_let_see_the_confirmation_for_the_exit_grace() -> None:
    situation = situations.active()
    room = situation.room
    room.complete(U1, "completed", "site", T + 10_000)
    session = answering.session(room.ledger, 1, T + 10_000 + 299_999)
    assert session and (session.status, session.left_ms, session.jti) == ("completed", 1, "")
    assert answering.session(room.ledger, 1, T + 10_000 + 300_000) is None
    assert answering.session(situations.completed().room.ledger, 1, T) is None, "who never redeemed has no confirmation"


def test_nobody_else_has_a_session() -> None:
    for make in (situations.waiting, situations.ready, situations.parked, situations.session_over, situations.left):
        situation = make()
        assert answering.session(situation.room.ledger, 1, situation.now_ms) is None


# ---- grace -----------------------------------------------------------------------------------------------------


def test_whoever_was_stepped_over_may_come_back_until_the_grace_is_over() -> None:
    situation = situations.parked()
    situation.now_ms += 299_999
    assert "expired" not in ended(situation)
    situation.hear()
    assert situation.place.status == "waiting"
    gone = situations.parked()
    gone.now_ms += 300_000
    gone.run_out()
    assert (gone.place.status, gone.place.cause) == ("expired", "absent")
    with_no_grace = situations.lapsed()
    with_no_grace.now_ms += 300_000
    with_no_grace.run_out()
    assert with_no_grace.place.cause == "absent"


# ---- time that stands still -----------------------------------------------------------------------------------

RUNNING = {"claim": situations.ready, "session": situations.active, "grace": situations.parked}


def left_ms(room: Room, now_ms: int) -> int:
    return seen(room, 1, now_ms).window_ms or 0


@pytest.mark.parametrize("window", RUNNING)
def test_a_pause_shortens_no_window(window: str) -> None:
    situation = RUNNING[window]()
    room, now_ms = situation.room, situation.now_ms
    before = left_ms(room, now_ms)
    control(room, "pause", WHY, now_ms)
    assert left_ms(room, now_ms + 9_999_000) == before
    run_out(room, now_ms + 9_999_000)
    control(room, "resume", OPERATOR, now_ms + 9_999_000)
    assert left_ms(room, now_ms + 9_999_000) == before
    assert left_ms(room, now_ms + 10_009_000) == before - 10_000
    rebuilt(situation.venue)


def test_a_pass_is_redeemed_while_paused_and_its_session_begins_to_run_at_resume() -> None:
    situation = situations.ready()
    control(situation.room, "pause", WHY, T)
    redeem(situation.room, 1, T + 500_000)
    control(situation.room, "resume", OPERATOR, T + 900_000)
    assert left_ms(situation.room, T + 900_000) == 100_000


def test_closing_leaves_those_inside_their_time_and_lets_the_others_rest() -> None:
    situation = situations.ready()
    join(situation.room, "u3", T)
    control(situation.room, "close", WHY, T)
    assert redeem(situation.room, 1, T + 10_000).status == "active"
    run_out(situation.room, T + 200_000)
    assert [status_of(situation.room, arrival) for arrival in (1, 2, 3)] == ["expired session", "closed", "closed"]


@pytest.mark.parametrize("window", RUNNING)
def test_downtime_shortens_no_window(window: str) -> None:
    """The time of records stands still while no process runs, so a start comes at the moment of the last one."""
    situation = RUNNING[window]()
    last_ms = situation.venue.outbox.last_ms
    other = rebuilt(situation.venue)
    other.start(8, last_ms, 0)
    assert left_ms(other.room("e1"), last_ms) == left_ms(situation.room, last_ms)


# ---- forgetting -----------------------------------------------------------------------------------------------


def closed_with_somebody(retention_s: int = 1_000) -> tuple[Room, RecordingVenue]:
    room, venue = room_in("lobby", {"retention_s": retention_s, "session_ttl_s": 50})
    join(room, "u1", T, 5, word="enqueue", level=2)
    for place in join_many(room, 4, T)[1:]:
        room.transfer(holder(place), 9, T)
    control(room, "open", OPERATOR, T)
    room.release(2, OPERATOR, T, manual=True)
    redeem(room, 1, T)
    room.remove(Whom(user_id="u4"), WHY, T, ban=True)
    control(room, "close", WHY, T)
    return room, venue


def test_who_was_there_is_forgotten_when_the_retention_is_over_and_nobody_is_inside() -> None:
    room, venue = closed_with_somebody()
    run_out(room, T + 999_999)
    assert not any(isinstance(record, Purged) for record in records_of(venue))
    run_out(room, T + 1_000_000)
    assert isinstance(records_of(venue)[-1], Purged)
    kept = repr(list(venue.capture()))
    assert not any(f"'u{index}'" in kept for index in range(1, 5))
    assert sum(room.ledger.register.counts[1:]) == 0


def test_a_purge_happens_once_and_leaves_a_room_that_is_sound() -> None:
    room, venue = closed_with_somebody()
    run_out(room, T + 1_000_000)
    venue.drain()
    run_out(room, T + 9_000_000)
    assert kinds_of(venue) == []
    room.ledger.check()
    rebuilt(venue)
    reloaded(venue)


def test_nobody_is_forgotten_while_somebody_is_inside() -> None:
    room, venue = closed_with_somebody(retention_s=0)
    run_out(room, T + 1)
    assert [kind_of(record) for record in records_of(venue)][-1] == "closed"
    run_out(room, T + 130_000)
    assert isinstance(records_of(venue)[-1], Purged)


def test_after_a_purge_nobody_is_found_and_numbers_go_on() -> None:
    room, venue = closed_with_somebody()
    run_out(room, T + 1_000_000)
    for who in (Whom(user_id="u1"), Whom(number=1), Whom(arrival=1)):
        with refusal("not_found"):
            room.find(who)
    with refusal("pass_expired", "unknown"):
        room.redeem(1, 1, None, "j", "k", "site", 0, T + 1_000_000)
    control(room, "open", OPERATOR, T + 1_100_000)
    place = join(room, "u4", T + 1_100_000)
    assert (place.number, place.position) == (5, 1)
    rebuilt(venue)


def test_records_of_ends_carry_who_and_why() -> None:
    situation = situations.unclaimed()
    kinds = [record for record in records_of(situation.venue) if isinstance(record, Lapsed | Expired | Extended)]
    assert [type(record).__name__ for record in kinds] == ["Lapsed", "Expired"]
