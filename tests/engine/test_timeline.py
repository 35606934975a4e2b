"""The timeline of one visitor: every kind of record in words, and that the words agree with the room."""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import pytest

from engine import answering
from engine.actor import By, Entrant, Holder, Whom
from engine.errors import Refused
from engine.records import KINDS, Record, kind_of
from engine.room import Room
from engine.sentences import _OF_MANY, _OF_THE_EVENT, _OF_THE_PLACE, Story, sentence
from engine.timeline import ENDED, FIRST_ENTRIES, LAST_ENTRIES, Entry, Timeline
from engine.venue import Venue
from engine.views import Place

OPS = By("ops")
WHY = By("ops", "the shop asked for it")
SECRET = bytes(range(32))
WALL_MS = 1_790_000_000_000
SETTINGS: dict[str, object] = {"batch_size": 10, "batch_interval_s": 1, "opens_at_ms": None}


class Sale:
    """One event in a venue whose clock a test moves: every record that was written, and stories read back from them."""

    def __init__(self, **settings: object) -> None:
        self.venue = Venue()
        self.log: list[Record] = []
        self.now_ms = 1_000
        self.venue.start(1, self.now_ms, WALL_MS)
        self.venue.configure("sale", SETTINGS | settings, OPS, self.now_ms, replace=True)

    @property
    def room(self) -> Room:
        return self.venue.room("sale")

    @property
    def arrivals(self) -> int:
        return len(self.room.ledger.register)

    def after(self, seconds: int) -> "Sale":
        """Let time pass, with everything that ends meanwhile."""
        self.now_ms += seconds * 1000
        while self.room.expire(self.now_ms):
            pass
        return self

    def open(self) -> "Sale":
        self.room.control("open", OPS, self.now_ms, secret=SECRET)
        self.room.ledger.draw_all()
        return self

    def control(self, action: str, by: By = WHY) -> None:
        self.room.control(action, by, self.now_ms)

    def join(self, user_id: str, **more: object) -> Place:
        return self.room.join(Entrant(user_id, **more), self.now_ms)  # type: ignore[arg-type]

    def touch(self, place: Place) -> None:
        self.room.touch(Holder(place.arrival, place.user_id, 99), self.now_ms)

    def release(self, count: int = 1) -> None:
        self.room.release(count, OPS, self.now_ms, manual=False)

    def redeem(self, place: Place, request: str | None = "r-1") -> None:
        now = self.place(place)
        assert now.number is not None
        self.room.redeem(now.number, now.release, None, "jti", request, "shop", WALL_MS, self.now_ms)

    def place(self, place: Place) -> Place:
        return self.place_of(place.arrival)

    def place_of(self, arrival: int) -> Place:
        return answering.place(self.room.ledger, arrival, self.now_ms)

    def records(self) -> list[Record]:
        self.log += self.venue.drain().records
        return self.log

    def story(self, place: Place, first_lsn: int = 1) -> list[Entry]:
        timeline = Timeline(self.place(place), is_whole=first_lsn == 1)
        for lsn, record in enumerate(self.records()[first_lsn - 1 :], first_lsn):
            timeline.take(lsn, record)
        return timeline.entries()

    def words(self, place: Place, first_lsn: int = 1) -> list[str]:
        return [f"{entry.kind}: {entry.text}" for entry in self.story(place, first_lsn)]


def test_a_visitor_who_gets_in_pays_and_is_done() -> None:
    sale = Sale().open()
    place = sale.join("ada")
    sale.after(20).release()
    sale.after(30).room.extend_claim(Holder(1, "ada"), sale.now_ms)
    sale.after(10).redeem(place)
    sale.after(60).room.extend_session(Whom(user_id="ada"), "shop", sale.now_ms)
    sale.after(5).room.complete(Whom(arrival=1), "completed", "shop", sale.now_ms)
    assert sale.words(place) == [
        "joined: joined as number 1",
        "released: let in, 20 s after joining; to be claimed within 2 min",
        "extended: time to claim the turn extended by visitor: 2 min from then",
        "redeemed: pass redeemed by shop (request r-1); a session of 10 min began, 1 h at most",
        "extended: session extended by shop: 10 min from then",
        "completed: completed, as shop said",
    ]


