"""The room: its tables cell by cell, and what it decides about events and about visitors."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from engine.actor import By, Entrant, Holder, Whom
from engine.records import Transferred, kind_of
from engine.room import Room
from engine.transitions import EVENT_ACTIONS, STATES, VISITOR_INPUTS
from engine.venue import Venue
from engine.views import PlacesChanged
from tests.engine import situations
from tests.engine.rooms import (
    OPERATOR,
    PACER,
    SECRET,
    WHY,
    RecordingVenue,
    control,
    holder,
    join,
    join_many,
    kinds_of,
    make_room,
    rebuilt,
    records_of,
    redeem,
    refusal,
    room_in,
    run_out,
    seen,
    status_of,
)
from tests.engine.situations import AT, Situation

T = 1_000_000
LATER = T + 10_000_000
U1 = Whom(user_id="u1")


# ---- the tables: events ------------------------------------------------------------------------------

ACTIONS: dict[str, Callable[[Room], object]] = {
    "lobby": lambda room: control(room, "lobby", WHY, LATER),
    "open": lambda room: control(room, "open", WHY, LATER),
    "pause": lambda room: control(room, "pause", By("ops", "another reason"), LATER),
    "resume": lambda room: control(room, "resume", WHY, LATER),
    "close": lambda room: control(room, "close", WHY, LATER),
    "release": lambda room: room.release(1, OPERATOR, LATER, manual=True),
    "admit": lambda room: room.admit(U1, WHY, LATER),
    "tick": lambda room: room.tick(LATER) and room.release(1, PACER, LATER, manual=False),
    "delete": lambda room: control(room, "delete", WHY, LATER),
}
WRITES = {"=": [], "held": ["configured"]}


def event_in(state: str) -> tuple[Room, RecordingVenue]:
    """Return an event with u1 in it, where there can be anybody, and an opening that may be held back."""
    if state == "draft":
        return room_in(state, {"lobby": True})
    room, venue = room_in("lobby" if state == "lobby" else "open", {"opens_at_ms": LATER, "lobby": state == "lobby"})
    join(room, "u1", T)
    for action in {"paused": ("pause",), "closed": ("close",)}.get(state, ()):
        control(room, action, WHY, T)
    return room, venue


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_does_what_the_table_says(action: str, state: str) -> None:
    room, venue = event_in(state)
    cell = EVENT_ACTIONS[action][state]
    venue.drain()
    if cell.startswith("!"):
        with refusal(*cell.split()[1:]):
            ACTIONS[action](room)
        assert kinds_of(venue) == []
        return
    ACTIONS[action](room)
    kinds = kinds_of(venue)
    assert kinds == WRITES.get(cell, [cell])
    assert cell == "deleted" or rebuilt(venue)


@pytest.mark.parametrize("state", ["open", "paused", "closed"])
def test_windows_run_out_where_the_table_says(state: str) -> None:
    situation = situations.active()
    room, now_ms = situation.room, situation.now_ms
    join(room, "u3", now_ms)
    situation.release()
    situation.wait(70)
    situation.release()
    assert [status_of(room, arrival) for arrival in (1, 2, 3)] == ["active", "ready", "parked"]
    for action in {"paused": ("pause",), "closed": ("close",)}.get(state, ()):
        control(room, action, WHY, situation.now_ms)
    situation.venue.drain()
    run_out(room, LATER)
    ended = {"all": ["expired", "expired", "lapsed"], "inside": ["expired", "lapsed"], "=": []}
    assert sorted(kinds_of(situation.venue)) == ended[EVENT_ACTIONS["windows"][state]]
    rebuilt(situation.venue)


def test_nobody_is_in_a_draft_or_a_lobby_whose_window_could_run() -> None:
    for state in ("draft", "lobby"):
        room, venue = event_in(state)
        venue.drain()
        run_out(room, LATER)
        assert (EVENT_ACTIONS["windows"][state], kinds_of(venue)) == ("=", [])


# ---- the tables: visitors ----------------------------------------------------------------------------


def do(what: str, situation: Situation) -> object:
    """Let something happen to u1 now."""
    room, now_ms = situation.room, situation.now_ms
    acts: dict[str, Callable[[], object]] = {
        "join": lambda: join(room, "u1", now_ms),
        "touch": lambda: room.touch(situation.holder, now_ms),
        "touch_hidden": lambda: room.touch(situation.holder, now_ms, visible=False),
        "redeem": lambda: redeem(room, 1, now_ms, release=max(1, situation.place.release)),
        "extend_claim": lambda: room.extend_claim(situation.holder, now_ms + 1_000),
        "extend_session": lambda: room.extend_session(U1, "site", now_ms + 1_000),
        "complete": lambda: room.complete(U1, "completed", "site", now_ms),
        "leave": lambda: room.leave(situation.holder, now_ms),
        "admit": lambda: room.admit(U1, WHY, now_ms),
        "remove": lambda: room.remove(U1, WHY, now_ms),
        "transfer": lambda: room.transfer(situation.holder, 77, now_ms),
    }
    return acts[what]()


DONE = {"=": [], "seen": [], "repeat": [], "late": ["completed"]}
OTHERWISE = {  # who comes to a status another way, so that the cell itself is what is met
    ("redeem", "waiting"): situations.returned_after_lapse,
    ("redeem", "parked"): situations.lapsed,
    ("complete", "expired"): situations.session_over,
}
CELLS = [
    (what, status)
    for what in ("join", "touch", "touch_hidden", "redeem", "extend_claim", "extend_session")
    for status in AT
    if (what, status) != ("redeem", "lobby")
] + [(what, status) for what in ("complete", "leave", "admit", "remove", "transfer") for status in AT]


@pytest.mark.parametrize(("what", "status"), CELLS)
def test_what_happens_to_a_visitor_is_what_the_table_says(what: str, status: str) -> None:
    situation = OTHERWISE.get((what, status), AT[status])()
    cell = VISITOR_INPUTS[what][status]
    situation.venue.drain()
    if cell.startswith("!"):
        with refusal(*cell.split()[1:]):
            do(what, situation)
        assert (kinds_of(situation.venue), status_of(situation.room, 1).split()[0]) == ([], status)
        return
    heard = situation.room.ledger.presence.last_seen_ms(1, situation.now_ms)
    do(what, situation)
    assert kinds_of(situation.venue) == DONE.get(cell, cell.split())
    if what.startswith("touch"):
        was_heard = situation.room.ledger.presence.last_seen_ms(1, situation.now_ms) > heard
        assert cell == "=" or was_heard or heard == situation.now_ms
        assert cell != "=" or not was_heard
    rebuilt(situation.venue)


def test_nobody_in_a_lobby_has_a_number_to_show_a_pass_for() -> None:
    with refusal("pass_expired", "unknown"):
        redeem(situations.in_lobby().room, 1, T)


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("claim_over_first", situations.ready),
        ("claim_over_again", situations.ready_again),
        ("claim_over_offline", lambda: situations.ready({"redemption": "offline"})),
        ("session_over", situations.active),
        ("grace_over", situations.parked),
    ],
)
def test_what_time_ends_is_what_the_table_says(what: str, make: Callable[[], Situation]) -> None:
    situation = make()
    cell = VISITOR_INPUTS[what][situation.place.status]
    situation.venue.drain()
    run_out(situation.room, LATER)
    ended = next(record for record in situation.venue.drain().records if getattr(record, "arrival", 0) == 1)
    assert kind_of(ended) == cell.split()[0]
    assert getattr(ended, "cause", None) == (cell.split()[1] if " " in cell else None)
    rebuilt(situation.venue)


@pytest.mark.parametrize(("what", "present"), [("reached_present", True), ("reached_absent", False)])
def test_a_release_reaches_the_present_and_parks_the_absent(what: str, present: bool) -> None:
    situation = situations.waiting()
    situation.wait(10 if present else 50)
    situation.venue.drain()
    situation.release()
    assert kinds_of(situation.venue)[0] == VISITOR_INPUTS[what]["waiting"]


# ---- who holds a place ---------------------------------------------------------------------------------


def test_joining_again_is_the_same_place_and_no_record() -> None:
    room, venue = room_in("open")
    first = join(room, "u1", T, 11)
    join(room, "u2", T, 12)
    venue.drain()
    again = join(room, "u1", T + 5, 11)
    assert (again.number, again.position, again.fresh, again.proven) == (first.number, 1, False, True)
    assert kinds_of(venue) == []


def test_an_id_alone_proves_nothing_and_is_no_presence() -> None:
    room, _ = room_in("open")
    join(room, "u1", T, 11)
    assert not join(room, "u1", T + 50_000).proven
    assert not join(room, "u1", T + 50_000, 99).proven
    join(room, "u2", T + 50_000)
    assert not join(room, "u2", T + 50_000).proven
    assert room.ledger.presence.last_seen_ms(1, T + 50_000) < T + 50_000


def test_joining_with_the_proof_of_a_parked_place_is_a_touch() -> None:
    situation = situations.parked()
    assert join(situation.room, "u1", situation.now_ms, 11).status == "waiting"


def test_the_word_of_the_shop_takes_a_place_over_and_the_old_token_only_reads() -> None:
    room, venue = room_in("open")
    old = join(room, "u1", T, 11)
    new = room.join(Entrant("u1", 22, word="site"), T + 1)
    assert (new.arrival, new.generation, new.proven, new.fresh) == (old.arrival, 1, True, False)
    assert not room.touch(holder(old), T + 2).proven
    with refusal("read_only"):
        room.leave(holder(old), T + 2)
    with refusal("read_only"):
        room.extend_claim(holder(old), T + 2)
    assert room.touch(holder(new), T + 2).proven
    assert room.join(Entrant("u1", 22, word="site"), T + 3).generation == 1
    rebuilt(venue)


def test_a_token_that_only_reads_is_no_presence_and_brings_nobody_back() -> None:
    situation = situations.parked()
    old = situation.holder
    situation.room.join(Entrant("u1", 22, word="site"), situation.now_ms)
    situation.wait(50)
    situation.release()
    assert situation.place.status == "parked"
    assert not situation.room.touch(old, situation.now_ms).proven
    assert situation.place.status == "parked"
    assert situation.room.touch(situation.holder, situation.now_ms).status == "waiting"


def test_a_transfer_makes_another_device_the_holder_and_may_be_repeated() -> None:
    room, venue = room_in("open")
    old = holder(join(room, "u1", T, 11))
    assert room.transfer(old, 22, T).generation == 1
    assert room.transfer(old, 22, T).generation == 1
    with refusal("gone", "used"):
        room.transfer(old, 33, T)
    with refusal("gone", "used"):
        room.transfer(old, 0, T)
    assert not room.touch(old, T).proven
    assert join(room, "u1", T, 22).proven and not join(room, "u1", T, 11).proven
    assert sum(isinstance(record, Transferred) for record in records_of(venue)) == 1
    again = rebuilt(venue).room("e1")
    assert again.transfer(old, 22, T).generation == 1


def test_a_transfer_from_the_first_device_is_undone_only_by_another_one() -> None:
    room, _ = room_in("open")
    first = holder(join(room, "u1", T, 11))
    room.transfer(first, 22, T)
    second = replace(first, generation=1)
    assert room.transfer(second, 11, T).generation == 2
    with refusal("gone", "used"):
        room.transfer(first, 22, T)


def test_a_place_transferred_while_ready_is_taken_over_as_it_stands() -> None:
    situation = situations.ready()
    place = situation.room.transfer(situation.holder, 22, situation.now_ms)
    assert (place.status, place.window_ms) == ("ready", 60_000)


@pytest.mark.parametrize(("arrival", "user_id"), [(1, "u2"), (3, "u1"), (0, ""), (-1, "u1"), (2**40, "u1")])
def test_a_place_that_is_not_yours_is_not_there(arrival: int, user_id: str) -> None:
    room, _ = room_in("open")
    join(room, "u1", T)
    who = Holder(arrival, user_id)
    for attempt in (
        room.held_place,
        room.touch,
        room.leave,
        room.extend_claim,
        lambda who, t: room.transfer(who, 1, t),
    ):
        with refusal("not_found"):
            attempt(who, T)


def test_leaving_twice_is_harmless_and_who_joins_again_stands_at_the_end() -> None:
    room, venue = room_in("open")
    first, _ = join_many(room, 2, T)
    venue.drain()
    room.leave(holder(first), T)
    room.leave(holder(first), T)
    assert kinds_of(venue) == ["left"]
    again = join(room, "u1", T)
    assert (again.number, again.position, again.fresh) == (3, 2, True)
    assert room.held_place(holder(first), T).status == "left"


# ---- the operator and one visitor ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "who", [Whom(user_id="x"), Whom(number=9), Whom(arrival=9), Whom(arrival=-1), Whom(arrival=0), Whom()]
)
def test_nobody_is_found_under_a_name_nobody_has(who: Whom) -> None:
    room, _ = room_in("open")
    join(room, "u1", T)
    with refusal("not_found"):
        room.find(who)


def test_admitting_stands_outside_the_rate_and_inside_the_cap() -> None:
    room, _ = room_in("open", {"max_active": 2, "safety_margin": 1})
    join_many(room, 3, T)
    with refusal("bad_request"):
        room.admit(Whom(number=3), OPERATOR, T)
    assert room.admit(Whom(number=3), WHY, T).status == "ready"
    assert room.admit(Whom(number=3), WHY, T).status == "ready"
    with refusal("at_capacity", "capacity"):
        room.admit(Whom(number=2), WHY, T)
    assert seen(room, 1, T).position == 1


def test_a_ban_is_kept_with_or_without_a_place_and_nobody_is_removed_without_a_reason() -> None:
    room, venue = room_in("open")
    join(room, "u1", T)
    with refusal("bad_request"):
        room.remove(U1, OPERATOR, T)
    assert room.remove(U1, WHY, T).cause == "removed"
    assert join(room, "u1", T).fresh
    room.remove(U1, WHY, T, ban=True)
    with refusal("banned"):
        join(room, "u1", T)
    venue.drain()
    with refusal("conflict", "ended"):
        room.remove(U1, WHY, T, ban=True)
    assert kinds_of(venue) == []
    room.leave(holder(join(room, "u2", T)), T)
    with refusal("conflict", "ended"):
        room.remove(Whom(user_id="u2"), WHY, T, ban=True)
    with refusal("banned"):
        join(room, "u2", T)
    rebuilt(venue)


def test_who_is_let_in_is_announced_and_the_serving_number_moves() -> None:
    room, venue = room_in("open", {"claim_window_s": 60})
    first, second = join_many(room, 2, T)
    venue.drain()
    room.release(1, OPERATOR, T, manual=True)
    place = seen(room, first.arrival, T)
    assert (place.status, place.position, place.estimate, place.window_ms) == ("ready", None, None, 60_000)
    assert seen(room, second.arrival, T).position == 1
    assert venue.drain().notices == [PlacesChanged("e1", (first.arrival,), "ready", venue.outbox.lsn)]
    assert room.ledger.serving_number == 1


def test_completing_again_is_harmless_and_frees_the_slot_once() -> None:
    situation = situations.active()
    for outcome in ("completed", "abandoned"):
        assert situation.room.complete(U1, outcome, "site", T).status == "completed"
    assert (situation.room.ledger.completed, situation.room.ledger.inside()) == (1, 0)


def test_a_session_that_ran_out_may_be_completed_late_and_no_other_end_may() -> None:
    situation = situations.session_over()
    assert situation.room.complete(U1, "completed", "site", situation.now_ms).status == "completed"
    for make in (situations.unclaimed, situations.left, situations.removed):
        with refusal("not_active", "ended"):
            make().room.complete(U1, "completed", "site", LATER)
    rebuilt(situation.venue)


def test_a_room_needs_nothing_but_its_arguments() -> None:
    assert isinstance(make_room(Venue()), Room) and len(SECRET) == 32