def test_a_visitor_who_sleeps_misses_a_turn_and_loses_the_place() -> None:
    sale = Sale().open()
    place, bob = sale.join("ada"), sale.join("bob")
    for _ in range(3):
        sale.after(25).touch(bob)
    sale.release()
    sale.after(35).touch(place)
    sale.release()
    sale.after(125)
    sale.touch(place)
    sale.release()
    sale.after(125)
    later = sale.join("ada")
    assert sale.words(place) == [
        "joined: joined as number 1",
        "parked: stepped over: not heard of for 75 s (presence timeout 60 s); the place is kept for 10 min",
        "returned: came back to the own place after 35 s",
        "released: let in, 110 s after joining; to be claimed within 2 min",
        "lapsed: turn not claimed in time; one more turn after being heard of again; the place is kept for 10 min",
        "returned: came back to the own place after 0 s",
        "released: let in again, 3 min 55 s after joining; to be claimed within 2 min",
        "expired: expired: the second turn was not claimed either",
        "joined: joined again at the end, as arrival 3, once this place had ended",
    ]
    assert sale.words(later) == [
        "joined: joined as arrival 1: an earlier place of the same visitor",
        "expired: the earlier place, arrival 1, expired: the second turn was not claimed either",
        "joined: joined as number 3",
    ]


def test_a_long_silence_names_the_patience_with_hidden_tabs_too() -> None:
    sale = Sale(presence_timeout_hidden_s=70).open()
    place = sale.join("ada")
    for _ in range(4):
        sale.after(25).join(f"other at {sale.now_ms}")
    sale.release()
    assert sale.words(place)[1] == (
        "parked: stepped over: not heard of for 100 s (presence timeout 60 s, 70 s in a hidden tab); "
        "the place is kept for 10 min"
    )


def test_a_place_that_nobody_comes_back_to_and_a_session_that_runs_out() -> None:
    sale = Sale().open()
    ghost, buyer = sale.join("ghost"), sale.join("buyer")
    for _ in range(3):
        sale.after(25).touch(buyer)
    sale.release()
    sale.redeem(buyer, None)
    sale.after(600)
    sale.room.complete(Whom(arrival=2), "abandoned", "shop", sale.now_ms)
    assert sale.words(ghost)[1:] == [
        "parked: stepped over: not heard of for 75 s (presence timeout 60 s); the place is kept for 10 min",
        "expired: expired: not heard of again in time after being stepped over",
    ]
    assert sale.words(buyer)[1:] == [
        "released: let in, 75 s after joining; to be claimed within 2 min",
        "redeemed: pass redeemed by shop; a session of 10 min began, 1 h at most",
        "expired: expired: the session ran out (10 min after it began)",
        "completed: abandoned, as shop said, after the session had run out",
    ]


def test_what_operators_do_to_a_place() -> None:
    sale = Sale().open()
    press, rude, gone = sale.join("press"), sale.join("rude"), sale.join("gone")
    sale.after(8).room.admit(Whom(arrival=1), By("ops", "press"), sale.now_ms)
    sale.room.remove(Whom(user_id="rude"), By("ops", "a robot", "seen in the logs"), sale.now_ms, ban=True)
    sale.room.release(5, By("mia", "extra seats"), sale.now_ms, manual=True)
    sale.room.leave(Holder(3, "gone"), sale.now_ms)
    assert sale.words(press)[1:] == [
        "admitted: let in ahead of the others by ops, 8 s after joining; to be claimed within 2 min; why: press"
    ]
    assert sale.words(rude)[1:] == [
        "banned: banned from this event by ops: a robot",
        "removed: removed by ops: a robot",
    ]
    assert sale.words(gone)[1:] == [
        "released: let in by hand by mia, 1 at once, 8 s after joining; to be claimed within 2 min; why: extra seats",
        "left: left of their own accord, although let in",
    ]
    removed = sale.story(rude)[-1]
    assert (removed.kind, removed.actor, removed.reason, removed.at_ms) == ("removed", "ops", "a robot", 9_000)


def test_what_happens_to_the_event_is_told_while_the_place_is_held() -> None:
    sale = Sale(batch_size=100).open()
    sale.control("pause", By("ops", "before anybody came"))
    sale.control("resume")
    place = sale.join("ada")
    sale.after(1).room.configure({"batch_size": 50, "max_active": 40, "name": "Tour"}, WHY, sale.now_ms)
    sale.room.configure({"name": "Tour 2"}, OPS, sale.now_ms)
    sale.room.tell("Doors open at eight", OPS, sale.now_ms)
    sale.room.tell("", OPS, sale.now_ms)
    sale.control("pause", By("ops", "payment is down"))
    sale.after(5).control("pause", By("ops", "still down"))
    sale.after(85).control("resume")
    sale.venue.start(2, sale.now_ms, WALL_MS + 500_000, lost="records behind LSN 90")
    sale.control("close", By("ops", "sold out"))
    sale.control("open")
    sale.room.leave(Holder(1, "ada"), sale.now_ms)
    sale.control("pause", By("ops", "after the end"))
    assert sale.words(place) == [
        "joined: joined as number 1",
        "configured: settings were changed by ops: batch_size 100 → 50, max_active none → 40; "
        "why: the shop asked for it",
        "messaged: everybody in line was told: Doors open at eight",
        "messaged: the message to everybody was taken away",
        "paused: the event paused: payment is down",
        "messaged: a new reason was given for the pause: still down",
        "resumed: the event went on after 90 s; every window lasts as much longer",
        "started: the server started again: nobody's time ran while it was away, and everybody counts as present; "
        "a part of the log may be lost: records behind LSN 90",
        "closed: the event closed: sold out; nobody more is let in",
        "reopened: the event opened again, with everybody at their own place",
        "left: left of their own accord",
    ]


def test_a_pause_does_not_count_in_lengths() -> None:
    sale = Sale().open()
    sale.control("pause")
    sale.after(1_000)
    place = sale.join("ada")
    sale.room.release(1, OPS, sale.now_ms, manual=True)
    sale.after(500).control("resume")
    sale.after(10).redeem(place)
    assert sale.words(place) == [
        "joined: joined as number 1, while the event was paused: the shop asked for it",
        "released: let in by hand by ops, 1 at once, 0 s after joining; to be claimed within 2 min",
        "resumed: the event went on after 25 min; every window lasts as much longer",
        "redeemed: pass redeemed by shop (request r-1); a session of 10 min began, 1 h at most",
    ]


def test_a_redeem_that_was_assumed_and_a_place_that_moved() -> None:
    sale = Sale(redemption="offline").open()
    place = sale.join("ada", proof=7)
    sale.room.transfer(Holder(1, "ada", 0), 8, sale.now_ms)
    sale.join("ada", proof=9, word="enqueue")
    sale.release()
    sale.after(125)
    assert sale.words(place)[1:] == [
        "transferred: moved to another device, or taken over with a site key; "
        "whoever held it before only reads from here on",
        "transferred: taken over on an enqueue token; whoever held it before only reads from here on",
        "released: let in, 0 s after joining; to be claimed within 2 min",
        "redeemed: counted as entered when the turn was over (this event redeems offline); "
        "a session of 10 min began, 1 h at most",
    ]


def test_a_lobby_is_drawn_and_the_number_is_followed() -> None:
    sale = Sale(lobby=True, opens_at_ms=5_000_000)
    sale.room.control("lobby", OPS, sale.now_ms, draw_id="1-1", secret=SECRET)
    places = [sale.join(f"u{n}", level=2, size=3, word="enqueue", proof=n) for n in range(1, 41)]
    sale.room.leave(Holder(40, "u40"), sale.now_ms)
    sale.control("pause", By("ops", "not yet"))
    sale.after(30).open()
    late = sale.join("late")
    first = next(place for place in places if sale.place(place).number == 1)
    sale.after(1).release()
    assert first.arrival != 1
    assert sale.words(first) == [
        f"joined: joined the lobby as arrival {first.arrival}, priority level 2, a group that counts as 3, "
        "on an enqueue token of the shop, a number is drawn at opening",
        "configured: the opening was held back by ops: not yet",
        "opened: number 1 drawn at opening from 39",
        "released: let in, 31 s after joining; to be claimed within 2 min",
    ]
    assert sale.words(places[-1])[-1] == "left: left of their own accord"
    assert sale.words(late) == ["joined: joined as number 41"]


def test_a_number_that_is_not_written_yet_is_not_guessed() -> None:
    sale = Sale(lobby=True)
    sale.room.control("lobby", OPS, sale.now_ms, draw_id="1-1", secret=SECRET)
    place = sale.join("ada")
    sale.room.control("open", OPS, sale.now_ms, secret=SECRET)
    assert sale.place(place).number is None
    assert sale.words(place)[1:] == ["opened: numbers are being drawn at opening from 1"]


def test_a_readmitted_place_says_what_it_rests_on() -> None:
    sale = Sale().open()
    sale.venue.start(2, sale.now_ms, WALL_MS, lost="a tail")
    place = sale.room.readmit(Holder(5, "ada"), 1, WALL_MS - 1, sale.now_ms)
    assert sale.words(place) == [
        "readmitted: taken up again as number 5, on the word of its token: a part of the log was lost"
    ]


# ---- which records count --------------------------------------------------------------------------------


def test_every_kind_of_record_is_told_or_left_out_on_purpose() -> None:
    told = {*_OF_THE_EVENT, *_OF_MANY, *_OF_THE_PLACE}
    by_kind = {kind for kind, (record, _) in KINDS.items() if record not in told}
    assert by_kind == {"checkpoint", "deleted", "purged"}


def test_other_events_and_other_visitors_are_left_out() -> None:
    sale = Sale().open()
    sale.venue.configure("other", {}, OPS, sale.now_ms, replace=True)
    sale.venue.room("other").control("open", OPS, sale.now_ms)
    sale.venue.room("other").join(Entrant("ada"), sale.now_ms)
    place, _ = sale.join("ada"), sale.join("bob")
    sale.venue.room("other").control("pause", WHY, sale.now_ms)
    sale.room.remove(Whom(user_id="bob"), WHY, sale.now_ms, ban=True)
    assert sale.words(place) == ["joined: joined as number 1"]


def test_an_event_of_the_same_name_that_was_deleted_is_another() -> None:
    sale = Sale().open()
    sale.join("ada")
    sale.control("close")
    sale.venue.delete("sale", OPS, sale.now_ms)
    sale.venue.configure("sale", {}, OPS, sale.now_ms, replace=True)
    place = sale.open().join("ada")
    assert sale.words(place) == ["joined: joined as number 1"]


def test_who_was_purged_stays_forgotten() -> None:
    sale = Sale(retention_s=10).open()
    sale.join("ada")
    sale.control("close")
    sale.after(20).control("open")
    place = sale.join("ada")
    assert "purged" in [kind_of(record) for record in sale.records()]
    assert sale.words(place) == ["joined: joined as number 2"]


def test_the_clock_on_the_wall_is_that_of_the_newest_start() -> None:
    sale = Sale().open()
    place = sale.after(9).join("ada")
    sale.venue.start(2, sale.now_ms, WALL_MS + 3_600_000)
    sale.room.leave(Holder(1, "ada"), sale.now_ms)
    assert [(entry.kind, entry.at_ms, entry.wall_ms) for entry in sale.story(place)] == [
        ("joined", 10_000, WALL_MS + 9_000),
        ("started", 10_000, WALL_MS + 3_600_000),
        ("left", 10_000, WALL_MS + 3_600_000),
    ]


# ---- a log that has lost its beginning -------------------------------------------------------------------


def test_a_log_that_begins_after_the_join_says_so_first() -> None:
    sale = Sale().open()
    place = sale.join("ada")
    sale.after(1).control("pause")
    sale.after(20).control("resume")
    sale.release()
    assert sale.words(place, first_lsn=5) == [
        "pruned: earlier records are not kept any more: the log begins at LSN 5",
        "paused: the event paused: the shop asked for it",
        "resumed: the event went on after 20 s; every window lasts as much longer",
        "released: let in, 21 s after joining",
    ]
    assert sale.story(place, first_lsn=5)[0].lsn == 5


def test_a_log_that_begins_before_the_join_needs_no_such_word() -> None:
    sale = Sale().open()
    place = sale.after(3).join("ada")
    sale.release()
    assert sale.words(place, first_lsn=3) == [
        "joined: joined as number 1",
        "released: let in, 0 s after joining; to be claimed within 2 min",
    ]


def test_of_a_place_that_ended_before_the_log_begins_nothing_is_told() -> None:
    sale = Sale().open()
    place = sale.join("ada")
    sale.room.leave(Holder(1, "ada"), sale.now_ms)
    sale.control("pause")
    assert [word.split(":")[0] for word in sale.words(place, first_lsn=6)] == ["pruned"]


def test_of_very_much_the_first_and_the_newest_is_told() -> None:
    sale = Sale().open()
    place = sale.join("ada")
    many = FIRST_ENTRIES + LAST_ENTRIES + 7
    for number in range(1, many):
        sale.room.tell(f"message {number}", OPS, sale.now_ms)
    words = sale.words(place)
    assert words[FIRST_ENTRIES] == "omitted: 7 more entries are left out here"
    assert (len(words), words[-1]) == (
        FIRST_ENTRIES + LAST_ENTRIES + 1,
        f"messaged: everybody in line was told: message {many - 1}",
    )


# ---- the words agree with the room -------------------------------------------------------------------------


ACTS: Mapping[str, Callable[[Sale, Place], object]] = {
    "touch": lambda sale, place: sale.touch(place),
    "touch again": lambda sale, place: sale.touch(place),
    "release": lambda sale, place: sale.release(3),
    "redeem": lambda sale, place: sale.redeem(place, None),
    "complete": lambda sale, place: sale.room.complete(Whom(arrival=place.arrival), "completed", "shop", sale.now_ms),
    "leave": lambda sale, place: sale.room.leave(Holder(place.arrival, place.user_id, 99), sale.now_ms),
    "admit": lambda sale, place: sale.room.admit(Whom(arrival=place.arrival), WHY, sale.now_ms),
    "remove": lambda sale, place: sale.room.remove(Whom(arrival=place.arrival), WHY, sale.now_ms),
    "join": lambda sale, place: sale.join(place.user_id),
    "pause": lambda sale, place: sale.control("pause"),
    "resume": lambda sale, place: sale.control("resume"),
}


def scramble(sale: Sale, seed: int, steps: int) -> list[Place]:
    """Let a crowd do whatever it may, for a while; return every place there was."""
    chance = random.Random(seed)
    places = [sale.join(f"u{n}") for n in range(30)]
    sale.open()
    for _ in range(steps):
        sale.after(chance.choice((0, 1, 20, 70)))
        act = chance.choice([*ACTS, *["resume", "touch", "release"] * 3])
        with suppress(Refused):
            ACTS[act](sale, chance.choice(places))
        places += [sale.place_of(arrival) for arrival in range(len(places) + 1, sale.arrivals + 1)]
    return places


@pytest.mark.parametrize("seed", range(8))
def test_the_story_of_everybody_ends_where_the_room_says(seed: int) -> None:
    sale = Sale(lobby=True)
    sale.room.control("lobby", OPS, sale.now_ms, draw_id="1-1", secret=SECRET)
    for place in scramble(sale, seed, 300):
        now = sale.place(place)
        story = Story(now, is_whole=True)
        kinds = told_of(story, sale.records())
        assert story.status == ("ended" if now.status in ENDED else now.status), kinds
        assert kinds[0] == "joined" or story.earlier
        assert story.releases == now.release


def told_of(story: Story, records: Sequence[Record]) -> list[str]:
    return [kind_of(record) for record in records if sentence(story, record) is not None]
